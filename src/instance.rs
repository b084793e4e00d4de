//! One running process: binds everything, opens everything, owns every task, and ends as a whole.
//! If any listener, task, thread or file fails, the instance ends with an exit code that says
//! which kind of failure it was; it never lives on as half a service.

mod observe;
pub mod offline;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinSet,
    time::timeout,
};

use crate::{
    cli::{self, Exit},
    cluster::{Cluster, ClusterOptions, transport::Alone},
    config::{Config, Sources},
    ids::InstanceId,
    limits::PROPOSER_QUEUE_MAX,
    logging::LogHandle,
    metrics::Metrics,
    raft::Member,
    registry::{Applied, Command},
    server::{
        Addresses, Outbox, Phase, ServerError, ServerOptions, Servers,
        http::{HttpOptions, HttpServer, Readiness},
    },
    storage::{ImageProgress, StorageError, Stores, fault},
};

/// Entries whose effects wait for the dispatcher; it never waits for a client.
const APPLIED_QUEUE_MAX: usize = 1024;

/// What is kept of the shutdown deadline for writing out and closing.
const CLOSING_SHARE: u32 = 4;

/// Runs an instance until it is told to stop, or fails.
pub async fn run(config: Config, sources: Sources, logs: LogHandle) -> Exit {
    raise_descriptor_limit();
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => {
            tracing::error!(%error, "signals cannot be received");
            return Exit::Internal;
        }
    };
    let reload = Reload { sources, logs };
    tokio::select! {
        started = Instance::start(&config) => match started {
            Ok(instance) => instance.run(&config, &mut signals, &reload).await,
            Err(exit) => exit,
        },
        // While it starts, there is nothing to drain.
        () = signals.stop() => Exit::Clean,
    }
}

