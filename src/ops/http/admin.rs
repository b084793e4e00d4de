//! The changes that an operator can make by HTTP: members of the cluster, its leader, and whether
//! this instance serves. `POST /api/v1/cluster/<action>` with a JSON object; the answer is a JSON
//! object with a sentence for people under `done`, or under `error`.
//!
//! Which requests may be made, [`super::gate`] decides. A request must also say that it is JSON,
//! which no web page can make a visitor's browser do unasked.

use axum::{
    Json, Router,
    extract::{FromRequest, State, rejection::JsonRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};

use super::{HttpSources, fresh};
use crate::{
    cluster::admin::{Change, ChangeError},
    ops::api::{AnyMember, NewMember, Nothing, OneMember, Sentence},
};

pub(super) fn routes() -> Router<HttpSources> {
    Router::new()
        .route("/api/v1/cluster/add", post(add))
        .route("/api/v1/cluster/drain", post(drain))
        .route("/api/v1/cluster/promote", post(promote))
        .route("/api/v1/cluster/remove", post(remove))
        .route("/api/v1/cluster/transfer-leader", post(transfer_leader))
        .route("/api/v1/cluster/upgrade", post(upgrade))
}

/// The body of a request. An error in it is answered as all errors are.
pub(super) struct Wish<T>(pub(super) T);

impl<T> FromRequest<HttpSources> for Wish<T>
where
    Json<T>: FromRequest<HttpSources, Rejection = JsonRejection>,
{
    type Rejection = Response;

    async fn from_request(
        request: axum::extract::Request,
        sources: &HttpSources,
    ) -> Result<Self, Response> {
        let body = Json::from_request(request, sources).await;
        let body = body.map_err(|error| answer(error.status(), Err(error.body_text())))?;
        Ok(Self(body.0))
    }
}

async fn add(
    State(sources): State<HttpSources>,
    Wish(NewMember { id, address }): Wish<NewMember>,
) -> Response {
    match address.parse() {
        Ok(member) => change(&sources, Change::Add { instance: id, member }).await,
        Err(why) => answer(StatusCode::CONFLICT, Err(why.to_string())),
    }
}

async fn drain(State(sources): State<HttpSources>, Wish(Nothing {}): Wish<Nothing>) -> Response {
    let done = sources.backend.drain().await;
    tracing::info!(outcome = done, "an operator drains this instance");
    answer(StatusCode::OK, Ok(done))
}

async fn promote(
    State(sources): State<HttpSources>,
    Wish(OneMember { id }): Wish<OneMember>,
) -> Response {
    change(&sources, Change::Promote(id)).await
}

async fn remove(
    State(sources): State<HttpSources>,
    Wish(OneMember { id }): Wish<OneMember>,
) -> Response {
    change(&sources, Change::Remove(id)).await
}

async fn transfer_leader(
    State(sources): State<HttpSources>,
    Wish(AnyMember { id }): Wish<AnyMember>,
) -> Response {
    change(&sources, Change::TransferLeader(id)).await
}

async fn upgrade(State(sources): State<HttpSources>, Wish(Nothing {}): Wish<Nothing>) -> Response {
    change(&sources, Change::Upgrade).await
}

async fn change(sources: &HttpSources, change: Change) -> Response {
    let outcome = sources.backend.change(change.clone()).await;
    tracing::info!(?change, ?outcome, "an operator changes the cluster");
    let status = match &outcome {
        Ok(_) => StatusCode::OK,
        Err(ChangeError::Refused(_)) => StatusCode::CONFLICT,
        Err(ChangeError::NoLeader | ChangeError::NoMajority(_)) => StatusCode::SERVICE_UNAVAILABLE,
        Err(ChangeError::Unknown(_)) => StatusCode::GATEWAY_TIMEOUT,
    };
    answer(status, outcome.map_err(|error| error.to_string()))
}

/// Answers an operator.
pub(super) fn answer(status: StatusCode, sentence: Result<String, String>) -> Response {
    let sentence = sentence.map_or_else(Sentence::Error, Sentence::Done);
    fresh((status, Json(sentence)).into_response())
}
