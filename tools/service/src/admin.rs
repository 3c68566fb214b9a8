//! The second port, for whoever runs the service: `GET /metrics`, `GET /health`, `POST /reload`.

use crate::service::{Failure, Service};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use cowbell::pool::{OPENMETRICS_MEDIA_TYPE, Pool};
use std::sync::Arc;
use tokio::task::spawn_blocking;

pub fn routes(service: Arc<Service>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/health", get(health))
        .route("/reload", post(reload))
        .with_state(service)
}

async fn metrics(State(service): State<Arc<Service>>) -> Response {
    let type_ = [(header::CONTENT_TYPE, OPENMETRICS_MEDIA_TYPE)];
    told(move || service.ask(Pool::openmetrics).ok_or("draining")?.map_err(Into::into))
        .await
        .map_or_else(IntoResponse::into_response, |text| (type_, text).into_response())
}

/// Healthy: not draining, and the zygote answers.
async fn health(State(service): State<Arc<Service>>) -> Result<String, (StatusCode, String)> {
    let workers = told(move || service.ask(Pool::worker_stats).ok_or("draining")?.map_err(Into::into)).await?;
    Ok(format!("{} workers\n", workers.len()))
}

async fn reload(State(service): State<Arc<Service>>) -> Result<String, (StatusCode, String)> {
    let generation = told(move || service.reload()).await?;
    Ok(format!("generation {generation}\n"))
}

/// Asks what may take a while in a thread that may wait.
async fn told<A: Send + 'static>(
    question: impl FnOnce() -> Result<A, Failure> + Send + 'static,
) -> Result<A, (StatusCode, String)> {
    let answer = spawn_blocking(question).await.unwrap_or_else(|panic| Err(panic.into()));
    answer.map_err(|e| (StatusCode::SERVICE_UNAVAILABLE, format!("{e}\n")))
}
