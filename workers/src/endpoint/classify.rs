//! `/v1/classify`.

use schemas::classify::{Classification, ClassifyRequest, ClassifyResponse};
use schemas::codec::decode_body;
use schemas::input::{MediaInput, TextOrTokens};
use schemas::log::Usage;
use schemas::registry::Model;
use serde_json::Value;

use super::inputs::{Length, sequences_of_all};
use super::{Answer, Body, Plan, Reject, Stamp, misshapen};
use crate::engine::text::Text;
use crate::engine::{Classes, Goal, OTHER_OUTPUT, Output, Scale, Similarity};

/// What is said of an image with a class, as OpenAI's own examples do.
const TEMPLATE: &str = "This is a photo of {}.";

/// Classes that a job names.
#[derive(Debug)]
pub struct ZeroShot {
    labels: Vec<String>,
    similarity: Similarity,
    /// Whether scores are wanted rather than probabilities.
    is_raw: bool,
}

pub fn prepare(body: &Value, model: &Model, text: &Text) -> Result<Plan, Reject> {
    let request: ClassifyRequest = decode_body(body).map_err(misshapen)?;
    let length = Length::new(request.truncate_prompt_tokens, text)?;
    if let Some(sight) = text.sight() {
        return prepare_zero_shot(&request, length, sight.similarity, model, text);
    }
    for (name, is_given) in [
        ("candidate_labels", request.candidate_labels.is_some()),
        ("hypothesis_template", request.hypothesis_template.is_some()),
    ] {
        if is_given {
            return Err(Reject::value(&format!("body.{name}"), "this model has classes of its own"));
        }
    }
    let sequences = sequences_of_all(&request.input, &Goal::Score, "", length, &model.limits, text)?;
    let Classes { labels, scale } = text.classes().expect("models of this endpoint have classes").clone();
    let scale = if request.use_activation == Some(false) { Scale::Identity } else { scale };
    Ok((sequences, Answer::Classify(Classes { labels, scale })).into())
}

/// Classes that the job names: the inputs are compared with what is said of each.
fn prepare_zero_shot(
    request: &ClassifyRequest,
    length: Length,
    similarity: Similarity,
    model: &Model,
    text: &Text,
) -> Result<Plan, Reject> {
    const PARAM: &str = "body.candidate_labels";
    let labels = request.candidate_labels.clone().unwrap_or_default();
    if labels.is_empty() || labels.iter().any(String::is_empty) {
        return Err(Reject::value(PARAM, "is missing or has an empty one; this model is told its classes"));
    }
    let template = request.hypothesis_template.as_deref().unwrap_or(TEMPLATE);
    if !template.contains("{}") {
        return Err(Reject::value("body.hypothesis_template", "has no {} where a class is to stand"));
    }
    let told =
        MediaInput::Plain(TextOrTokens::Texts(labels.iter().map(|label| template.replace("{}", label)).collect()));
    let of = |input, limits| sequences_of_all(input, &Goal::Embed, "", length, limits, text);
    let mut sequences = of(&told, &model.limits).map_err(|mut reject| {
        // It is not the input's mistake.
        let texts = std::iter::once(&mut reject.error.message).chain(&mut reject.error.param);
        texts.for_each(|text| *text = text.replace("body.input", PARAM));
        reject
    })?;
    sequences.extend(of(&request.input, &model.limits)?);
    let is_raw = request.use_activation == Some(false);
    Ok((sequences, Answer::ZeroShot(ZeroShot { labels, similarity, is_raw })).into())
}

impl ZeroShot {
    /// The probability of each class, from the vectors of the classes and of an input.
    fn probs(&self, classes: &[Vec<f32>], input: &[f32]) -> Vec<f32> {
        let Similarity { scale, bias, is_sigmoid } = self.similarity;
        let near = |class: &Vec<f32>| class.iter().zip(input).map(|(a, b)| a * b).sum::<f32>() * scale + bias;
        let scores: Vec<f32> = classes.iter().map(near).collect();
        match (self.is_raw, is_sigmoid) {
            (true, _) => scores,
            (false, true) => scores.iter().map(|score| 1.0 / (1.0 + (-score).exp())).collect(),
            (false, false) => Scale::Softmax.apply(&scores),
        }
    }
}

/// The answer of classes that the job named, whose vectors come first.
pub fn zero_shot_body(zero_shot: &ZeroShot, outputs: Vec<Output>, stamp: Stamp<'_>) -> (Body, Usage) {
    let vector = |output| match output {
        Output::Embedding(vector) => vector,
        Output::Scores(_) | Output::Completion { .. } | Output::Transcript(_) => unreachable!("{OTHER_OUTPUT}"),
    };
    let mut classes: Vec<Vec<f32>> = outputs.into_iter().map(vector).collect();
    let inputs = classes.split_off(zero_shot.labels.len());
    let of = |(index, input): (usize, &Vec<f32>)| labelled(index, zero_shot.probs(&classes, input), &zero_shot.labels);
    answer(inputs.iter().enumerate().map(of).collect(), stamp)
}

pub fn body(classes: &Classes, outputs: Vec<Output>, stamp: Stamp<'_>) -> (Body, Usage) {
    let of = |(index, output): (usize, &Output)| classification(index, output.scores(), classes);
    answer(outputs.iter().enumerate().map(of).collect(), stamp)
}

fn answer(data: Vec<Classification>, stamp: Stamp<'_>) -> (Body, Usage) {
    let usage = stamp.usage();
    let response = ClassifyResponse {
        id: format!("classify-{}", stamp.job_id),
        object: "list".to_owned(),
        created: stamp.created,
        model: stamp.model.to_owned(),
        data,
        usage,
    };
    (Body::Classify(response), usage)
}

fn classification(index: usize, scores: &[f32], classes: &Classes) -> Classification {
    labelled(index, classes.scale.apply(scores), &classes.labels)
}

fn labelled(index: usize, probs: Vec<f32>, labels: &[String]) -> Classification {
    let best = (0..probs.len()).max_by(|&a, &b| probs[a].total_cmp(&probs[b]).then(b.cmp(&a)));
    let label = best.map_or(String::new(), |best| labels[best].clone());
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
