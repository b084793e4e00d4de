//! Mixed versions with real processes: instances of an older and of a newer version side by side,
//! under load, before, during and after the rules are raised. The newer version is the made-up
//! version 3 of the feature `rules-3`; an environment variable, which only builds with that feature
//! have, makes a process the older one.
//!
//! `cargo test --features rules-3 --test upgrade`

#![expect(clippy::unwrap_used, reason = "a helper that cannot go on fails its test")]

#[path = "support/cluster.rs"]
mod replicas;
mod support;

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::ExitStatus,
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::Duration,
};

use replicas::Cluster;
use support::{Client, Member, Service, eventually, operator, told};
use tempfile::TempDir;

/// What makes a process the older version.
const OLDER: [&str; 2] = ["/usr/bin/env", "EMNETCHAIN_TEST_RULES=2"];

/// How long a client waits before it asks another instance.
const ANSWER_MAX: Duration = Duration::from_secs(2);

fn older(dir: &Path, arguments: Vec<String>) -> Result<Service, (ExitStatus, String)> {
    Service::try_start_through(&OLDER, dir, arguments)
}

/// As [`operator::operate`]: whether it was done, and what it says.
fn operate(service: &Service, words: &[&str]) -> (bool, String) {
    let (code, said) = operator::operate(service, words);
    (code == 0, said)
}

/// Where the clients find the instances that run.
#[derive(Clone, Copy, Debug)]
struct Doors {
    chain: SocketAddr,
    emnet: SocketAddr,
}

/// What clients do, and what they were told.
#[derive(Debug, Default)]
struct Shared {
    doors: Vec<Doors>,
    paused: bool,
    stopped: bool,
    /// Whether the clients do nothing.
    idle: bool,
    /// How many have joined the chain, each linked behind the one before.
    joined: u16,
    /// The addresses that were kept, by their numbers.
    kept: BTreeMap<u64, String>,
}

/// Clients that join one behind the other, and addresses that are left with EMNet, through whatever
/// instance answers.
struct Load {
    shared: Arc<Mutex<Shared>>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    fn begin(cluster: &Cluster) -> Self {
        let shared = Arc::new(Mutex::new(Shared::default()));
        let load = Self { shared: Arc::clone(&shared), thread: None };
        load.go_on(cluster);
        let thread = Some(thread::spawn(move || run(&shared)));
        Self { thread, ..load }
    }

    /// Has the clients go on, through these instances.
    fn go_on(&self, cluster: &Cluster) {
        let mut shared = self.shared.lock().unwrap();
        let doors = cluster.running().into_iter().map(|id| {
            let service = cluster.at(id);
            Doors { chain: service.chain(), emnet: service.address("EMNet") }
        });
        shared.doors = doors.collect();
        shared.paused = false;
    }

    /// Has them stop for a moment; what they asked for is answered then.
    fn pause(&self) {
        self.shared.lock().unwrap().paused = true;
        eventually("the clients pause", || self.shared.lock().unwrap().idle.then_some(()));
    }

    /// Waits until this number more have joined.
    fn wait_for(&self, more: u16) {
        let joined = || self.shared.lock().unwrap().joined;
        let goal = joined() + more;
        eventually("clients are served", || (joined() >= goal).then_some(()));
    }

    /// Ends the clients; how many have joined, and which addresses were kept.
    fn end(mut self) -> (u16, BTreeMap<u64, String>) {
        self.shared.lock().unwrap().stopped = true;
        self.thread.take().unwrap().join().unwrap();
        let shared = self.shared.lock().unwrap();
        (shared.joined, shared.kept.clone())
    }
}

