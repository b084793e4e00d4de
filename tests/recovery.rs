//! What becomes of a chain when clients die, and when the service does: seen by clients that have
//! nothing but sockets. `proto-docs/transcripts/mended_*` and `restart_*` tell the small stories.

#![expect(clippy::unwrap_used, reason = "a helper that cannot go on fails its test")]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use support::{
    Chance, Client, Member, PATIENCE, Service, chain, eventually, reconnect, repaired, told,
};
use tempfile::TempDir;

const TEST_SERVER: &str = "EMNETCHAIN_TEST_SERVER";
const TEST_MEMBER: &str = "EMNETCHAIN_TEST_MEMBER";

/// A client that is a process of its own, so that it can be killed.
struct Process(Child);

impl Process {
    /// Starts it, and waits until the service knows it.
    fn start(service: &Service, member: Member) -> Self {
        let before = service.metric("emnetchain_clients");
        let process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "client_process"])
            .env(TEST_SERVER, service.chain().to_string())
            .env(TEST_MEMBER, member.0.to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        eventually("it is registered", || {
            (service.metric("emnetchain_clients") > before).then_some(())
        });
        Self(process)
    }

    /// kill -9
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// The other half of [`Process`]; does nothing unless it is started as such.
#[test]
fn client_process() {
    let Ok(server) = std::env::var(TEST_SERVER) else { return };
    let member = Member(std::env::var(TEST_MEMBER).unwrap().parse().unwrap());
    let mut stream = TcpStream::connect(server.parse::<SocketAddr>().unwrap()).unwrap();
    stream.write_all(member.connect().as_bytes()).unwrap();
    stream.set_read_timeout(Some(4 * PATIENCE)).unwrap();
    let mut answers = Vec::new();
    stream.read_to_end(&mut answers).unwrap();
    // A node of the chain does its work until it is killed. If the test is gone, it ends by itself.
    thread::sleep(4 * PATIENCE);
}

fn members(count: u16) -> Vec<Member> {
    (0..count).map(Member).collect()
}

/// The neighbours of a lost client ask with ids of their own, and are told each other.
fn expect_repair(service: &Service, before: Member, after: Member) {
    let mut one = Client::say(service.repair(), reconnect("my own", &before.head()));
    let mut other = Client::say(service.repair(), reconnect("another", &after.tail()));
    assert_eq!(one.rest(), repaired(&after.tail()));
    assert_eq!(other.rest(), repaired(&before.head()));
}

/// A client that comes back is told its neighbours, and closed if it has both or is the first.
fn expect_neighbours(service: &Service, member: Member, tail: Option<Member>, head: Member) {
    let mut client = Client::say(service.chain(), member.connect());
    let tail = tail.map(|tail| told("tail", &tail.head())).unwrap_or_default();
    assert_eq!(client.rest(), tail + &told("head", &head.tail()));
}

#[test]
fn the_third_of_five_is_killed() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &[]);
    let [a, b, c, d, e] = [0, 1, 2, 3, 4].map(Member);
    let mut tip = chain(&service, &[a, b]);
    let third = Process::start(&service, c);
    assert_eq!(tip.rest(), told("head", &c.tail()));
    let mut fourth = Client::say(service.chain(), d.connect());
    assert_eq!(fourth.object(), told("tail", &c.head()));
    let mut fifth = Client::say(service.chain(), e.connect());
    assert_eq!(fifth.object(), told("tail", &d.head()));
    assert_eq!(fourth.rest(), told("head", &e.tail()));
    third.kill();
    expect_repair(&service, b, d);
    fifth.expect_silence();
    expect_neighbours(&service, a, None, b);
    expect_neighbours(&service, b, Some(a), d);
    expect_neighbours(&service, d, Some(b), e);
}

/// Its system closes the connection, which looks like a half-close until something is sent; or
/// resets it, if it was killed before it had read its answer.
#[test]
fn the_third_of_five_is_killed_while_it_waits() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &[]);
    let [a, b, c, d, e] = [0, 1, 2, 3, 4].map(Member);
    let mut tip = chain(&service, &[a, b]);
    let third = Process::start(&service, c);
    assert_eq!(tip.rest(), told("head", &c.tail()));
    third.kill();
    eventually("the end of its connection is seen", || {
        let name = "emnetchain_half_closed_total{listener=\"chain\"}";
        let is_reset = service.metric("emnetchain_asks") == 0.0;
        (is_reset || service.metric(name) == 1.0).then_some(())
    });
    expect_survivors_to_close_the_gap(&service, [a, b, d, e]);
}

