//! A stranger to this cluster gets nowhere: each attempt is closed and counted by its
//! reason, and raft never hears of it.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
};
use tokio_rustls::{TlsConnector, rustls};

use super::*;
use crate::{
    cluster::{
        progress::Progress,
        rpc::hello::{self, Facts, Hello, Known},
        rpc::{FrameReader, Request, frame},
        tcp::certs::forge,
    },
    limits::RPC_STRANGERS_MAX,
    raft::Vote,
};

/// Returns a vote that would end every leadership, if an instance listened to it.
fn greatest_vote(node: u64) -> Vec<u8> {
    let rpc = openraft::raft::VoteRequest::new(Vote::new(1 << 63, node), None);
    frame::encode(1, &Request::Vote(rpc)).unwrap()
}

/// Returns the facts of a member without data.
fn facts() -> Facts {
    Facts {
        history: None,
        store: StoreId(7),
        run: 1,
        progress: Progress::default(),
        acknowledged: None,
        rules: Rules::NEWEST,
        known: Known::Unknown,
        remembered: None,
    }
}

/// Returns a hello, and a verdict that accepts any answer.
fn hello(from: NodeName, to: u64) -> Vec<u8> {
    let hello = Hello { lane: Lane::Calls, from, to: InstanceId(to), facts: facts() };
    [hello.encode(), verdict()].concat()
}

fn verdict() -> Vec<u8> {
    let (mut bytes, facts) = (Vec::new(), facts());
    let sent = hello::send(&mut bytes, hello::VERSION, None, Some(&facts));
    futures_util::FutureExt::now_or_never(sent).expect("a vector takes all").unwrap();
    bytes
}

/// Says all of it, and returns what is answered until the connection is closed.
async fn say(mut stream: impl Stream, bytes: &[u8]) -> Vec<u8> {
    // The other end may close before everything is said.
    let _ = stream.write_all(bytes).await;
    let _ = stream.flush().await;
    let mut answer = Vec::new();
    let _ = within("the connection is closed", stream.read_to_end(&mut answer)).await;
    answer
}

struct Victim {
    world: World,
    node: Node,
    _dir: TempDir,
}

impl Victim {
    async fn new() -> Self {
        let (world, dir) = (World::new(3), tempfile::tempdir().unwrap());
        let node = world.start(1, dir.path()).await;
        node.found_alone().await;
        node.write(0..1).await;
        Self { world, node, _dir: dir }
    }

    async fn tcp(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.node.port)).await.unwrap()
    }

    /// Returns a connection with the given certificate, trusting the victim's.
    async fn tls(
        &self,
        (certificate, key): (std::path::PathBuf, std::path::PathBuf),
        as_: NodeName,
    ) -> Option<impl Stream> {
        let ca = self.world.files(1).ca;
        let tls = Tls::load_forged(TlsFiles { ca, certificate, key }, as_).unwrap();
        tls.connect(self.tcp().await, name(1)).await.ok()
    }

    fn certificate(&self, node: u64) -> (std::path::PathBuf, std::path::PathBuf) {
        let files = self.world.files(node);
        (files.certificate, files.key)
    }

    /// Expects that one more connection was refused for the reason, and that nothing came of it.
    async fn unmoved(&self, reason: &str, count: u64) {
        until(reason, || self.node.refused(reason) >= count).await;
        assert_eq!(self.node.refused(reason), count, "{reason}");
        assert_eq!((self.node.term(), self.node.leader()), (1, Some(self.node.id)), "{reason}");
    }
}

