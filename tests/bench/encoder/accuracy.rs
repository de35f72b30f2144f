//! How far int8 is from f32 on real texts, and whether it finds the same.
//!
//! Texts are what a package documents of its functions, each with the summary in front of it: the summary is the query
//! that should find the text.

use crate::engines::{F32, INT8, Ours, Peer, model_folder};
use crate::environment::Environment;
use crate::report::{Report, Row};
use crate::work::Work;

const TEXTS: usize = 1000;
const QUERIES: usize = 500;
const TOP: usize = 10;

type Vectors = Vec<Vec<f32>>;

/// What one engine made of them.
struct Made {
    texts: Vectors,
    queries: Vectors,
}

pub fn run(report: &mut Report) {
    let (environment, folder) = (Environment::prepare(), model_folder());
    let texts = environment.texts(TEXTS);
    let mut ours = Ours::load(&folder, "f32");
    let tokens = |text: &String| {
        let mut tokens = ours.text.encode(text).unwrap();
        ours.text.truncate(&mut tokens, ours.text.prompt_tokens_max());
        tokens
    };
    let queries: Vec<Vec<u32>> = texts.iter().take(QUERIES).map(|[summary, _]| tokens(summary)).collect();
    let texts: Vec<Vec<u32>> = texts.iter().map(|[_, text]| tokens(text)).collect();
    let exact = Made { texts: ours.run(&texts), queries: ours.run(&queries) };
    let mut quantized = Ours::load(&folder, "int8");
    let near = Made { texts: quantized.run(&texts), queries: quantized.run(&queries) };
    let peer = |name| {
        let mut peer = Peer::start(&environment, name, &folder);
        let mut run =
            |sequences: &[Vec<u32>]| peer.run(&Work { vectors: true, ..Work::new(sequences.to_vec()) }).vectors;
        Made { texts: run(&texts), queries: run(&queries) }
    };
    let (peer_exact, peer_near) = (peer(F32[1]), peer(INT8[0]));
    let (ours, theirs) = (apart(&exact, &near), apart(&peer_exact, &peer_near));
    for (metric, ours, theirs) in [
        ("mean cosine to f32", ours.mean, theirs.mean),
        ("worst cosine to f32", ours.worst, theirs.worst),
        ("same first of f32 %", ours.same_first, theirs.same_first),
        ("same ten of f32 %", ours.same_ten, theirs.same_ten),
        ("found by summary %", found(&near), found(&peer_near)),
    ] {
        report.add(Row::higher("int8 accuracy", metric, ours).beside(INT8[0], theirs));
    }
    report.add(Row::higher("f32 accuracy", "found by summary %", found(&exact)).beside(F32[1], found(&peer_exact)));
    let worst = exact.texts.iter().zip(&peer_exact.texts).map(|(a, b)| dot(a, b)).fold(1.0, f64::min);
    report.add(Row::higher("f32 accuracy", "worst cosine to peer", worst).beside(F32[1], 1.0));
}

struct Apart {
    mean: f64,
    worst: f64,
    same_first: f64,
    same_ten: f64,
}

fn apart(exact: &Made, near: &Made) -> Apart {
    let cosines: Vec<f64> = exact.texts.iter().zip(&near.texts).map(|(a, b)| dot(a, b)).collect();
    let (mut first, mut ten) = (0, 0);
    for (a, b) in exact.queries.iter().zip(&near.queries) {
        let (a, b) = (nearest(a, &exact.texts), nearest(b, &near.texts));
        first += usize::from(a[0] == b[0]);
        ten += b.iter().filter(|index| a.contains(index)).count();
    }
    Apart {
        mean: cosines.iter().sum::<f64>() / cosines.len() as f64,
        worst: cosines.iter().copied().fold(1.0, f64::min),
        same_first: percent(first, exact.queries.len()),
        same_ten: percent(ten, exact.queries.len() * TOP),
    }
}

/// How many summaries find their text first.
fn found(made: &Made) -> f64 {
    let queries = made.queries.iter().enumerate();
    percent(queries.filter(|(index, query)| nearest(query, &made.texts)[0] == *index).count(), made.queries.len())
}

fn nearest(query: &[f32], texts: &Vectors) -> Vec<usize> {
    let mut scores: Vec<(usize, f64)> = texts.iter().map(|text| dot(query, text)).enumerate().collect();
    scores.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    scores.into_iter().take(TOP).map(|(index, _)| index).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

fn percent(part: usize, whole: usize) -> f64 {
    100.0 * part as f64 / whole as f64
}
