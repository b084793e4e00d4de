//! Instances in one process that reach each other over real connections with real certificates.

mod certificates;
mod forgeries;
mod identity;
mod replication;

use std::{
    collections::BTreeMap,
    future::Future,
    io,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::BoxFuture;
use openraft::{Config, Raft, SnapshotPolicy, async_runtime::WatchReceiver};
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::mpsc, task::JoinSet};

use super::{NodeName, RpcServer, Security, TcpTransport, Tls, TlsFiles, certs::make_certs};
use crate::{
    clock,
    cluster::{
        contact::Contact,
        greeted::Greeted,
        greeter::Greeter,
        network::Network,
        progress::{self, Progress},
        proposer::{WriteError, Writer, Written},
        service::{Service, ServiceOptions},
        transport::{Lane, Stream, Transport},
        upgrade::{RAISE_AFTER, Upgrades},
    },
    ids::{Incarnation, InstanceId, PeerId, SessionId, StoreId, Timestamp},
    metrics::Metrics,
    raft::{Member, TypeConfig},
    registry::{BatchId, Command, Proposal, Rules},
    storage::{ClusterId, ImageProgress, RegistryView, StateMachine, Stores, fault},
};

const CLUSTER: ClusterId = ClusterId(0x00c1_0575);

/// The longest that anything may take before a test gives up; long, because machines can be busy.
const PATIENCE: Duration = Duration::from_secs(30);

fn name(node: u64) -> NodeName {
    NodeName { cluster: CLUSTER, node: InstanceId(node) }
}

/// Waits until something is the case.
async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let begun = clock::now();
    while !is() {
        assert!(clock::now() - begun < PATIENCE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("never: {what}"))
}

/// The present addresses of all, and the certificates of all.
struct World {
    certs: TempDir,
    addresses: Arc<Mutex<BTreeMap<InstanceId, String>>>,
}

impl World {
    fn new(nodes: u64) -> Self {
        let certs = tempfile::tempdir().unwrap();
        let nodes: Vec<_> = (1..=nodes).map(|node| (InstanceId(node), Vec::new())).collect();
        make_certs(certs.path(), CLUSTER, &nodes).unwrap();
        Self { certs, addresses: Arc::default() }
    }

    fn files(&self, node: u64) -> TlsFiles {
        let path = self.certs.path();
        TlsFiles {
            ca: path.join("ca.pem"),
            certificate: path.join(format!("node-{node}.pem")),
            key: path.join(format!("node-{node}.key")),
        }
    }

    fn security(&self, node: u64) -> Security {
        Security::Tls(Arc::new(Tls::load(self.files(node), name(node)).unwrap()))
    }

    /// Returns a way to the others as `node` has it, with the given certificates.
    fn transport(&self, node: u64, security: Security) -> Routed {
        let tcp = TcpTransport::new(name(node), security, Metrics::new());
        Routed { tcp, addresses: Arc::clone(&self.addresses) }
    }

    /// As [`Self::transport`], introduced as a member that has no data yet.
    fn greeted(&self, node: u64, security: Security, view: &RegistryView) -> Greeted {
        let store = StoreId(u128::from(node));
        let greeter =
            Greeter::new(name(node), store, Progress::default(), Rules::NEWEST, view.clone());
        Greeted::new(Arc::new(self.transport(node, security)), greeter)
    }

    /// Starts an instance over its directory.
    async fn start(&self, node: u64, dir: &Path) -> Node {
        let security = self.security(node);
        let metrics = Metrics::new();
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = TcpListener::bind(address).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = RpcServer::new(listener, security.clone(), metrics.clone());
        let address = format!("localhost:{port}");
        self.addresses.lock().unwrap().insert(InstanceId(node), address);

        let (effects, mut applied) = mpsc::channel(64);
        let (reporter, faults) = fault::channel();
        let stores =
            Stores::open(dir, InstanceId(node), Some(CLUSTER), effects, &metrics, &reporter);
        let mut stores = stores.unwrap();
        let held = progress::held(&mut stores.log).await.unwrap();
        let store = stores.log.store();
        let greeter = Greeter::new(name(node), store, held, Rules::NEWEST, stores.view.clone());
        let transport = Arc::new(self.transport(node, security.clone()));
        let greeted = Greeted::new(transport, greeter.clone());
        let network = Network::new(
            Arc::new(greeted),
            greeter.peers().clone(),
            greeter.acknowledged().clone(),
        );
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { while applied.recv().await.is_some() {} });
        let raft =
            Raft::new(node, config(), network.clone(), stores.log, stores.machine).await.unwrap();
        greeter.gate().open();
        let writer = Arc::new(LocalWriter(raft.clone()));
        let (ways, greets, view) = (network.clone(), greeter.clone(), stores.view.clone());
        let upgrades = Upgrades::new(raft.clone(), ways, greets, writer.clone(), view, RAISE_AFTER);
        let service = Service::new(ServiceOptions {
            raft: raft.clone(),
            proposals: writer,
            cluster: CLUSTER,
            guard: stores.guard,
            inbox: stores.inbox,
            view: stores.view.clone(),
            contact: Contact::default(),
            greeter: greeter.clone(),
            network: network.clone(),
            upgrades,
            faults: reporter,
            metrics: metrics.clone(),
        });
        tasks.spawn(async { panic!("{:?}", server.run(service).await) });
        let (view, image) = (stores.view, stores.image);
        Node {
            id: InstanceId(node),
            raft,
            network,
            greeter,
            view,
            image,
            faults,
            metrics,
            security,
            port,
            tasks,
        }
    }
}