#[tokio::test]
async fn nothing_without_a_certificate_of_the_cluster_gets_in() {
    let victim = Box::pin(Victim::new()).await;
    let attack = [hello(name(2), 1), greatest_vote(2)].concat();

    // In plain, on a port that wants TLS.
    let answer = say(victim.tcp().await, &attack).await;
    assert!(answer.len() < 20, "at most an alert: {answer:?}");
    victim.unmoved("tls", 1).await;

    // With TLS, but nothing to show.
    let mut roots = rustls::RootCertStore::empty();
    use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
    roots.add(CertificateDer::from_pem_file(victim.world.files(1).ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let server = ServerName::try_from(name(1).dns_name()).unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(server, victim.tcp().await).await;
    assert_eq!(say(stream.unwrap(), &attack).await, b"");
    victim.unmoved("tls", 2).await;

    // With a certificate of the right name, of another CA.
    let other = World::new(3);
    let files = other.files(2);
    if let Some(stream) = victim.tls((files.certificate, files.key), name(2)).await {
        assert_eq!(say(stream, &attack).await, b"");
    }
    victim.unmoved("tls", 3).await;

    // With one of the right CA whose time is over.
    let expired = forge::make(victim.world.certs.path(), CLUSTER, name(2), true);
    if let Some(stream) = victim.tls(expired, name(2)).await {
        assert_eq!(say(stream, &attack).await, b"");
    }
    victim.unmoved("tls", 4).await;

    // With the very bytes of a connection that was let in.
    let recorded = Box::pin(record(&victim)).await;
    assert!(recorded.len() > 500);
    say(victim.tcp().await, &recorded).await;
    victim.unmoved("tls", 5).await;
}

/// Returns the bytes that a rightful instance sends on a connection.
async fn record(victim: &Victim) -> Vec<u8> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tls = Tls::load(victim.world.files(2), name(2)).unwrap();
    let rightful = async {
        let stream = TcpStream::connect(address).await.unwrap();
        let mut stream = tls.connect(stream, name(1)).await.unwrap();
        stream.write_all(&hello(name(2), 1)).await.unwrap();
        hello::receive(&mut stream).await.unwrap();
        stream.shutdown().await.unwrap();
    };
    let between = async {
        let (from, to) = (listener.accept().await.unwrap().0, victim.tcp().await);
        let (mut from_in, mut from_out) = from.into_split();
        let (mut to_in, mut to_out) = to.into_split();
        let recording = async {
            let mut recorded = Vec::new();
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = from_in.read(&mut buffer).await {
                recorded.extend(&buffer[..length]);
                to_out.write_all(&buffer[..length]).await.unwrap();
            }
            recorded
        };
        let back = tokio::io::copy(&mut to_in, &mut from_out);
        tokio::select! {
            recorded = recording => recorded,
            _ = async { let _ = back.await; std::future::pending::<()>().await } => unreachable!(),
        }
    };
    let both = Box::pin(async { tokio::join!(rightful, between).1 });
    within("a rightful connection", both).await
}

#[tokio::test]
async fn an_instance_is_let_in_under_its_own_name_only() {
    let victim = Box::pin(Victim::new()).await;
    let dir = victim.world.certs.path();
    let elsewhere = NodeName { cluster: ClusterId(99), node: InstanceId(2) };

    // The certificate of another instance than it says it is.
    let stream = victim.tls(victim.certificate(3), name(3)).await.unwrap();
    let attack = [hello(name(2), 1), greatest_vote(2)].concat();
    assert_eq!(say(stream, &attack).await.get(10), Some(&3));
    victim.unmoved("identity", 1).await;

    // Of another cluster, openly and hidden.
    let foreign = forge::make(dir, CLUSTER, elsewhere, false);
    let stream = victim.tls(foreign.clone(), elsewhere).await.unwrap();
    assert_eq!(
        say(stream, &[hello(elsewhere, 1), greatest_vote(2)].concat()).await.get(10),
        Some(&1)
    );
    victim.unmoved("cluster", 1).await;
    let stream = victim.tls(foreign, elsewhere).await.unwrap();
    say(stream, &attack).await;
    victim.unmoved("identity", 2).await;

    // Looking for another instance; without a word; with another protocol.
    let tls = || async { victim.tls(victim.certificate(2), name(2)).await.unwrap() };
    say(tls().await, &[hello(name(2), 3), greatest_vote(2)].concat()).await;
    victim.unmoved("target", 1).await;
    assert_eq!(say(tls().await, b"").await, b"");
    victim.unmoved("timeout", 1).await;
    say(tls().await, &[b'G'; 100]).await;
    victim.unmoved("preamble", 1).await;

    // Let in, but then: a vote for another, a frame that has no end, a changed byte.
    let [request, rest @ ..] = [greatest_vote(3), u32::MAX.to_le_bytes().to_vec(), {
        let mut changed = greatest_vote(2);
        *changed.last_mut().unwrap() ^= 1;
        changed
    }];
    say(tls().await, &[hello(name(2), 1), request].concat()).await;
    victim.unmoved("forged", 1).await;
    for (count, request) in (1..).zip(rest) {
        say(tls().await, &[hello(name(2), 1), request].concat()).await;
        victim.unmoved("frame", count).await;
    }

    // After all that, an instance in its own name is answered.
    let mut stream = tls().await;
    let rpc = openraft::raft::VoteRequest::new(Vote::new(0, 2), None);
    let request = frame::encode(5, &Request::Vote(rpc)).unwrap();
    stream.write_all(&[hello(name(2), 1), request].concat()).await.unwrap();
    hello::receive(&mut stream).await.unwrap();
    let answer = within("an answer", FrameReader::new(stream).next()).await.unwrap().unwrap();
    assert_eq!(answer.id, 5);
    victim.unmoved("frame", 2).await;
}

/// Strangers have few places and make room for each other: a flood from one address keeps no member
/// out, not even one that is slow to introduce itself, and ends none that has.
#[tokio::test]
async fn a_flood_of_strangers_makes_room_for_itself_and_keeps_no_member_out() {
    let victim = Box::pin(Victim::new()).await;
    let flood = async |count: usize| {
        let mut open = Vec::new();
        for _ in 0..count {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
            open.push(socket.connect(([127, 0, 0, 1], victim.node.port).into()).await.unwrap());
        }
        open
    };
    let introduced = async || {
        let mut stream = victim.tls(victim.certificate(2), name(2)).await.unwrap();
        stream.write_all(&hello(name(2), 1)).await.unwrap();
        hello::receive(&mut stream).await.unwrap();
        stream
    };
    let mut early = introduced().await;
    let slow = victim.tcp().await;
    let strangers = flood(300).await;
    let made_room = 300 + 1 - RPC_STRANGERS_MAX as u64;
    until("room was made", || victim.node.refused("crowded") >= made_room).await;
    assert_eq!(say(strangers.into_iter().next().unwrap(), b"").await, b"", "the oldest is closed");
    assert!(slow.try_read(&mut [0]).is_err_and(|it| it.kind() == io::ErrorKind::WouldBlock));
    let rpc = openraft::raft::VoteRequest::new(Vote::new(0, 2), None);
    early.write_all(&frame::encode(5, &Request::Vote(rpc)).unwrap()).await.unwrap();
    let answer = within("an answer", FrameReader::new(early).next()).await.unwrap().unwrap();
    assert_eq!(answer.id, 5);
    drop(introduced().await);
}
