//! The engine's thread with the echo engine inside.

use schemas::registry::{EchoCost, Lane};

use super::super::echo::Echo;
use super::super::{Goal, SamplingParams};
use super::*;

fn engine(batch: usize, cost: EchoCost) -> EngineHandle {
    lingering(batch, cost, Linger::default())
}

fn lingering(batch: usize, cost: EchoCost, linger: Linger) -> EngineHandle {
    let echo = Box::new(Echo::new(batch, EchoCost { faults: true, ..cost }));
    spawn(echo, Weights::default(), linger, Traces::default())
}

fn slow(milliseconds: u64) -> EchoCost {
    EchoCost { step_milliseconds: milliseconds, ..EchoCost::default() }
}

fn place(lane: Lane) -> Place {
    Place { lane, tenant: "t".into() }
}

fn work(sequences: Vec<Sequence>) -> Work {
    Work { sequences, place: place(Lane::Default), followed: watch::Sender::default(), trace: None }
}

fn embed(tokens: &[u32]) -> Work {
    work(tokens.iter().map(|&token| Sequence::new(vec![token], Goal::Embed)).collect())
}

fn say(prompt: &str) -> Work {
    let params = SamplingParams { temperature: 0.0, max_tokens: 100, ..SamplingParams::default() };
    work(vec![Sequence::new(prompt.bytes().map(u32::from).collect(), Goal::Generate(params))])
}

#[tokio::test]
async fn outputs_come_in_the_order_of_their_sequences() {
    let handle = engine(2, EchoCost::default());
    let together = handle.run(embed(&[1, 2, 3, 4, 5])).await.unwrap().outputs;
    for (index, token) in (1..=5).enumerate() {
        assert_eq!(handle.run(embed(&[token])).await.unwrap().outputs[0], together[index]);
    }
    assert_eq!(handle.run(work(Vec::new())).await.unwrap().outputs, []);
}

#[tokio::test]
async fn a_lingering_engine_waits_for_a_batch_but_not_longer_than_for_enough() {
    let long = Duration::from_secs(600);
    let handle = lingering(16, EchoCost::default(), Linger { time: long, enough: 3 });
    let later = |milliseconds| {
        let handle = &handle;
        async move {
            tokio::time::sleep(Duration::from_millis(milliseconds)).await;
            handle.run(embed(&[1])).await.unwrap();
        }
    };
    // Each costs 1: the third is enough, and all three are one step.
    tokio::join!(later(0), later(20), later(40));
    assert_eq!(handle.steps(), 1);
    let short = Linger { time: Duration::from_millis(20), enough: u64::MAX };
    lingering(16, EchoCost::default(), short).run(embed(&[1])).await.unwrap();
}

#[tokio::test]
async fn one_bad_job_fails_alone_and_its_neighbours_are_answered() {
    for (fault, says) in [("!panic!", "panic: the prompt asked"), ("!error!", "asked for an error")] {
        let handle = engine(16, slow(5));
        // The first holds the engine up, so that all others are in one batch.
        let first = handle.run(say("first"));
        let jobs = (0..16).map(|number| if number == 11 { say(fault) } else { say("good") });
        let others = futures::future::join_all(jobs.map(|job| handle.run(job)));
        let (first, others) = tokio::join!(first, others);
        assert!(first.is_ok());
        for (number, answer) in others.into_iter().enumerate() {
            match answer {
                Err(EngineError::Failed { reason, is_alone: true }) if number == 11 => assert!(reason.contains(says)),
                answer => assert!(number != 11 && answer.is_ok(), "{number}: {answer:?}"),
            }
        }
        // 16 jobs are halved four times: far fewer steps than one for each.
        assert!(handle.steps() <= 9, "{} steps", handle.steps());
    }
}

