//! Whole instances on one thread: the real storage over disks in memory, real raft, and connections
//! that the test can cut. Chance follows a seed, and time is tokio's, which goes as fast as the
//! instances are done with it.

mod changes;
mod comparing;
mod founding;
mod greeting;
mod hangups;
mod lives;
mod snapshots;
mod standing;

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    io,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::sleep,
};

use super::{
    Cluster, ClusterError, ClusterOptions, LogBounds, RulesOptions, Started,
    election::QUIET_TURN,
    found::Founding,
    gate::Gate,
    service::Service,
    transport::{Lane, NodeName, Stream, Transport},
};
use crate::{
    clock,
    ids::{
        ChainName, HeadAddr, Incarnation, InstanceId, PeerId, SessionId, Socket, Source, TailAddr,
    },
    metrics::Metrics,
    raft::Member,
    registry::{Command, Policy},
    runtime,
    storage::{ClusterId, Stores, fault, sim_disk::SimDisk},
};

const CLUSTER: ClusterId = ClusterId(0x7e57);

/// The longest that anything may take, in the time of the test.
const PATIENCE: Duration = Duration::from_secs(60);

/// Returns the policy of the instances, which differs from the one that the registry begins with.
fn policy() -> Policy {
    Policy { resume_grace_ms: 4321, retention_ms: 20_000, ..Policy::default() }
}

/// Returns where an instance listens at first.
fn address(id: u64) -> String {
    format!("host-{id}:7000")
}

/// Returns a list to start instances with.
fn list(ids: &[u64]) -> BTreeMap<InstanceId, Member> {
    ids.iter().map(|id| (InstanceId(*id), Member::at(address(*id)))).collect()
}

