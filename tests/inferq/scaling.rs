//! From no worker to several and back, by the numbers of the rendered ScaledObject and a real server's monitoring.
//!
//! KEDA and the HorizontalPodAutoscaler are played by what they are known to compute; the pods are real workers.

mod autoscaler;
mod lag;
mod platform;
mod rule;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use async_nats::jetstream::stream::Stream;
use schemas::codec::Encoding;
use schemas::provenance::Provenance;
use schemas::stream::{JOBS, RESULTS};
use serde_json::json;
use tokio::sync::watch;

use crate::support::{Cluster, Deployment, eventually, provenance, root};
use crate::topology::SMALL;
use platform::{FACTOR, Platform};
use rule::Rule;

/// The model whose ScaledObject is followed.
const MODEL: &str = "all-MiniLM-L6-v2";

/// The jobs of one run, and what has become of them.
struct Load<'a> {
    deployment: &'a Deployment,
    results: Stream,
    sent: usize,
    /// How each was made, by its job's id. A second result of a job would be a second message.
    answers: BTreeMap<String, Provenance>,
    first_job: Option<Instant>,
    first_answer: Option<Instant>,
}

impl<'a> Load<'a> {
    async fn on(deployment: &'a Deployment) -> Self {
        let results = deployment.stream(RESULTS).await;
        Self { deployment, results, sent: 0, answers: BTreeMap::new(), first_job: None, first_answer: None }
    }

    /// Keeps so many jobs unanswered until the condition holds. Whatever the machine can do, the lag is known.
    async fn hold(&mut self, unanswered: usize, what: &str, until: impl Fn(&Self) -> bool) {
        eventually(what, async || {
            self.read().await;
            while self.sent < self.answers.len() + unanswered {
                self.submit().await;
            }
            until(self).then_some(())
        })
        .await;
    }

    async fn submit(&mut self) {
        self.sent += 1;
        // No two are alike: the second would be answered from the cache.
        let input = format!("{} {}", self.sent, "what a worker reads before it answers ".repeat(10));
        let job = json!({ "url": "/v1/embeddings", "body": { "model": MODEL, "input": input } });
        self.first_job.get_or_insert_with(Instant::now);
        self.deployment.submit(&job, Encoding::Json).await;
    }

    /// Reads the results that are new.
    async fn read(&mut self) {
        while let Ok(message) = self.results.direct_get(self.answers.len() as u64 + 1).await {
            self.first_answer.get_or_insert_with(Instant::now);
            let job_id = message.subject.rsplit('.').next().unwrap().to_owned();
            assert_eq!(message.headers.get(schemas::header::STATUS).unwrap().as_str(), "200");
            let before = self.answers.insert(job_id, provenance(&message.headers));
            assert!(before.is_none(), "a job was answered twice");
        }
    }

    fn workers(&self) -> usize {
        self.answers.values().map(|made| made.worker.as_str()).collect::<BTreeSet<_>>().len()
    }

    fn attempts_max(&self) -> u32 {
        self.answers.values().map(|made| made.attempt).max().unwrap()
    }
}

/// One job, then enough for `most` workers, then for `fewer`, then none; `meanwhile` happens with most of them there.
async fn up_and_down(load: &mut Load<'_>, replicas: watch::Receiver<usize>, most: usize, meanwhile: impl Future) {
    let threshold = usize::try_from(Rule::of(MODEL).0.triggers[0].metadata.lag_threshold).unwrap();
    // In the middle between two numbers: a lag is a little more or less than what is held.
    let enough_for = |workers: usize| workers * threshold - threshold / 2;
    let fewer = most - 2;
    load.hold(1, "one job starts a worker, which answers", |load| load.answers.len() > 1).await;
    load.hold(enough_for(most), "a long queue starts more, and all answer", |load| {
        *replicas.borrow() >= most && load.workers() >= most
    })
    .await;
    let is_over = Cell::new(false);
    let still_enough = load.hold(enough_for(most), "what happens meanwhile is over", |_| is_over.get());
    tokio::join!(still_enough, async {
        meanwhile.await;
        is_over.set(true);
    });
    load.hold(enough_for(fewer), "some go when less is to be done", |_| *replicas.borrow() <= fewer).await;
    load.hold(0, "all is answered", |load| load.answers.len() == load.sent).await;
    eventually("the last one goes", async || (*replicas.borrow() == 0).then_some(())).await;
}

