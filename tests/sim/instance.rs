//! One instance: the real cluster code over a simulated disk and network, what is kept of it over
//! crashes, and its lives.

use std::{
    collections::BTreeMap,
    fs,
    future::Future,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use emnetchain::{
    cluster::{
        Cluster, ClusterOptions, LogBounds, Started, found::Founding, proposer::ProposerError,
    },
    ids::{InstanceId, SessionId},
    limits::PROPOSER_QUEUE_MAX,
    metrics::Metrics,
    raft::Member,
    registry::{Command, Policy},
    runtime,
    storage::{ClusterId, DataDir, LogEnds, StateMachine, StateMachineOptions, fault},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use crate::{
    chance::Chance, disk::Disk, log_store::LogStore, network::Network, oracle::Oracle,
    planted::Planted, post::Post, witness::Witness,
};

/// The cluster that all simulated instances belong to.
const CLUSTER: ClusterId = ClusterId(0x51);

/// Entries whose effects may wait for the witness, who takes them one by one.
const EFFECTS_MAX: usize = 64;

/// The log is cut early, so that whoever lags is sent a snapshot.
const LOG_BOUNDS: LogBounds = LogBounds { snapshot_after_entries: 60, entries_kept: 20 };

/// Longer than any snapshot here, and too short to be cut for that alone.
const LOG_BYTES: i64 = 64 * 1024 * 1024;

/// What all instances share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) network: Network,
    pub(crate) oracle: Arc<Oracle>,
    pub(crate) post: Post,
    pub(crate) members: BTreeMap<InstanceId, Member>,
    pub(crate) policy: Policy,
    pub(crate) planted: Planted,
    /// Where the instances have their folders.
    pub(crate) root: PathBuf,
}

/// An instance, running or not.
pub(crate) struct Instance {
    id: InstanceId,
    disk: Arc<Disk>,
    shared: Shared,
    /// Counts the starts, each with a folder of its own.
    starts: u32,
    running: Option<Running>,
    /// Whether it was seen among the members, and is no more.
    is_member: bool,
    is_retired: bool,
}

/// The process of an instance.
struct Running {
    witness: Arc<Witness>,
    commands: mpsc::Sender<Command>,
    connections: u64,
    cluster: Arc<OnceLock<Cluster>>,
    process: runtime::Process,
}

impl Instance {
    pub(crate) fn new(id: InstanceId, disk: Arc<Disk>, shared: Shared) -> Self {
        Self { id, disk, shared, starts: 0, running: None, is_member: false, is_retired: false }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Whether it has left the cluster.
    pub(crate) fn is_retired(&self) -> bool {
        self.is_retired
    }

    /// Takes note of whether it belongs to the cluster. True if it has just left.
    pub(crate) fn belongs(&mut self, is_member: bool) -> bool {
        let was_member = std::mem::replace(&mut self.is_member, is_member);
        self.is_retired |= was_member && !is_member;
        was_member && !is_member
    }

    /// Whether clients are served.
    pub(crate) fn is_serving(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.witness.is_open().is_some())
    }

    /// Raft and what is around it, once it has started.
    pub(crate) fn cluster(&self) -> Option<&Cluster> {
        self.running.as_ref()?.cluster.get()
    }

    /// Whether it is stopped where it stands.
    pub(crate) fn is_paused(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.process.is_paused())
    }

    /// Stops it where it stands, or lets it go on.
    pub(crate) fn set_paused(&self, paused: bool) {
        let Some(running) = &self.running else { return };
        if paused {
            running.process.pause();
        } else {
            running.process.resume();
        }
        self.shared.oracle.runs(self.id, !paused);
    }

    /// Has the instance do something on the side, if it has started.
    pub(crate) fn spawn<F>(&self, work: impl FnOnce(Cluster) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        if let (Some(running), Some(cluster)) = (&self.running, self.cluster()) {
            tokio::spawn(running.process.run(work(cluster.clone())));
        }
    }

    /// Whether the disk works as disks do.
    pub(crate) fn has_good_disk(&self) -> bool {
        self.disk.is_good()
    }

    /// How many milliseconds the disk takes for a sync from now on.
    pub(crate) fn set_disk_delay(&self, least: u64, most: u64) {
        self.disk.set_delay(least, most);
    }

    fn folder(&self, start: u32) -> PathBuf {
        self.shared.root.join(format!("{}-{start}", self.id.0))
    }

    /// Starts the process.
    pub(crate) fn start(&mut self) {
        let (life, content) = match self.disk.open() {
            Ok(opened) => opened,
            Err(failure) => return self.shared.oracle.fail(failure),
        };
        let ends = LogEnds { purged: content.purged, last: content.last() };
        let (effects, said) = mpsc::channel(EFFECTS_MAX);
        let Shared { oracle, post, planted, .. } = self.shared.clone();
        let witness = Witness::new((self.id, life), planted, oracle, post, said);
        let (commands, queue) = mpsc::channel(PROPOSER_QUEUE_MAX);
        let cluster = Arc::new(OnceLock::new());
        let process = Process {
            id: self.id,
            shared: self.shared.clone(),
            folder: self.folder(self.starts),
            log: LogStore::new(Arc::clone(&self.disk), life, Arc::clone(&witness)),
            witness: Arc::clone(&witness),
            cluster: Arc::clone(&cluster),
        };
        let options = |metrics: &Metrics| {
            let (faults, _) = fault::channel();
            StateMachineOptions::new(effects, metrics.clone(), faults).without_image()
        };
        let metrics = Metrics::new();
        metrics.log_bytes.set(LOG_BYTES);
        let options = options(&metrics);
        let (oracle, watched) = (Arc::clone(&self.shared.oracle), Arc::clone(&witness));
        let id = self.id;
        let tasks = runtime::Process::default();
        tokio::spawn(tasks.run(async move {
            let ended = process.run(ends, options, metrics, queue).await;
            if !watched.is_over() {
                oracle.fail(format!("an instance does not end by itself: {id:?}: {ended}"));
            }
        }));
        self.shared.oracle.runs(self.id, true);
        let (connections, process) = (0, tasks);
        self.running = Some(Running { witness, commands, connections, cluster, process });
    }

    /// Ends the process at once. What its disk had not synced is lost.
    pub(crate) fn crash(&mut self, chance: &mut Chance) {
        let Some(running) = self.running.take() else { return };
        running.witness.ends();
        self.shared.network.silence(self.id);
        self.disk.crash();
        running.process.kill();
        self.shared.oracle.runs(self.id, false);
        let lost = self.shared.planted == Planted::LogPurgedTooEarly && chance.percent(70);
        copy_durable(&self.folder(self.starts), &self.folder(self.starts + 1), lost);
        self.starts += 1;
    }

    /// A client connects; `None` if nobody serves it.
    pub(crate) fn accept(&mut self) -> Option<SessionId> {
        let running = self.running.as_mut()?;
        let incarnation = running.witness.is_open()?;
        running.connections += 1;
        Some(SessionId { instance: self.id, incarnation, connection: running.connections })
    }

    /// A session of this instance has something to say.
    pub(crate) fn submit(&self, command: Command) {
        if let Some(running) = &self.running {
            // A full queue would make the session wait; it is too long to be ever full here.
            running.commands.try_send(command).expect("the queue has room");
        }
    }
}

