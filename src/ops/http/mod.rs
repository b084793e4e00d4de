//! The operators' HTTP: metrics for Prometheus, health for what routes clients here, status for
//! scripts and a page for people (`page`), and changes of the cluster ([`admin`]) and backups
//! ([`backup`]). [`gate`] decides which request may have what.
//!
//! No client can keep it from answering for long: a request has a deadline, a connection has a
//! life, and when there are too many connections the oldest of the busiest source (or IPv6 site)
//! gives way. A client with a question asks it at once and is answered within milliseconds, so in a
//! flood the oldest is one that came only to stay. The exception is a backup, which takes as long
//! as it takes, and of which there is one at a time.

pub mod admin;
pub mod backup;
pub mod gate;

mod chains;
mod client;
mod errors;
mod explain;
mod life;
mod page;
#[cfg(test)]
mod tests;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    Extension, Json, Router,
    extract::{RawQuery, State},
    http::{HeaderValue, StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
    routing::get,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    select,
    sync::{Semaphore, watch},
    task::{AbortHandle, JoinSet, spawn_blocking, yield_now},
    time,
};
use tracing::warn;

use self::life::Life;
use super::{Backend, Readiness, api::Status};
use crate::{crowd::Crowd, descriptors::Shares, ids::Source, metrics::Metrics, sockets};

/// The default address of the operators' HTTP.
pub const DEFAULT_ADDR: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9180);

/// Where the operators' HTTP listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpAddr {
    /// Here.
    At(SocketAddr),
    /// On the default address, or on a free port beside it.
    Auto,
    /// Nowhere.
    Off,
}

/// Bounds of the operators' HTTP.
#[derive(Clone, Copy, Debug)]
pub struct HttpOptions {
    /// Longest time for a request to arrive, and for a kept connection to bring the next one.
    pub request_deadline: Duration,
    /// Longest life of a connection, however busy; one that hands out a backup lives on.
    pub connection_life_max: Duration,
    /// Connections at one time; one more closes the oldest of the busiest source. By default 128,
    /// or an eighth of the descriptors that the process may open if that is less.
    pub connections_max: usize,
    /// The pages that every reader may have.
    pub open: gate::Open,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            request_deadline: Duration::from_secs(10),
            connection_life_max: Duration::from_secs(60),
            connections_max: Shares::of_this_process().operators,
            open: gate::Open::default(),
        }
    }
}

/// The most bytes of a request's line and headers; hyper wants 8 KiB at least.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Pause when the system has no descriptor or memory for a new connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where the answers come from.
#[derive(Clone)]
pub struct HttpSources {
    /// The figures.
    metrics: Metrics,
    /// Whether clients can be answered now.
    readiness: watch::Receiver<Readiness>,
    /// The instance.
    backend: Arc<dyn Backend>,
    /// The token that they show to have it done.
    token: watch::Receiver<gate::AdminToken>,
}

impl HttpSources {
    /// Answers come from `backend`, to operators that show the token.
    pub fn new(
        backend: Arc<dyn Backend>,
        metrics: &Metrics,
        readiness: &watch::Receiver<Readiness>,
        token: watch::Receiver<gate::AdminToken>,
    ) -> Self {
        Self { metrics: metrics.clone(), readiness: readiness.clone(), backend, token }
    }
}

impl std::fmt::Debug for HttpSources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpSources").field("readiness", &self.readiness).finish_non_exhaustive()
    }
}

/// The bound listener, not serving yet.
#[derive(Debug)]
pub struct HttpServer {
    listener: TcpListener,
    address: SocketAddr,
    options: HttpOptions,
}

impl HttpServer {
    /// Binds the listener; `None` if there is to be none.
    ///
    /// # Errors
    /// If the address cannot be bound. The default address may be taken: then it is a free port.
    pub fn bind(address: HttpAddr, options: HttpOptions) -> io::Result<Option<Self>> {
        let listener = match address {
            HttpAddr::At(address) => sockets::listen(address, |_| Ok(()))?,
            HttpAddr::Auto => bind_default()?,
            HttpAddr::Off => return Ok(None),
        };
        let address = listener.local_addr()?;
        Ok(Some(Self { listener, address, options }))
    }

    /// Returns where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves for ever; to drop the future closes the listener and all connections.
    pub async fn serve(self, sources: HttpSources) {
        let metrics = sources.metrics.clone();
        let accepted = metrics.accepted.with_label_values(&["http"]);
        let pauses = metrics.accept_pauses.with_label_values(&["http"]);
        let router = router(sources, self.options.open);
        let mut connections = Connections::default();
        let mut is_pausing = false;
        loop {
            let (stream, peer) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    pauses.inc();
                    if !is_pausing {
                        warn!(%error, "the HTTP listener pauses");
                    }
                    is_pausing = true;
                    time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            is_pausing = false;
            accepted.inc();
            connections.make_room(self.options.connections_max);
            let gauge = Gauge::raise(&metrics);
            let caller = Extension(gate::Caller(peer.ip()));
            let life = Life::new(self.options.connection_life_max);
            let router = router.clone().layer(caller).layer(Extension(life.clone()));
            let answer = answer(stream, router, life.clone(), self.options);
            connections.add(life, peer.ip(), async move {
                answer.await;
                drop(gauge);
            });
            // The newcomer may speak before the next one comes, and perhaps is done by then.
            yield_now().await;
        }
    }
}

