//! Dead letters on the dashboard: the newest, what one asked if the operator wants that shown, and sending it again.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use futures::TryStreamExt;
use schemas::subject::Token;
use serde_json::{Value, json};

use crate::dead::{Filter, Letter, Replayed};
use crate::gateway::Gateway;
use crate::gateway::caller::Caller;
use crate::gateway::error::{ApiError, ApiResult};
use crate::gateway::jobs::job_id;

/// Letters that are shown: the newest.
const SHOWN: usize = 100;

pub async fn list(State(gateway): State<Arc<Gateway>>, caller: Caller) -> ApiResult<Json<Value>> {
    caller.as_operator()?;
    let mut letters = std::pin::pin!(gateway.client.dead_letters(Filter::default()).await?);
    let mut newest = VecDeque::new();
    while let Some(letter) = letters.try_next().await? {
        if newest.len() == SHOWN {
            newest.pop_front();
        }
        newest.push_back(letter);
    }
    let data: Vec<&Letter> = newest.iter().rev().collect();
    Ok(Json(json!({ "object": "list", "data": data, "show_payloads": gateway.options.show_payloads })))
}

pub async fn show(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    Path((tenant, id)): Path<(String, String)>,
) -> ApiResult<Json<Value>> {
    caller.as_operator()?;
    if !gateway.options.show_payloads {
        return Err(ApiError::forbidden("payloads are not shown; start the gateway with --show-payloads"));
    }
    let letter = gateway.letter(&tenant, &id).await?;
    let open = gateway.client.open(&letter).await?;
    Ok(Json(json!({ "letter": letter, "body": open.body, "log": open.log, "history": open.history })))
}

pub async fn replay(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    Path((tenant, id)): Path<(String, String)>,
) -> ApiResult<Json<Value>> {
    caller.as_operator()?;
    let letter = gateway.letter(&tenant, &id).await?;
    let refused = |error: anyhow::Error| ApiError::invalid("not_replayed", "", format!("{error:#}"));
    let replayed = match gateway.client.replay(&letter).await.map_err(refused)? {
        Replayed::Queued { .. } => "queued",
        Replayed::Answered => "answered",
    };
    Ok(Json(json!({ "id": id, "replayed": replayed })))
}

pub async fn delete(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    Path((tenant, id)): Path<(String, String)>,
) -> ApiResult<Json<Value>> {
    caller.as_operator()?;
    let letter = gateway.letter(&tenant, &id).await?;
    gateway.client.delete_dead(&letter).await?;
    Ok(Json(json!({ "id": id, "deleted": true })))
}

impl Gateway {
    async fn letter(&self, tenant: &str, id: &str) -> ApiResult<Letter> {
        let wrong = |error| ApiError::invalid("invalid_value", "tenant", format!("{tenant:?} {error}"));
        let filter = Filter {
            tenant: Some(Token::encode(tenant).map_err(wrong)?),
            job_ids: vec![job_id(id)?],
            ..Default::default()
        };
        let mut letters = std::pin::pin!(self.client.dead_letters(filter).await?);
        letters.try_next().await?.ok_or_else(|| ApiError::not_found("dead letter", id))
    }
}