async fn check(load: &mut Load<'_>, platform: &mut Platform<'_>, most: usize) {
    let pods = platform.ended().await;
    load.read().await;
    assert_eq!(load.answers.len(), load.sent, "every job is answered");
    assert_eq!(load.deployment.count(RESULTS).await, (load.sent as u64, load.sent as u64), "once");
    assert_eq!(load.deployment.count(JOBS).await.0, 0);
    let peak = platform.history.iter().map(|(_, replicas, _)| *replicas).max().unwrap();
    assert!((most..=platform.replicas_max()).contains(&peak), "{:?}", platform.history);
    let went_under_load = platform.history.windows(2).any(|pair| pair[1].1 < pair[0].1 && pair[1].2 > 0);
    assert!(went_under_load, "{:?}", platform.history);
    report(load, platform, pods).await;
}

/// What `make scale-test` shows.
async fn report(load: &Load<'_>, platform: &Platform<'_>, pods: usize) {
    let stream = load.deployment.stream(JOBS).await;
    let consumer = stream.consumer_info(format!("{MODEL}_default")).await.unwrap();
    let (first_job, first_pod) = (load.first_job.unwrap(), platform.history[0].0);
    println!("the platform's clock runs {FACTOR} times as fast\nplatform seconds  workers  lag");
    for (at, replicas, lag) in &platform.history {
        println!("{:16.1}  {replicas:7}  {lag:3}", platform.seconds(*at));
    }
    println!(
        "first job to first pod:    {:.1} s of the platform's clock",
        platform.seconds(first_pod) - platform.seconds(first_job)
    );
    println!("first pod to first answer: {:.2} s", (load.first_answer.unwrap() - first_pod).as_secs_f64());
    println!(
        "{} jobs, each answered once by {} of {pods} workers; deliveries {}, largest attempt {}",
        load.sent,
        load.workers(),
        consumer.delivered.consumer_sequence,
        load.attempts_max(),
    );
}

#[tokio::test]
async fn workers_of_a_real_model_follow_the_queue_from_none_to_none() {
    let registry = std::fs::read_to_string(root().join("workers/models.toml")).unwrap();
    let deployment = Deployment::new(&registry).await;
    let mut load = Load::on(&deployment).await;
    let mut platform = Platform::new(&deployment, &[deployment.server.monitor().to_owned()]);
    let replicas = platform.replicas();
    tokio::select! {
        () = platform.run() => unreachable!("scales until it is dropped"),
        () = up_and_down(&mut load, replicas, 4, async {}) => {}
    }
    check(&mut load, &mut platform, 4).await;
    assert_eq!(load.attempts_max(), 1, "no job was cut off");
}

/// An engine that only waits, so that there can be many workers; under the model's name, since that is whose rule is
/// followed.
#[tokio::test]
async fn workers_follow_the_queue_of_a_cluster_whose_leader_changes() {
    let cluster = Cluster::start().await;
    let model = format!("[[models]]\nname = {MODEL:?}\ntask = \"echo\"\necho = {{ step_milliseconds = 1000 }}\n");
    let registry = model + "[models.limits]\nbatch = 16\nack_wait_seconds = 5\n" + SMALL + "replicas = 3\n";
    let deployment = Deployment::on(&cluster.urls(), &registry).await;
    let mut load = Load::on(&deployment).await;
    let mut platform = Platform::new(&deployment, &cluster.monitors());
    let replicas = platform.replicas();
    let consumer = format!("{MODEL}_default");
    let change_leader = async {
        let connection = &deployment.client.connection;
        let jobs = deployment.stream(JOBS).await;
        let leader = async || jobs.consumer_info(&consumer).await.ok()?.cluster?.leader;
        let before = leader().await.unwrap();
        let subject = format!("CONSUMER.LEADER.STEPDOWN.{JOBS}.{consumer}");
        let _: serde_json::Value = connection.jetstream.request(subject, &()).await.unwrap();
        eventually("another node leads the consumer", async || leader().await.filter(|now| *now != before)).await;
    };
    tokio::select! {
        () = platform.run() => unreachable!("scales until it is dropped"),
        () = up_and_down(&mut load, replicas, 6, change_leader) => {}
    }
    check(&mut load, &mut platform, 6).await;
}
