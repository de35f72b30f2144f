//! `/v1/classify`.

use schemas::classify::{Classification, ClassifyRequest, ClassifyResponse};
use schemas::codec::decode_body;
use schemas::log::Usage;
use schemas::registry::Model;
use serde_json::Value;

use super::inputs::{Length, tokens_of_all};
use super::{Answer, Body, Plan, Reject, Stamp, misshapen};
use crate::engine::text::Text;
use crate::engine::{Classes, Goal, Output, Scale, Sequence};

pub fn prepare(body: &Value, model: &Model, text: &Text) -> Result<Plan, Reject> {
    let request: ClassifyRequest = decode_body(body).map_err(misshapen)?;
    let length = Length::new(request.truncate_prompt_tokens, text)?;
    let tokens = tokens_of_all(&request.input, "", length, &model.limits, text)?;
    let sequences = tokens.into_iter().map(|tokens| Sequence::new(tokens, Goal::Score)).collect();
    let Classes { labels, scale } = text.classes().expect("models of this endpoint have classes").clone();
    let scale = if request.use_activation == Some(false) { Scale::Identity } else { scale };
    Ok((sequences, Answer::Classify(Classes { labels, scale })).into())
}

pub fn body(classes: &Classes, outputs: Vec<Output>, stamp: Stamp<'_>) -> (Body, Usage) {
    let usage = stamp.usage();
    let response = ClassifyResponse {
        id: format!("classify-{}", stamp.job_id),
        object: "list".to_owned(),
        created: stamp.created,
        model: stamp.model.to_owned(),
        data: outputs
            .iter()
            .enumerate()
            .map(|(index, output)| classification(index, output.scores(), classes))
            .collect(),
        usage,
    };
    (Body::Classify(response), usage)
}

fn classification(index: usize, scores: &[f32], classes: &Classes) -> Classification {
    let probs = classes.scale.apply(scores);
    let best = (0..probs.len()).max_by(|&a, &b| probs[a].total_cmp(&probs[b]).then(b.cmp(&a)));
    let label = best.map_or(String::new(), |best| classes.labels[best].clone());
    Classification { index, label, num_classes: probs.len(), probs }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_label_is_the_first_of_the_highest() {
        let classes = Classes { labels: ["a", "b", "c"].map(str::to_owned).into(), scale: Scale::Identity };
        assert_eq!(
            classification(3, &[1.0, 2.0, 2.0], &classes),
            Classification { index: 3, label: "b".to_owned(), probs: vec![1.0, 2.0, 2.0], num_classes: 3 }
        );
    }
}