#[tokio::test]
async fn a_generation_that_was_interrupted_by_a_bad_neighbour_makes_no_token_twice() {
    let handle = engine(4, EchoCost { step_milliseconds: 2, step_tokens: 3, ..EchoCost::default() });
    let text = "a text of several steps";
    let good = say(text);
    let followed = good.followed.subscribe();
    let running = tokio::spawn({
        let handle = handle.clone();
        async move { handle.run(good).await }
    });
    let mut started = followed.clone();
    started.wait_for(|followed| followed.total > 3).await.unwrap();
    assert!(handle.run(say("!panic!")).await.is_err());
    assert!(running.await.unwrap().is_ok());
    let made: String = followed.borrow().answers[0].tokens.iter().map(|&token| char::from(token as u8)).collect();
    assert_eq!(made, text);
}

#[tokio::test]
async fn a_job_that_runs_alone_is_noted_before_it_begins_and_has_no_neighbours() {
    let handle = engine(8, slow(20));
    let other = handle.run(say("other"));
    let alone = handle.run_alone(say("!panic!"), async { Some(()) });
    let after = handle.run(say("after"));
    let (other, alone, after) = tokio::join!(other, alone, after);
    assert!(matches!(alone, Err(EngineError::Failed { is_alone: true, .. })));
    assert!(other.is_ok() && after.is_ok());
    assert_eq!(handle.run_alone(say("!panic!"), async { None }).await, Err(EngineError::Stopped), "it was run");
    assert!(handle.run(say("next")).await.is_ok());
}

#[tokio::test]
async fn a_waiting_priority_job_starts_before_any_default_one_that_has_not() {
    let handle = engine(1, slow(10));
    let order = std::sync::Mutex::new(Vec::new());
    let run = async |name: &'static str, lane| {
        let job = Work { place: place(lane), ..say(name) };
        handle.run(job).await.unwrap();
        order.lock().unwrap().push(name);
    };
    // Handed over in this order; the first is in its step before the others arrive or not, which changes nothing.
    tokio::join!(
        run("d1", Lane::Default),
        run("d2", Lane::Default),
        run("d3", Lane::Default),
        run("p1", Lane::Priority),
        run("p2", Lane::Priority)
    );
    let order = order.into_inner().unwrap();
    let place_of = |name| order.iter().position(|&done| done == name).unwrap();
    assert!(place_of("p1") < place_of("d2") && place_of("p2") < place_of("d2"), "{order:?}");
}

#[tokio::test]
async fn a_dropped_future_takes_its_sequences_out() {
    let handle = engine(1, slow(20));
    let long = handle.run(embed(&[1; 1000]));
    assert!(tokio::time::timeout(Duration::from_millis(50), long).await.is_err());
    let before = handle.steps();
    handle.run(embed(&[2])).await.unwrap();
    assert!(handle.steps() - before < 100, "the 1000 sequences were still computed");
}

#[tokio::test]
async fn many_jobs_share_the_engine() {
    let handle = engine(7, EchoCost::default());
    let jobs = (0..500_u32).map(|token| handle.run(embed(&[token, token + 1])));
    let outputs = futures::future::join_all(jobs).await;
    assert!(outputs.iter().all(|done| done.as_ref().is_ok_and(|done| done.outputs.len() == 2)));
}

#[tokio::test]
async fn a_hanging_step_is_seen_and_its_job_can_be_given_up() {
    let handle = engine(1, EchoCost::default());
    let stopped = handle.stopped();
    let watch = async {
        while handle.stepping().is_none_or(|stepping| stepping < Duration::from_millis(30)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stopped.cancel();
    };
    let (answer, ()) = tokio::join!(handle.run(say("!hang!")), watch);
    assert_eq!(answer, Err(EngineError::Stopped));
}

#[tokio::test]
async fn the_thread_ends_with_its_last_handle() {
    let handle = engine(1, EchoCost::default());
    let stopped = handle.stopped();
    drop(handle);
    tokio::time::timeout(Duration::from_secs(5), stopped.cancelled()).await.unwrap();
}
