//! The rate of wrong tokens. Each source has a rate, and each IPv6 site one of sixteen
//! times that; beyond it no token of it is looked at, right or wrong: else a guesser would go on at
//! full speed. So it locks out, for as long as it guesses, those that share its address or its
//! site, and no other source.
//!
//! A request through a proxy of the operators', on this machine or a private network, counts for
//! the address that the proxy says it asks for, so a stranger locks out neither an operator at the
//! machine nor one behind the same proxy. A stranger may add a header of its own that names another
//! address, and which header is the proxy's cannot be told. So a request that names several counts
//! for all of them, and that apart from requests that name one: the stranger's own address is among
//! them and has its rate, and an operator's request, which names one, shares none of it.
//!
//! All of a proxy's addresses together have a rate as well, 400 times that of one: a proxy that
//! lets clients choose the address makes no guesser fast.

use std::{
    collections::BTreeSet,
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
    ids::{Source, is_local},
    limits::{TOKEN_GUESS_INTERVAL, TOKEN_GUESSES_BURST},
    metrics::Metrics,
    ratelimit::{Clocks, Rate},
};

/// Returns the rate of a public source.
fn public() -> Rate {
    Rate::every(TOKEN_GUESS_INTERVAL, TOKEN_GUESSES_BURST)
}

/// The guesses of all sources.
#[derive(Clone, Debug)]
pub(in crate::ops::http) struct Guesses {
    clocks: Arc<Mutex<Clocks>>,
    metrics: Metrics,
}

/// The guesses that one source still has.
#[derive(Clone, Debug)]
pub(in crate::ops::http) struct Guess {
    of: Guesses,
    source: Source,
    is_forwarded: bool,
    /// The sources that a proxy of the operators' may ask for, each once.
    clients: Vec<Source>,
}

impl Guesses {
    pub(in crate::ops::http) fn new(metrics: Metrics) -> Self {
        Self { clocks: Arc::new(Mutex::new(Clocks::new(clock::now()))), metrics }
    }