#[test]
fn the_third_of_five_is_reset_while_it_waits() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &[]);
    let [a, b, c, d, e] = [0, 1, 2, 3, 4].map(Member);
    chain(&service, &[a, b, c]).reset();
    eventually("it asks no more", || (service.metric("emnetchain_asks") == 0.0).then_some(()));
    expect_survivors_to_close_the_gap(&service, [a, b, d, e]);
}

/// `d` and `e` arrive behind a dead tip, `b` finds out that it is dead, and `d` does not even know.
fn expect_survivors_to_close_the_gap(service: &Service, [a, b, d, e]: [Member; 4]) {
    let mut fourth = Client::say(service.chain(), d.connect());
    fourth.expect_silence();
    let mut fifth = Client::say(service.chain(), e.connect());
    assert_eq!(fourth.object(), told("head", &e.tail()));
    assert_eq!(fifth.object(), told("tail", &d.head()));
    let mut second = Client::say(service.repair(), reconnect("my own", &b.head()));
    assert_eq!(second.rest(), repaired(&d.tail()));
    assert_eq!(fourth.rest(), told("tail", &b.head()));
    fifth.expect_silence();
    expect_neighbours(service, b, Some(a), d);
    expect_neighbours(service, d, Some(b), e);
}

#[test]
fn the_tip_is_killed_and_a_newcomer_is_linked_to_the_survivor() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &[]);
    let [a, b, c, d, e] = [0, 1, 2, 3, 4].map(Member);
    // The survivor asks first: it is the tip again.
    let mut tip = chain(&service, &[a, b]);
    let third = Process::start(&service, c);
    assert_eq!(tip.rest(), told("head", &c.tail()));
    third.kill();
    let mut survivor = Client::say(service.repair(), reconnect("7", &b.head()));
    survivor.expect_silence();
    let mut newcomer = Client::say(service.chain(), d.connect());
    assert_eq!(newcomer.object(), told("tail", &b.head()));
    assert_eq!(survivor.rest(), repaired(&d.tail()));

    // The newcomer comes first, and waits for the survivor to ask.
    newcomer.reset();
    eventually("it asks no more", || (service.metric("emnetchain_asks") == 0.0).then_some(()));
    let mut newcomer = Client::say(service.chain(), e.connect());
    newcomer.expect_silence();
    let mut survivor = Client::say(service.repair(), reconnect("8", &b.head()));
    assert_eq!(survivor.rest(), repaired(&e.tail()));
    assert_eq!(newcomer.object(), told("tail", &b.head()));
    newcomer.expect_silence();
}

/// Three in a row die but for the one in the middle, which only speaks up when it is given up.
#[test]
fn a_late_survivor_joins_at_the_tip() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &["--gather", "300ms"]);
    let [a, _, c, _, e] = [0, 1, 2, 3, 4].map(Member);
    let mut tip = chain(&service, &members(5));
    expect_repair(&service, a, e);
    let mut late = Client::say(service.repair(), reconnect("late", &c.tail()));
    assert_eq!(late.rest(), repaired(&e.head()));
    assert_eq!(tip.rest(), told("head", &c.tail()));
    expect_neighbours(&service, a, None, e);
    expect_neighbours(&service, e, Some(a), c);
}

/// All come at once. Returns them in the order in which the service heard them, by what they were
/// told, and the connection of the last.
fn crowd(service: &Service, count: u16) -> (Vec<Member>, Client) {
    let mut clients: BTreeMap<String, (Member, Client)> = members(count)
        .into_iter()
        .map(|member| (member.head(), (member, Client::say(service.chain(), member.connect()))))
        .collect();
    let mut first = None;
    let mut after = BTreeMap::new();
    for (head, (_, client)) in &mut clients {
        let object = client.object();
        match object.strip_prefix(r#"{"msg":"CONNECT","part":"tail","ip":""#) {
            Some(rest) => {
                let before = rest.strip_suffix("\"}").unwrap().to_owned();
                assert_eq!(after.insert(before, head.clone()), None, "two were told one head");
            }
            None => assert_eq!(first.replace((head.clone(), object)), None, "two have no tail"),
        }
    }
    let (mut head, mut heard) = first.expect("one was first");
    let mut path = Vec::new();
    loop {
        let (member, mut client) = clients.remove(&head).expect("no client is there twice");
        path.push(member);
        let Some(next) = after.remove(&head) else {
            assert!(clients.is_empty(), "there are two paths");
            return (path, client);
        };
        heard += &client.rest();
        assert_eq!(heard, told("head", &clients[&next].0.tail()));
        (head, heard) = (next, String::new());
    }
}

