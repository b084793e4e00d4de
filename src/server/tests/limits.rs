//! The limits on the harm that a client can do to others.

use super::*;
use crate::{platform::process::of::resident_kib, wire::AddressPolicy};

#[tokio::test]
async fn silent_connections_hold_up_no_other_and_the_oldest_go_first() {
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
    assert!(kept.iter().all(is_open), "the latest are kept");
    assert!(bench.rejected("silent") >= 900);
}

/// Returns whether nothing was heard of a connection's end.
fn is_open(client: &TcpStream) -> bool {
    let read = client.try_read(&mut [0; 1]);
    read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// A connection that never asked has nothing to be told, so it is not said goodbye to: that takes
/// as long as its client likes, and newcomers need its descriptor.
#[tokio::test]
async fn idle_emnet_connections_hold_up_no_other() {
    let hour = Duration::from_secs(3600);
    let options =
        ServerOptions { silent_max: 10, linger_deadline: hour, ..ServerOptions::default() };
    let mut bench = Bench::start(options);
    let mut idle = Vec::new();
    for _ in 0..60 {
        idle.push(bench.emnet().await);
    }
    let (mut client, session) = bench.waiting().await;
    bench.tell(session, Part::Head, Then::Close);
    assert_eq!(rest(&mut client).await, HEAD);
    for client in &mut idle[..50] {
        assert_eq!(rest(client).await, b"");
    }
}

const PUBLIC: &[u8] = br#"{"msg":"CONNECT","head":"203.0.113.1:5000","tail":"203.0.113.1:5001"}"#;

/// Connections from any address.
struct Anywhere {
    bench: Bench,
    doors: Doors,
    listener: TcpListener,
    commands: mpsc::Receiver<Queued>,
    /// The number of them that are gone, as far as the commands say.
    gone: usize,
    sessions: JoinSet<()>,
    _options: watch::Sender<ServerOptions>,
}

impl Anywhere {
    async fn start(options: ServerOptions) -> Self {
        let bench = Bench::start(options.clone());
        let (sender, commands) = mpsc::channel(1000);
        let (_options, live) = watch::channel(options);
        let doors = Doors::new(sender, Arc::clone(&bench.outbox), live, bench.metrics.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { bench, doors, listener, commands, gone: 0, sessions: JoinSet::new(), _options }
    }

    /// Returns a connection that says nothing.
    async fn silent(&mut self, from: &str) -> TcpStream {
        self.enter(Protocol::Chain, from).await
    }

    async fn enter(&mut self, protocol: Protocol, from: &str) -> TcpStream {
        let (client, stream) = self.connected().await;
        self.let_in(protocol, stream, from);
        client
    }

    /// Returns a connection that waits at the door, and its other end.
    async fn connected(&self) -> (TcpStream, TcpStream) {
        let client = connect(self.listener.local_addr().unwrap()).await;
        (client, self.listener.accept().await.unwrap().0)
    }

    fn let_in(&mut self, protocol: Protocol, stream: TcpStream, from: &str) {
        let stream = Box::new(stream);
        let from = SocketAddr::new(from.parse().unwrap(), 5000);
        self.sessions.spawn(self.doors.enter(protocol, stream, from));
    }

    /// Has a client ask, and waits until it is heard.
    async fn ask(&mut self, client: &mut TcpStream) {
        client.write_all(PUBLIC).await.unwrap();
        self.heard().await;
    }

    async fn heard(&mut self) {
        while !matches!(self.command().await, Command::Connect { .. }) {}
    }

    async fn command(&mut self) -> Command {
        let queued = timeout(PATIENCE, self.commands.recv()).await.expect("in time").unwrap();
        let command = queued.command;
        self.gone += usize::from(matches!(command, Command::Disconnect { .. }));
        command
    }

    /// Returns a connection that asks.
    async fn asking(&mut self, from: &str) -> TcpStream {
        let mut client = self.silent(from).await;
        self.ask(&mut client).await;
        client
    }

    /// Makes sure that `count` clients that asked made room, and that the registry hears of it.
    async fn assert_displaced(&mut self, count: usize) {
        assert_eq!(self.bench.rejected("displaced"), count as u64);
        while self.gone < count {
            self.command().await;
        }
    }
}

fn of_site(subnet: usize) -> String {
    format!("2001:db8:7:{subnet:x}::1")
}

/// Returns a hundred connections, ten of one address, and so 25 of a /48.
fn a_hundred() -> ServerOptions {
    ServerOptions {
        connections_max: 100,
        connections_per_address_max: 10,
        address_policy: AddressPolicy::Any,
        ..ServerOptions::default()
    }
}

/// One customer has a /48, and so 65,536 sources.
#[tokio::test]
async fn one_ipv6_site_does_not_hold_all_places() {
    let mut anywhere = Anywhere::start(a_hundred()).await;
    let mut others = Vec::new();
    for other in ["2001:db8:8::1", "203.0.113.9", "127.0.0.1"] {
        others.push(anywhere.asking(other).await);
    }
    let mut open = Vec::new();
    for subnet in 0..200 {
        open.push(anywhere.asking(&of_site(subnet)).await);
    }
    // It may have seven eighths of a quarter of all.
    for client in &mut open[..179] {
        assert_eq!(rest(client).await, b"");
    }
    anywhere.assert_displaced(179).await;
    assert!(open[179..].iter().chain(&others).all(is_open), "no other made room");
}

/// Where a source or a site has all it may have, what it has said nothing on makes room.
#[tokio::test]
async fn silent_connections_keep_no_neighbour_out() {
    for (attackers, neighbour, its_all) in [(1, of_site(0), 10), (3, of_site(9), 25)] {
        let mut anywhere = Anywhere::start(a_hundred()).await;
        let mut silent = Vec::new();
        for number in 0..its_all {
            silent.push(anywhere.silent(&of_site(number % attackers)).await);
        }
        let mut client = anywhere.silent(&neighbour).await;
        assert_eq!(rest(&mut silent[0]).await, b"", "the oldest made room");
        anywhere.ask(&mut client).await;
        assert_eq!(anywhere.bench.rejected("silent"), 1, "and no other");
    }
}

/// A newcomer is served however many asks there are at its address: the oldest of them makes room,
/// for a request and never for silence.
#[tokio::test]
async fn asks_keep_no_neighbour_out() {
    let mut anywhere = Anywhere::start(a_hundred()).await;
    let elsewhere = anywhere.asking("203.0.113.8").await;
    let mut asking = Vec::new();
    for _ in 0..8 {
        asking.push(anywhere.asking("203.0.113.7").await);
    }
    let mut silent = Vec::new();
    for _ in 0..5 {
        silent.push(anywhere.silent("203.0.113.7").await);
    }
    assert_eq!((anywhere.bench.rejected("silent"), anywhere.gone), (3, 0));
    assert!(asking.iter().all(is_open));
    for (newcomer, oldest) in silent[3..].iter_mut().zip(&mut asking) {
        anywhere.ask(newcomer).await;
        assert_eq!(rest(oldest).await, b"");
    }
    anywhere.assert_displaced(2).await;
    assert!(asking[2..].iter().chain(&silent[3..]).chain([&elsewhere]).all(is_open));
}

/// Where requests have all places, that of a newcomer is served at the cost of the source that has
/// the most of them.
#[tokio::test]
async fn a_few_addresses_do_not_hold_all_places() {
    let mut anywhere = Anywhere::start(ServerOptions { connections_max: 32, ..a_hundred() }).await;
    let mut honest = vec![anywhere.asking("198.51.100.1").await];
    let mut crowd = Vec::new();
    for number in 0..32 {
        crowd.push(anywhere.asking(&format!("203.0.113.{}", number % 4)).await);
    }
    for number in 2..=9 {
        honest.push(anywhere.asking(&format!("198.51.100.{number}")).await);
    }
    // Seven eighths of all may ask.
    anywhere.assert_displaced(9 + 32 - 28).await;
    assert!(honest.iter().all(is_open), "none of them made room");
}

/// A client that is slow to ask keeps its place while one source takes all others, again and again.
#[tokio::test]
async fn of_silent_connections_those_of_the_busiest_source_or_site_make_room() {
    let options = ServerOptions { silent_max: 20, connections_per_address_max: 50, ..a_hundred() };
    for crowd in [|_| "203.0.113.66".to_owned(), of_site] {
        let mut anywhere = Anywhere::start(options.clone()).await;
        let mut slow = anywhere.silent("198.51.100.2").await;
        slow.write_all(&PUBLIC[..20]).await.unwrap();
        let mut silent = Vec::new();
        for number in 0..50 {
            silent.push(anywhere.silent(&crowd(number)).await);
        }
        eventually("room was made", || anywhere.bench.rejected("silent") == 31).await;
        slow.write_all(&PUBLIC[20..]).await.unwrap();
        anywhere.heard().await;
    }
}

const ASK: &[u8] = br#"{"msg":"ASK_IP","id":7}"#;

fn stay(session: SessionId, message: Message) -> Effect {
    Effect::Tell { session, message, then: Then::Stay }
}

/// An id that is guessed takes the address of another, so wrong ids have a rate.
#[tokio::test]
async fn guesses_of_emnet_ids_have_a_rate_per_source() {
    let mut bench = Bench::start(ServerOptions::default());
    let began = clock::now();
    let mut guesser = bench.emnet().await;
    let mut asked = 0_u32;
    while asked < 1000 && clock::now() - began < Duration::from_secs(2) {
        guesser.write_all(ASK).await.unwrap();
        let session = bench.asked().await;
        asked += 1;
        bench.outbox.dispatch(&[stay(session, Message::PeerFailed)]);
        assert_eq!(read(&mut guesser, FAILED.len()).await, FAILED);
    }
    let seconds = (clock::now() - began).as_secs() as u32 + 1;
    assert!(asked <= 400 + 10 * seconds, "{asked} guesses in {seconds} s");
    assert!(asked >= 300, "{asked}: a local source may err at times");
    let missed = bench.metrics.emnet_asks.with_label_values(&["missed"]);
    eventually("all are counted", || missed.get() == u64::from(asked)).await;

    // Another source is asked for at once, and right ids cost nothing.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut other = socket.connect(bench.addresses.emnet.unwrap()).await.unwrap();
    for _ in 0..1000 {
        other.write_all(ASK).await.unwrap();
        let (session, message) = (bench.asked().await, Message::PeerFound { address: "x".into() });
        let answer = encode(&message);
        bench.outbox.dispatch(&[stay(session, message)]);
        assert_eq!(read(&mut other, answer.len()).await, answer);
    }
}

/// A client that was answered, and one that asks nothing, are silent: they make room before any ask
/// does.
#[tokio::test]
async fn an_answered_emnet_client_and_one_that_talks_nonsense_are_silent() {
    let mut anywhere = Anywhere::start(a_hundred()).await;
    let asks = [anywhere.asking("203.0.113.7").await, anywhere.asking("203.0.113.7").await];
    let mut idle = Vec::new();
    for number in 0..8 {
        let mut client = anywhere.enter(Protocol::Emnet, "203.0.113.7").await;
        client.write_all(if number < 4 { b"{}" } else { ASK }).await.unwrap();
        if number >= 4 {
            let Command::AskIp { session, .. } = anywhere.command().await else { panic!() };
            anywhere.bench.outbox.dispatch(&[stay(session, Message::PeerFailed)]);
        }
        assert_eq!(read(&mut client, FAILED.len()).await, FAILED);
        idle.push(client);
    }
    let mut newcomers = Vec::new();
    for client in &mut idle {
        newcomers.push(anywhere.silent("203.0.113.7").await);
        assert_eq!(rest(client).await, b"", "the oldest makes room");
    }
    assert_eq!((anywhere.bench.rejected("silent"), anywhere.bench.rejected("displaced")), (8, 0));
    assert!(asks.iter().chain(&newcomers).all(is_open));
}

/// An answer that was written arrives, though the client sent more, and its place is needed.
#[tokio::test]
async fn an_answer_arrives_although_the_place_is_needed_at_once() {
    let options = ServerOptions { connections_per_address_max: 1, ..a_hundred() };
    let mut anywhere = Anywhere::start(options).await;
    let mut client = anywhere.enter(Protocol::Emnet, "203.0.113.7").await;
    client.write_all(ASK).await.unwrap();
    let Command::AskIp { session, .. } = anywhere.command().await else { panic!() };
    client.write_all(&b" ".repeat(6000)).await.unwrap(); // it is not read before the answer
    let (_newcomer, at_the_door) = anywhere.connected().await;
    anywhere.bench.outbox.dispatch(&[stay(session, Message::PeerFailed)]);
    anywhere.let_in(Protocol::Chain, at_the_door, "203.0.113.7");
    assert_eq!(rest(&mut client).await, FAILED);
}

#[tokio::test]
async fn limits_may_change_while_clients_wait() {
    let mut bench = Bench::start(ServerOptions::default());
    let (first, one) = bench.waiting().await;
    let mut silent = [bench.chain().await, bench.chain().await];
    bench.options.send_modify(|options| (options.connections_max, options.silent_max) = (3, 1));
    let (second, _) = bench.waiting().await;
    for client in &mut silent {
        assert_eq!(rest(client).await, b"", "the second waiting client takes the last place");
    }
    let (third, _) = waiting_in_place_of(&mut bench, one).await;
    bench.options.send_modify(|options| options.connections_max = 4);
    let (fourth, _) = bench.waiting().await;
    assert!(!is_open(&first) && [&second, &third, &fourth].into_iter().all(is_open));
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    udp.connect(bench.addresses.reflectors[0]).await.unwrap();
    let asked = async || {
        udp.send(b"?").await.unwrap();
        timeout(PATIENCE, udp.recv(&mut [0; 64])).await.unwrap().unwrap()
    };
    asked().await;
    bench.options.send_modify(|options| options.datagrams_in_all = 10);
    asked().await; // a new rule begins with all its tokens
    let dropped = bench.metrics.udp_dropped.with_label_values(&["rate"]);
    for _ in 0..100 {
        udp.send(b"?").await.unwrap();
    }
    eventually("more are too many", || dropped.get() > 0).await;
}

/// Returns a client that waits, and a session that made room for it.
async fn waiting_in_place_of(bench: &mut Bench, gone: SessionId) -> (TcpStream, SessionId) {
    let mut client = bench.chain().await;
    client.write_all(CONNECT).await.unwrap();
    match [bench.command().await, bench.command().await] {
        [Command::Disconnect { session }, Command::Connect { session: newcomer, .. }]
        | [Command::Connect { session: newcomer, .. }, Command::Disconnect { session }] => {
            assert_eq!(session, gone);
            (client, newcomer)
        }
        commands => panic!("{commands:?}"),
    }
}

#[tokio::test]
async fn one_address_may_hold_so_many_connections() {
    let limited = ServerOptions {
        connections_per_address_max: 3,
        local_addresses_limited: true,
        ..ServerOptions::default()
    };
    for (options, kept) in [
        (ServerOptions { connections_max: 3, ..ServerOptions::default() }, 2),
        (limited.clone(), 2),
        (ServerOptions { connections_per_address_max: 1, ..limited.clone() }, 1),
        (ServerOptions { local_addresses_limited: false, ..limited }, 4),
    ] {
        let mut bench = Bench::start(options);
        let mut clients = Vec::new();
        for number in 0..4 {
            if number < kept {
                clients.push(bench.waiting().await);
            } else {
                let (oldest, session) = &mut clients[number - kept];
                let newcomer = waiting_in_place_of(&mut bench, *session).await;
                assert_eq!(rest(oldest).await, b"");
                clients.push(newcomer);
            }
        }
        assert_eq!(bench.rejected("displaced"), 4 - kept as u64);
        assert!(clients[4 - kept..].iter().all(|(client, _)| is_open(client)));
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
async fn an_idle_emnet_client_is_closed() {
    let idle_deadline = Duration::from_millis(50);
    let mut bench = Bench::start(ServerOptions { idle_deadline, ..ServerOptions::default() });
    let mut client = bench.emnet().await;
    client.write_all(ASK).await.unwrap();
    let session = bench.asked().await;
    bench.outbox.dispatch(&[stay(session, Message::PeerFailed)]);
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_connects_and_disconnects_leave_nothing_behind() {
    let mut bench = Bench::start(ServerOptions::default());
    let mut commands = std::mem::replace(&mut bench.commands, mpsc::channel(1).1);
    let sink = tokio::spawn(async move { while commands.recv().await.is_some() {} });
    churn(&bench, 500).await; // what is allocated once is allocated now
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