/// Waits until something is the case.
#[track_caller]
fn until<'a>(what: &'a str, mut is: impl FnMut() -> bool + 'a) -> impl Future<Output = ()> + 'a {
    let caller = std::panic::Location::caller();
    async move {
        let begun = clock::now();
        while !is() {
            assert!(clock::now() - begun < PATIENCE, "never: {what}, asked for at {caller}");
            sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn seconds(seconds: f64) {
    sleep(Duration::from_secs_f64(seconds)).await;
}

#[track_caller]
fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

/// Asks, for a client of an instance's first life, for a partner.
fn connect(instance: u64, connection: u64) -> Command {
    let (instance, incarnation) = (InstanceId(instance), Incarnation(1));
    let socket = |port| Socket::parse(&format!("10.0.{}.{connection}:{port}", instance.0)).unwrap();
    Command::Connect {
        session: SessionId { instance, incarnation, connection },
        source: Source::of([10, 0, 0, 1].into()),
        chain: ChainName(format!("of-{}", instance.0).into()),
        head: HeadAddr(socket(1)),
        tail: TailAddr(socket(2)),
    }
}

/// Keeps a long text under an id.
fn add_peer(connection: u64) -> Command {
    let session = SessionId { instance: InstanceId(1), incarnation: Incarnation(1), connection };
    let (source, address) = (Source::of([10, 0, 0, 1].into()), format!("{connection:0>200}"));
    Command::AddPeer { session, source, address, candidate: PeerId((connection % 900_000) as u32) }
}

type Incoming = (Box<dyn Stream>, InstanceId, oneshot::Receiver<()>);

/// From one instance to another.
type Way = (InstanceId, InstanceId);

type Listening = (InstanceId, mpsc::UnboundedSender<Incoming>);

/// The network between the instances; clones share it.
#[derive(Clone, Default)]
struct Wires(Arc<Mutex<Wired>>);

#[derive(Default)]
struct Wired {
    listeners: BTreeMap<String, Listening>,
    /// Ways on which no connection is opened.
    cut: BTreeSet<Way>,
    /// A connection breaks when its sender is dropped.
    open: Vec<(Way, oneshot::Sender<()>)>,
}

impl Wires {
    /// Breaks what one instance has opened to another, and lets it open nothing; or heals that.
    fn set_cut(&self, from: u64, to: u64, cut: bool) {
        let (mut wired, way) = (self.0.lock().unwrap(), (InstanceId(from), InstanceId(to)));
        if cut {
            wired.cut.insert(way);
            wired.open.retain(|(open, _)| *open != way);
        } else {
            wired.cut.remove(&way);
        }
    }

    /// Does that both ways.
    fn set_apart(&self, a: u64, b: u64, cut: bool) {
        self.set_cut(a, b, cut);
        self.set_cut(b, a, cut);
    }

    /// Finds the listener at an address, and whether the way from an instance to it is cut.
    fn find(&self, from: InstanceId, address: &str) -> (Option<Listening>, bool) {
        let wired = self.0.lock().unwrap();
        let found = wired.listeners.get(address).cloned();
        let is_cut = found.as_ref().is_some_and(|(id, _)| wired.cut.contains(&(from, *id)));
        (found, is_cut)
    }

    /// Has what listens at one address listen at another one as well.
    fn listen_also(&self, at: &str, also: &str) {
        let mut wired = self.0.lock().unwrap();
        let listening = wired.listeners[at].clone();
        wired.listeners.insert(also.to_owned(), listening);
    }

    fn silence(&self, id: InstanceId) {
        let mut wired = self.0.lock().unwrap();
        wired.listeners.retain(|_, (listening, _)| *listening != id);
        wired.open.retain(|((from, to), _)| *from != id && *to != id);
    }
}

/// The way of one instance to the others.
struct Wire(Wires, InstanceId);

impl Transport for Wire {
    fn connect(
        &self,
        _: InstanceId,
        member: &Member,
        _: Lane,
    ) -> BoxFuture<'static, io::Result<Box<dyn Stream>>> {
        let (wires, from, address) = (self.0.clone(), self.1, member.raft_addr.clone());
        Box::pin(async move {
            let (listening, is_cut) = wires.find(from, &address);
            if is_cut {
                seconds(0.4).await;
                return Err(io::Error::new(io::ErrorKind::TimedOut, "no connection in time"));
            }
            let refused = || io::Error::other("Connection refused");
            let (id, listener) = listening.ok_or_else(refused)?;
            let (near, far) = tokio::io::duplex(256 * 1024);
            let (keeps, broken) = oneshot::channel();
            let incoming: Incoming = (Box::new(far), from, broken);
            listener.send(incoming).map_err(|_| refused())?;
            wires.0.lock().unwrap().open.push(((from, id), keeps));
            Ok(Box::new(near) as Box<dyn Stream>)
        })
    }
}

/// The parts that an instance is started with.
struct Given {
    id: u64,
    founding: Founding,
    address: String,
    /// The address on which it says that it listens.
    listens: Option<SocketAddr>,
    disk: SimDisk,
    rules: RulesOptions,
    bounds: LogBounds,
}

impl Given {
    /// One of several, whose disk is empty.
    fn with(id: u64, ids: &[u64]) -> Self {
        Self {
            id,
            founding: Founding::With(list(ids)),
            address: address(id),
            listens: None,
            disk: SimDisk::new(id),
            rules: RulesOptions::default(),
            bounds: LogBounds::default(),
        }
    }

    fn alone(id: u64) -> Self {
        Self { founding: Founding::Alone(Member::at(address(id))), ..Self::with(id, &[]) }
    }

    fn on(self, disk: SimDisk) -> Self {
        Self { disk, ..self }
    }
}

/// A running instance.
struct Instance {
    id: InstanceId,
    cluster: Cluster,
    disk: SimDisk,
    /// Its sentences while it gets into the cluster.
    progress: watch::Receiver<String>,
    /// Its present life, and why its last one was over.
    life: watch::Receiver<(Option<Incarnation>, &'static str)>,
    /// Why it ended by itself.
    ended: watch::Receiver<Option<String>>,
    process: runtime::Process,
    wires: Wires,
}

impl std::ops::Deref for Instance {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl Instance {
    async fn start(wires: &Wires, given: Given) -> Self {
        let (id, wires, disk) = (InstanceId(given.id), wires.clone(), given.disk.clone());
        let (said, progress) = watch::channel(String::new());
        let (lives, life) = watch::channel((None, ""));
        let (ends, ended) = watch::channel(None);
        let (starts, started) = oneshot::channel();
        let process = runtime::Process::default();
        let transport = Arc::new(Wire(wires.clone(), id));
        let network = wires.clone();
        tokio::spawn(process.run(async move {
            let lived = Box::pin(live(given, transport, network, starts, said, lives)).await;
            ends.send_replace(lived.err());
            std::future::pending::<()>().await; // what it has shows for as long as it is looked at
        }));
        let cluster = started.await.expect("it starts");
        Self { id, cluster, disk, progress, life, ended, process, wires }
    }

    /// Returns whether it serves, or would if it had clients.
    fn serves(&self) -> bool {
        self.life.borrow().0.is_some()
    }

    /// Returns its life, as a number.
    fn life(&self) -> u64 {
        self.life.borrow().0.map_or(0, |life| life.0)
    }

    /// Returns why its last life was over.
    fn was_over(&self) -> &'static str {
        self.life.borrow().1
    }

    fn says(&self) -> String {
        self.progress.borrow().clone()
    }

    fn why_ended(&self) -> Option<String> {
        self.ended.borrow().clone()
    }

    /// Kills it; the disk is as the kernel leaves it.
    fn stop(self) -> SimDisk {
        self.wires.silence(self.id);
        let disk = self.disk.after_kill();
        self.process.kill();
        disk
    }

    /// Writes commands at the leader.
    async fn write(&self, commands: Vec<Command>) {
        use super::proposer::Writer as _;
        let begun = clock::now();
        while let Err(error) = self.router.write(None, commands.clone()).await {
            assert!(clock::now() - begun < PATIENCE, "it is never written: {error}");
        }
    }

    /// Returns the number of addresses kept here.
    fn peers(&self) -> u64 {
        self.view().read(|registry| registry.totals().peers)
    }

    fn member(&self, id: u64) -> Option<Member> {
        self.members().remove(&InstanceId(id))
    }
}

async fn live(
    given: Given,
    transport: Arc<dyn Transport>,
    wires: Wires,
    starts: oneshot::Sender<Cluster>,
    said: watch::Sender<String>,
    lives: watch::Sender<(Option<Incarnation>, &'static str)>,
) -> Result<(), String> {
    let text = |error: ClusterError| error.to_string();
    let (id, metrics) = (InstanceId(given.id), Metrics::new());
    let (effects, mut applied) = mpsc::channel(64);
    let (faults, mut fault) = fault::channel();
    let (disk, path) = (given.disk.share(), Path::new("/data"));
    let stores = Stores::open_on(disk, path, id, Some(CLUSTER), effects, &metrics, &faults);
    let Stores { log, machine, view, inbox, guard, pulses, .. } = stores.unwrap();
    runtime::spawn(async move { while applied.recv().await.is_some() {} });
    let options = ClusterOptions {
        cluster: CLUSTER,
        instance: id,
        store: log.store(),
        transport,
        guard,
        inbox,
        log_bounds: given.bounds,
        pulses,
        rules: given.rules,
        gate: Gate::default(),
        quiet_turn: Some(QUIET_TURN),
        faults,
        metrics: metrics.clone(),
    };
    let started = Box::pin(Cluster::start(options, log, machine, view)).await;
    let Started { cluster, service } = started.map_err(text)?;
    assert!(starts.send(cluster.clone()).is_ok(), "the test waits");
    if let Some(at) = given.listens {
        cluster.listens_at(at);
    }
    let (listener, incoming) = mpsc::unbounded_channel();
    if !given.address.is_empty() {
        wires.0.lock().unwrap().listeners.insert(given.address, (id, listener));
    }
    let living = begin_lives(&cluster, &given.founding, &said, &lives);
    let keep = Box::pin(cluster.clone().keep());
    let keeping = async { keep.await.map_err(|error| error.to_string()) };
    let turned = async { Err::<(), _>(cluster.turned().await.to_string()) };
    let failing = async { Err::<(), _>(fault.wait().await.to_string()) };
    let ended: Result<_, String> =
        tokio::try_join!(serve(service, incoming, metrics), keeping, turned, failing, living);
    ended.map(drop)
}

/// Founds the cluster or finds it, and begins one life after the other.
async fn begin_lives(
    cluster: &Cluster,
    founding: &Founding,
    said: &watch::Sender<String>,
    lives: &watch::Sender<(Option<Incarnation>, &'static str)>,
) -> Result<(), String> {
    let text = |error: ClusterError| error.to_string();
    cluster.found(founding.clone(), said).await.map_err(text)?;
    cluster.settle(founding, policy()).await.map_err(text)?;
    loop {
        let life = cluster.begin_life().await.map_err(text)?;
        lives.send_modify(|shown| shown.0 = Some(life.incarnation));
        let over = cluster.life_over(life).await;
        lives.send_replace((None, over));
    }
}

async fn serve(
    service: Service,
    mut incoming: mpsc::UnboundedReceiver<Incoming>,
    metrics: Metrics,
) -> Result<(), String> {
    let service = Arc::new(service);
    while let Some((stream, peer, broken)) = incoming.recv().await {
        let (service, metrics) = (Arc::clone(&service), metrics.clone());
        runtime::spawn(async move {
            tokio::select! {
                biased;
                _ = broken => {}
                served = service.serve(stream, |name: NodeName| name.node == peer) => {
                    if let Some(reason) = served.err().and_then(|error| error.refusal()) {
                        metrics.raft_refused.with_label_values(&[reason]).inc();
                    }
                }
            }
        });
    }
    std::future::pending().await
}

/// Starts these, all of one list, and waits until they serve.
async fn found(wires: &Wires, ids: &[u64]) -> Vec<Instance> {
    let mut instances = Vec::new();
    for id in ids {
        instances.push(Instance::start(wires, Given::with(*id, ids)).await);
    }
    until("all serve", || instances.iter().all(Instance::serves)).await;
    instances
}

/// Returns the place of the leader, once all of these know the same one.
async fn leader(instances: &[Instance]) -> usize {
    let mut at = None;
    until("all know the same leader", || {
        let known: Vec<_> = instances.iter().map(|it| it.status().leader).collect();
        at = instances.iter().position(|it| known.iter().all(|leader| *leader == Some(it.id)));
        at.is_some()
    })
    .await;
    at.unwrap()
}

/// Has the instance of this number lead.
async fn lead(instances: &[Instance], id: u64) -> usize {
    use super::admin::Change;
    let id = InstanceId(id);
    let by = leader(instances).await;
    let changed = instances[by].change(Change::TransferLeader(Some(id))).await;
    assert_eq!(changed, Ok(format!("instance {} leads", id.0)));
    let at = leader(instances).await;
    assert_eq!(instances[at].id, id);
    at
}
