//! How often a wrong token may be shown. Each source has a rate, and beyond it no token of it is
//! looked at, right or wrong: else a guesser would go on at full speed. So it locks out, for as
//! long as it guesses, those that share its address, and no other source. What comes through a
//! proxy is a source apart, so strangers behind one cannot lock out an operator at the machine.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::Response,
};

use super::{admin, facts::Token};
use crate::{
    clock,
    ids::Source,
    limits::{TOKEN_GUESS_INTERVAL, TOKEN_GUESSES_BURST},
    metrics::Metrics,
    server::ratelimit::{Clocks, Rate},
};

/// The guesses of all sources.
#[derive(Clone, Debug)]
pub(in crate::server::http) struct Guesses {
    clocks: Arc<Mutex<Clocks>>,
    metrics: Metrics,
}

/// What one source may still show.
#[derive(Clone, Debug)]
pub(in crate::server::http) struct Guess {
    of: Guesses,
    rate: Rate,
    source: Source,
    is_forwarded: bool,
}

impl Guesses {
    pub(in crate::server::http) fn new(metrics: Metrics) -> Self {
        Self { clocks: Arc::new(Mutex::new(Clocks::new(clock::now()))), metrics }
    }

    /// Those of a source.
    pub(super) fn of(&self, caller: IpAddr, is_forwarded: bool) -> Guess {
        let rate = Rate::every(TOKEN_GUESS_INTERVAL, TOKEN_GUESSES_BURST).of(caller);
        Guess { of: self.clone(), rate, source: Source::of(caller), is_forwarded }
    }

    fn clocks(&self) -> MutexGuard<'_, Clocks> {
        self.clocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guess {
    /// Counts a token in a header or a cookie; returns how long to wait if it counts for nothing.
    pub(super) fn take(&self, token: Token) -> Option<Duration> {
        match token {
            Token::Missing => None,
            Token::InHeader => self.count(false, true),
            Token::Wrong => self.count(false, false),
            // A page in a browser asks on with a cookie of yesterday; a person there can sign in.
            Token::InCookie => self.count(true, true),
            Token::Stale => self.count(true, false),
        }
    }

    /// Counts a token in a form, as [`Self::take`] does.
    pub(in crate::server::http) fn take_form(&self, is_right: bool) -> Option<Duration> {
        self.count(false, is_right)
    }

    fn count(&self, is_cookie: bool, is_right: bool) -> Option<Duration> {
        let (key, now) = ((self.source, self.is_forwarded, is_cookie), clock::now());
        let mut clocks = self.of.clocks();
        let wait = clocks.wait(&key, self.rate, now);
        let refused = &self.of.metrics.http_tokens_refused;
        if !wait.is_zero() {
            refused.with_label_values(&["rate"]).inc();
            return Some(wait);
        }
        if !is_right {
            clocks.charge(&key, self.rate, now);
            refused.with_label_values(&["wrong"]).inc();
        }
        None
    }
}

/// Says when to try again (RFC 6585 section 4).
pub(in crate::server::http) fn too_many(wait: Duration) -> Response {
    let seconds = wait.as_secs() + 1;
    let why = format!(
        "too many wrong tokens came from this address, so none is looked at now; try again in \
         {seconds} s"
    );
    let mut response = admin::answer(StatusCode::TOO_MANY_REQUESTS, Err(why));
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    response
}
