//! A sole instance whose disk does not answer. On a file system that is frozen each write waits in
//! the kernel, with no error and no end, until it is thawed; and one file may hang alone.
//! `EMNETCHAIN_PRIVILEGED=1` has these tests run.

use std::{
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use emnetchain::{clock, limits::SNAPSHOT_AFTER_ENTRIES};
use tempfile::TempDir;

use super::{
    crowd::{Crowd, EMNET, assert_all_is_as_told, lengthen_log},
    disk::start_through,
    history::History,
    mount::Mount,
    random::Random,
    site::Site,
    slow::{FOR_EVER, Syncs, make_library},
    support::{Client, Member, Service, chain, eventually, privileged::may_run, told},
};

const TOOLS: [&str; 4] = ["unshare", "nsenter", "mkfs.ext4", "fsfreeze"];

/// Within what time an instance says that its disk hangs, though no client asks for anything.
const SAID_WITHIN: Duration = Duration::from_secs(10);

/// After how long it ends, and how much later that may be seen.
const ENDS_WITHIN: Duration = Duration::from_secs(30 + 10);

/// Waits until an instance is not ready for the right reason. A request that waits for that write
/// may be told first.
fn says_that_it_hangs(service: &Service, frozen: Instant) {
    let why = eventually("it says that its log hangs", || {
        let (code, why) = service.get("/readyz");
        let is_it = why.contains("a write of the raft log has been pending");
        (code == 503 && is_it).then_some(why)
    });
    let took = clock::now() - frozen;
    eprintln!("not ready after {took:?}: {why}");
    assert!(took < SAID_WITHIN, "{took:?}");
    assert_eq!(service.metric("emnetchain_ready"), 0.0);
    assert!(service.metric("emnetchain_disk_pending_seconds{what=\"log\"}") > 1.0);
}

#[test]
fn a_frozen_disk_that_thaws_in_time_loses_nothing() {
    if !may_run("a frozen disk that thaws", "root", &TOOLS) {
        return;
    }
    let mut random = Random::new("a_frozen_disk_that_thaws");
    let image = TempDir::new().unwrap();
    let mount = Mount::ext4(&image.path().join("image"));
    let service = start_through(&mount.wrapper(&[]), &mount.data()).expect("it starts");
    let (site, history) = (Site::of(&service), History::default());
    let crowd = Crowd::new(&site, &history);
    let (_, _tip) = crowd.work_while(&mut random, || {
        let answered = |more: u64| {
            let enough = history.count() + more;
            eventually("clients are answered", || (history.count() >= enough).then_some(()));
        };
        for _ in 0..2 {
            answered(50);
            let frozen = mount.freeze();
            let began = clock::now();
            says_that_it_hangs(&service, began);
            let before = history.count();
            thread::sleep(Duration::from_secs(2));
            assert_eq!(history.count(), before, "nothing is told that is not on the disk");
            drop(frozen);
            eventually("it is ready", || (service.get("/readyz").0 == 200).then_some(()));
            answered(50);
        }
    });
    assert_all_is_as_told(&service, &site, &history);
}

#[test]
fn an_idle_instance_on_a_frozen_disk_says_so_and_ends() {
    if !may_run("an idle instance on a frozen disk", "root", &TOOLS) {
        return;
    }
    let image = TempDir::new().unwrap();
    let mount = Mount::ext4(&image.path().join("image"));
    let start = || start_through(&mount.wrapper(&[]), &mount.data()).expect("it starts");
    let mut service = start();
    let members = [0, 1, 2, 3].map(Member);
    drop(chain(&service, &members[..3]));
    // Nothing is left to write, and no client asks for anything.
    thread::sleep(Duration::from_secs(3));
    let frozen = mount.freeze();
    let began = clock::now();
    says_that_it_hangs(&service, began);
    let mut newcomer = Client::say(service.chain(), members[3].connect());
    newcomer.expect_silence();

    let http = service.address("HTTP");
    while TcpStream::connect(http).is_ok() {
        assert!(clock::now() - began < ENDS_WITHIN, "{}", service.log());
        thread::sleep(Duration::from_millis(100));
    }
    eprintln!("gone after {:?}", clock::now() - began);
    assert!(TcpStream::connect(service.chain()).is_err(), "no client finds a dead instance");
    assert!(service.log().contains("the disk has not answered for 30 s"), "{}", service.log());
    // No process with a thread that waits there can end before.
    drop(frozen);
    assert_eq!(service.wait().code(), Some(74), "{}", service.log());

    let service = start();
    let mut back = Client::say(service.chain(), members[1].connect());
    let both = told("tail", &members[0].head()) + &told("head", &members[2].tail());
    assert_eq!(back.rest(), both, "what was told before is told again");
    let mut tip = Client::say(service.chain(), members[2].connect());
    assert_eq!(tip.object(), told("tail", &members[1].head()));
    let mut again = Client::say(service.chain(), members[3].connect());
    assert_eq!(again.object(), told("tail", &members[2].head()));
    assert_eq!(tip.rest(), told("head", &members[3].tail()));
}

/// Clients that are told while the snapshot hangs.
const TOLD_MEANWHILE: u16 = 50;

#[test]
fn a_snapshot_that_hangs_delays_no_client_and_is_written_later() {
    if !may_run("a hanging snapshot", "a C compiler", &["cc"]) {
        return;
    }
    // A snapshot is due after many thousand entries, and in memory syncs take no time.
    let dir = TempDir::new_in("/dev/shm").unwrap();
    let syncs = Syncs::new(&make_library(dir.path()), dir.path());
    syncs.take_of("/snapshot", FOR_EVER);
    let wrapper = syncs.wrapper();
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let data = dir.path().join("data");
    let started = Service::try_start_through(&wrapper, &data, EMNET.map(str::to_owned).to_vec());
    let service = started.expect("it starts");
    let pending = || service.metric("emnetchain_disk_pending_seconds{what=\"snapshot\"}");

    let applied = || service.metric("emnetchain_raft_applied_index") as u64;
    while let lacking @ 1.. = SNAPSHOT_AFTER_ENTRIES.saturating_sub(applied()) {
        lengthen_log(&service, lacking as usize + 100);
    }
    eventually("a snapshot is pending", || (pending() > 2.0).then_some(()));
    let (began, mut slowest) = (clock::now(), Duration::ZERO);
    let mut tip = chain(&service, &[Member(0)]);
    for number in 1..TOLD_MEANWHILE {
        let asked = clock::now();
        let mut next = Client::say(service.chain(), Member(number).connect());
        assert_eq!(next.object(), told("tail", &Member(number - 1).head()));
        assert_eq!(tip.rest(), told("head", &Member(number).tail()));
        slowest = slowest.max(clock::now() - asked);
        tip = next;
    }
    eprintln!("{TOLD_MEANWHILE} clients in {:?}, each within {slowest:?}", clock::now() - began);
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    assert_eq!(service.get("/readyz").0, 200);
    assert!(pending() > 2.0, "it hangs still");
    let ends = |end: &str| {
        let names = std::fs::read_dir(data.join("snapshot")).unwrap().flatten();
        names.filter(|one| one.file_name().to_string_lossy().ends_with(end)).count()
    };
    assert_eq!((ends(".snap"), ends(".snap.new")), (0, 1), "none is there before it is synced");

    syncs.take(Duration::ZERO);
    eventually("it is written", || (pending() == 0.0).then_some(()));
    eventually("it has its name", || (ends(".snap") == 1).then_some(()));
}
