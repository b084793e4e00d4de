//! Disks that are slow, and disks that do not answer at all. `strace` makes the calls of real
//! instances take their time; `EMNETCHAIN_PRIVILEGED=1` has these tests run.

use std::{
    process::{Child, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use emnetchain::clock;

use crate::{
    cluster::stopping::pair_strangers,
    replicas::Cluster,
    support::{Client, Member, PATIENCE, Service, eventually, privileged::may_run},
};

/// Three instances each of whose syncs takes so long.
fn on_slow_disks(delay: Duration) -> Cluster {
    let mut cluster = Cluster::new(&[]);
    let inject = format!("inject=fdatasync:delay_exit={}", delay.as_micros());
    for id in cluster.ids() {
        // With -D the service, not its tracer, is our child.
        let strace = ["strace", "-D", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null"];
        let calls = ["-e", "trace=fdatasync", "-e", &inject];
        let wrapper = [&strace[..], &calls[..]].concat();
        let (dir, arguments) = (cluster.data_dir(id), cluster.arguments(id));
        let started = Service::try_start_through(&wrapper, &dir, arguments);
        cluster.put(id, started.unwrap_or_else(|(status, log)| panic!("{status}:\n{log}")));
    }
    cluster.wait_ready();
    cluster
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

#[test]
fn another_leader_is_elected_however_slow_the_disks_are() {
    if !may_run("elections on slow disks", "ptrace", &["strace"]) {
        return;
    }
    for (delay, bound) in [(20, 5), (100, 5), (150, 5), (500, 15)] {
        let mut cluster = on_slow_disks(Duration::from_millis(delay));
        let terms = |cluster: &Cluster, id| cluster.status(id)["term"].as_u64().unwrap();
        let before = terms(&cluster, cluster.leader());
        let took = time_to_another_leader(&mut cluster);
        let after = terms(&cluster, cluster.running()[0]);
        println!("syncs of {delay} ms: {took:?}, {} terms", after - before);
        assert!(took < Duration::from_secs(bound), "syncs of {delay} ms: {took:?}");
    }
}

/// Holds up the syncs of an instance, as long as it lives.
struct Hang(Child);

impl Hang {
    /// From now on no sync of these files ends; of all files, if there are none.
    fn of(service: &Service, files: &[String]) -> Self {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-o", "/dev/null", "-p", &service.pid().to_string()]);
        for file in files {
            strace.args(["-P", file]);
        }
        strace.args(["-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_enter=120000000"]);
        let child = strace.stderr(Stdio::null()).spawn().unwrap();
        let is_traced = || {
            let status = format!("/proc/{}/status", service.pid());
            let status = std::fs::read_to_string(status).unwrap();
            let tracer = child.id().to_string();
            status.lines().any(|line| line.starts_with("TracerPid") && line.ends_with(&tracer))
        };
        eventually("it is traced", || is_traced().then_some(()));
        Self(child)
    }
}

impl Drop for Hang {
    fn drop(&mut self) {
        // It may have ended with the process that it traced.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Has the disk of one instance hang while strangers ask at the two others, and returns the
/// longest time without an answer.
fn longest_wait_while(
    cluster: &Cluster,
    hung: usize,
    files: &[String],
    until: impl FnOnce(&Service),
) -> Duration {
    let others: Vec<usize> = cluster.running().into_iter().filter(|id| *id != hung).collect();
    let at = [others[0], others[1]].map(|id| cluster.at(id));
    let (stop, times) = (AtomicBool::new(false), Mutex::new(Vec::<Instant>::new()));
    let count = || times.lock().unwrap().len();
    thread::scope(|scope| {
        scope.spawn(|| pair_strangers(at, &stop, &times));
        let enough = |more: usize| {
            let goal = count() + more;
            eventually("strangers are told", || (count() >= goal).then_some(()));
        };
        enough(20);
        let hang = Hang::of(cluster.at(hung), files);
        until(cluster.at(hung));
        enough(20);
        drop(hang);
        enough(20);
        stop.store(true, Ordering::SeqCst);
    });
    let times = times.into_inner().unwrap();
    times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap()
}

fn says_that_it_hangs(service: &Service) {
    let why = eventually("it is not ready", || {
        let (code, why) = service.get("/readyz");
        (code == 503).then_some(why)
    });
    assert!(why.contains("raft log has been pending") || why.contains("waited for"), "{why}");
    assert_eq!(service.metric("emnetchain_ready"), 0.0);
}

#[test]
fn a_leader_whose_disk_hangs_hands_over_and_ends() {
    if !may_run("a hanging leader", "ptrace", &["strace"]) {
        return;
    }
    let mut cluster = Cluster::start(&[]);
    let leader = cluster.leader();
    let other = cluster.followers()[0];
    let began = clock::now();
    let longest = longest_wait_while(&cluster, leader, &[], |service| {
        eventually("another one leads", || {
            let now = cluster.status(other)["leader"].as_u64()?;
            (now != leader as u64).then_some(())
        });
        println!("another one leads after {:?}", clock::now() - began);
        says_that_it_hangs(service);
        eventually("it ends", || service.log().contains("the disk has not answered").then_some(()));
    });
    println!("the longest time without an answer: {longest:?}");
    assert!(longest < Duration::from_secs(8), "{longest:?}");
    let mut service = cluster.take(leader);
    assert_eq!(service.wait().code(), Some(74), "{}", service.log());
}

#[test]
fn a_follower_whose_disk_hangs_says_so_and_holds_up_no_other() {
    if !may_run("a hanging follower", "ptrace", &["strace"]) {
        return;
    }
    let cluster = Cluster::start(&[]);
    let follower = cluster.followers()[0];
    let longest = longest_wait_while(&cluster, follower, &[], says_that_it_hangs);
    println!("the longest time without an answer: {longest:?}");
    assert!(longest < Duration::from_secs(2), "{longest:?}");
    cluster.wait_ready();
    cluster.assert_equal_registries();
}

#[test]
fn an_image_that_hangs_holds_up_no_client() {
    if !may_run("a hanging image", "ptrace", &["strace"]) {
        return;
    }
    let cluster = Cluster::start(&[]);
    for hung in [cluster.leader(), cluster.followers()[0]] {
        let image = cluster.data_dir(hung).join("registry/db").display().to_string();
        let longest = longest_wait_while(&cluster, hung, &[image], |service| {
            eventually("it is seen", || {
                let pending = service.metric("emnetchain_disk_pending_seconds{what=\"image\"}");
                (pending > 3.0).then_some(())
            });
            assert_eq!(service.get("/readyz").0, 200, "clients do not wait for the image");
        });
        println!("the longest time without an answer: {longest:?}");
        assert!(longest < Duration::from_secs(2), "{longest:?}");
    }
    cluster.wait_ready();
    cluster.assert_equal_registries();
}

#[test]
fn a_sole_instance_whose_disk_hangs_says_so() {
    if !may_run("a hanging sole instance", "ptrace", &["strace"]) {
        return;
    }
    let dir = tempfile::TempDir::new().unwrap();
    let mut service = Service::start(dir.path(), &[]);
    eventually("it is ready", || (service.get("/readyz").0 == 200).then_some(()));
    let hang = Hang::of(&service, &[]);
    let mut client = Client::say(service.chain(), Member(0).connect());
    says_that_it_hangs(&service);
    client.expect_silence();
    let status = eventually("it ends", || service.wait_within(PATIENCE));
    assert_eq!(status.code(), Some(74), "{}", service.log());
    drop(hang);
}
