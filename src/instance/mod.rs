//! One running process: binds everything, opens everything, owns every task, and ends as a whole.
//! If any listener, task, thread or file fails, the instance ends with an exit code that says
//! which kind of failure it was; it never lives on as half a service.

mod life;
mod listeners;
pub mod offline;
mod reload;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinSet,
    time::{timeout, timeout_at},
};

use self::{
    life::Living,
    listeners::{Banner, Listeners},
    reload::{Live, Reload},
};
use crate::{
    clock,
    cluster::{
        Cluster, ClusterError, ClusterOptions, LogBounds, RulesOptions, Started,
        election::QUIET_TURN,
        found::Founding,
        gate::Gate,
        service::Service,
        tcp::{NodeName, RpcServer, Security, TcpTransport, Tls, look_into},
        transport::{Alone, Transport},
    },
    config::{Config, Sources},
    console::Exit,
    ids::InstanceId,
    limits::PROPOSER_QUEUE_MAX,
    logging::LogHandle,
    metrics::Metrics,
    ops::{
        Readiness, Running, events, gauges,
        http::{HttpServer, HttpSources},
        readiness::Watching,
    },
    platform::{
        process::raise_descriptor_limit,
        signals::{Asked, Signals},
    },
    registry::Applied,
    server::{Outbox, Phase, ServerError},
    storage::{ImageProgress, Stores, fault},
};

/// Entries whose effects wait for the dispatcher; it never waits for a client.
const APPLIED_QUEUE_MAX: usize = 1024;

/// Longest time for closing all sockets when the instance fails.
const HANG_UP_MAX: Duration = Duration::from_millis(500);

/// The part of the shutdown deadline that is kept for writing out and closing: one in this number.
const CLOSING_SHARE: u32 = 4;

/// Runs an instance until a signal stops it, or it fails.
pub async fn run(config: Config, sources: Sources, logs: LogHandle) -> Exit {
    if let Err(error) = raise_descriptor_limit() {
        tracing::warn!(%error, "the limit of open files was not raised");
    }
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => {
            tracing::error!(%error, "cannot receive signals");
            return Exit::Internal;
        }
    };
    let (reload, live) = match Reload::new(config, sources, logs) {
        Ok(all) => all,
        Err(why) => {
            tracing::error!("{why}");
            return Exit::Usage;
        }
    };
    if let Err(exit) = look_into_certificates(reload.config()) {
        return exit;
    }
    tokio::select! {
        started = Instance::start(reload.config(), live) => match started {
            Ok(instance) => instance.run(reload, &mut signals).await,
            Err(exit) => exit,
        },
        // While it starts, there is nothing to drain.
        () = signals.stop() => Exit::Clean,
    }
}

/// Everything that runs.
struct Instance {
    cluster: Cluster,
    image: ImageProgress,
    faults: fault::FaultWatch,
    phase: watch::Sender<Phase>,
    outbox: Arc<Outbox>,
    metrics: Metrics,
    security: Option<Security>,
    /// The servers of the edge; they end in [`Phase::Stopping`].
    servers: JoinSet<Result<(), ServerError>>,
    /// The lives; they end when the servers' commands do.
    lives: JoinSet<Result<(), ClusterError>>,
    /// Everything else; none of it ends by itself.
    background: JoinSet<String>,
    readiness: watch::Receiver<Readiness>,
    /// The announcement that is still to be made.
    banner: Option<Banner>,
    /// Whether it needs no other instance.
    alone: bool,
}

