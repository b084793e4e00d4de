//! One instance: the real storage and cluster code over a simulated disk and network, what is kept
//! of it over crashes, and its lives.

use std::{
    collections::BTreeMap,
    future::Future,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use emnetchain::{
    cluster::{
        Cluster, ClusterError, ClusterOptions, LogBounds, RulesOptions, Started,
        election::QUIET_TURN, found::Founding, gate::Gate, proposer::ProposerError,
        transport::NodeName,
    },
    ids::{InstanceId, StoreId},
    limits::PROPOSER_QUEUE_MAX,
    metrics::Metrics,
    queue::Queued,
    raft::Member,
    registry::{Policy, Rules},
    runtime,
    server::{Doors, Outbox, Protocol, ServerOptions},
    storage::{ClusterId, Pulses, Stores, fault},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use crate::{
    disk::{Disk, ROOT},
    log_store::LogStore,
    network::Network,
    oracle::Oracle,
    planted::Planted,
    post::{Letter, Post},
    visit::Visit,
    witness::Witness,
};

/// The cluster that all simulated instances belong to.
const CLUSTER: ClusterId = ClusterId(0x51);

/// Entries whose effects may wait for the witness, which takes them one by one.
const EFFECTS_MAX: usize = 64;

/// The log is cut early, so that an instance that lags is sent a snapshot.
const LOG_BOUNDS: LogBounds = LogBounds { snapshot_after_entries: 60, entries_kept: 20 };

/// What all instances share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) network: Network,
    pub(crate) oracle: Arc<Oracle>,
    pub(crate) post: Post,
    pub(crate) members: BTreeMap<InstanceId, Member>,
    pub(crate) policy: Policy,
    pub(crate) planted: Planted,
    /// The newest rules that the program of a new instance knows; `None` for this program's.
    pub(crate) newest: Option<Rules>,
}

/// An instance, running or not.
pub(crate) struct Instance {
    id: InstanceId,
    disk: Arc<Disk>,
    shared: Shared,
    /// The members that it is started with.
    pub(crate) list: BTreeMap<InstanceId, Member>,
    /// The newest rules that its program knows; `None` for this program's.
    pub(crate) newest: Option<Rules>,
    /// A part of the words with which it may end by itself, for good.
    pub(crate) may_end: Option<&'static str>,
    last_words: Arc<Mutex<Option<String>>>,
    running: Option<Running>,
    /// Whether it was seen among the members, and is no more.
    is_member: bool,
    is_retired: bool,
}

/// The process of an instance.
struct Running {
    witness: Arc<Witness>,
    progress: watch::Receiver<String>,
    doors: Doors,
    cluster: Arc<OnceLock<Cluster>>,
    process: runtime::Process,
}

impl Instance {
    pub(crate) fn new(id: InstanceId, disk: Arc<Disk>, shared: Shared) -> Self {
        let is_member = shared.members.contains_key(&id);
        let list = shared.members.clone();
        let (newest, may_end, last_words) = (shared.newest, None, Arc::default());
        let (running, is_retired) = (None, false);
        Self { id, disk, shared, list, newest, may_end, last_words, running, is_member, is_retired }
    }

    /// From its next start on its program knows no newer rules than these.
    pub(crate) fn install(&mut self, newest: Option<Rules>) {
        self.newest = newest;
        self.last_words.lock().unwrap().take();
    }

    /// What it said when it ended by itself, for good.
    pub(crate) fn last_words(&self) -> Option<String> {
        self.last_words.lock().unwrap().clone()
    }

    /// What it says about why it does not serve.
    pub(crate) fn says(&self) -> String {
        let Some(running) = &self.running else { return String::new() };
        let trouble = self.cluster().and_then(Cluster::trouble).unwrap_or_default();
        format!("{} {trouble}", *running.progress.borrow())
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
        running.witness.pauses(paused);
        self.shared.oracle.runs(self.id, !paused);
    }

    /// Damages its registry, in memory.
    pub(crate) fn damage(&self) {
        self.running.as_ref().expect("it runs").witness.damages();
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

    /// Its disk.
    pub(crate) fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// Starts the process.
    pub(crate) fn start(&mut self) {
        let (life, disk) = self.disk.open();
        self.shared.oracle.starts(self.id, self.newest.unwrap_or(Rules::NEWEST));
        let (effects, said) = mpsc::channel(EFFECTS_MAX);
        let Shared { oracle, planted, .. } = self.shared.clone();
        let (progress, shown) = watch::channel(String::new());
        let (commands, mut queue) = mpsc::channel(PROPOSER_QUEUE_MAX);
        let commands = match planted {
            Planted::CommandsLost => lose_some(commands),
            _ => commands,
        };
        let cluster = Arc::new(OnceLock::new());
        let tasks = runtime::Process::default();
        let (metrics, (reporter, mut failure)) = (Metrics::new(), fault::channel());
        let outbox = Arc::new(Outbox::new(self.id, metrics.clone()));
        let (_, options) = watch::channel(ServerOptions::default());
        let doors = Doors::new(commands, Arc::clone(&outbox), options, metrics.clone());
        let witness = Witness::new((self.id, life), planted, oracle, outbox, said);
        let process = Process {
            id: self.id,
            shared: self.shared.clone(),
            life,
            disk: Arc::clone(&self.disk),
            witness: Arc::clone(&witness),
            cluster: Arc::clone(&cluster),
            metrics: metrics.clone(),
            tasks: tasks.clone(),
            list: self.list.clone(),
            newest: self.newest,
            progress,
            may_end: self.may_end,
            last_words: Arc::clone(&self.last_words),
        };
        let (id, newest) = (self.id, self.newest);
        tokio::spawn(tasks.run(async move {
            let path = Path::new(ROOT);
            let stores =
                Stores::open_on(disk, path, id, Some(CLUSTER), effects, &metrics, &reporter);
            let ended = async {
                let stores = match newest {
                    Some(newest) => stores.and_then(|stores| stores.limited_to(newest)),
                    None => stores,
                };
                let text = |error| format!("S6: a store opens again after a crash: {error}");
                Box::pin(process.live(stores.map_err(text)?, reporter, &mut queue)).await
            };
            let ended: Result<(), String> = tokio::select! {
                biased;
                fault = failure.wait() => Err(format!("the disk failed: {fault}")),
                ended = ended => ended,
            };
            process.ended(ended);
        }));
        self.shared.oracle.runs(self.id, true);
        self.running = Some(Running { witness, progress: shown, doors, cluster, process: tasks });
    }

    /// Ends the process at once. What its disk had not synced is lost, or some of it.
    pub(crate) fn crash(&mut self) {
        let Some(running) = self.running.take() else { return };
        running.witness.ends();
        self.shared.network.silence(self.id);
        self.disk.crash();
        running.process.kill();
        self.shared.oracle.runs(self.id, false);
    }

    /// A client connects; `None` if no instance serves it.
    pub(crate) fn enter(
        &self,
        protocol: Protocol,
        from: IpAddr,
        number: u64,
        delays: [Duration; 2],
    ) -> Option<Visit> {
        let running = self.running.as_ref()?;
        running.witness.is_open()?;
        let (visit, guest) = Visit::begin(number, delays, self.shared.post.clone());
        let session = running.doors.enter(protocol, guest, SocketAddr::new(from, 9));
        tokio::spawn(running.process.run(session));
        Some(visit)
    }
}

/// A planted mistake: of every twenty commands one is lost.
fn lose_some(commands: mpsc::Sender<Queued>) -> mpsc::Sender<Queued> {
    let (sender, mut queue) = mpsc::channel(PROPOSER_QUEUE_MAX);
    tokio::spawn(async move {
        let mut count = 0;
        while let Some(command) = queue.recv().await {
            count += 1;
            if count % 20 != 0 && commands.send(command).await.is_err() {
                return;
            }
        }
    });
    sender
}

/// What runs.
struct Process {
    id: InstanceId,
    shared: Shared,
    life: u64,
    disk: Arc<Disk>,
    witness: Arc<Witness>,
    cluster: Arc<OnceLock<Cluster>>,
    metrics: Metrics,
    tasks: runtime::Process,
    list: BTreeMap<InstanceId, Member>,
    newest: Option<Rules>,
    progress: watch::Sender<String>,
    may_end: Option<&'static str>,
    last_words: Arc<Mutex<Option<String>>>,
}

impl Process {
    /// It has ended by itself, which only a disk that fails may bring about, or what a play says.
    fn ended(&self, why: Result<(), String>) {
        let why = why.err().unwrap_or_else(|| "without a reason".to_owned());
        if self.witness.is_over() {
        } else if self.may_end.is_some_and(|words| why.contains(words)) {
            self.shared.oracle.note(format!("{:?} ends for good: {why}", self.id));
            *self.last_words.lock().unwrap() = Some(why);
            self.shared.post.send(Letter::Ended(self.id));
        } else if self.disk.fails() {
            self.shared.oracle.note(format!("{:?} ends: {why}", self.id));
            self.shared.post.send(Letter::Ended(self.id));
        } else {
            let id = self.id;
            self.shared.oracle.fail(match why.split_once(": ") {
                Some((name, _)) if name.starts_with('S') => format!("{why}: {id:?}"),
                _ => format!("an instance does not end by itself: {id:?}: {why}"),
            });
        }
    }

    /// The rules that its program says it knows.
    fn rules(&self) -> RulesOptions {
        let newest = self.newest.unwrap_or(Rules::NEWEST);
        match self.shared.planted {
            Planted::NewerRulesClaimed => RulesOptions::default(),
            _ => RulesOptions { newest, ..RulesOptions::default() },
        }
    }

    async fn live(
        &self,
        stores: Stores,
        faults: fault::FaultReporter,
        queue: &mut mpsc::Receiver<Queued>,
    ) -> Result<(), String> {
        let text = |error: &dyn std::error::Error| error.to_string();
        let Stores { log, machine, view, inbox, guard, pulses, .. } = stores;
        let (disk, witness) = (Arc::clone(&self.disk), Arc::clone(&self.witness));
        let planted = self.shared.planted;
        let store = match planted {
            Planted::StoresLookAlike => StoreId(u128::from(self.id.0)),
            _ => log.store(),
        };
        let gate = Gate::default();
        if planted == Planted::GateAlwaysOpen {
            gate.open();
        }
        let log = LogStore::new(log, self.life, disk, witness).await?;
        self.witness.sees(view.clone());
        let pulses = match planted {
            Planted::HangsUnseen => Pulses::default(),
            _ => pulses,
        };
        let options = ClusterOptions {
            cluster: CLUSTER,
            instance: self.id,
            store,
            transport: self.shared.network.transport(self.id),
            guard,
            inbox,
            log_bounds: LOG_BOUNDS,
            pulses,
            rules: self.rules(),
            gate,
            quiet_turn: (planted != Planted::LeaderNeverQuiet).then_some(QUIET_TURN),
            faults,
            metrics: self.metrics.clone(),
        };
        let started = Box::pin(Cluster::start(options, log, machine, view)).await;
        let Started { cluster, service } = started.map_err(|error| text(&error))?;
        let service = Arc::new(service);
        assert!(self.cluster.set(cluster.clone()).is_ok(), "a process starts once");
        let mut incoming = self.shared.network.listen(self.id);
        let serving = async {
            let mut connections = JoinSet::new();
            while let Some((stream, peer)) = incoming.recv().await {
                let service = Arc::clone(&service);
                connections.spawn(self.tasks.run(async move {
                    service.serve(stream, |name: NodeName| name.node == peer).await
                }));
                while connections.try_join_next().is_some() {}
            }
            Ok(())
        };
        let living = self.serve_lives(&cluster, queue);
        let keep = Box::pin(cluster.clone().keep());
        let keeping = async { keep.await.map_err(|error| text(&error)) };
        let turned = async { Err::<(), _>(text(&cluster.turned().await)) };
        let hung = async { Err::<(), _>(format!("the disk hangs for {:?}", cluster.hung().await)) };
        tokio::try_join!(serving, keeping, turned, hung, living).map(drop)
    }

    /// Founds the cluster or finds it, and serves clients in one life after the other.
    async fn serve_lives(
        &self,
        cluster: &Cluster,
        queue: &mut mpsc::Receiver<Queued>,
    ) -> Result<(), String> {
        let text = |error: ClusterError| error.to_string();
        let founding = Founding::With(self.list.clone());
        let known = match self.shared.planted {
            Planted::StrangerTaken => Founding::With(self.shared.members.clone()),
            _ => founding.clone(),
        };
        cluster.found(founding, &self.progress).await.map_err(text)?;
        self.progress.send_replace(String::new());
        cluster.settle(&known, self.shared.policy).await.map_err(text)?;
        loop {
            let life = cluster.begin_life().await.map_err(text)?;
            self.witness.open(Some(life.incarnation));
            tokio::select! {
                biased;
                _why = cluster.life_over(life) => {}
                ended = cluster.proposer(life.incarnation).run(queue) => match ended {
                    Ok(()) => return Err("the queue is closed".to_owned()),
                    Err(ProposerError::Over) => {}
                    Err(ProposerError::Stopped(error)) => return Err(error.to_string()),
                },
            }
            self.witness.close();
        }
    }
}
