//! NATS servers as they are really run: alone, as a cluster, restarted, behind TLS and passwords.

mod access;
mod settings;

use std::process::{Command, Stdio};

use producer::SubmitError;
use schemas::codec::Encoding;
use schemas::stream::{JOBS, RESULTS};

use crate::support::{Cluster, Deployment, chat, content, echo_registry, eventually, program, submission};

/// Small sizes, since each node of a cluster reserves them; the registry's last table.
pub const SMALL: &str = "[storage]\njobs_bytes = 67108864\nresults_bytes = 67108864\nlogs_bytes = 67108864\n\
                     blobs_bytes = 67108864\nfiles_bytes = 67108864\n";

/// Publishes so many jobs, one after the other, whatever happens to the server meanwhile, and gives their ids.
async fn publish(deployment: &Deployment, count: usize) -> Result<Vec<String>, SubmitError> {
    let mut ids = Vec::new();
    for number in 0..count {
        let job = submission(&chat(&number.to_string()), Encoding::Json);
        // A second try of a publish whose answer was lost finds its first, which is a success as well.
        deployment.client.submit(&job).await?;
        ids.push(job.address.job_id.to_string());
    }
    Ok(ids)
}

async fn check_answered_once(deployment: &Deployment, ids: &[String]) {
    for (number, id) in ids.iter().enumerate() {
        assert_eq!(content(&deployment.result(id).await.1), number.to_string());
    }
    eventually("the queue is empty", async || (deployment.count(JOBS).await.0 == 0).then_some(())).await;
    assert_eq!(deployment.count(RESULTS).await, (ids.len() as u64, ids.len() as u64), "one result for each job");
}

#[tokio::test]
async fn a_cluster_loses_no_job_with_the_leader_of_the_queue() {
    let cluster = Cluster::start().await;
    let registry = echo_registry(20, "ack_wait_seconds = 5") + SMALL + "replicas = 3\n";
    let deployment = Deployment::on(&cluster.urls(), &registry).await;
    let jobs = deployment.stream(JOBS).await.cached_info().clone();
    assert_eq!((jobs.config.num_replicas, jobs.cluster.unwrap().replicas.len()), (3, 2));
    let _worker = deployment.worker("echo").await;
    let _other = deployment.worker("echo").await;
    let kill_the_leader = async {
        eventually("results are there", async || (deployment.count(RESULTS).await.0 > 50).then_some(())).await;
        let leader = cluster.leader(&deployment.client.connection.jetstream, JOBS).await;
        cluster.kill(leader);
        leader
    };
    let (ids, lost) = tokio::join!(publish(&deployment, 400), kill_the_leader);
    let ids = ids.expect("producers wait through the election");
    check_answered_once(&deployment, &ids).await;
    cluster.restart(lost).await;
    eventually("the node that came back has caught up", async || {
        let replicas = deployment.stream(JOBS).await.cached_info().cluster.clone()?.replicas;
        replicas.iter().all(|replica| replica.current && !replica.offline).then_some(())
    })
    .await;
}

#[tokio::test]
async fn workers_and_waiting_commands_outlive_a_restart_of_the_server() {
    let registry = echo_registry(3_000, "ack_wait_seconds = 5");
    let (deployment, _worker) = Deployment::with_worker(&registry).await;
    let mut command = Command::new(program("inferq"));
    command.args(["submit", "--model", "echo", "--message", "hi", "--wait", "--server", &deployment.server.url]);
    let mut waiting = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    eventually("the job runs", async || (deployment.in_flight().await == 1).then_some(())).await;
    for signal in ["-KILL", "-TERM"] {
        deployment.server.end(signal);
        deployment.server.restart();
    }
    let status = eventually("the result has come", async || waiting.try_wait().unwrap()).await;
    assert!(status.success());
    let result: serde_json::Value = serde_json::from_reader(waiting.stdout.take().unwrap()).unwrap();
    assert_eq!(content(&result), "hi");
    let ids = publish(&deployment, 1).await.expect("the connection has come back");
    assert_eq!(content(&deployment.result(&ids[0]).await.1), "0");
}
