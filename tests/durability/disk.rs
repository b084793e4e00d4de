//! Disks that are full, and directories that are another's or none at all: the process says in one
//! line what is wrong with which file, ends with its exit code, and has told no client anything
//! that it cannot keep.

use std::{fs, path::Path, process::ExitStatus, time::Duration};

use emnetchain::clock;
use tempfile::TempDir;

use super::{
    crowd::{Crowd, UNHURRIED, assert_all_is_as_told},
    damage::check,
    history::History,
    random::Random,
    site::Site,
    support::{Service, eventually},
};

/// From the first failed write to the end of the process; a second on an idle machine.
pub(crate) const LEAVING: Duration = Duration::from_secs(5);

/// A process whose files cannot grow beyond a number of 512-byte blocks, as on a full disk. The
/// signal that comes with it is ignored, so that the write fails as it does there.
const SHORT_FILES: &str = r#"trap "" XFSZ; ulimit -f "$0"; exec "$@""#;

#[test]
fn a_disk_that_fills_up_ends_the_service_and_takes_nothing_back() {
    let mut random = Random::new("a_disk_that_fills_up");
    for kib in [32, 100, 250] {
        let dir = TempDir::new().unwrap();
        let blocks = (2 * kib).to_string();
        let full = ["sh", "-c", SHORT_FILES, &blocks];
        let limited = start_through(&full, dir.path()).expect("an empty directory fits");
        serve_until_it_fails(limited, dir.path(), &mut random, |service| {
            // Still full: it says so at once, and harms nothing.
            let (status, log) = start_through(&full, dir.path()).expect_err("it cannot write");
            assert_disk_failed(status, &log, dir.path());
            service.start_again()
        });
    }
}

/// Has clients served until the disk fails, then by another service, which `renew` starts; all of
/// them must be told what they were told before.
pub(crate) fn serve_until_it_fails(
    mut service: Service,
    dir: &Path,
    random: &mut Random,
    renew: impl FnOnce(&Service) -> Service,
) {
    let (site, history) = (Site::of(&service), History::default());
    let crowd = Crowd::new(&site, &history);
    let mut renewed = None;
    let (_, _tip) = crowd.work_while(random, || {
        site.may_fail();
        eventually("the disk fails", || service.log().contains(" ERROR ").then_some(()));
        let began = clock::now();
        let status = service.wait();
        let took = clock::now() - began;
        assert!(took < LEAVING, "it took {took:?} to leave");
        let log = service.log();
        assert_disk_failed(status, &log, dir);
        let told = history.count();
        eprintln!("failed after {told} answers: {}", log.lines().last().unwrap_or_default());
        assert!(told >= 20, "too few answers before the disk failed: {told}");
        let service = renew(&service);
        site.is_up(&service);
        let enough = history.count() + 50;
        eventually("clients are served again", || (history.count() >= enough).then_some(()));
        renewed = Some(service);
    });
    assert_all_is_as_told(&renewed.expect("it was started"), &site, &history);
}

/// Asserts exit code 74 and a line that says what failed on which file.
pub(crate) fn assert_disk_failed(status: ExitStatus, log: &str, dir: &Path) {
    assert_eq!(status.code(), Some(74), "{status}\n{log}");
    let line = log.lines().find(|line| line.contains(" ERROR ")).expect("it says why");
    assert!(line.contains(&dir.display().to_string()), "{line}");
    let reasons = ["File too large", "No space left on device", "Input/output error"];
    assert!(reasons.iter().any(|reason| line.contains(reason)), "{line}");
    assert!(!log.contains("panicked"), "{log}");
}

pub(crate) fn start_through(wrapper: &[&str], dir: &Path) -> Result<Service, (ExitStatus, String)> {
    let arguments = UNHURRIED.map(str::to_owned).to_vec();
    Service::try_start_through(wrapper, dir, arguments)
}

#[test]
fn a_directory_in_use_is_refused() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &[]);
    let (status, log) = Service::try_start(dir.path(), Vec::new()).expect_err("it is taken");
    assert_eq!(status.code(), Some(78), "{log}");
    assert_one_line(&log, dir.path(), "another process holds this data directory");
    let (code, said) = check(dir.path());
    assert_eq!(code, 78);
    assert_one_line(&said, dir.path(), "another process holds this data directory");
    assert_eq!(service.get("/readyz").0, 200, "the first one goes on");
}

#[test]
fn another_nodes_directory_is_refused() {
    let dir = TempDir::new().unwrap();
    let mut service = Service::start(dir.path(), &[]);
    service.stop();
    let arguments = ["--node-id", "2"].map(str::to_owned).to_vec();
    let (status, log) = Service::try_start(dir.path(), arguments).expect_err("it is node 1's");
    assert_eq!(status.code(), Some(78), "{log}");
    assert_one_line(&log, dir.path(), "belongs to node 1, not to node 2");
    assert_eq!(service.start_again().get("/readyz").0, 200);
}

#[test]
fn what_is_no_directory_or_cannot_be_made_is_told() {
    let temp = TempDir::new().unwrap();
    let file = temp.path().join("file");
    fs::write(&file, "a person's letters").unwrap();
    for path in [&file, &file.join("below"), Path::new("/proc/emnetchain-data")] {
        let (status, log) = Service::try_start(path, Vec::new()).expect_err("no place for data");
        assert_eq!(status.code(), Some(74), "{log}");
        assert_one_line(&log, path, "create the data directory ");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "a person's letters");
}

#[test]
fn a_check_of_what_is_no_data_directory_says_so_and_makes_nothing() {
    let temp = TempDir::new().unwrap();
    for path in [temp.path(), &temp.path().join("nothing")] {
        let (code, said) = check(path);
        assert_eq!(code, 78, "{said}");
        assert_one_line(&said, path, "no identity.json: this is no data directory");
    }
    assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0);
}

fn assert_one_line(log: &str, path: &Path, what: &str) {
    assert_eq!(log.lines().count(), 1, "{log}");
    assert!(log.contains(&path.display().to_string()) && log.contains(what), "{log}");
    assert_eq!(log.matches("os error").count() / 2, 0, "told twice: {log}");
}
