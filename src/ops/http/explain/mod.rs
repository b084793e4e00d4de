//! `/api/v1/explain?address=IP:PORT`: what a socket is linked to, since when and why, and what it
//! waits for. In words for people, and in figures for scripts.

mod words;

use axum::{
    Extension, Router,
    extract::{Query, State, rejection::QueryRejection},
    response::Response,
    routing::get,
};
use serde::Deserialize;

use super::{
    HttpSources,
    chains::{answer, socket},
    gate::Reader,
};
use crate::{
    ids::{Endpoint, Part, Socket},
    ops::api::{Ask, Client, Explanation, Remembered, Told},
    registry::{Event, Look, What},
};

/// The most events that are told.
const EVENTS_MAX: usize = 100;

pub(super) fn routes() -> Router<HttpSources> {
    Router::new().route("/api/v1/explain", get(explain))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    address: String,
}

async fn explain(
    State(sources): State<HttpSources>,
    Extension(reader): Extension<Reader>,
    query: Result<Query<Question>, QueryRejection>,
) -> Response {
    answer(query, |question: Question| {
        let socket = socket(&question.address)?;
        Ok(sources.see(|look| Explanation::of(look, &socket, reader)))
    })
}

impl Explanation {
    fn of(look: Look<'_>, socket: &Socket, reader: Reader) -> Self {
        let endpoint = socket.endpoint();
        let found = look.registry.find(endpoint);
        let client = found.and_then(|(serial, _)| Client::of(look, serial, reader));
        let callers = match found {
            Some(_) => Vec::new(),
            None => look.registry.callers(endpoint),
        };
        let own = Own::of(look, endpoint);
        let events = look.history.about(&own.sockets(), EVENTS_MAX);
        let says = match found {
            Some((serial, part)) => words::of_client(look, serial, part, reader),
            None if callers.is_empty() => vec![words::of_stranger(socket)],
            None => {
                callers.iter().map(|caller| words::of_caller(look.now, caller, reader)).collect()
            }
        };
        let (remembered, capacity) = look.history.room();
        Self {
            address: socket.to_string(),
            part: found.map(|(_, part)| part.as_str().into()),
            client,
            waits: callers.iter().map(|caller| Ask::of(look.now, &caller.ask, reader)).collect(),
            says,
            events: events.into_iter().map(|event| Told::of(look, &own, event, reader)).collect(),
            history: Remembered {
                events: remembered,
                capacity,
                since_ms: look.history.since().map(|since| look.now.ms_since(since)),
            },
        }
    }
}

impl Told {
    fn of(look: Look<'_>, own: &Own, event: &Event, reader: Reader) -> Self {
        Self {
            ago_ms: look.now.ms_since(event.at),
            entry: event.entry,
            request: event.note.session.map(|session| session.to_string()),
            text: words::of_note(own, &event.note, reader),
        }
    }
}

/// The sockets of the client in question, or the one socket if there is no more.
struct Own(Vec<(Endpoint, Option<Part>)>);

impl Own {
    fn of(look: Look<'_>, socket: Endpoint) -> Self {
        let parts = [Part::Head, Part::Tail];
        if let Some(client) =
            look.registry.find(socket).and_then(|(serial, _)| look.registry.client(serial))
        {
            let own = parts.map(|part| (client.socket(part).endpoint(), Some(part)));
            return Self(own.to_vec());
        }
        // Of a client that is gone its last joining tells both.
        let events = look.history.about(&[socket], usize::MAX);
        match events.iter().rev().find(|event| event.note.what == What::Joined) {
            Some(joining) => {
                let sockets = joining.note.about.iter().flatten().copied();
                Self(sockets.zip(parts.map(Some)).collect())
            }
            None => Self(vec![(socket, None)]),
        }
    }

    fn sockets(&self) -> Vec<Endpoint> {
        self.0.iter().map(|(socket, _)| *socket).collect()
    }

    /// Returns which part a socket is, if it is one of them.
    fn part(&self, socket: Endpoint) -> Option<Option<Part>> {
        self.0.iter().find(|(own, _)| *own == socket).map(|(_, part)| *part)
    }
}