#[test]
fn thirty_percent_of_two_hundred_are_killed_at_once() {
    let mut chance = Chance::new();
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &[]);
    let (path, tip) = crowd(&service, 200);
    let mut dead = path.clone();
    chance.shuffle(&mut dead);
    dead.truncate(60);
    let is_dead = |member: &Member| dead.contains(member);
    let survivors: Vec<Member> = path.iter().copied().filter(|member| !is_dead(member)).collect();
    let unheard = path.iter().take_while(|member| is_dead(member)).count();
    // All but the tip have no connection, and are just not heard of any more.
    let mut tip = if is_dead(path.last().unwrap()) {
        if chance.below(2) == 0 {
            tip.reset()
        } else {
            drop(tip)
        }
        None
    } else {
        Some(tip)
    };

    // Each survivor that misses a neighbour asks for it, with an id of its own, in any order.
    let mut lost: Vec<String> = Vec::new();
    for pair in path.windows(2) {
        match (is_dead(&pair[0]), is_dead(&pair[1])) {
            (false, true) => lost.push(pair[0].head()),
            (true, false) => lost.push(pair[1].tail()),
            (true, true) | (false, false) => {}
        }
    }
    chance.shuffle(&mut lost);
    let mut asking: BTreeMap<String, Client> = (lost.into_iter())
        .map(|ip| {
            let id = chance.below(usize::MAX).to_string();
            let client = Client::say(service.repair(), reconnect(&id, &ip));
            (ip, client)
        })
        .collect();

    // The gaps close, and the survivors keep their order.
    for pair in survivors.windows(2) {
        let (head, tail) = (pair[0].head(), pair[1].tail());
        let Some(mut before) = asking.remove(&head) else { continue };
        let mut after = asking.remove(&tail).expect("both sides of a gap ask");
        assert_eq!((before.rest(), after.rest()), (repaired(&tail), repaired(&head)));
    }

    // The last one is the tip, and told the next newcomer.
    let (first, last) = (survivors[0], *survivors.last().unwrap());
    let newcomer = Member(1000);
    let mut next = Client::say(service.chain(), newcomer.connect());
    assert_eq!(next.object(), told("tail", &last.head()));
    match (asking.remove(&last.head()), &mut tip) {
        (Some(mut last), None) => assert_eq!(last.rest(), repaired(&newcomer.tail())),
        (None, Some(last)) => assert_eq!(last.rest(), told("head", &newcomer.tail())),
        (asks, tip) => panic!("the last asks {asks:?} and waits {tip:?}"),
    }
    // The first has no client to wait for.
    if let Some(mut waits) = asking.remove(&first.tail()) {
        waits.expect_silence();
    }
    assert!(asking.is_empty(), "{asking:?}");

    // And a client that asks again is told just that.
    let path: Vec<Member> = survivors.into_iter().chain([newcomer]).collect();
    for (at, pair) in path.windows(2).enumerate().skip(1) {
        expect_neighbours(&service, pair[0], Some(path[at - 1]), pair[1]);
    }
    // The first survivor missed its neighbour alone: of those before that one none has heard.
    let links = (path.len() - 1) + unheard.saturating_sub(2);
    assert_eq!(service.metric("emnetchain_links"), links as f64);
}

/// Everything that clients were ever told, by client and socket.
type Told = Mutex<BTreeMap<(Member, &'static str), BTreeSet<String>>>;

/// A client as the seed's documentation describes it, which comes back whenever its connection ends
/// before it has both neighbours.
fn insist(member: Member, server: &Mutex<SocketAddr>, told: &Told, enough: &AtomicBool) {
    while !enough.load(Ordering::Relaxed) {
        let address = *server.lock().unwrap();
        thread::sleep(Duration::from_millis(20)); // between attempts, as a polite client does
        let Ok(mut stream) = TcpStream::connect(address) else { continue };
        stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        if stream.write_all(member.connect().as_bytes()).is_err() {
            continue;
        }
        let mut heard = String::new();
        let mut buffer = [0; 256];
        while !enough.load(Ordering::Relaxed) {
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => heard += str::from_utf8(&buffer[..count]).unwrap(),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                Err(_) => break,
            }
            while let Some((object, rest)) = heard.split_once('}') {
                let fields: Vec<&str> = object.split('"').collect();
                let part = if fields[7] == "head" { "head" } else { "tail" };
                let mut told = told.lock().unwrap();
                told.entry((member, part)).or_default().insert(fields[11].to_owned());
                heard = rest.to_owned();
            }
        }
        let told = told.lock().unwrap();
        if ["head", "tail"].iter().all(|part| told.contains_key(&(member, part))) {
            return;
        }
    }
}

