//! The service's requests and answers. Nothing here knows that there are other workers.

use crate::data::{Package, Packages};
use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Json;
use axum::routing::get;
use serde::Serialize;

#[derive(Serialize)]
struct Answer {
    name: &'static str,
    version: &'static str,
    generation: u64,
    dependencies: Vec<Dependency>,
}

#[derive(Serialize)]
struct Dependency {
    name: &'static str,
    version: &'static str,
}

/// Answers `GET /packages/NAME`. Frozen data is `'static`, so handlers borrow from it.
pub fn routes(packages: &'static Packages) -> Router {
    Router::new().route("/packages/{name}", get(package)).with_state(packages)
}

async fn package(
    State(packages): State<&'static Packages>,
    Path(name): Path<String>,
) -> Result<Json<Answer>, StatusCode> {
    let package = packages.find(&name).ok_or(StatusCode::NOT_FOUND)?;
    let dependency = |package: &'static Package| Dependency { name: package.name, version: package.version };
    Ok(Json(Answer {
        name: package.name,
        version: package.version,
        generation: packages.generation,
        dependencies: packages.dependencies(package).map(dependency).collect(),
    }))
}