fn run(shared: &Mutex<Shared>) {
    let mut tip = None;
    for number in 0.. {
        let mut turn = 0;
        let doors = || loop {
            let mut now = shared.lock().unwrap();
            now.idle = now.paused;
            if now.stopped || !now.paused {
                turn += 1;
                return (!now.stopped).then(|| now.doors[turn % now.doors.len()]);
            }
            drop(now);
            thread::sleep(Duration::from_millis(5));
        };
        if join(number, &mut tip, doors).is_none() {
            return;
        }
        shared.lock().unwrap().joined = number + 1;
        let Some(door) = shared.lock().unwrap().doors.first().copied() else { continue };
        // It may be kept although the answer is lost, so it is asked for once.
        let text = format!("text {number}");
        let ask = format!(r#"{{"msg":"ADD_PEER","IP_Peer":"{text}"}}"#);
        if let Some((answer, _)) = ask_of(door.emnet, &ask, |told| told.ends_with('\n')) {
            let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
            shared.lock().unwrap().kept.insert(answer["id"].as_u64().unwrap(), text);
        }
    }
}

/// Joins behind the one before, asking any instance that answers; `None` if all is over. `tip` is
/// the connection of the one before, which waits to be told of this one.
fn join(
    number: u16,
    tip: &mut Option<TcpStream>,
    mut door: impl FnMut() -> Option<Doors>,
) -> Option<()> {
    let member = Member(number);
    let before = number.checked_sub(1).map(Member);
    loop {
        // The first is told nothing before the second comes.
        let is_told = |heard: &str| before.is_none() || heard.contains('}');
        match ask_of(door()?.chain, &member.connect(), is_told) {
            Some((answer, stream)) => {
                let expected = before.map(|before| told("tail", &before.head()));
                assert_eq!(answer, expected.unwrap_or_default(), "the neighbour of {number}");
                *tip = Some(stream);
                return Some(());
            }
            // An instance was stopped, perhaps the one where the tip waits: it asks again too.
            None => {
                let address = door()?.chain;
                *tip = before
                    .and_then(|before| ask_of(address, &before.connect(), |_| true))
                    .map(|(_, stream)| stream);
            }
        }
    }
}

/// Says something, and returns the answer once it is whole; `None` if it does not come.
fn ask_of(
    address: SocketAddr,
    text: &str,
    is_whole: impl Fn(&str) -> bool,
) -> Option<(String, TcpStream)> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_MAX).ok()?;
    stream.set_read_timeout(Some(ANSWER_MAX)).ok()?;
    stream.write_all(text.as_bytes()).ok()?;
    let (mut heard, mut buffer) = (String::new(), [0; 512]);
    loop {
        if is_whole(&heard) {
            return Some((heard, stream));
        }
        let count = stream.read(&mut buffer).ok().filter(|count| *count > 0)?;
        heard.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
    }
}

/// The rules in force, which must be the same at all instances.
fn rules(cluster: &Cluster) -> u64 {
    let all = cluster.running().into_iter().map(|id| cluster.status(id)["rules"].as_u64().unwrap());
    let all: Vec<u64> = all.collect();
    assert!(all.iter().all(|rules| *rules == all[0]), "{all:?}");
    all[0]
}

/// Replicas must agree while nothing is written; then the clients go on.
fn compare(cluster: &Cluster, load: &Load) {
    cluster.wait_ready();
    load.pause();
    cluster.assert_equal_registries();
    load.go_on(cluster);
}