/// Shells hand out few file descriptors by default, and allow many more to those that ask.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
    {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Everything that runs.
struct Instance {
    cluster: Cluster,
    image: ImageProgress,
    faults: fault::FaultWatch,
    phase: watch::Sender<Phase>,
    readiness: watch::Sender<Readiness>,
    outbox: Arc<Outbox>,
    metrics: Metrics,
    /// The servers of the edge; they end in [`Phase::Stopping`].
    servers: JoinSet<Result<(), ServerError>>,
    /// The proposer; it ends when the servers' commands do.
    proposer: JoinSet<Result<(), crate::cluster::proposer::ProposerError>>,
    /// Everything else; none of it ends by itself.
    background: JoinSet<String>,
}

impl Instance {
    async fn start(config: &Config) -> Result<Self, Exit> {
        let metrics = Metrics::new();
        metrics.build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let (servers, http) = bind(config).await?;
        let (reporter, faults) = fault::channel();
        let (applied, effects) = mpsc::channel(APPLIED_QUEUE_MAX);
        let stores = open_stores(config, applied, &metrics, &reporter).await?;

        let mut background = JoinSet::new();
        let outbox_slot = Arc::new(OnceLock::new());
        background.spawn(dispatch(effects, Arc::clone(&outbox_slot), metrics.clone()));
        let (readiness, watch_readiness) =
            watch::channel(Readiness::NotReady("the log is being read".to_owned()));
        let addresses = servers.addresses();
        let http_address = http.as_ref().map(HttpServer::address);

        let options = ClusterOptions {
            instance: config.node_id,
            member: Member::default(),
            policy: config.policy(),
            transport: Arc::new(Alone),
            metrics: metrics.clone(),
        };
        let Stores { log, machine, view, image } = stores;
        let started = Cluster::start(options, log, machine, view).await;
        let cluster = started.map_err(|error| failed(&faults, &error))?;
        if let Some(http) = http {
            let sources = observe::http_sources(&cluster, &image, &metrics, watch_readiness);
            background.spawn(async move {
                http.serve(sources).await;
                "the HTTP server ended".to_owned()
            });
        }
        let incarnation = cluster.begin_life().await.map_err(|error| failed(&faults, &error))?;
        let outbox = Arc::new(Outbox::new(config.node_id, incarnation, metrics.clone()));
        outbox_slot.set(Arc::clone(&outbox)).expect("set once");

        let (commands, queue) = mpsc::channel::<Command>(PROPOSER_QUEUE_MAX);
        let mut proposer = JoinSet::new();
        proposer.spawn(cluster.proposer(incarnation).run(queue));
        let keeper = cluster.clone().keep();
        background.spawn(async { keeper.await.expect_err("it runs until raft stops").to_string() });
        let (phase, watch_phase) = watch::channel(Phase::Serving);
        let servers = servers.serve(commands, &outbox, &metrics, &watch_phase);
        announce(&addresses, http_address);
        readiness.send_replace(Readiness::Ready);
        tracing::info!(node = config.node_id.0, life = incarnation.0, "serving");
        Ok(Self {
            cluster,
            image,
            faults,
            phase,
            readiness,
            outbox,
            metrics,
            servers,
            proposer,
            background,
        })
    }

    /// Serves until it is told to stop or something fails.
    async fn run(mut self, config: &Config, signals: &mut Signals, reload: &Reload) -> Exit {
        let failure = loop {
            tokio::select! {
                asked = signals.next() => match asked {
                    Asked::Reload => reload.carry_out(),
                    Asked::Stop => break None,
                },
                exit = self.failure() => break Some(exit),
            }
        };
        match failure {
            Some(exit) => {
                // What is in doubt must not be told to anybody: no drain, no goodbye.
                self.readiness.send_replace(Readiness::NotReady("it stops after a failure".into()));
                exit
            }
            None => tokio::select! {
                exit = self.stop(config.shutdown_deadline) => exit,
                () = signals.stop() => {
                    tracing::warn!("stopping at once");
                    Exit::Clean
                }
            },
        }
    }

    /// Waits for whatever ends the instance against its will.
    async fn failure(&mut self) -> Exit {
        let why = tokio::select! {
            biased;
            fault = self.faults.wait() => {
                tracing::error!("the disk failed, leaving service: {fault}");
                return Exit::Disk;
            }
            Some(ended) = self.servers.join_next() => match ended {
                Ok(Ok(())) => "a server ended".to_owned(),
                Ok(Err(error)) => error_chain(&error),
                Err(panic) => panic.to_string(),
            },
            Some(ended) = self.proposer.join_next() => match ended {
                Ok(Ok(())) => "the proposer ended".to_owned(),
                Ok(Err(error)) => error_chain(&error),
                Err(panic) => panic.to_string(),
            },
            Some(ended) = self.background.join_next() => {
                ended.unwrap_or_else(|panic| panic.to_string())
            }
        };
        // A failed disk stops raft as well; its report may be a moment behind.
        if let Ok(fault) = timeout(Duration::from_millis(200), self.faults.wait()).await {
            tracing::error!("the disk failed, leaving service: {fault}");
            return Exit::Disk;
        }
        tracing::error!("{why}");
        Exit::Internal
    }

    /// Drains, and stops in order: no new clients, then no sessions, then no commands, then raft.
    async fn stop(mut self, deadline: Duration) -> Exit {
        tracing::info!("stopping");
        self.metrics.draining.set(1);
        self.readiness.send_replace(Readiness::NotReady("it is being stopped".to_owned()));
        self.phase.send_replace(Phase::Draining);
        let alone = self.cluster.status().members.len() <= 1;
        if !alone {
            // Others go on serving the chain, so clients that wait here may still be told.
            let told = async {
                while self.outbox.sessions() > 0 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            let _ = timeout(deadline - deadline / CLOSING_SHARE, told).await;
        }
        self.phase.send_replace(Phase::Stopping);
        let closing = async {
            while self.servers.join_next().await.is_some() {}
            while self.proposer.join_next().await.is_some() {}
            self.background.shutdown().await;
            if let Err(error) = self.cluster.shutdown().await {
                tracing::warn!(%error, "raft did not stop in order");
            }
            drop(self.cluster);
            self.image.ended().await;
        };
        if timeout(deadline, closing).await.is_err() {
            tracing::warn!("not finished within the shutdown deadline; what was told is on disk");
        }
        match self.faults.current() {
            Some(fault) => {
                tracing::error!("the disk failed: {fault}");
                Exit::Disk
            }
            None => {
                tracing::info!("stopped");
                Exit::Clean
            }
        }
    }
}

/// Binds every listener, or none.
async fn bind(config: &Config) -> Result<(Servers, Option<HttpServer>), Exit> {
    let wanted = Addresses {
        chain: config.chain_addr,
        repair: config.dis_addr,
        emnet: config.emnet_addr,
        reflector: config.udp_addr,
    };
    let servers = Servers::bind(&wanted, server_options(config)).map_err(|error| {
        let flag = match &error {
            ServerError::Bind { server, .. } => flag_of(server),
            ServerError::Accept { .. } | ServerError::Session { .. } => "",
        };
        tracing::error!("{flag}: {}; choose another address", error_chain(&error));
        Exit::Usage
    })?;
    let http =
        HttpServer::bind(config.http_addr, HttpOptions::default()).await.map_err(|error| {
            tracing::error!(
                "--http-addr cannot be bound: {error}; choose another address or `off`"
            );
            Exit::Usage
        })?;
    Ok((servers, http))
}

/// The flag that says where a server listens.
fn flag_of(server: &str) -> &'static str {
    match server {
        "chain" => "--chain-addr",
        "repair" => "--dis-addr",
        "emnet" => "--emnet-addr",
        _ => "--udp-addr",
    }
}

fn server_options(config: &Config) -> ServerOptions {
    let defaults = ServerOptions::default();
    ServerOptions {
        connections_max: config.connections_max.unwrap_or(defaults.connections_max),
        connections_per_address_max: config.connections_per_address_max,
        silent_max: config.silent_connections_max,
        first_message_deadline: config.first_message_deadline,
        idle_deadline: config.idle_deadline,
        write_deadline: config.write_deadline,
        address_policy: config.address_policy,
        datagrams_per_source: config.udp_answers_per_address_max,
        datagrams_per_source_burst: config.udp_burst_per_address_max,
        datagrams_in_all: config.udp_answers_max,
        ..defaults
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
    let (metrics, faults) = (metrics.clone(), faults.clone());
    let opening =
        tokio::task::spawn_blocking(move || Stores::open(&dir, node, applied, &metrics, &faults));
    match opening.await {
        Ok(Ok(stores)) => Ok(stores),
        Ok(Err(error)) => {
            tracing::error!("{}", error_chain(&error));
            Err(exit_for(&error))
        }
        Err(panic) => {
            tracing::error!("opening the data directory: {panic}");
            Err(Exit::Internal)
        }
    }
}

/// Hands effects to the sessions, in order, and counts what happened. Before the outbox exists
/// there are only effects for the sessions of earlier lives.
async fn dispatch(
    mut effects: mpsc::Receiver<Applied>,
    outbox: Arc<OnceLock<Arc<Outbox>>>,
    metrics: Metrics,
) -> String {
    while let Some(applied) = effects.recv().await {
        observe::count(&applied.notes, &metrics);
        if let Some(outbox) = outbox.get() {
            outbox.dispatch(&applied.effects);
        }
    }
    "the state machine ended".to_owned()
}

fn announce(addresses: &Addresses, http: Option<std::net::SocketAddr>) {
    let lines = [
        ("EMNetChain", Some(addresses.chain)),
        ("EMDisi", Some(addresses.repair)),
        ("EMUDP", addresses.reflector),
        ("EMNet", addresses.emnet),
        ("HTTP", http),
    ];
    for (server, address) in lines {
        if let Some(address) = address {
            cli::announce(server, address);
        }
    }
}

fn exit_for(error: &StorageError) -> Exit {
    let known = [Exit::Usage, Exit::Disk].into_iter().find(|exit| *exit as u8 == error.exit_code());
    known.unwrap_or(Exit::Data)
}

fn failed(faults: &fault::FaultWatch, error: &dyn std::error::Error) -> Exit {
    match faults.current() {
        Some(fault) => {
            tracing::error!("the disk failed: {fault}");
            Exit::Disk
        }
        None => {
            tracing::error!("{}", error_chain(error));
            Exit::Internal
        }
    }
}

/// An error and what caused it, on one line; a cause that the error tells itself is told once.
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

/// What SIGHUP does.
struct Reload {
    sources: Sources,
    logs: LogHandle,
}

impl Reload {
    fn carry_out(&self) {
        match self.sources.read() {
            Ok(config) => {
                self.logs.set_level(&config.log_level);
                tracing::info!("the log level was read again");
            }
            Err(faults) => tracing::error!("nothing was changed: {faults}"),
        }
    }
}

/// What a signal asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    Reload,
    Stop,
}

/// The signals that an instance obeys.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.hangup.recv() => Asked::Reload,
        }
    }

    async fn stop(&mut self) {
        while self.next().await != Asked::Stop {}
    }
}
