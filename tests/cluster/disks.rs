//! Disks that are slow, and disks that do not answer at all. They need `cc`, for the library that
//! holds up syncs; `EMNETCHAIN_PRIVILEGED=1` has these tests run.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use emnetchain::clock;
use tempfile::TempDir;

use crate::{
    replicas::Cluster,
    slow::{FOR_EVER, Syncs, make_library},
    strangers::longest_wait_while,
    support::{Client, Member, PATIENCE, Service, eventually, privileged::may_run},
};

/// After how long an instance ends whose disk does not answer, and how much later than that it may
/// be seen to.
const ENDS_WITHIN: Duration = Duration::from_secs(30 + 10);

/// Instances whose syncs take as long as the test says.
struct Slowed {
    cluster: Cluster,
    syncs: Vec<Syncs>,
    _library: TempDir,
}

impl Slowed {
    /// Three instances that serve, and each of whose syncs has been slow from the first.
    fn start(takes: Duration) -> Self {
        let library = TempDir::new().unwrap();
        make_library(library.path());
        let mut cluster = Cluster::new(&[]);
        let syncs: Vec<Syncs> = cluster.ids().map(|id| slow(&library, &id.to_string())).collect();
        // A start takes twenty syncs.
        let started: Vec<Service> = thread::scope(|scope| {
            let starting = cluster.ids().zip(&syncs).map(|(id, syncs)| {
                syncs.take(takes);
                let (dir, arguments) = (cluster.data_dir(id), cluster.arguments(id));
                scope.spawn(move || start(syncs, &dir, arguments))
            });
            let starting: Vec<_> = starting.collect();
            starting.into_iter().map(|starting| starting.join().unwrap()).collect()
        });
        cluster.ids().zip(started).for_each(|(id, service)| cluster.put(id, service));
        cluster.wait_ready();
        Self { cluster, syncs, _library: library }
    }

    /// Has the syncs of one instance hang, of those files only whose path contains `files`, while
    /// strangers ask at the two others. Returns the longest time without an answer.
    fn longest_wait_while_hung(
        &self,
        hung: usize,
        files: &str,
        until: impl FnOnce(&Service),
    ) -> Duration {
        let others: Vec<usize> =
            self.cluster.running().into_iter().filter(|id| *id != hung).collect();
        let at = [others[0], others[1]].map(|id| self.cluster.at(id));
        longest_wait_while(at, |strangers| {
            self.syncs[hung - 1].take_of(files, FOR_EVER);
            until(self.cluster.at(hung));
            strangers.more();
            self.syncs[hung - 1].take(Duration::ZERO);
        })
    }
}

/// Syncs whose library is in the same folder.
fn slow(library: &TempDir, name: &str) -> Syncs {
    let dir = library.path().join(name);
    std::fs::create_dir(&dir).unwrap();
    Syncs::new(&library.path().join("slow.so"), &dir)
}

fn start(syncs: &Syncs, dir: &Path, arguments: Vec<String>) -> Service {
    let wrapper = syncs.wrapper();
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let started = Service::try_start_through(&wrapper, dir, arguments);
    started.unwrap_or_else(|(status, log)| panic!("{status}:\n{log}"))
}

/// Kills the leader, and returns after how long another one leads.
fn time_to_another_leader(cluster: &mut Cluster) -> Duration {
    let leader = cluster.leader();
    // Both copies of the votes are made by then, as in a cluster that has run for a while.
    thread::sleep(Duration::from_secs(3));
    let killed = clock::now();
    cluster.kill(leader);
    eventually("another one leads", || {
        let rest = cluster.running();
        let is_led = |id: &usize| {
            let led_by = cluster.status(*id)["leader"].as_u64();
            led_by.is_some_and(|by| by != leader as u64) && cluster.is_ready(*id)
        };
        rest.iter().all(is_led).then_some(())
    });
    clock::now() - killed
}

fn another_leader_is_elected(takes: u64, bound: u64) {
    if !may_run("elections on slow disks", "a C compiler", &["cc"]) {
        return;
    }
    let started = clock::now();
    let Slowed { mut cluster, syncs: _syncs, _library } =
        Slowed::start(Duration::from_millis(takes));
    let ready = clock::now() - started;
    let terms = |cluster: &Cluster, id| cluster.status(id)["term"].as_u64().unwrap();
    let before = terms(&cluster, cluster.leader());
    let took = time_to_another_leader(&mut cluster);
    let after = terms(&cluster, cluster.running()[0]);
    println!(
        "syncs of {takes} ms: ready after {ready:?} in term {before}; another leader after \
         {took:?}, {} terms",
        after - before
    );
    assert!(took < Duration::from_secs(bound), "syncs of {takes} ms: {took:?}");
}

#[test]
fn syncs_of_20_ms_elect() {
    another_leader_is_elected(20, 5);
}

#[test]
fn syncs_of_100_ms_elect() {
    another_leader_is_elected(100, 5);
}

#[test]
fn syncs_of_150_ms_elect() {
    another_leader_is_elected(150, 5);
}

#[test]
fn syncs_of_500_ms_elect() {
    another_leader_is_elected(500, 15);
}

#[test]
fn syncs_of_700_ms_elect() {
    another_leader_is_elected(700, 25);
}

