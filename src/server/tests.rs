//! The edge against real sockets on loopback. The registry is the test itself: it takes commands
//! from the proposer's channel and hands effects to the outbox.

#![expect(clippy::print_stdout, reason = "the child process speaks to its parent")]
#![expect(clippy::wildcard_enum_match_arm, reason = "what was not expected is a panic")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream as StdStream, UdpSocket as StdUdp},
    os::fd::AsFd,
    process::{Child, Command as Process, Stdio},
    sync::Arc,
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::Handle,
    sync::{mpsc, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::*;
use crate::{
    clock,
    ids::{Incarnation, InstanceId, Part, PeerId, Socket},
    registry::{Effect, Then, Why},
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
    commands: mpsc::Receiver<Command>,
    outbox: Arc<Outbox>,
    metrics: Metrics,
    phase: watch::Sender<Phase>,
    tasks: JoinSet<Result<(), ServerError>>,
}

impl Bench {
    fn start(options: ServerOptions) -> Self {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let wanted = Addresses { chain: any, repair: any, emnet: Some(any), reflector: Some(any) };
        let servers = Servers::bind(&wanted, options).unwrap();
        let addresses = servers.addresses();
        let metrics = Metrics::new();
        let outbox = Arc::new(Outbox::new(InstanceId(1), Incarnation(2), metrics.clone()));
        let (sender, commands) = mpsc::channel(1024);
        let (phase, seen) = watch::channel(Phase::Serving);
        let tasks = servers.serve(sender, &outbox, &metrics, &seen);
        Self { addresses, commands, outbox, metrics, phase, tasks }
    }

    async fn chain(&self) -> TcpStream {
        connect(self.addresses.chain).await
    }

    async fn emnet(&self) -> TcpStream {
        connect(self.addresses.emnet.unwrap()).await
    }

    /// A client whose CONNECT has reached the registry.
    async fn waiting(&mut self) -> (TcpStream, SessionId) {
        let mut client = self.chain().await;
        client.write_all(CONNECT).await.unwrap();
        let session = self.connected().await;
        (client, session)
    }

    /// A waiting client whose FIN has reached the registry too.
    async fn half_closed(&mut self) -> (TcpStream, SessionId) {
        let (mut client, session) = self.waiting().await;
        client.shutdown().await.unwrap();
        assert_eq!(self.command().await, Command::HalfClose { session });
        (client, session)
    }

    async fn command(&mut self) -> Command {
        timeout(PATIENCE, self.commands.recv()).await.expect("in time").expect("servers live")
    }

    async fn connected(&mut self) -> SessionId {
        match self.command().await {
            Command::Connect { session, .. } => session,
            command => panic!("not a CONNECT: {command:?}"),
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
fn reset(client: impl AsFd) {
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let began = clock::now();
    while !condition() {
        assert!(clock::now() - began < PATIENCE, "never: {what}");
        sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_request_may_be_split_at_every_byte() {
    let mut bench = Bench::start(ServerOptions::default());
    for at in 1..CONNECT.len() {
        let mut client = bench.chain().await;
        client.write_all(&CONNECT[..at]).await.unwrap();
        tokio::task::yield_now().await;
        client.write_all(&CONNECT[at..]).await.unwrap();
        let session = bench.connected().await;
        bench.tell(session, Part::Head, Then::Close);
        assert_eq!(rest(&mut client).await, HEAD, "split at {at}");
    }
}

#[tokio::test]
async fn commands_carry_the_session_the_source_and_the_request() {
    let mut bench = Bench::start(ServerOptions::default());
    let mut client = connect(bench.addresses.repair).await;
    client.write_all(RECONNECT).await.unwrap();
    let Command::Reconnect { session, source, id, orphan } = bench.command().await else {
        panic!("not a RECONNECT")
    };
    assert_eq!((session.instance, session.incarnation), (InstanceId(1), Incarnation(2)));
    assert_eq!(source, client.local_addr().unwrap().ip());
    assert_eq!((&*id.0, orphan.0.to_string().as_str()), ("7", "127.0.0.1:1"));
    let ip = Socket::parse("127.0.0.1:8").unwrap();
    let message = Message::Repair { ip };
    bench.outbox.dispatch(&[Effect::Tell { session, message, then: Then::Close }]);
    assert_eq!(rest(&mut client).await, br#"{"msg":"CONNECT","ip":"127.0.0.1:8"}"#);
    bench.all_gone().await;
}

#[tokio::test]
async fn junk_is_met_with_silence_and_a_later_request_is_heard() {
    let mut bench = Bench::start(ServerOptions::default());
    let mut client = bench.chain().await;
    client.write_all(b"hello\n{\"msg\":\"connect\"}").await.unwrap();
    client.write_all(RECONNECT).await.unwrap();
    client.write_all(CONNECT).await.unwrap();
    let session = bench.connected().await;
    assert_eq!((bench.rejected("junk"), bench.rejected("unknown_message")), (1, 2));
    bench.tell(session, Part::Head, Then::Close);
    assert_eq!(rest(&mut client).await, HEAD);
}

#[tokio::test]
async fn a_refused_request_leaves_the_connection_open_for_another_one() {
    let mut bench = Bench::start(ServerOptions::default());
    let (mut client, session) = bench.waiting().await;
    let why = Refusal::NotOwner;
    bench.outbox.dispatch(&[Effect::Refuse { session, why }]);
    assert_eq!(bench.rejected("not_owner"), 1);
    eventually("the session hears again", || {
        client.try_write(CONNECT).unwrap() == CONNECT.len() && !bench.commands.is_empty()
    })
    .await;
    assert_eq!(bench.connected().await, session);
    bench.tell(session, Part::Tail, Then::Close);
    assert_eq!(rest(&mut client).await, TAIL);
}

#[tokio::test]
async fn what_a_client_sends_behind_its_request_does_not_turn_the_close_into_a_reset() {
    let mut bench = Bench::start(ServerOptions::default());
    for extra in [&b"\n"[..], CONNECT, &[b'x'; 100_000]] {
        let (mut client, session) = bench.waiting().await;
        client.write_all(extra).await.unwrap();
        bench.tell(session, Part::Tail, Then::Stay);
        assert_eq!(read(&mut client, TAIL.len()).await, TAIL);
        client.write_all(extra).await.unwrap();
        bench.tell(session, Part::Head, Then::Close);
        client.write_all(extra).await.unwrap();
        assert_eq!(rest(&mut client).await, HEAD);
    }
    assert!(bench.commands.is_empty(), "a second request is not heard");
    bench.all_gone().await;
}

#[tokio::test]
async fn a_released_client_gets_a_fin_and_no_byte() {
    let mut bench = Bench::start(ServerOptions::default());
    let (mut client, session) = bench.waiting().await;
    bench.outbox.dispatch(&[Effect::Release { session, why: Why::Superseded }]);
    assert_eq!(rest(&mut client).await, b"");
}

#[tokio::test]
async fn effects_of_others_are_dropped() {
    let mut bench = Bench::start(ServerOptions::default());
    let (mut client, session) = bench.waiting().await;
    for stranger in [
        SessionId { instance: InstanceId(9), ..session },
        SessionId { incarnation: Incarnation(1), ..session },
        SessionId { connection: 999, ..session },
    ] {
        bench.tell(stranger, Part::Tail, Then::Close);
    }
    bench.tell(session, Part::Head, Then::Close);
    assert_eq!(rest(&mut client).await, HEAD);
}

#[tokio::test]
async fn a_half_closed_client_that_reads_is_told_and_that_is_reported() {
    let mut bench = Bench::start(ServerOptions::default());
    let (mut client, session) = bench.half_closed().await;
    bench.tell(session, Part::Head, Then::Confirm);
    assert_eq!(bench.command().await, Command::Delivered { session });
    bench.outbox.dispatch(&[Effect::Release { session, why: Why::Answered }]);
    assert_eq!(rest(&mut client).await, HEAD);
    bench.all_gone().await;
}

#[tokio::test]
async fn a_client_that_exited_is_found_out_by_telling_it() {
    let mut bench = Bench::start(ServerOptions::default());
    for _ in 0..20 {
        let (client, session) = bench.waiting().await;
        drop(client); // the same FIN as a half-close, but nobody reads any more
        assert_eq!(bench.command().await, Command::HalfClose { session });
        bench.tell(session, Part::Head, Then::Confirm);
        assert_eq!(bench.command().await, Command::Disconnect { session });
    }
    bench.all_gone().await;
}

#[tokio::test]
async fn a_process_that_was_killed_is_found_out_too() {
    let mut bench = Bench::start(ServerOptions::default());
    let mut client = Process::new("bash")
        .args([
            "-c",
            r#"exec 3<>"/dev/tcp/127.0.0.1/$1"; printf %s "$2" >&3; exec cat <&3"#,
            "client",
        ])
        .arg(bench.addresses.chain.port().to_string())
        .arg(std::str::from_utf8(CONNECT).unwrap())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let session = bench.connected().await;
    client.kill().unwrap();
    client.wait().unwrap();
    assert_eq!(bench.command().await, Command::HalfClose { session });
    bench.tell(session, Part::Tail, Then::Confirm);
    assert_eq!(bench.command().await, Command::Disconnect { session });
}

#[tokio::test]
async fn a_reset_is_noticed_in_every_phase() {
    let mut bench = Bench::start(ServerOptions::default());
    let mut mid_message = bench.chain().await;
    mid_message.write_all(&CONNECT[..20]).await.unwrap();
    eventually("accepted", || bench.outbox.sessions() == 1).await;
    reset(mid_message);
    bench.all_gone().await;

    let (waiting, session) = bench.waiting().await;
    reset(waiting);
    assert_eq!(bench.command().await, Command::Disconnect { session });

    let (half_closed, session) = bench.half_closed().await;
    reset(half_closed);
    assert_eq!(bench.command().await, Command::Disconnect { session });

    let (flooding, session) = bench.waiting().await;
    let chunk = vec![b' '; 65536];
    while bench.rejected("flood") == 0 {
        flooding.writable().await.unwrap();
        let _ = flooding.try_write(&chunk);
    }
    reset(flooding);
    assert_eq!(bench.command().await, Command::Disconnect { session });
    bench.all_gone().await;
    assert!(bench.commands.is_empty());
}

#[tokio::test]
async fn a_half_closed_client_does_not_keep_the_loop_busy() {
    let mut bench = Bench::start(ServerOptions::default());
    let mut clients = Vec::new();
    for _ in 0..50 {
        clients.push(bench.half_closed().await);
    }
    let busy = || Handle::current().metrics().worker_total_busy_duration(0);
    let before = busy();
    sleep(Duration::from_millis(300)).await;
    let spent = busy() - before;
    assert!(spent < Duration::from_millis(100), "busy for {spent:?} of 300 ms");
}

#[tokio::test]
async fn silent_connections_hold_up_nobody_and_the_oldest_go_first() {
    let options = ServerOptions { silent_max: 100, ..ServerOptions::default() };
    let mut bench = Bench::start(options);
    let mut silent = Vec::new();
    for round in 0..10 {
        for _ in 0..100 {
            silent.push(bench.chain().await);
        }
        let (mut client, session) = bench.waiting().await;
        bench.tell(session, Part::Head, Then::Close);
        assert_eq!(rest(&mut client).await, HEAD, "round {round}");
    }
    // The newcomers' places were taken from the oldest; a hundred are left, or one fewer.
    let kept = silent.split_off(silent.len() - 99);
    for client in &mut silent[..900] {
        assert_eq!(rest(client).await, b"");
    }
    let alive = |client: &TcpStream| client.try_read(&mut [0; 1]).is_err_and(|e| is_pending(&e));
    assert!(kept.iter().all(alive), "the latest are kept");
    assert!(bench.rejected("silent") >= 900);
}

fn is_pending(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

#[tokio::test]
async fn when_full_a_silent_connection_makes_room_but_a_waiting_one_does_not() {
    let options = ServerOptions { connections_max: 3, ..ServerOptions::default() };
    let mut bench = Bench::start(options);
    let (_first, one) = bench.waiting().await;
    let mut silent = bench.chain().await;
    let (_second, _) = bench.waiting().await;
    let (_third, _) = bench.waiting().await;
    assert_eq!(rest(&mut silent).await, b"");
    let mut fourth = bench.chain().await;
    assert_eq!(rest(&mut fourth).await, b"");
    assert_eq!((bench.rejected("silent"), bench.rejected("connections_full")), (1, 1));
    bench.outbox.dispatch(&[Effect::Release { session: one, why: Why::Expired }]);
    drop(_first);
    eventually("its place is free", || bench.outbox.sessions() == 2).await;
    bench.waiting().await;
}

#[tokio::test]
async fn one_address_may_hold_so_many_connections() {
    let limited = ServerOptions {
        connections_per_address_max: 2,
        local_addresses_limited: true,
        ..ServerOptions::default()
    };
    let mut bench = Bench::start(limited.clone());
    let (first, _) = bench.waiting().await;
    let (_second, _) = bench.waiting().await;
    assert_eq!(rest(&mut bench.chain().await).await, b"");
    assert_eq!(bench.rejected("address_full"), 1);
    reset(first);
    eventually("its place is free", || bench.outbox.sessions() == 1).await;
    assert!(matches!(bench.command().await, Command::Disconnect { .. }));
    bench.waiting().await;

    let mut exempt = Bench::start(ServerOptions { local_addresses_limited: false, ..limited });
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(exempt.waiting().await);
    }
}

#[tokio::test]
async fn a_drip_feeder_has_until_the_deadline() {
    let deadline = Duration::from_millis(200);
    let options = ServerOptions { first_message_deadline: deadline, ..ServerOptions::default() };
    let bench = Bench::start(options);
    let began = clock::now();
    let mut client = bench.chain().await;
    let (mut reading, mut writing) = client.split();
    let drip = async {
        loop {
            let _ = writing.write_all(b" {").await;
            sleep(Duration::from_millis(10)).await;
        }
    };
    let mut nothing = Vec::new();
    select_first(drip, reading.read_to_end(&mut nothing)).await.unwrap_or_default();
    assert!(nothing.is_empty() && clock::now() - began >= deadline);
    assert_eq!(bench.rejected("overdue"), 1);
    bench.all_gone().await;
}

/// Runs both until the second ends.
async fn select_first<T>(endless: impl Future<Output = ()>, ending: impl Future<Output = T>) -> T {
    tokio::select! {
        () = endless => unreachable!("endless"),
        value = timeout(PATIENCE, ending) => value.expect("in time"),
    }
}

#[tokio::test]
async fn an_endless_stream_of_junk_is_cut_off() {
    let bench = Bench::start(ServerOptions::default());
    let mut client = bench.chain().await;
    let junk = vec![b'x'; 1024 * 1024];
    let written = timeout(PATIENCE, client.write_all(&junk)).await.expect("in time");
    eventually("it is cut off", || bench.rejected("flood") == 1).await;
    drop(written);
    bench.all_gone().await;
}

#[tokio::test]
async fn effects_reach_the_wires_in_their_order_across_connections() {
    let mut bench = Bench::start(ServerOptions::default());
    for round in 0..200 {
        let (earlier, first) = bench.waiting().await;
        let (mut later, second) = bench.waiting().await;
        bench.outbox.dispatch(&[
            link(first, Part::Head, Then::Close),
            link(second, Part::Tail, Then::Close),
        ]);
        // No await lies between dispatch and here: the first message must be there already.
        let early = earlier.into_std().unwrap();
        let mut bytes = [0; HEAD.len()];
        (&early).read_exact(&mut bytes).unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert_eq!(bytes, HEAD);
        assert_eq!(read(&mut later, TAIL.len()).await, TAIL);
    }
}

#[tokio::test]
async fn emnet_answers_one_request_after_the_other() {
    let mut bench = Bench::start(ServerOptions::default());
    let mut client = bench.emnet().await;
    let requests =
        br#"{"msg":"ADD_PEER","IP_Peer":"x"}{"msg":"NO"}nonsense{"msg":"ASK_IP","id":5}"#;
    client.write_all(requests).await.unwrap();
    client.shutdown().await.unwrap();
    let Command::AddPeer { session, address, .. } = bench.command().await else { panic!() };
    assert_eq!(address, "x");
    eventually("the second waits for the first", || bench.commands.is_empty()).await;
    let tell = |message| Effect::Tell { session, message, then: Then::Stay };
    bench.outbox.dispatch(&[tell(Message::PeerAdded { id: PeerId(5) })]);
    assert_eq!(bench.command().await, Command::AskIp { session, id: PeerId(5) });
    bench.outbox.dispatch(&[tell(Message::PeerFound { address: "x".into() })]);
    let expected: &[u8] = b"{\"id\":5,\"msg\":\"SUCCESS\"}\n{\"msg\":\"FAILED\"}\n\
                            {\"IP\":\"x\",\"msg\":\"SUCCESS\"}\n";
    assert_eq!(rest(&mut client).await, expected);
    bench.all_gone().await;
    assert!(bench.commands.is_empty(), "nothing else is said of EMNet's clients");
}

#[tokio::test]
async fn who_asks_very_much_takes_turns_with_others() {
    let requests = 1024;
    let bench = Bench::start(ServerOptions::default());
    let mut client = StdStream::connect(bench.addresses.emnet.unwrap()).unwrap();
    client.write_all(&b"{}".repeat(requests)).unwrap();
    client.set_nonblocking(true).unwrap();
    let mut buffer = vec![0; requests * FAILED.len()];
    let mut answered = 0;
    let began = clock::now();
    while answered < requests * FAILED.len() {
        // This test and the session share one thread: what is here was written in a turn or two.
        tokio::task::yield_now().await;
        let turn = client.read(&mut buffer).unwrap_or(0);
        assert!(turn <= 256 * FAILED.len(), "{turn} bytes before anybody else had a turn");
        assert!(clock::now() - began < PATIENCE, "only {answered} bytes");
        answered += turn;
    }
}

#[tokio::test]
async fn an_idle_emnet_client_is_closed() {
    let idle_deadline = Duration::from_millis(50);
    let bench = Bench::start(ServerOptions { idle_deadline, ..ServerOptions::default() });
    let mut client = bench.emnet().await;
    client.write_all(b"{}").await.unwrap();
    assert_eq!(rest(&mut client).await, FAILED);
}

#[tokio::test]
async fn a_slow_reader_is_cut_off_and_others_do_not_wait_for_it() {
    let write_deadline = Duration::from_millis(200);
    let bench = Bench::start(ServerOptions { write_deadline, ..ServerOptions::default() });
    let mut slow = bench.emnet().await;
    SockRef::from(&slow).set_recv_buffer_size(4096).unwrap();
    let flood = async {
        // Never reads; ends as the connection is reset.
        while slow.write_all(&b"{}".repeat(2048)).await.is_ok() {}
    };
    let others = async {
        while bench.rejected("slow_reader") == 0 {
            let mut other = bench.emnet().await;
            other.write_all(b"{}").await.unwrap();
            assert_eq!(read(&mut other, FAILED.len()).await, FAILED);
        }
    };
    timeout(PATIENCE, async { tokio::join!(flood, others) }).await.expect("in time");
    bench.all_gone().await;
}

#[tokio::test]
async fn a_client_that_ignores_our_fin_is_let_go() {
    let linger_deadline = Duration::from_millis(100);
    let mut bench = Bench::start(ServerOptions { linger_deadline, ..ServerOptions::default() });
    let (mut client, session) = bench.waiting().await;
    bench.tell(session, Part::Head, Then::Close);
    assert_eq!(rest(&mut client).await, HEAD);
    bench.all_gone().await; // though the client has not closed
}

#[tokio::test]
async fn an_instance_drains_and_stops() {
    let mut bench = Bench::start(ServerOptions::default());
    let (mut waiting, session) = bench.waiting().await;
    let mut silent = bench.chain().await;
    eventually("both are there", || bench.outbox.sessions() == 2).await;
    bench.phase.send_replace(Phase::Draining);
    let address = bench.addresses.chain;
    eventually("nobody is accepted", || StdStream::connect(address).is_err()).await;
    bench.tell(session, Part::Tail, Then::Stay);
    assert_eq!(read(&mut waiting, TAIL.len()).await, TAIL);
    bench.phase.send_replace(Phase::Stopping);
    assert_eq!(rest(&mut waiting).await, b"");
    assert_eq!(rest(&mut silent).await, b"");
    drop((waiting, silent));
    while let Some(ended) = timeout(PATIENCE, bench.tasks.join_next()).await.expect("in time") {
        ended.unwrap().unwrap();
    }
    assert!(bench.commands.recv().await.is_none(), "clients keep their asks");
    assert_eq!(bench.outbox.sessions(), 0);
}

#[tokio::test]
async fn what_cannot_be_bound_is_named() {
    let bench = Bench::start(ServerOptions::default());
    let taken = bench.addresses.repair;
    let wanted = Addresses { chain: "127.0.0.1:0".parse().unwrap(), ..bench.addresses };
    let error = Servers::bind(&wanted, ServerOptions::default()).unwrap_err();
    assert_eq!(error.to_string(), format!("the repair server cannot listen on {taken}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_connects_and_disconnects_leave_nothing_behind() {
    let mut bench = Bench::start(ServerOptions::default());
    let mut commands = std::mem::replace(&mut bench.commands, mpsc::channel(1).1);
    let sink = tokio::spawn(async move { while commands.recv().await.is_some() {} });
    churn(&bench, 500).await; // whatever is allocated once is allocated now
    bench.all_gone().await;
    let before = resident_kib(std::process::id());
    churn(&bench, 10_000).await;
    bench.all_gone().await;
    let grown = resident_kib(std::process::id()).saturating_sub(before);
    assert!(grown < 16 * 1024, "{grown} KiB more than before");
    drop(bench);
    sink.await.unwrap();
}

async fn churn(bench: &Bench, clients: usize) {
    for number in 0..clients {
        let mut client = bench.chain().await;
        match number % 4 {
            0 => {}
            1 => client.write_all(&CONNECT[..30]).await.unwrap(),
            2 => client.write_all(CONNECT).await.unwrap(),
            _ => {
                client.write_all(CONNECT).await.unwrap();
                client.shutdown().await.unwrap();
            }
        }
        reset(client);
    }
}

fn resident_kib(process: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Two reflectors and one datagram that seems to come from the other one.
#[tokio::test]
async fn two_reflectors_cannot_be_made_to_talk_to_each_other() {
    let (one, two) =
        (Bench::start(ServerOptions::default()), Bench::start(ServerOptions::default()));
    let (at_one, at_two) = (one.addresses.reflector.unwrap(), two.addresses.reflector.unwrap());
    // The first answer of the loop, as the second reflector would see it arrive.
    for payload in [&b"x"[..], at_two.to_string().as_bytes()] {
        let sender = StdUdp::bind("127.0.0.1:0").unwrap();
        sender.send_to(payload, at_one).unwrap();
    }
    let dropped = one.metrics.udp_dropped.with_label_values(&["reflection"]);
    let answered = one.metrics.udp_answered.with_label_values(&["text"]);
    eventually("both were looked at", || dropped.get() == 1 && answered.get() == 1).await;
}

#[tokio::test]
async fn the_reflector_tells_text_and_stun() {
    let bench = Bench::start(ServerOptions::default());
    let reflector = bench.addresses.reflector.unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut answer = [0; 64];
    client.send_to(b"", reflector).await.unwrap();
    let length = timeout(PATIENCE, client.recv(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer[..length], client.local_addr().unwrap().to_string().as_bytes());
    let mut request = [0; 20];
    request[1] = 1;
    request[4..8].copy_from_slice(&0x2112_A442_u32.to_be_bytes());
    client.send_to(&request, reflector).await.unwrap();
    let length = timeout(PATIENCE, client.recv(&mut answer)).await.unwrap().unwrap();
    assert_eq!((length, &answer[..2]), (32, &[1, 1][..]));
    assert_eq!(bench.metrics.udp_answered.with_label_values(&["stun"]).get(), 1);
}

/// The other half of the tests below: servers in a process of their own, until its input ends.
/// Does nothing unless it is started as such.
#[tokio::test]
async fn child_process() {
    if std::env::var_os("EMNETCHAIN_TEST_CHILD").is_none() {
        return;
    }
    let mut bench = Bench::start(ServerOptions { connections_max: 100_000, ..Default::default() });
    println!("\nlisten {} {}", bench.addresses.chain, bench.addresses.emnet.unwrap());
    let mut commands = std::mem::replace(&mut bench.commands, mpsc::channel(1).1);
    tokio::spawn(async move { while commands.recv().await.is_some() {} });
    let (asks, mut asked) = mpsc::channel(1);
    std::thread::spawn(move || {
        io::stdin().lines().all(|line| asks.blocking_send(line.unwrap()).is_ok())
    });
    while asked.recv().await.is_some() {
        let pauses = ["chain", "emnet"]
            .map(|server| bench.metrics.accept_pauses.with_label_values(&[server]).get());
        println!("\nstate {} {}", bench.outbox.sessions(), pauses[0] + pauses[1]);
    }
}

/// Servers in a process of their own.
struct ChildServers {
    process: Child,
    output: BufReader<std::process::ChildStdout>,
    chain: SocketAddr,
    emnet: SocketAddr,
}

impl ChildServers {
    fn start(descriptors: usize) -> Self {
        let mut process = Process::new("bash")
            .args(["-c", r#"ulimit -n "$1"; exec "$2" --exact --nocapture "$3""#, "bash"])
            .arg(descriptors.to_string())
            .arg(std::env::current_exe().unwrap())
            .arg("server::tests::child_process")
            .env("EMNETCHAIN_TEST_CHILD", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let words = words_of(&mut output, "listen");
        let (chain, emnet) = (words[1].parse().unwrap(), words[2].parse().unwrap());
        Self { process, output, chain, emnet }
    }

    /// Sessions and pauses.
    fn state(&mut self) -> [usize; 2] {
        self.process.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        let words = words_of(&mut self.output, "state");
        [1, 2].map(|at| words[at].parse().unwrap())
    }

    fn wait_for_sessions(&mut self, count: usize) {
        let began = clock::now();
        loop {
            let [sessions, _] = self.state();
            if sessions == count {
                return;
            }
            assert!(clock::now() - began < PATIENCE, "{sessions} sessions, not {count}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }
}

impl Drop for ChildServers {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn words_of(output: &mut impl BufRead, first: &str) -> Vec<String> {
    for line in output.lines() {
        let words: Vec<String> = line.unwrap().split_whitespace().map(str::to_owned).collect();
        if words.first().is_some_and(|word| word == first) {
            return words;
        }
    }
    panic!("the child said nothing of {first}");
}

#[test]
fn out_of_descriptors_the_accept_loop_pauses_and_recovers() {
    let mut servers = ChildServers::start(64);
    let mut clients = Vec::new();
    for _ in 0..80 {
        let mut client = StdStream::connect(servers.chain).unwrap(); // the backlog takes them
        client.write_all(CONNECT).unwrap();
        clients.push(client);
    }
    let began = clock::now();
    while servers.state()[1] < 3 {
        assert!(clock::now() - began < PATIENCE, "it never paused");
        std::thread::sleep(Duration::from_millis(10));
    }
    let before = servers.cpu_ticks();
    std::thread::sleep(Duration::from_millis(500));
    let spent = servers.cpu_ticks() - before;
    assert!(spent <= 5, "{spent} ticks of 50 while full");
    clients.into_iter().for_each(reset);
    let mut client = StdStream::connect(servers.emnet).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    client.write_all(b"{}").unwrap();
    let mut answer = [0; FAILED.len()];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(answer, FAILED);
}

#[test]
fn a_waiting_connection_costs_about_a_kibibyte() {
    let count = 4000;
    let mut servers = ChildServers::start(count + 64);
    let mut clients = Vec::new();
    let mut open = |servers: &mut ChildServers, until: usize| {
        while clients.len() < until {
            let mut client = StdStream::connect(servers.chain).unwrap();
            client.write_all(CONNECT).unwrap();
            clients.push(client);
        }
        servers.wait_for_sessions(until);
        resident_kib(servers.process.id())
    };
    let before = open(&mut servers, count / 4);
    let after = open(&mut servers, count);
    let each = (after - before) * 1024 / (count - count / 4);
    println!("{each} bytes of resident memory for each waiting connection");
    assert!(each < 2048, "{each} bytes for each waiting connection");
}
