//! What only root can do to a disk: fill a real file system, make its calls fail, and cut its
//! power. The file systems are mounted where no other process sees them. `EMNETCHAIN_PRIVILEGED=1`
//! has these tests run.

use std::{fs, path::Path, thread, time::Duration};

use tempfile::TempDir;

use super::{
    crowd::{Crowd, assert_all_is_as_told},
    disk::{LEAVING, assert_disk_failed, serve_until_it_fails, start_through},
    history::History,
    mount::{Mount, path, run},
    random::Random,
    site::Site,
    support::{Client, Member, Service, eventually, privileged::may_run, told},
};

/// Power cuts that lose nothing.
const POWER_CUTS: usize = 10;

/// Power cuts within which a service that does not sync must lose something.
const CANARY_CUTS: usize = 5;

/// Syncs that do nothing.
const NO_SYNC: &str = "
int fsync(int fd) { return 0; }
int fdatasync(int fd) { return 0; }
int sync_file_range(int fd, long from, long count, unsigned flags) { return 0; }
";

#[test]
fn a_full_file_system_ends_the_service_and_takes_nothing_back() {
    if !may_run("a_full_file_system", "root", &["unshare", "nsenter", "mount"]) {
        return;
    }
    let mut random = Random::new("a_full_file_system");
    for size in ["1m", "2m"] {
        let mount = Mount::new(&format!("mount -t tmpfs -o size={size} none \"$0\""));
        let wrapper = mount.wrapper(&[]);
        let service = start_through(&wrapper, &mount.data()).expect("it fits at first");
        serve_until_it_fails(service, &mount.data(), &mut random, |_| {
            mount.run("mount -o remount,size=64m \"$0\"");
            start_through(&wrapper, &mount.data()).expect("there is room again")
        });
    }
}

#[test]
fn a_failing_call_ends_the_service_and_takes_nothing_back() {
    if !may_run("a_failing_call", "root", &["strace"]) {
        return;
    }
    let mut random = Random::new("a_failing_call");
    // Not among them is sync_file_range: sled alone makes that call, on threads of its own, and may
    // once in a while not pass the failure on. What counts is our fdatasync behind it.
    let faults = [
        "fdatasync:error=EIO:when=150+",
        "fdatasync:error=EIO:when=300",
        "pwrite64:error=ENOSPC:when=400+",
        "pwrite64:error=EIO:when=400",
    ];
    for fault in faults {
        let dir = TempDir::new().unwrap();
        let data = dir.path().join("data");
        let (trace, inject) = (dir.path().join("trace"), format!("inject={fault}"));
        let calls = "trace=fdatasync,pwrite64";
        // With -D the service, not its tracer, is our child.
        let wrapper = ["strace", "-D", "-f", "-qq", "-o", path(&trace), "-e", calls, "-e", &inject];
        eprintln!("{fault}");
        let service = start_through(&wrapper, &data).expect("the first calls are good");
        serve_until_it_fails(service, &data, &mut random, Service::start_again);
        let trace = fs::read_to_string(trace).unwrap();
        assert!(trace.contains("(INJECTED)"), "nothing failed");
    }
}

#[test]
fn power_cuts_under_load_take_nothing_back() {
    if !may_run("power_cuts", "root", &["unshare", "nsenter", "mkfs.ext4", "python3"]) {
        return;
    }
    let mut random = Random::new("power_cuts");
    let image = TempDir::new().unwrap();
    let image = image.path().join("image");
    let mount = Mount::ext4(&image);
    let wrapper = mount.wrapper(&[]);
    let start = || start_through(&wrapper, &mount.data()).expect("it starts");
    let mut service = start();
    let (site, history) = (Site::of(&service), History::default());
    let crowd = Crowd::new(&site, &history);
    let mut choices = random.fork();
    let (_, _tip) = crowd.work_while(&mut random, || {
        for _ in 0..POWER_CUTS {
            let enough = history.count() + 20 + choices.next() % 200;
            eventually("clients are answered", || (history.count() >= enough).then_some(()));
            thread::sleep(Duration::from_micros(choices.next() % 3000));
            site.may_fail();
            mount.cut_power();
            // It may have noticed, and then it must have said so; or it had nothing to write.
            match service.wait_within(Duration::from_secs(2)) {
                Some(status) => assert_disk_failed(status, &service.log(), &mount.data()),
                None => service.kill(),
            }
            site.goes_down();
            mount.restore_power(&image);
            service = start();
            site.is_up(&service);
            let fresh = history.take_fresh();
            fresh.iter().take(40).for_each(|member| crowd.come_back(*member));
            history.release(&fresh);
        }
    });
    eprintln!("{POWER_CUTS} power cuts, {} answers", history.count());
    assert_all_is_as_told(&service, &site, &history);
}

/// The test above would be worth nothing if a service that does not sync passed it.
#[test]
fn a_service_that_does_not_sync_is_found_out() {
    if !may_run("the canary", "root", &["unshare", "nsenter", "mkfs.ext4", "python3", "cc"]) {
        return;
    }
    let dir = TempDir::new().unwrap();
    let (source, stub) = (dir.path().join("stub.c"), dir.path().join("stub.so"));
    fs::write(&source, NO_SYNC).unwrap();
    run(&["cc", "-shared", "-fPIC", "-o", path(&stub), path(&source)]);
    let preload = format!("LD_PRELOAD={}", path(&stub));
    let image = dir.path().join("image");
    for _ in 0..2 {
        assert_eq!(links_lost_by_a_power_cut(&image, &[]), 0, "the real one loses nothing");
    }
    let lost = (0..CANARY_CUTS).map(|_| links_lost_by_a_power_cut(&image, &["env", &preload]));
    let lost: Vec<usize> = lost.collect();
    eprintln!("links lost without syncs: {lost:?}");
    assert!(lost.iter().any(|lost| *lost > 0), "the power cut cuts nothing: {lost:?}");
}

/// Links clients, cuts the power, and counts those that are not told the same again.
fn links_lost_by_a_power_cut(image: &Path, then: &[&str]) -> usize {
    let mount = Mount::ext4(image);
    let wrapper = mount.wrapper(then);
    let mut service = start_through(&wrapper, &mount.data()).expect("it starts");
    let members: Vec<Member> = (0..30).map(Member).collect();
    let mut tip = Client::say(service.chain(), members[0].connect());
    eventually("it is registered", || (service.metric("emnetchain_clients") > 0.0).then_some(()));
    for pair in members.windows(2) {
        let mut next = Client::say(service.chain(), pair[1].connect());
        assert_eq!(next.object(), told("tail", &pair[0].head()));
        assert_eq!(tip.object(), told("head", &pair[1].tail()));
        tip = next;
    }
    mount.cut_power();
    if service.wait_within(LEAVING / 10).is_none() {
        service.kill();
    }
    mount.restore_power(image);
    let all = members.len() - 1;
    let Ok(service) = start_through(&wrapper, &mount.data()) else { return all };
    let lost = members.windows(2).filter(|pair| {
        let mut client = Client::say(service.chain(), pair[0].connect());
        let answer = client.hear_for(Duration::from_millis(300));
        !answer.ends_with(&told("head", &pair[1].tail()))
    });
    lost.count()
}
