//! `/v1/models`: what the job stream takes.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use schemars::JsonSchema;
use schemas::result::ErrorObject;
use serde::Serialize;

use super::Gateway;
use super::caller::Caller;
use super::error::{ApiError, ApiResult};

#[derive(Debug, Serialize, JsonSchema)]
pub struct ModelObject {
    id: String,
    object: &'static str,
    /// When it was registered is not kept.
    created: i64,
    owned_by: &'static str,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct ModelList {
    object: &'static str,
    data: Vec<ModelObject>,
}

pub async fn list(State(gateway): State<Arc<Gateway>>, _: Caller) -> ApiResult<Json<ModelList>> {
    let data = names(&gateway).await?.into_iter().map(model).collect();
    Ok(Json(ModelList { object: "list", data }))
}

pub async fn retrieve(
    State(gateway): State<Arc<Gateway>>,
    _: Caller,
    Path(name): Path<String>,
) -> ApiResult<Json<ModelObject>> {
    match names(&gateway).await?.contains(&name) {
        true => Ok(Json(model(name))),
        false => {
            let message = format!("the model {name:?} does not exist; GET /v1/models lists all");
            let error = ErrorObject::invalid("model_not_found", Some("model".to_owned()), message);
            Err(ApiError::new(axum::http::StatusCode::NOT_FOUND, error))
        }
    }
}

async fn names(gateway: &Gateway) -> ApiResult<BTreeSet<String>> {
    Ok(gateway.client.registered().await?.into_iter().map(|(model, _)| model).collect())
}

fn model(id: String) -> ModelObject {
    ModelObject { id, object: "model", created: 0, owned_by: "inferq" }
}