impl Instance {
    async fn start(config: &Config, live: Live) -> Result<Self, Exit> {
        let metrics = Metrics::new();
        events::tell_build(&metrics);
        let listeners = listeners::bind(config, live.options).await?;
        let (reporter, faults) = fault::channel();
        let (applied, effects) = mpsc::channel(APPLIED_QUEUE_MAX);
        let stores = open_stores(config, applied, &metrics, &reporter).await?;
        let Stores { log, machine, view, image, pulses, cluster, guard, inbox } = stores;

        let outbox = Arc::new(Outbox::new(config.node_id, metrics.clone()));
        let dispatching = dispatch(effects, Arc::clone(&outbox), metrics.clone());
        let mut background = JoinSet::from_iter([dispatching]);
        let founding = config.founding(listeners.raft_address());
        let me = NodeName { cluster, node: config.node_id };
        let security = secure(config, listeners.raft_address(), me, &metrics, &mut background)?;
        let options = ClusterOptions {
            cluster,
            instance: config.node_id,
            store: log.store(),
            transport: transport(me, security.as_ref(), &metrics),
            guard,
            inbox,
            log_bounds: LogBounds::default(),
            pulses,
            rules: rules(),
            gate: Gate::default(),
            quiet_turn: Some(QUIET_TURN),
            faults: reporter.clone(),
            metrics: metrics.clone(),
        };
        let started = Box::pin(Cluster::start(options, log, machine, view)).await;
        let Started { cluster, service } = started.map_err(|error| failed(&faults, &error))?;
        let (phase, watch_phase) = watch::channel(Phase::Starting);
        let (progress, watch_progress) = watch::channel("it is starting".to_owned());
        watch_disk(&mut background, &cluster, config, &metrics, reporter);
        let banner = listeners.banner();
        let alone = matches!(founding, Founding::Alone(_)) && cluster.status().members.len() <= 1;
        let Listeners { servers, http, raft } = listeners;
        keep(&mut background, &cluster, raft_server(raft, security.clone(), &metrics), service);
        let watching = Watching::new(&cluster, &watch_phase, watch_progress);
        let readiness = watching.begin(&metrics, &mut background);
        let running = Arc::new(Running::new(&cluster, &image, &metrics, &phase));
        let sources = HttpSources::new(running, &metrics, &readiness, live.token);
        serve_http(&mut background, http, sources);
        let (commands, queue) = mpsc::channel(PROPOSER_QUEUE_MAX);
        let servers = servers.serve(commands, &outbox, &metrics, &watch_phase);
        background.spawn(reload::follow(cluster.clone(), founding.clone(), live.policy));
        let living = Living {
            cluster: cluster.clone(),
            outbox: Arc::clone(&outbox),
            founding,
            policy: config.policy(),
            phase: phase.clone(),
            progress,
        };
        Ok(Self {
            cluster,
            image,
            faults,
            phase,
            outbox,
            metrics,
            security,
            servers,
            lives: JoinSet::from_iter([living.run(queue)]),
            background,
            readiness,
            banner: Some(banner),
            alone,
        })
    }

    /// Serves until a signal stops it or something fails.
    async fn run(mut self, mut reload: Reload, signals: &mut Signals) -> Exit {
        let mut readiness = self.readiness.clone();
        let failure = loop {
            // Others may be waiting for this one's banner before they start, so it waits for none.
            if !self.alone || *readiness.borrow_and_update() == Readiness::Ready {
                self.banner.take().inspect(|banner| banner.announce(reload.logs()));
            }
            tokio::select! {
                Ok(()) = readiness.changed(), if self.banner.is_some() => {}
                asked = signals.next() => match asked {
                    Asked::Reload => {
                        reload.carry_out(self.security.as_ref(), &self.metrics);
                    },
                    Asked::Stop => break None,
                },
                exit = self.failure() => break Some(exit),
            }
        };
        match failure {
            Some(exit) => {
                // What is in doubt must not be told to a client: no drain, no goodbye.
                self.hang_up().await;
                exit
            }
            None => tokio::select! {
                exit = self.stop(reload.config().shutdown_deadline) => exit,
                () = signals.stop() => {
                    tracing::warn!("stopping at once");
                    Exit::Clean
                }
            },
        }
    }

    /// Waits for a failure that ends the instance.
    async fn failure(&mut self) -> Exit {
        let why = loop {
            tokio::select! {
                biased;
                fault = self.faults.wait() => {
                    return leave(&fault);
                }
                Some(ended) = self.servers.join_next() => match ended {
                    Ok(Ok(())) if self.is_draining() => {}
                    Ok(Ok(())) => break "a server ended".to_owned(),
                    Ok(Err(error)) => break error_chain(&error),
                    Err(panic) => break panic.to_string(),
                },
                Some(ended) = self.lives.join_next() => match ended {
                    Ok(Ok(())) if self.is_draining() => {}
                    Ok(Ok(())) => break "the proposer ended".to_owned(),
                    Ok(Err(error)) if error.refuses_data() => {
                        tracing::error!("{error}");
                        return Exit::Data;
                    }
                    Ok(Err(error)) => break error_chain(&error),
                    Err(panic) => break panic.to_string(),
                },
                Some(ended) = self.background.join_next() => {
                    break ended.unwrap_or_else(|panic| panic.to_string());
                }
            }
        };
        // What is reported there stops raft as well; the report may be a moment behind.
        if let Ok(fault) = timeout(Duration::from_millis(200), self.faults.wait()).await {
            return leave(&fault);
        }
        tracing::error!("{why}");
        Exit::Internal
    }

