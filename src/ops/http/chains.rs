//! Chains for people and scripts: `/api/v1/chains` lists some of them, `/api/v1/chain` shows a
//! window over one. Each instance answers from its own replica.

use axum::{
    Extension, Json, Router,
    extract::{Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use serde::{Deserialize, Serialize};

use super::{HttpSources, client::of_cause, fresh, gate::Reader};
use crate::{
    ids::{ChainName, Socket},
    limits::VIEW_ITEMS_MAX,
    ops::api::{Chain, Client, List, Run, Totals, Window},
    registry::{ChainTotals, CutOff, Look, Order, Place, Serial},
};

/// Why there is no answer: the code, and a sentence that says what to do.
pub(super) type Complaint = (StatusCode, String);

/// The number of chains listed, and of clients shown, unless a request asks for more or less.
const CHAINS: usize = 100;
const CLIENTS: usize = 50;

pub(super) fn routes() -> Router<HttpSources> {
    Router::new().route("/api/v1/chain", get(chain)).route("/api/v1/chains", get(chains))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listing {
    #[serde(default)]
    order: By,
    prefix: Option<String>,
    limit: Option<usize>,
}

#[derive(Clone, Copy, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum By {
    Broken,
    Name,
    #[default]
    Size,
}

impl From<ChainTotals> for Totals {
    fn from(totals: ChainTotals) -> Self {
        let ChainTotals { clients, cut_off, asks, links, broken_links } = totals;
        Self { clients, cut_off, asks, links, broken_links }
    }
}

async fn chains(
    State(sources): State<HttpSources>,
    query: Result<Query<Listing>, QueryRejection>,
) -> Response {
    answer(query, |listing: Listing| listing.carry_out(&sources))
}

impl Listing {
    fn carry_out(self, sources: &HttpSources) -> Result<List, Complaint> {
        let limit = limit(self.limit, CHAINS)?;
        let prefix = self.prefix.as_deref().unwrap_or_default();
        if self.order != By::Name && !prefix.is_empty() {
            return Err(usage("`prefix` goes with `order=name`"));
        }
        let order = match self.order {
            By::Broken => Order::Gaps,
            By::Name => Order::Name { prefix },
            By::Size => Order::Size,
        };
        Ok(sources.see(|look| {
            let mut chains = look.registry.chains(order, limit + 1);
            let more = chains.len() > limit;
            chains.truncate(limit);
            let named = chains.into_iter();
            let chains = named
                .map(|(name, totals)| Chain { name: name.0.to_string(), totals: totals.into() });
            let total = look.registry.totals().chains;
            List { applied: look.entry, total, more, chains: chains.collect() }
        }))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Show {
    #[serde(default)]
    name: String,
    at: Option<String>,
    from: Option<u64>,
    after: Option<u64>,
    before: Option<u64>,
    limit: Option<usize>,
}

impl Run {
    fn of(look: Look<'_>, run: &CutOff) -> Self {
        Self {
            first: run.first.0,
            last: run.last.0,
            clients: run.clients,
            since_ms: look.now.ms_since(run.cut.since),
            why: of_cause(run.cut.cause).into(),
        }
    }
}

async fn chain(
    State(sources): State<HttpSources>,
    Extension(reader): Extension<Reader>,
    query: Result<Query<Show>, QueryRejection>,
) -> Response {
    answer(query, |show: Show| show.carry_out(&sources, reader))
}

impl Show {
    fn carry_out(self, sources: &HttpSources, reader: Reader) -> Result<Window, Complaint> {
        let limit = limit(self.limit, CLIENTS)?;
        let at = self.at.as_deref();
        let given =
            [at.is_some(), self.from.is_some(), self.after.is_some(), self.before.is_some()];
        if given.into_iter().filter(|is_given| *is_given).count() > 1 {
            return Err(usage("only one of `at`, `from`, `after` and `before` can be meant"));
        }
        let at = at.map(socket).transpose()?;
        let name = ChainName(self.name.into());
        sources.see(|look| {
            let found = at.as_ref().map(|socket| find(look, &name, socket)).transpose()?;
            let places = [
                found.map(Place::Around),
                self.before.map(|before| Place::Before(Serial(before))),
                self.after.map(|after| Place::After(Serial(after))),
                self.from.map(|from| Place::From(Serial(from))),
            ];
            let place = places.into_iter().flatten().next().unwrap_or(Place::Start);
            let shown = match look.registry.window(&name, place, limit) {
                Some(shown) => shown,
                // The seed's clients find their chain whether or not a client is in it.
                None if name.0.is_empty() => <_>::default(),
                None => {
                    let why =
                        format!("there is no chain {}; /api/v1/chains lists them", quoted(&name));
                    return Err(missing(why));
                }
            };
            let clients = shown.clients.iter();
            let clients = clients.filter_map(|serial| Client::of(look, *serial, reader));
            Ok(Window {
                name: name.0.to_string(),
                applied: look.entry,
                first: shown.ends.map(|(first, _)| first.0),
                last: shown.ends.map(|(_, last)| last.0),
                more_gaps: (shown.gaps.len() as u64) < shown.totals.broken_links,
                gaps: shown.gaps.iter().map(|serial| serial.0).collect(),
                runs_cut_off: shown.cut_off.iter().map(|run| Run::of(look, run)).collect(),
                earlier: shown.beyond.0,
                later: shown.beyond.1,
                found: found.map(|serial| serial.0),
                window: clients.collect(),
                totals: shown.totals.into(),
            })
        })
    }
}

/// Returns the client of this chain that owns the socket.
fn find(look: Look<'_>, name: &ChainName, socket: &Socket) -> Result<Serial, Complaint> {
    let owner = look.registry.find(socket.endpoint()).map(|(serial, _)| serial);
    let member = owner
        .filter(|serial| look.registry.client(*serial).is_some_and(|client| client.chain == *name));
    member.ok_or_else(|| {
        missing(format!(
            "no client in chain {} owns {socket}; ask /api/v1/explain?address={socket}",
            quoted(name)
        ))
    })
}

/// Returns a chain's name, for a sentence.
pub(super) fn quoted(name: &ChainName) -> String {
    if name.0.is_empty() {
        "default (the one without a name)".to_owned()
    } else {
        format!("{:?}", name.0)
    }
}

/// Returns the socket in question.
pub(super) fn socket(text: &str) -> Result<Socket, Complaint> {
    Socket::parse(text).ok_or_else(|| usage(&format!("{text:?} is not an IP:PORT or [IP]:PORT")))
}

pub(super) fn usage(why: &str) -> Complaint {
    (StatusCode::BAD_REQUEST, why.to_owned())
}

fn missing(why: String) -> Complaint {
    (StatusCode::NOT_FOUND, why)
}

fn limit(asked: Option<usize>, usual: usize) -> Result<usize, Complaint> {
    let limit = asked.unwrap_or(usual);
    let fits = (1..=VIEW_ITEMS_MAX).contains(&limit);
    fits.then_some(limit).ok_or_else(|| usage(&format!("`limit` is from 1 to {VIEW_ITEMS_MAX}")))
}

/// Answers a query, or says what is wrong with it.
pub(super) fn answer<Q, A: Serialize>(
    query: Result<Query<Q>, QueryRejection>,
    carry_out: impl FnOnce(Q) -> Result<A, Complaint>,
) -> Response {
    let answer = match query {
        Ok(Query(query)) => carry_out(query),
        Err(rejection) => Err((rejection.status(), rejection.body_text())),
    };
    fresh(match answer {
        Ok(answer) => Json(answer).into_response(),
        Err((code, error)) => (code, Json(serde_json::json!({ "error": error }))).into_response(),
    })
}

impl HttpSources {
    /// Shows the present state to a reader.
    pub(super) fn see<T>(&self, what: impl FnOnce(Look<'_>) -> T) -> T {
        let (mut what, mut seen) = (Some(what), None);
        self.backend.look(&mut |look| seen = what.take().map(|what| what(look)));
        seen.expect("a reader is shown the registry once")
    }
}