#[test]
fn three_instances_are_upgraded_under_load_and_the_rules_raised() {
    let mut cluster = Cluster::new(&["--emnet-addr", "127.0.0.1:0"]);
    for id in cluster.ids() {
        let started = older(&cluster.data_dir(id), cluster.arguments(id));
        cluster.put(id, started.unwrap_or_else(|(status, log)| panic!("{status}: {log}")));
    }
    cluster.wait_ready();
    let load = Load::begin(&cluster);
    load.wait_for(10);
    let (done, said) = operate(cluster.at(2), &["upgrade"]);
    assert!(
        done && said.contains("version 2 is in force, and no instance knows a newer"),
        "{said}"
    );

    for id in cluster.ids() {
        assert_eq!(cluster.take(id).stop().code(), Some(0));
        let (done, said) = operate(cluster.at(id % 3 + 1), &["upgrade"]);
        assert!(!done && said.contains(&format!("instance {id} (")), "{said}");
        assert!(said.contains("is not reached: start it"), "{said}");
        load.go_on(&cluster);
        cluster.start_these(&[id]);
        compare(&cluster, &load);
        load.wait_for(5);
        assert_eq!(rules(&cluster), 2, "no instance raised them");
        if id < 3 {
            let refused = || {
                let (done, said) = operate(cluster.at(1), &["upgrade"]);
                assert!(!done, "{said}");
                said.contains("version 3 is not raised, version 2 stays in force").then_some(said)
            };
            let said = eventually("the older ones are named", refused);
            assert!(said.contains("instance 3 (") && said.contains("up to 2: install"), "{said}");
        }
    }

    let raise = || {
        let (done, said) = operate(cluster.at(2), &["upgrade"]);
        done.then_some(said)
    };
    let said = eventually("the rules are raised", raise);
    assert!(said.contains("rules version 3 is in force now, version 2 was before"), "{said}");
    eventually("all apply by them", || (rules(&cluster) == 3).then_some(()));
    load.wait_for(10);
    let (_, said) = operate(cluster.at(1), &["status"]);
    assert!(said.contains("rules     version 3; this instance knows versions up to 3"), "{said}");

    // The older program refuses from here on; the newer one goes on with the same directory.
    assert_eq!(cluster.take(3).stop().code(), Some(0));
    load.go_on(&cluster);
    let (status, log) = match older(&cluster.data_dir(3), cluster.arguments(3)) {
        Err(ended) => ended,
        Ok(mut service) => (service.wait(), service.log()),
    };
    assert_eq!(status.code(), Some(78), "{log}");
    assert!(log.contains("rules version 3") && log.contains("versions up to 2"), "{log}");
    assert!(log.contains("install a newer EMNetChain"), "{log}");
    cluster.start_these(&[3]);
    cluster.wait_ready();
    load.go_on(&cluster);
    load.wait_for(5);
    let (joined, kept) = load.end();
    assert_nothing_is_lost(&cluster, joined, &kept);
}

/// Each client is told the same anywhere, every address is given back, and replicas agree.
fn assert_nothing_is_lost(cluster: &Cluster, joined: u16, kept: &BTreeMap<u64, String>) {
    cluster.assert_equal_registries();
    for number in 1..joined - 1 {
        let service = cluster.at(usize::from(number % 3) + 1);
        let [before, member, after] = [number - 1, number, number + 1].map(Member);
        let mut again = Client::say(service.chain(), member.connect());
        assert_eq!(again.rest(), told("tail", &before.head()) + &told("head", &after.tail()));
    }
    assert!(kept.len() > 20, "EMNet was at work: {}", kept.len());
    for (turn, (id, text)) in (0_usize..).zip(kept) {
        let emnet = cluster.at(turn % 3 + 1).address("EMNet");
        let ask = format!(r#"{{"msg":"ASK_IP","id":{id}}}"#);
        let answer = ask_of(emnet, &ask, |told| told.ends_with('\n'));
        assert!(answer.is_some_and(|(answer, _)| answer.contains(text.as_str())), "{id}: {text}");
    }
    cluster.assert_equal_registries();
}

#[test]
fn the_leader_raises_the_rules_by_itself_when_all_have_known_them_for_long_enough() {
    let dir = TempDir::new().unwrap();
    let hurried = ["/usr/bin/env", "EMNETCHAIN_TEST_RAISE_AFTER_SECONDS=1"];
    let mut service = older(&dir.path().join("1"), Vec::new()).unwrap();
    let status = |service: &Service| operator::read_status(service, "/status");
    eventually("it serves", || (service.get("/readyz").0 == 200).then_some(()));
    assert_eq!((status(&service)["rules"].clone(), status(&service)["newest_rules"].clone()), {
        (serde_json::json!(2), serde_json::json!(2))
    });
    service.stop();
    let service = Service::try_start_through(&hurried, &dir.path().join("1"), Vec::new()).unwrap();
    eventually("they are raised", || (status(&service)["rules"] == 3).then_some(()));
    assert!(service.log().contains("rules raised"), "{}", service.log());
}