/// Finds members where they are now, not where the membership says.
struct Routed {
    tcp: TcpTransport,
    addresses: Arc<Mutex<BTreeMap<InstanceId, String>>>,
}

impl Transport for Routed {
    fn connect(
        &self,
        target: InstanceId,
        _: &Member,
        lane: Lane,
    ) -> BoxFuture<'static, io::Result<Box<dyn Stream>>> {
        let raft_addr = self.addresses.lock().unwrap().get(&target).cloned().unwrap_or_default();
        self.tcp.connect(target, &Member::at(raft_addr), lane)
    }
}

/// One instance: raft over its directory, and a listener.
struct Node {
    id: InstanceId,
    raft: Raft<TypeConfig, StateMachine>,
    network: Network,
    greeter: Greeter,
    view: RegistryView,
    image: ImageProgress,
    faults: fault::FaultWatch,
    metrics: Metrics,
    security: Security,
    port: u16,
    tasks: JoinSet<()>,
}

impl Node {
    fn term(&self) -> u64 {
        self.raft.metrics().borrow_watched().current_term
    }

    fn leader(&self) -> Option<InstanceId> {
        self.raft.metrics().borrow_watched().current_leader.map(InstanceId)
    }

    fn peers(&self) -> usize {
        self.view.read(|registry| registry.totals().peers) as usize
    }

    /// Returns everything that is in the registry, to be compared.
    fn contents(&self) -> String {
        self.view.read(|registry| {
            let records: Vec<_> = registry.image().records.iter().collect();
            format!("{records:?}")
        })
    }

    fn refused(&self, reason: &str) -> u64 {
        self.metrics.raft_refused.with_label_values(&[reason]).get()
    }

    fn store(&self) -> StoreId {
        self.greeter.store()
    }

    /// Founds a cluster of these, on each of them, and waits for a leader.
    async fn found(nodes: &[&Self]) {
        let member = |node: &Self| Member { store: Some(node.store()), ..Member::default() };
        let members: BTreeMap<u64, Member> =
            nodes.iter().map(|node| (node.id.0, member(node))).collect();
        for node in nodes {
            node.raft.initialize(members.clone()).await.unwrap();
        }
    }

    /// Founds a cluster of its own and waits until it leads.
    async fn found_alone(&self) {
        Self::found(&[self]).await;
        until("a leader", || self.leader().is_some()).await;
    }

    /// Writes entries with a hundred addresses each, over and over while there is no leader.
    async fn write(&self, entries: std::ops::Range<u64>) {
        for entry in entries {
            let commands: Vec<Command> = (0..100).map(|n| add(self.id, entry * 100 + n)).collect();
            within("an entry is written", async {
                while LocalWriter(self.raft.clone()).write(None, commands.clone()).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            })
            .await;
        }
    }

    /// Stops as a killed process does: no other instance is told.
    async fn stop(mut self) {
        self.tasks.shutdown().await;
        self.raft.shutdown().await.unwrap();
        let Self { raft, network, greeter, view, mut image, .. } = self;
        drop((raft, network, greeter, view));
        image.ended().await;
    }
}

/// Writes where it stands, or not at all.
struct LocalWriter(Raft<TypeConfig, StateMachine>);

impl Writer for LocalWriter {
    fn write(
        &self,
        batch: Option<BatchId>,
        commands: Vec<Command>,
    ) -> BoxFuture<'static, Result<Written, WriteError>> {
        let raft = self.0.clone();
        Box::pin(async move {
            let written = raft.client_write(Proposal { at: Timestamp(1), batch, commands }).await;
            written
                .map(|response| Written { index: response.log_id.index, verdict: response.data })
                .map_err(|error| WriteError::Again(error.to_string()))
        })
    }
}

/// Keeps a long text under an id.
fn add(instance: InstanceId, connection: u64) -> Command {
    let session = SessionId { instance, incarnation: Incarnation(1), connection };
    let address = format!("{connection:0>200}");
    let source = crate::ids::Source::of([10, 0, 0, 1].into());
    Command::AddPeer { session, source, address, candidate: PeerId((connection % 900_000) as u32) }
}

fn config() -> Arc<Config> {
    let config = Config {
        heartbeat_interval: 100,
        election_timeout_min: 800,
        election_timeout_max: 1600,
        enable_pre_vote: Some(true),
        max_payload_entries: 16,
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: 0,
        ..Config::default()
    };
    Arc::new(config.validate().unwrap())
}
