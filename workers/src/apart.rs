//! Long work on a thread of its own: the runtime has one for all deliveries, and none of them may hold up the others.

/// Runs it and waits. A panic goes on here, as if it had run here.
pub async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
