//! What an operator can have changed by HTTP: members of the cluster, its leader, and whether this
//! instance serves. `POST /api/v1/cluster/<action>` with a JSON object; the answer is a JSON object
//! with a sentence for people under `done`, or under `error`.
//!
//! A client that may write here can take the cluster apart, so a request must come from this
//! machine or carry the operator's token. It must also say that it is JSON, which no web page can
//! make a visitor's browser do unasked, and without a token name this machine by its address.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use axum::{
    Json, Router,
    extract::{FromRequest, FromRequestParts, State, rejection::JsonRejection},
    http::{HeaderMap, StatusCode, header, request::Parts},
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

/// The secret that a request from another machine must carry; without one, there is no such
/// request.
#[derive(Clone, Default)]
pub struct AdminToken(pub Option<Arc<str>>);

impl std::fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("AdminToken").field(&self.0.is_some()).finish()
    }
}

impl AdminToken {
    /// Whether a request from `peer` with these headers may change something.
    fn permits(&self, peer: IpAddr, headers: &HeaderMap) -> bool {
        let carried = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let carried = carried.and_then(|value| value.strip_prefix("Bearer "));
        match (carried, &self.0) {
            (Some(carried), Some(token)) => is_equal(carried.as_bytes(), token.as_bytes()),
            (Some(_), None) => false,
            (None, _) => peer.to_canonical().is_loopback() && is_by_address(headers),
        }
    }
}

/// Whether a request names this machine by its address, or `localhost`. A web page whose own name
/// leads here, by a trick of its name server, has a visitor's browser ask by that name.
fn is_by_address(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).map(|host| host.to_str().unwrap_or_default());
    host.is_none_or(|host| {
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        name.eq_ignore_ascii_case("localhost")
            || name.parse::<Ipv4Addr>().is_ok()
            || host.starts_with('[')
    })
}

/// Compares in a time that does not tell how much of it is right.
fn is_equal(a: &[u8], b: &[u8]) -> bool {
    let differing = a.iter().zip(b).fold(0, |differing, (a, b)| differing | (a ^ b));
    a.len() == b.len() && std::hint::black_box(differing) == 0
}

/// What is at the other end of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller(pub(super) IpAddr);

pub(super) fn routes() -> Router<HttpSources> {
    Router::new()
        .route("/api/v1/cluster/add", post(add))
        .route("/api/v1/cluster/drain", post(drain))
        .route("/api/v1/cluster/promote", post(promote))
        .route("/api/v1/cluster/remove", post(remove))
        .route("/api/v1/cluster/transfer-leader", post(transfer_leader))
        .route("/api/v1/cluster/upgrade", post(upgrade))
}

/// That a request may be made.
pub(super) struct Permit;

impl FromRequestParts<HttpSources> for Permit {
    type Rejection = Response;

    async fn from_request_parts(
        parts: &mut Parts,
        sources: &HttpSources,
    ) -> Result<Self, Response> {
        let peer = parts.extensions.get::<Caller>();
        if peer.is_some_and(|peer| sources.token.borrow().permits(peer.0, &parts.headers)) {
            return Ok(Self);
        }
        let why = "this needs the header `Authorization: Bearer TOKEN` with the token of \
                   --admin-token-file, or to come from the instance's own machine and name it \
                   by its address";
        Err(answer(StatusCode::FORBIDDEN, Err(why.to_owned())))
    }
}

/// The body of a request, if it may be made.
pub(super) struct Permitted<T>(pub(super) T);

impl<T> FromRequest<HttpSources> for Permitted<T>
where
    Json<T>: FromRequest<HttpSources, Rejection = JsonRejection>,
{
    type Rejection = Response;

    async fn from_request(
        request: axum::extract::Request,
        sources: &HttpSources,
    ) -> Result<Self, Response> {
        let (mut parts, body) = request.into_parts();
        Permit::from_request_parts(&mut parts, sources).await?;
        let request = axum::extract::Request::from_parts(parts, body);
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
    Permitted(NewMember { id, address }): Permitted<NewMember>,
) -> Response {
    act(&sources, Action::Add { id, address }).await
}

async fn drain(
    State(sources): State<HttpSources>,
    Permitted(Nothing {}): Permitted<Nothing>,
) -> Response {
    act(&sources, Action::Drain).await
}

async fn promote(
    State(sources): State<HttpSources>,
    Permitted(OneMember { id }): Permitted<OneMember>,
) -> Response {
    act(&sources, Action::Promote(id)).await
}

async fn remove(
    State(sources): State<HttpSources>,
    Permitted(OneMember { id }): Permitted<OneMember>,
) -> Response {
    act(&sources, Action::Remove(id)).await
}

async fn transfer_leader(
    State(sources): State<HttpSources>,
    Permitted(AnyMember { id }): Permitted<AnyMember>,
) -> Response {
    act(&sources, Action::TransferLeader(id)).await
}

async fn upgrade(
    State(sources): State<HttpSources>,
    Permitted(Nothing {}): Permitted<Nothing>,
) -> Response {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_or_this_machine_may_change_something() {
        let token = AdminToken(Some("secret".into()));
        let with =
            |value: &str| HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
        let here = [IpAddr::from([127, 0, 0, 1]), "::1".parse().unwrap()];
        let elsewhere = IpAddr::from([10, 0, 0, 1]);
        for here in here {
            assert!(token.permits(here, &HeaderMap::new()));
            assert!(!token.permits(here, &with("Bearer wrong")), "a wrong token is an error");
            let by = |host: &str| HeaderMap::from_iter([(header::HOST, host.parse().unwrap())]);
            for host in ["127.0.0.1:9180", "127.0.0.1", "[::1]:9180", "LocalHost:9180"] {
                assert!(token.permits(here, &by(host)), "{host}");
            }
            for host in ["evil.example:9180", "localhost.evil.example", "127.0.0.1.evil", ""] {
                assert!(!token.permits(here, &by(host)), "{host}");
            }
        }
        assert!(!token.permits(elsewhere, &HeaderMap::new()));
        assert!(token.permits(elsewhere, &with("Bearer secret")));
        for wrong in ["Bearer secre", "Bearer secrets", "Bearer ", "secret", "Basic secret"] {
            assert!(!token.permits(elsewhere, &with(wrong)), "{wrong}");
        }
        assert!(!AdminToken(None).permits(elsewhere, &with("Bearer ")));
    }
}