    /// Closes all sockets. The kernel does that at the end of a process, but a thread that waits
    /// because a disk which hangs cannot be ended, and until then clients, other instances and
    /// supervisors would reach a process that never answers.
    async fn hang_up(&mut self) {
        self.servers.abort_all();
        self.background.abort_all();
        let ended = async {
            while self.servers.join_next().await.is_some() {}
            while self.background.join_next().await.is_some() {}
        };
        // What a task holds besides its sockets may wait for the disk as well.
        let _ = timeout(HANG_UP_MAX, ended).await;
    }

    /// Returns whether an operator had it leave service; what belongs to clients ends with them.
    fn is_draining(&self) -> bool {
        *self.phase.borrow() >= Phase::Drained
    }

    /// Drains, and stops in order: no new clients, no leadership, then no sessions, then no
    /// commands, then raft.
    async fn stop(mut self, within: Duration) -> Exit {
        tracing::info!("stopping");
        // One deadline for all of it: a supervisor kills what is not gone by then.
        let deadline = tokio::time::Instant::from_std(clock::now() + within);
        self.metrics.draining.set(1);
        let has_served = self.phase.send_replace(Phase::Draining) > Phase::Starting;
        let alone = self.cluster.status().members.len() <= 1;
        if !alone {
            // Others go on serving the chain, so clients that wait here may still be told.
            let told = async {
                self.cluster.step_down().await;
                while self.outbox.sessions() > 0 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            let _ = timeout_at(deadline - within / CLOSING_SHARE, told).await;
        }
        self.phase.send_replace(Phase::Stopping);
        let closing = async {
            while self.servers.join_next().await.is_some() {}
            while self.lives.join_next().await.is_some() {}
            if !alone && has_served {
                self.cluster.end_life().await;
            }
            self.background.shutdown().await;
            if let Err(error) = self.cluster.shutdown().await {
                tracing::warn!(%error, "raft did not stop in order");
            }
            drop(self.cluster);
            self.image.ended().await;
        };
        if timeout_at(deadline, closing).await.is_err() {
            tracing::warn!(
                "not finished within the shutdown deadline; every answer that was sent is on disk"
            );
        }
        match self.faults.current() {
            Some(fault) => leave(&fault),
            None => {
                tracing::info!("stopped");
                Exit::Clean
            }
        }
    }
}

/// Says why the instance ends.
fn leave(fault: &fault::Fault) -> Exit {
    tracing::error!("leaving service: {fault}");
    match fault {
        fault::Fault::Disk(_) => Exit::Disk,
        fault::Fault::Data(_) => Exit::Data,
    }
}

/// Returns which rules this instance knows, and when it raises them. In test builds an instance can
/// be made older than its program, so that one program plays both parts of an upgrade.
fn rules() -> RulesOptions {
    #[cfg(feature = "rules-3")]
    {
        let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
        let standard = RulesOptions::default();
        let newest =
            number("EMNETCHAIN_TEST_RULES").map_or(standard.newest, crate::registry::Rules);
        let raise_after = number("EMNETCHAIN_TEST_RAISE_AFTER_SECONDS");
        let raise_after =
            raise_after.map_or(standard.raise_after, |seconds| Duration::from_secs(seconds.into()));
        RulesOptions { newest, raise_after }
    }
    #[cfg(not(feature = "rules-3"))]
    RulesOptions::default()
}

/// Tells how much of the disk is free, and ends the instance if the disk hangs for too long.
fn watch_disk(
    background: &mut JoinSet<String>,
    cluster: &Cluster,
    config: &Config,
    metrics: &Metrics,
    faults: fault::FaultReporter,
) {
    background.spawn(gauges::watch_disk(config.data_dir.clone(), metrics.clone()));
    background.spawn(end_if_hung(cluster.clone(), config.data_dir.clone(), faults));
}

/// Keeps raft going, and answers other instances if they can reach this one.
fn keep(
    background: &mut JoinSet<String>,
    cluster: &Cluster,
    server: Option<RpcServer>,
    service: Service,
) {
    let keeper = Box::pin(cluster.clone().keep());
    background.spawn(async { keeper.await.expect_err("it runs until raft stops").to_string() });
    if let Some(server) = server {
        if let Some(address) = server.address() {
            cluster.listens_at(address);
        }
        background.spawn(async move {
            let Err(error) = server.run(service).await;
            error_chain(&error)
        });
    }
}

/// Reports a failed disk once an operation on it hangs for too long.
async fn end_if_hung(cluster: Cluster, dir: PathBuf, reporter: fault::FaultReporter) -> String {
    let pending = cluster.hung().await;
    reporter.report(fault::DiskFault::hung(dir, pending)).to_string()
}

/// Answers operators, if they have an address to ask at.
fn serve_http(background: &mut JoinSet<String>, http: Option<HttpServer>, sources: HttpSources) {
    if let Some(http) = http {
        background.spawn(http.serve(sources).map(|()| "the HTTP server ended".to_owned()));
    }
}

/// Returns the server that answers other instances, if they can reach this one.
fn raft_server(
    listener: Option<TcpListener>,
    security: Option<Security>,
    metrics: &Metrics,
) -> Option<RpcServer> {
    let (listener, security) = listener.zip(security)?;
    Some(RpcServer::new(listener, security, metrics.clone()))
}

/// Returns the transport to other instances.
fn transport(me: NodeName, security: Option<&Security>, metrics: &Metrics) -> Arc<dyn Transport> {
    metrics.raft_insecure.set(i64::from(matches!(security, Some(Security::Insecure))));
    match security {
        Some(security) => Arc::new(TcpTransport::new(me, security.clone(), metrics.clone())),
        None => Arc::new(Alone),
    }
}

/// Opens the data directory; it may have to be read, checked and healed, so not on this thread.
async fn open_stores(
    config: &Config,
    applied: mpsc::Sender<Applied>,
    metrics: &Metrics,
    faults: &fault::FaultReporter,
) -> Result<Stores, Exit> {
    let (dir, node): (_, InstanceId) = (config.data_dir.clone(), config.node_id);
    let (metrics, faults, cluster) = (metrics.clone(), faults.clone(), config.founded_cluster());
    let named = config.cluster_id;
    let opening = tokio::task::spawn_blocking(move || {
        let stores = Stores::open(&dir, node, cluster, applied, &metrics, &faults)?;
        stores.of_cluster(named, &dir)?.limited_to(rules().newest)
    });
    match opening.await {
        Ok(Ok(stores)) => Ok(stores),
        Ok(Err(error)) => {
            tracing::error!("{}", error_chain(&error));
            Err(Exit::of(error.exit_code()))
        }
        Err(panic) => {
            tracing::error!("panic while opening the data directory: {panic}");
            Err(Exit::Internal)
        }
    }
}

/// Says why an instance cannot be started like this.
fn misused(error: &dyn std::error::Error) -> Exit {
    tracing::error!("{}", error_chain(error));
    Exit::Usage
}

/// Refuses certificates that are of no use before anything is made in the data directory, which
/// then says whose they must be.
fn look_into_certificates(config: &Config) -> Result<(), Exit> {
    let files = config.tls_files().filter(|_| config.raft_addr.is_some());
    files.map_or(Ok(()), |files| look_into(&files)).map_err(|error| misused(&error))
}

/// Returns the protection of connections with other instances, if there may be any; the log will
/// say in time that its certificates come to their end.
fn secure(
    config: &Config,
    address: Option<SocketAddr>,
    me: NodeName,
    metrics: &Metrics,
    background: &mut JoinSet<String>,
) -> Result<Option<Security>, Exit> {
    let Some(address) = address else { return Ok(None) };
    let tls = config.tls_files().map(|files| Tls::load(files, me)).transpose();
    let tls = tls.map_err(|error| misused(&error))?;
    if let Some(tls) = &tls {
        metrics.raft_certificate.set(tls.good_until());
        tls.tell_dates();
    }
    let chosen = Security::choose(address, tls, config.insecure_cluster);
    let chosen = chosen.map_err(|error| misused(&error))?;
    if let Security::Tls(tls) = &chosen {
        let tls = Arc::clone(tls);
        background.spawn(async move { match tls.watch_dates().await {} });
    }
    Ok(Some(chosen))
}

/// Hands effects to the sessions, in order, and counts what happened.
async fn dispatch(
    mut effects: mpsc::Receiver<Applied>,
    outbox: Arc<Outbox>,
    metrics: Metrics,
) -> String {
    while let Some(applied) = effects.recv().await {
        events::count(&applied.notes, &metrics);
        outbox.dispatch(&applied.effects);
    }
    "the state machine ended".to_owned()
}

fn failed(faults: &fault::FaultWatch, error: &dyn std::error::Error) -> Exit {
    match faults.current() {
        Some(fault) => leave(&fault),
        None => {
            tracing::error!("{}", error_chain(error));
            Exit::Internal
        }
    }
}

/// Returns an error and what caused it, on one line; a cause that the error tells itself is told
/// once.
fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let told = error.to_string();
        if !text.ends_with(&told) {
            text = format!("{text}: {told}");
        }
        cause = error.source();
    }
    text
}
