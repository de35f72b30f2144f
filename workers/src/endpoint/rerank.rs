//! `/v1/rerank`.

use schemas::codec::decode_body;
use schemas::log::Usage;
use schemas::registry::Model;
use schemas::rerank::{Document, Ranked, RerankRequest, RerankResponse};
use serde_json::Value;

use super::inputs::{Length, check_inputs, empty};
use super::{Answer, Body, Plan, Reject, Stamp, misshapen};
use crate::engine::text::Text;
use crate::engine::{Goal, Output, Scale, Sequence};

/// How documents are ranked, and what is said of them.
#[derive(Debug)]
pub struct Ranking {
    scale: Scale,
    top: usize,
    /// The texts, where they are wanted back.
    documents: Option<Vec<String>>,
}

pub fn prepare(body: &Value, model: &Model, text: &Text) -> Result<Plan, Reject> {
    let request: RerankRequest = decode_body(body).map_err(misshapen)?;
    let documents = request.documents.0;
    check_inputs(documents.len(), "body.documents", &model.limits)?;
    if request.top_n == Some(0) {
        return Err(Reject::value("body.top_n", "0 is not a number of documents"));
    }
    if request.query.is_empty() {
        return Err(empty("body.query"));
    }
    let length = Length::new(request.truncate_prompt_tokens, text)?;
    let query = text.pair(&request.query).map_err(|error| Reject::value("body.query", error))?;
    // Of the document there shall be something left.
    length.check(text.pair_tokens(&query) + 1, "body.query")?;
    let mut sequences = Vec::with_capacity(documents.len());
    for (index, document) in documents.iter().enumerate() {
        let param = format!("body.documents[{index}]");
        if document.is_empty() {
            return Err(empty(&param));
        }
        let encoded = text.encode_pair(&query, document, length.cut.then_some(length.max));
        let (tokens, pair_at) = encoded.map_err(|error| Reject::value(&param, error))?;
        length.check(tokens.len(), &param)?;
        sequences.push(Sequence { pair_at, ..Sequence::new(tokens, Goal::Score) });
    }
    let ranking = Ranking {
        scale: text.classes().expect("models of this endpoint have classes").scale,
        top: request.top_n.unwrap_or(documents.len()),
        documents: (request.return_documents == Some(true)).then_some(documents),
    };
    Ok((sequences, Answer::Rerank(ranking)).into())
}

pub fn body(ranking: &Ranking, outputs: Vec<Output>, stamp: Stamp<'_>) -> (Body, Usage) {
    let usage = stamp.usage();
    let score = |output: &Output| ranking.scale.apply(&output.scores()[..1])[0];
    let mut scores: Vec<(usize, f32)> = outputs.iter().map(score).enumerate().collect();
    scores.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    scores.truncate(ranking.top);
    let text = |index: usize| ranking.documents.as_ref().map(|documents| Document { text: documents[index].clone() });
    let ranked = |(index, relevance_score): (usize, f32)| Ranked { index, document: text(index), relevance_score };
    let response = RerankResponse {
        id: format!("rerank-{}", stamp.job_id),
        model: stamp.model.to_owned(),
        results: scores.into_iter().map(ranked).collect(),
        usage,
    };
    (Body::Rerank(response), usage)
}
