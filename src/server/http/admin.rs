//! What an operator can have changed by HTTP: members of the cluster, its leader, and whether this
//! instance serves. `POST /api/v1/cluster/<action>` with a JSON object; the answer is a JSON object
//! with a sentence for people under `done`, or under `error`.
//!
//! Which requests may be made, [`super::gate`] decides. A request must also say that it is JSON,
//! which no web page can make a visitor's browser do unasked.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{FromRequest, State, rejection::JsonRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::{HttpSources, fresh};
use crate::ids::InstanceId;

/// What an operator wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Take an instance into the cluster as a learner, or change where it is reached.
    Add {
        /// Its number.
        id: InstanceId,
        /// `HOST:PORT` of its raft listener.
        address: String,
    },
    /// Leave service: no new clients, no leadership. It goes on replicating until it is stopped.
    Drain,
    /// Let a learner vote.
    Promote(InstanceId),
    /// Take an instance out of the cluster.
    Remove(InstanceId),
    /// Let this instance lead, or the voter that has caught up furthest.
    TransferLeader(Option<InstanceId>),
    /// Raise the rules to the newest that every member knows.
    Upgrade,
}

/// Why it is not done: a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// It cannot be done like this.
    Refused(String),
    /// It cannot be done now.
    Unavailable(String),
    /// It may have been done or not.
    Unknown(String),
}

/// Does what an operator wants; returns a sentence that says what is now the case.
pub type Actor = Arc<dyn Fn(Action) -> BoxFuture<'static, Result<String, Denied>> + Send + Sync>;

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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewMember {
    id: InstanceId,
    address: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OneMember {
    id: InstanceId,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AnyMember {
    id: Option<InstanceId>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

async fn add(
    State(sources): State<HttpSources>,
    Wish(NewMember { id, address }): Wish<NewMember>,
) -> Response {
    act(&sources, Action::Add { id, address }).await
}

async fn drain(State(sources): State<HttpSources>, Wish(Nothing {}): Wish<Nothing>) -> Response {
    act(&sources, Action::Drain).await
}

async fn promote(
    State(sources): State<HttpSources>,
    Wish(OneMember { id }): Wish<OneMember>,
) -> Response {
    act(&sources, Action::Promote(id)).await
}

async fn remove(
    State(sources): State<HttpSources>,
    Wish(OneMember { id }): Wish<OneMember>,
) -> Response {
    act(&sources, Action::Remove(id)).await
}

async fn transfer_leader(
    State(sources): State<HttpSources>,
    Wish(AnyMember { id }): Wish<AnyMember>,
) -> Response {
    act(&sources, Action::TransferLeader(id)).await
}

async fn upgrade(State(sources): State<HttpSources>, Wish(Nothing {}): Wish<Nothing>) -> Response {
    act(&sources, Action::Upgrade).await
}

async fn act(sources: &HttpSources, action: Action) -> Response {
    let done = (sources.actor)(action.clone()).await;
    tracing::info!(?action, outcome = ?done, "an operator's request");
    match done {
        Ok(done) => answer(StatusCode::OK, Ok(done)),
        Err(denied) => deny(denied),
    }
}

pub(super) fn deny(denied: Denied) -> Response {
    match denied {
        Denied::Refused(why) => answer(StatusCode::CONFLICT, Err(why)),
        Denied::Unavailable(why) => answer(StatusCode::SERVICE_UNAVAILABLE, Err(why)),
        Denied::Unknown(why) => answer(StatusCode::GATEWAY_TIMEOUT, Err(why)),
    }
}

/// The answer to an operator.
#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Sentence {
    Done(String),
    Error(String),
}

pub(super) fn answer(status: StatusCode, sentence: Result<String, String>) -> Response {
    let sentence = sentence.map_or_else(Sentence::Error, Sentence::Done);
    fresh((status, Json(sentence)).into_response())
}