/// Lets the clients go, however the test ends.
struct Enough<'a>(&'a AtomicBool);

impl Drop for Enough<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The service is killed again and again while clients arrive. No client is ever told two partners,
/// and in the end they are one path.
#[test]
fn what_was_told_outlives_the_service() {
    const COUNT: u16 = 40;
    let dir = TempDir::new().unwrap();
    let mut service = Service::start(dir.path(), &[]);
    let (heard, enough) = (Told::default(), AtomicBool::new(false));
    let server = Mutex::new(service.chain());
    let tells = || heard.lock().unwrap().len();
    thread::scope(|scope| {
        let _enough = Enough(&enough);
        for member in members(COUNT) {
            let (server, heard, enough) = (&server, &heard, &enough);
            scope.spawn(move || insist(member, server, heard, enough));
            // Every tenth arrival meets a service that is killed.
            if member.0 % 10 == 9 {
                let so_far = usize::from(member.0);
                eventually("some were told", || (tells() >= so_far).then_some(()));
                service.kill();
                service = service.start_again();
                *server.lock().unwrap() = service.chain();
            }
        }
        let all = 2 * usize::from(COUNT - 1);
        eventually("all were told", || (tells() >= all).then_some(()));
    });

    let heard = heard.into_inner().unwrap();
    assert!(heard.values().all(|partners| partners.len() == 1), "contradictions: {heard:?}");
    let by_tail: BTreeMap<String, Member> =
        members(COUNT).into_iter().map(|member| (member.tail(), member)).collect();
    let mut at = *members(COUNT)
        .iter()
        .find(|member| !heard.contains_key(&(**member, "tail")))
        .expect("one is the first");
    let mut length = 1;
    while let Some(partner) = heard.get(&(at, "head")).and_then(BTreeSet::first) {
        let next = by_tail[partner];
        assert_eq!(heard[&(next, "tail")].first(), Some(&at.head()));
        (at, length) = (next, length + 1);
        assert!(length <= COUNT, "they go round in a circle");
    }
    assert_eq!(length, COUNT);
}

/// A living client speaks in time, and the service does not run then. What it says is heard when
/// the service runs again, before the time for it is over.
#[test]
fn a_pause_of_the_service_does_not_count_as_silence_of_its_clients() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &["--gather", "5s"]);
    let members @ [a, _, c, _, e] = [0, 1, 2, 3, 4].map(Member);
    let _tip = chain(&service, &members);
    let ask = |id: &str, socket: String| Client::say(service.repair(), reconnect(id, &socket));
    let mut first = ask("1", a.head());
    let mut last = ask("2", e.tail());
    eventually("the gather window runs", || {
        (service.metric("emnetchain_repairs_pending") >= 2.0).then_some(())
    });
    service.signal("STOP");
    let mut living = [ask("3", c.head()), ask("4", c.tail())];
    thread::sleep(Duration::from_secs(9));
    service.signal("CONT");
    assert_eq!(living[0].rest(), repaired(&e.tail()));
    assert_eq!(living[1].rest(), repaired(&a.head()));
    assert_eq!(last.rest(), repaired(&c.head()));
    assert_eq!(first.rest(), repaired(&c.tail()));
}

/// What is written below a name that is gone is lost to the next start, synced or not.
#[test]
fn a_data_directory_that_is_moved_away_ends_the_instance() {
    for asks in [false, true] {
        let dir = TempDir::new().unwrap();
        let (data, elsewhere) = (dir.path().join("data"), dir.path().join("elsewhere"));
        let mut service = Service::start(&data, &[]);
        eventually("it serves", || (service.get("/readyz").0 == 200).then_some(()));
        std::fs::rename(&data, &elsewhere).unwrap();
        let mut names = (1..).map(Member);
        let ended = eventually("it ends", || {
            if asks && let Ok(mut stream) = TcpStream::connect(service.chain()) {
                let member = names.next().expect("there are more");
                drop(stream.write_all(member.connect().as_bytes()));
            }
            service.wait_within(Duration::ZERO)
        });
        assert_eq!(ended.code(), Some(74), "{}", service.log());
        assert!(service.log().contains(&data.display().to_string()), "{}", service.log());
        std::fs::rename(&elsewhere, &data).unwrap();
        let service = Service::start(&data, &[]);
        eventually("it serves again", || (service.get("/readyz").0 == 200).then_some(()));
    }
}