/// What a crash leaves of a folder, in a folder of its own: what still runs of the old process must
/// not reach it.
fn copy_durable(from: &Path, to: &Path, snapshot_is_lost: bool) {
    let copy = |name: &str| {
        let (from, to) = (from.join(name), to.join(name));
        if from.exists() {
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(from, to).unwrap();
        }
    };
    copy("identity.json");
    copy("raft/log");
    let snapshots = fs::read_dir(from.join("snapshot")).into_iter().flatten();
    for file in snapshots.filter(|_| !snapshot_is_lost) {
        let name = file.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".snap") {
            copy(&format!("snapshot/{name}"));
        }
    }
    // It may still be written into, in vain.
    let _ = fs::remove_dir_all(from);
}

/// What runs.
struct Process {
    id: InstanceId,
    shared: Shared,
    folder: PathBuf,
    log: LogStore,
    witness: Arc<Witness>,
    cluster: Arc<OnceLock<Cluster>>,
}

impl Process {
    /// Runs until something fails, and says what.
    async fn run(
        self,
        ends: LogEnds,
        options: StateMachineOptions,
        metrics: Metrics,
        mut queue: mpsc::Receiver<Command>,
    ) -> String {
        match self.live(ends, options, metrics, &mut queue).await {
            Ok(()) => "without a reason".to_owned(),
            Err(failure) => failure,
        }
    }

    async fn live(
        self,
        ends: LogEnds,
        options: StateMachineOptions,
        metrics: Metrics,
        queue: &mut mpsc::Receiver<Command>,
    ) -> Result<(), String> {
        let text = |error: &dyn std::error::Error| error.to_string();
        let opened = DataDir::open(&self.folder, self.id, Some(CLUSTER)).and_then(|mut dir| {
            // The raft log is elsewhere; its folder must not look lost.
            fs::create_dir_all(dir.raft_dir()).unwrap();
            fs::write(dir.raft_dir().join("log"), "elsewhere").unwrap();
            let (machine, view, _) = StateMachine::open(&mut dir, ends, options)?;
            Ok((machine, view, dir.inbox()))
        });
        let (machine, view, inbox) = opened.map_err(|error| {
            let failure = format!("S6: a store opens again after a crash: {error}");
            self.shared.oracle.fail(failure.clone());
            failure
        })?;
        self.witness.sees(view.clone());
        let options = ClusterOptions {
            cluster: CLUSTER,
            instance: self.id,
            transport: self.shared.network.transport(self.id),
            inbox,
            log_bounds: LOG_BOUNDS,
            metrics,
        };
        let started = Cluster::start(options, self.log, machine, view).await;
        let Started { cluster, service } = started.map_err(|error| text(&error))?;
        let service = Arc::new(service);
        assert!(self.cluster.set(cluster.clone()).is_ok(), "a process starts once");
        let mut incoming = self.shared.network.listen(self.id);
        let serving = async {
            let mut connections = JoinSet::new();
            while let Some((stream, peer, lane)) = incoming.recv().await {
                let service = Arc::clone(&service);
                connections.spawn(async move { service.serve(stream, peer, lane).await });
                while connections.try_join_next().is_some() {}
            }
            Ok(())
        };
        let (progress, _shown) = watch::channel(String::new());
        let founding = Founding::With(self.shared.members.clone());
        let living = async {
            cluster.found(founding.clone(), &progress).await.map_err(|error| text(&error))?;
            cluster.settle(&founding, self.shared.policy).await.map_err(|error| text(&error))?;
            loop {
                let life = cluster.begin_life().await.map_err(|error| text(&error))?;
                self.witness.open(Some(life.incarnation));
                tokio::select! {
                    biased;
                    _why = cluster.life_over(life) => {}
                    ended = cluster.proposer(life.incarnation).run(queue) => match ended {
                        Ok(()) => return Err::<(), _>("the queue is closed".to_owned()),
                        Err(ProposerError::Over) => {}
                        Err(ProposerError::Stopped(error)) => return Err(error.to_string()),
                    },
                }
                self.witness.open(None);
            }
        };
        let keeping = async { cluster.clone().keep().await.map_err(|error| text(&error)) };
        tokio::try_join!(serving, keeping, living).map(drop)
    }
}