    /// Returns those of a source; `named` is what its headers say it asks for.
    pub(super) fn of(&self, caller: IpAddr, is_forwarded: bool, named: &[IpAddr]) -> Guess {
        // A stranger that asks us directly may say what it likes.
        let named = named.iter().filter(|_| is_local(caller));
        let clients: BTreeSet<_> = named.map(|address| Source::of(*address)).collect();
        let (source, clients) = (Source::of(caller), clients.into_iter().collect());
        Guess { of: self.clone(), source, is_forwarded, clients }
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
    pub(in crate::ops::http) fn take_form(&self, is_right: bool) -> Option<Duration> {
        self.count(false, is_right)
    }

    fn count(&self, is_cookie: bool, is_right: bool) -> Option<Duration> {
        let now = clock::now();
        // All that a proxy asks for; it is of the operators' networks, and has their rate besides.
        let proxy = (!self.clients.is_empty()).then_some(self.source);
        let sources = if proxy.is_some() { &self.clients[..] } else { &[self.source] };
        let what = (proxy, self.is_forwarded, is_cookie, sources.len() > 1);
        let mut clocks = self.of.clocks();
        let of_proxy = proxy.map(|it| clocks.wait(it, &is_cookie, public().of_proxy(), now));
        let of_each = sources.iter().map(|source| clocks.wait(*source, &what, public(), now));
        let wait = of_each.max().max(of_proxy).unwrap_or_default();
        let refused = &self.of.metrics.http_tokens_refused;
        if !wait.is_zero() {
            refused.with_label_values(&["rate"]).inc();
            return Some(wait);
        }
        if !is_right {
            for source in sources {
                clocks.charge(*source, &what, public(), now);
            }
            if let Some(proxy) = proxy {
                clocks.charge(proxy, &is_cookie, public().of_proxy(), now);
            }
            refused.with_label_values(&["wrong"]).inc();
        }
        None
    }
}

/// Says when to try again (RFC 6585 section 4).
pub(in crate::ops::http) fn too_many(wait: Duration) -> Response {
    let seconds = wait.as_secs() + 1;
    let why = format!(
        "too many wrong tokens came from this address, or through this proxy, so none is looked \
         at now; try again in {seconds} s"
    );
    let mut response = admin::answer(StatusCode::TOO_MANY_REQUESTS, Err(why));
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A proxy that lets its clients choose the address it names is no way to guess at full speed.
    #[test]
    fn all_addresses_of_a_proxy_have_a_rate_together() {
        let guesses = Guesses::new(Metrics::new());
        let proxy = IpAddr::from([127, 0, 0, 1]);
        let client = |n: u32| [IpAddr::from((0xc633_0000 + n).to_be_bytes())];
        let guess = |n| guesses.of(proxy, true, &client(n)).take(Token::Wrong);
        let taken = (0..10_000).filter(|n| guess(*n).is_none()).count();
        assert!((1_000..9_000).contains(&taken), "{taken} of 10,000");
        // The machine itself is another source, and so is what asks from elsewhere.
        assert_eq!(guesses.of(proxy, false, &[]).take(Token::InHeader), None);
        assert_eq!(guesses.of([10, 0, 0, 1].into(), true, &client(1)).take(Token::InHeader), None);
    }

    /// Which of several headers the proxy set cannot be told: a stranger that adds one has its own
    /// rate all the same, and takes none of an operator's.
    #[test]
    fn a_forged_header_makes_no_guesser_faster_and_locks_out_no_operator() {
        let proxy = IpAddr::from([127, 0, 0, 1]);
        let [stranger, operator] = [[203, 0, 113, 66], [198, 51, 100, 1]].map(IpAddr::from);
        for is_last in [false, true] {
            let guesses = Guesses::new(Metrics::new());
            let shown = |forged: IpAddr, token| {
                let named = if is_last { [stranger, forged] } else { [forged, stranger] };
                guesses.of(proxy, true, &named).take(token)
            };
            let as_operator = (0..20).filter(|_| shown(operator, Token::Wrong).is_none()).count();
            assert_eq!(as_operator, 5);
            let other = |n: u32| IpAddr::from((0x0a00_0000 + n).to_be_bytes());
            let looked_at = (0..600).filter(|n| shown(other(*n), Token::Wrong).is_none()).count();
            assert!(looked_at <= 1, "{looked_at} more");
            for named in [&[operator][..], &[operator, operator]] {
                assert_eq!(guesses.of(proxy, true, named).take(Token::InHeader), None);
            }
        }
    }

    /// A stranger that reaches us says what it likes, and is one source all the same.
    #[test]
    fn a_public_caller_is_no_proxy_of_ours() {
        let guesses = Guesses::new(Metrics::new());
        let guess = |n: u8| {
            let client = [IpAddr::from([192, 0, 2, n])];
            guesses.of([198, 51, 100, 1].into(), true, &client).take(Token::Wrong)
        };
        assert!((0..100).filter(|n| guess(*n).is_none()).count() < 10);
    }

    /// One customer has a /48, and so 65,536 sources.
    #[test]
    fn one_ipv6_site_guesses_as_sixteen_sources_do() {
        let guesses = Guesses::new(Metrics::new());
        let of = |address: &str| guesses.of(address.parse().unwrap(), false, &[]);
        let shown = |address: &str, token| of(address).take(token);
        let guess = |n: u32| shown(&format!("2001:db8:7:{n:x}::1"), Token::Wrong);
        let began = clock::now();
        let looked_at = (0..10_000).filter(|n| guess(n / 5).is_none()).count() as u64;
        let more = 16 * (clock::now() - began).as_secs() / TOKEN_GUESS_INTERVAL.as_secs() + 1;
        assert!((80..=80 + more).contains(&looked_at), "{looked_at}");
        assert_eq!(shown("2001:db8:8::1", Token::InHeader), None, "another site");
        assert_eq!(shown("203.0.113.1", Token::InHeader), None);
    }
}