fn bind_default() -> io::Result<TcpListener> {
    match sockets::listen(DEFAULT_ADDR, |_| Ok(())) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let listener = sockets::listen((DEFAULT_ADDR.ip(), 0).into(), |_| Ok(()))?;
            let instead = listener.local_addr()?;
            warn!(%instead, "{DEFAULT_ADDR} is taken; --http-addr sets the address of HTTP");
            Ok(listener)
        }
        result => result,
    }
}

/// The open connections.
#[derive(Default)]
struct Connections {
    tasks: JoinSet<()>,
    /// Those that give way to newcomers.
    crowd: Crowd<Open>,
}

struct Open {
    task: AbortHandle,
    life: Life,
}

impl Connections {
    /// Closes a connection if there is no room for one more: the oldest of the source or site that
    /// has the most. So a crowd of readers makes room for each other, and what has one or two
    /// connections, as a supervisor and Prometheus do, is answered in any crowd.
    fn make_room(&mut self, connections_max: usize) {
        while self.tasks.try_join_next().is_some() {}
        // One that hands out a backup gives way to none, and has not long to live afterwards.
        self.crowd.retain(|open| !open.task.is_finished() && !open.life.is_kept());
        if self.tasks.len() < connections_max {
            return;
        }
        let oldest = self.crowd.oldest_of_largest();
        if let Some((_, open)) = oldest.and_then(|arrival| self.crowd.leave(arrival)) {
            open.task.abort();
        }
    }

    fn add(&mut self, life: Life, from: IpAddr, answer: impl Future<Output = ()> + Send + 'static) {
        let task = self.tasks.spawn(answer);
        self.crowd.enter(Source::of(from), Open { task, life });
    }
}

/// Counts one open connection for as long as it lives.
struct Gauge(prometheus::IntGauge);

impl Gauge {
    fn raise(metrics: &Metrics) -> Self {
        let gauge = metrics.connections.with_label_values(&["http"]);
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Gauge {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Answers the requests of one connection within its life.
async fn answer(stream: TcpStream, router: Router, life: Life, options: HttpOptions) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(options.request_deadline)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    // Neither a client that goes away nor one that takes too long is worth a log line.
    select! {
        ended = connection => drop(ended),
        () = life.over() => {}
    }
}

fn router(sources: HttpSources, open: gate::Open) -> Router {
    let guesses = gate::Guesses::new(sources.metrics.clone());
    let gate = gate::Gate { token: sources.token.clone(), open, guesses };
    Router::new()
        .route("/livez", get(livez))
        .route("/metrics", get(metrics))
        .route("/readyz", get(readyz))
        .route("/status", get(status))
        .merge(admin::routes())
        .merge(backup::routes())
        .merge(chains::routes())
        .merge(explain::routes())
        .merge(page::routes())
        .fallback(nothing)
        .layer(middleware::from_fn_with_state(gate, gate::pass))
        .layer(middleware::map_response(errors::in_one_form))
        .with_state(sources)
}

async fn livez() -> Response {
    fresh("alive\n")
}

async fn metrics(State(sources): State<HttpSources>) -> Response {
    sources.backend.refresh();
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    fresh((kind, sources.metrics.render()))
}

async fn readyz(State(sources): State<HttpSources>) -> Response {
    let readiness = sources.readiness.borrow().clone();
    match readiness {
        Readiness::NotReady(why) => fresh((StatusCode::SERVICE_UNAVAILABLE, why + "\n")),
        Readiness::Ready => fresh("ready\n"),
    }
}

/// One digest at a time, because it takes all of a core.
static DIGESTING: Semaphore = Semaphore::const_new(1);

async fn status(State(sources): State<HttpSources>, RawQuery(query): RawQuery) -> Response {
    let registry = match query.as_deref() {
        Some("digest") => {
            let _turn = DIGESTING.acquire().await;
            let backend = Arc::clone(&sources.backend);
            spawn_blocking(move || backend.digest()).await.ok()
        }
        Some(_) | None => None,
    };
    let trouble = match &*sources.readiness.borrow() {
        Readiness::NotReady(why) => Some(why.clone()),
        Readiness::Ready => None,
    };
    fresh(Json(Status { registry, trouble, ..sources.backend.status() }))
}

async fn nothing() -> Response {
    let names = "there are /, /livez, /metrics, /readyz, /status and, under /api/v1/, backup, \
                 chain, chains, cluster/... and explain";
    admin::answer(StatusCode::NOT_FOUND, Err(format!("there is no such path; {names}")))
}

/// Returns an answer that no proxy may keep.
fn fresh(answer: impl IntoResponse) -> Response {
    let mut response = answer.into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
