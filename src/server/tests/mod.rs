//! The edge against real sockets on loopback. The registry is the test itself: it takes commands
//! from the proposer's channel and hands effects to the outbox.

#![expect(clippy::wildcard_enum_match_arm, reason = "what was not expected is a panic")]

mod limits;
mod processes;
mod reflection;
mod sessions;

use std::time::Duration;

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::{sleep, timeout},
};

use super::*;
use crate::{
    clock,
    ids::{Incarnation, InstanceId, Part, Socket},
    registry::{Effect, Then},
};

const CONNECT: &[u8] = br#"{"msg":"CONNECT","head":"127.0.0.1:1","tail":"127.0.0.1:2"}"#;
const RECONNECT: &[u8] = br#"{"msg":"RECONNECT","id":"7","ip":"127.0.0.1:1"}"#;
const HEAD: &[u8] = br#"{"msg":"CONNECT","part":"head","ip":"127.0.0.1:9"}"#;
const TAIL: &[u8] = br#"{"msg":"CONNECT","part":"tail","ip":"127.0.0.1:9"}"#;
const FAILED: &[u8] = b"{\"msg\":\"FAILED\"}\n";

/// No single step of a test takes longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Servers on free ports, and the test in the registry's place.
struct Bench {
    addresses: Addresses,
    commands: mpsc::Receiver<Queued>,
    outbox: Arc<Outbox>,
    metrics: Metrics,
    phase: watch::Sender<Phase>,
    options: watch::Sender<ServerOptions>,
    tasks: JoinSet<Result<(), ServerError>>,
}

impl Bench {
    fn start(options: ServerOptions) -> Self {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let wanted =
            Addresses { chains: vec![any], repair: any, emnet: Some(any), reflectors: vec![any] };
        let (options, live) = watch::channel(options);
        let servers = Servers::bind(&wanted, live).unwrap();
        let addresses = servers.addresses().clone();
        let metrics = Metrics::new();
        let outbox = Arc::new(Outbox::new(InstanceId(1), metrics.clone()));
        outbox.begin(Incarnation(2));
        let (sender, commands) = mpsc::channel(1024);
        let (phase, seen) = watch::channel(Phase::Serving);
        let tasks = servers.serve(sender, &outbox, &metrics, &seen);
        Self { addresses, commands, outbox, metrics, phase, options, tasks }
    }

    async fn chain(&self) -> TcpStream {
        connect(self.addresses.chains[0]).await
    }

    async fn emnet(&self) -> TcpStream {
        connect(self.addresses.emnet.unwrap()).await
    }

    /// Returns a client whose CONNECT has reached the registry.
    async fn waiting(&mut self) -> (TcpStream, SessionId) {
        let mut client = self.chain().await;
        client.write_all(CONNECT).await.unwrap();
        let session = self.connected().await;
        (client, session)
    }

    /// Returns a waiting client whose FIN has reached the registry too.
    async fn half_closed(&mut self) -> (TcpStream, SessionId) {
        let (mut client, session) = self.waiting().await;
        client.shutdown().await.unwrap();
        assert_eq!(self.command().await, Command::HalfClose { session });
        (client, session)
    }

    async fn queued(&mut self) -> Queued {
        timeout(PATIENCE, self.commands.recv()).await.expect("in time").expect("servers live")
    }

    async fn command(&mut self) -> Command {
        self.queued().await.command
    }

    async fn connected(&mut self) -> SessionId {
        match self.command().await {
            Command::Connect { session, .. } => session,
            command => panic!("not a CONNECT: {command:?}"),
        }
    }

    async fn asked(&mut self) -> SessionId {
        match self.command().await {
            Command::AskIp { session, .. } => session,
            command => panic!("not an ASK_IP: {command:?}"),
        }
    }

    fn tell(&self, session: SessionId, part: Part, then: Then) {
        self.outbox.dispatch(&[link(session, part, then)]);
    }

    fn rejected(&self, reason: &str) -> u64 {
        self.metrics.rejected.with_label_values(&[reason]).get()
    }

    /// Waits until no session is left, and checks that nothing else is.
    async fn all_gone(&self) {
        eventually("no session is left", || self.outbox.sessions() == 0).await;
        for server in ["chain", "repair", "emnet"] {
            let open = self.metrics.connections.with_label_values(&[server]);
            eventually("the gauge is back at zero", || open.get() == 0).await;
        }
    }
}

fn link(session: SessionId, part: Part, then: Then) -> Effect {
    let ip = Socket::parse("127.0.0.1:9").unwrap();
    Effect::Tell { session, message: Message::Link { part, ip }, then }
}

async fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Reads until the end; an RST is an error.
async fn rest(client: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    timeout(PATIENCE, client.read_to_end(&mut bytes)).await.expect("in time").expect("no reset");
    bytes
}

async fn read(client: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    timeout(PATIENCE, client.read_exact(&mut bytes)).await.expect("in time").expect("no reset");
    bytes
}

/// Closes with an RST.
fn reset<C>(client: C)
where
    for<'a> SockRef<'a>: From<&'a C>,
{
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let began = clock::now();
    while !condition() {
        assert!(clock::now() - began < PATIENCE, "never: {what}");
        sleep(Duration::from_millis(1)).await;
    }
}