fn says_that_it_hangs(service: &Service) {
    let why = eventually("it is not ready", || {
        let (code, why) = service.get("/readyz");
        (code == 503).then_some(why)
    });
    assert!(why.contains("raft log has been pending") || why.contains("waited for"), "{why}");
    assert_eq!(service.metric("emnetchain_ready"), 0.0);
}

/// Waits for the end of an instance whose disk does not answer since then.
fn ends_with_74(service: &mut Service, since: Instant) {
    let status = service.wait_within((since + ENDS_WITHIN).duration_since(clock::now()));
    let log = service.log();
    assert_eq!(status.expect("it ends").code(), Some(74), "{log}");
    assert!(log.contains("the disk has not answered"), "{log}");
}

#[test]
fn a_leader_whose_disk_hangs_hands_over_and_ends() {
    if !may_run("a hanging leader", "a C compiler", &["cc"]) {
        return;
    }
    let mut slowed = Slowed::start(Duration::ZERO);
    let leader = slowed.cluster.leader();
    let other = slowed.cluster.followers()[0];
    let mut service = slowed.cluster.take(leader);
    let others = slowed.cluster.running();
    let at = [others[0], others[1]].map(|id| slowed.cluster.at(id));
    let longest = longest_wait_while(at, |strangers| {
        slowed.syncs[leader - 1].take(FOR_EVER);
        let began = clock::now();
        eventually("another one leads", || {
            let now = slowed.cluster.status(other)["leader"].as_u64()?;
            (now != leader as u64).then_some(())
        });
        println!("another one leads after {:?}", clock::now() - began);
        says_that_it_hangs(&service);
        strangers.more();
        ends_with_74(&mut service, began);
    });
    println!("the longest time without an answer: {longest:?}");
    assert!(longest < Duration::from_secs(8), "{longest:?}");
}

#[test]
fn a_follower_whose_disk_hangs_says_so_and_holds_up_no_other() {
    if !may_run("a hanging follower", "a C compiler", &["cc"]) {
        return;
    }
    let slowed = Slowed::start(Duration::ZERO);
    let follower = slowed.cluster.followers()[0];
    let longest = slowed.longest_wait_while_hung(follower, "/", says_that_it_hangs);
    println!("the longest time without an answer: {longest:?}");
    assert!(longest < Duration::from_secs(2), "{longest:?}");
    slowed.cluster.wait_ready();
    slowed.cluster.assert_equal_registries();
}

#[test]
fn an_idle_leader_whose_disk_hangs_hands_over() {
    if !may_run("a hanging idle leader", "a C compiler", &["cc"]) {
        return;
    }
    let slowed = Slowed::start(Duration::ZERO);
    let leader = slowed.cluster.leader();
    let other = slowed.cluster.followers()[0];
    // Nothing is left to write, and no client asks for anything.
    thread::sleep(Duration::from_secs(3));
    slowed.syncs[leader - 1].take(FOR_EVER);
    let began = clock::now();
    says_that_it_hangs(slowed.cluster.at(leader));
    eventually("another one leads", || {
        let now = slowed.cluster.status(other)["leader"].as_u64()?;
        (now != leader as u64 && slowed.cluster.is_ready(other)).then_some(())
    });
    let took = clock::now() - began;
    println!("another one leads after {took:?}");
    assert!(took < Duration::from_secs(12), "{took:?}");
    slowed.syncs[leader - 1].take(Duration::ZERO);
    slowed.cluster.wait_ready();
    slowed.cluster.assert_equal_registries();
}

#[test]
fn an_image_that_hangs_holds_up_no_client() {
    if !may_run("a hanging image", "a C compiler", &["cc"]) {
        return;
    }
    let slowed = Slowed::start(Duration::ZERO);
    for hung in [slowed.cluster.leader(), slowed.cluster.followers()[0]] {
        let longest = slowed.longest_wait_while_hung(hung, "registry/db", |service| {
            eventually("it is seen", || {
                let pending = service.metric("emnetchain_disk_pending_seconds{what=\"image\"}");
                (pending > 3.0).then_some(())
            });
            assert_eq!(service.get("/readyz").0, 200, "clients do not wait for the image");
        });
        println!("the longest time without an answer: {longest:?}");
        assert!(longest < Duration::from_secs(2), "{longest:?}");
    }
    slowed.cluster.wait_ready();
    slowed.cluster.assert_equal_registries();
}

#[test]
fn a_sole_instance_whose_disk_hangs_says_so_and_ends() {
    if !may_run("a hanging sole instance", "a C compiler", &["cc"]) {
        return;
    }
    let (library, data) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    make_library(library.path());
    let syncs = slow(&library, "sole");
    let mut service = start(&syncs, data.path(), Vec::new());
    eventually("it is ready", || (service.get("/readyz").0 == 200).then_some(()));
    let mut client = Client::say(service.chain(), Member(0).connect());
    eventually("it is counted", || (service.metric("emnetchain_clients") > 0.0).then_some(()));
    // Nothing is left to write, and no client asks for anything.
    thread::sleep(Duration::from_secs(3));
    syncs.take(FOR_EVER);
    let began = clock::now();
    says_that_it_hangs(&service);
    println!("not ready after {:?}", clock::now() - began);
    ends_with_74(&mut service, began);
    assert_eq!(client.hear_for(PATIENCE), "", "it hears nothing");
}
