//! Files that were cut, zeroed, flipped, lost or mixed up: at the next start either every client is
//! told what they were told before, or the process ends with exit code 78 and one line that says
//! what is wrong where and what can be done. It never serves less, and it never says nothing.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use emnetchain::{clock, limits::SNAPSHOT_AFTER_ENTRIES};
use tempfile::TempDir;

use super::{
    crowd::{Crowd, EMNET, UNHURRIED, assert_totals, lengthen_log},
    history::History,
    random::Random,
    site::Site,
    support::{Finish as _, Service, eventually},
};

/// The longest that a start over damaged data may take until it serves or says that it does not.
const DECISION: Duration = Duration::from_secs(20);

/// How many clients ask again after a start over damaged data.
const SAMPLE: usize = 12;

/// A data directory that was killed in the middle of its work, and what its clients know.
struct Base {
    dir: TempDir,
    history: History,
}

/// How a file is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    CutByte,
    CutTail,
    CutHalf,
    FlipBit,
    ZeroPage,
    Delete,
    /// In its place lies the same file of another cluster.
    Swap,
}

const HARMS: [Harm; 7] = [
    Harm::CutByte,
    Harm::CutTail,
    Harm::CutHalf,
    Harm::FlipBit,
    Harm::ZeroPage,
    Harm::Delete,
    Harm::Swap,
];

/// What came of a damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// It serves, and has nothing to say about it.
    Unseen,
    /// It serves, and said what it had to heal.
    Healed,
    /// It does not serve, and said why.
    Refused,
}

#[test]
fn damage_is_healed_or_refused_but_never_served() {
    let mut random = Random::new("damage");
    let base = populated(&mut random, true);
    let other = populated(&mut random, false);
    kill_around_a_snapshot(&base, &mut random);
    let purged = with_snapshot(&base);

    let mut outcomes = BTreeMap::new();
    for file in files_below(purged.path()) {
        for harm in HARMS {
            let copy = copy_of(purged.path());
            if !damage(copy.path(), &file, harm, &mut random, other.dir.path()) {
                continue;
            }
            let what = format!("{harm:?} of {}", file.display());
            let outcome = judge(copy.path(), &base.history, &mut random, &what);
            eprintln!("{what}: {outcome:?}");
            *outcomes.entry(outcome).or_insert(0) += 1;
        }
    }
    // The sources of the registry, several at once, and whole directories.
    for several in [&["registry", "snapshot"][..], &["raft"], &["registry"], &["snapshot"]] {
        for swap in [false, true] {
            let copy = copy_of(purged.path());
            for part in several {
                fs::remove_dir_all(copy.path().join(part)).unwrap();
                if swap && other.dir.path().join(part).exists() {
                    copy_dir(&other.dir.path().join(part), &copy.path().join(part));
                }
            }
            let what = format!("{} of {several:?}", if swap { "swap" } else { "loss" });
            let outcome = judge(copy.path(), &base.history, &mut random, &what);
            eprintln!("{what}: {outcome:?}");
            *outcomes.entry(outcome).or_insert(0) += 1;
        }
    }
    eprintln!("{outcomes:?}");
    for outcome in [Outcome::Healed, Outcome::Refused] {
        assert!(outcomes.get(&outcome) >= Some(&5), "too weak a test: {outcomes:?}");
    }
}

/// A directory with a chain that is killed at rest. A long one has a log that is about to be cut.
fn populated(random: &mut Random, long: bool) -> Base {
    let base = Base { dir: TempDir::new().unwrap(), history: History::default() };
    let mut service = start(base.dir.path());
    let site = Site::of(&service);
    let crowd = Crowd::new(&site, &base.history);
    let _tip = crowd.work_while(random, || {
        if long {
            // The clients lengthen it too, so what is missing is asked once a round.
            let missing = || {
                let applied = service.metric("emnetchain_raft_applied_index") as u64;
                SNAPSHOT_AFTER_ENTRIES.saturating_sub(applied) as usize
            };
            while let lacking @ 1.. = missing() {
                lengthen_log(&service, lacking);
            }
        }
        eventually("a few clients are told", || (base.history.count() > 400).then_some(()));
    });
    service.kill();
    base
}

/// Kills the service when it writes a snapshot, or cuts the log behind it.
fn kill_around_a_snapshot(base: &Base, random: &mut Random) {
    for round in 0..4 {
        let copy = copy_of(base.dir.path());
        fs::remove_dir_all(copy.path().join("snapshot")).unwrap();
        fs::create_dir(copy.path().join("snapshot")).unwrap();
        let mut service = start(copy.path());
        await_change(&copy.path().join("snapshot"));
        thread::sleep(Duration::from_micros(random.next() % 4000));
        service.kill();
        let outcome = judge(copy.path(), &base.history, random, &format!("kill {round}"));
        assert_ne!(outcome, Outcome::Refused);
    }
}

/// A copy in which the log is purged behind a snapshot.
fn with_snapshot(base: &Base) -> TempDir {
    let copy = copy_of(base.dir.path());
    let mut service = start(copy.path());
    let snapshots = copy.path().join("snapshot");
    eventually("there is a snapshot", || {
        files_below(&snapshots).iter().any(|file| ends_with(file, ".snap")).then_some(())
    });
    // Behind the snapshot there is more than what it holds.
    lengthen_log(&service, 100);
    service.kill();
    copy
}

/// Waits until a directory holds something else than it does.
fn await_change(dir: &Path) {
    let before = files_below(dir);
    let deadline = clock::now() + super::support::PATIENCE;
    while files_below(dir) == before {
        assert!(clock::now() < deadline, "nothing happens in {}", dir.display());
        thread::sleep(Duration::from_micros(200));
    }
}

/// Checks and starts over a damaged directory, and asserts that neither says anything wrong.
fn judge(dir: &Path, history: &History, random: &mut Random, what: &str) -> Outcome {
    let before = contents(dir);
    let (check, report) = check(dir);
    assert_eq!(contents(dir), before, "{what}: the check changed something");
    assert!(matches!(check, 0 | 78), "{what}: the check ended with {check}:\n{report}");

    let began = clock::now();
    let started = Service::try_start(dir, arguments());
    let took = clock::now() - began;
    assert!(took < DECISION, "{what}: it took {took:?} to decide");
    match started {
        Ok(mut service) => {
            assert_told_again(&service, history, random, what);
            service.kill();
            let log = service.log();
            assert!(!log.contains("panicked at") && !log.contains("ERROR"), "{what}:\n{log}");
            let healed = ["is damaged", "is missing", "stale"];
            let healed = healed.iter().any(|sign| log.contains(sign));
            assert!(check == 0 || healed, "{what}: only the check saw it:\n{report}\n{log}");
            if healed { Outcome::Healed } else { Outcome::Unseen }
        }
        Err((status, log)) => {
            assert_eq!(status.code(), Some(78), "{what}: {status}\n{log}");
            assert_refusal(&log, dir, what);
            assert_eq!(check, 78, "{what}: the check saw nothing:\n{report}\n{log}");
            let names = report.contains(&dir.display().to_string());
            assert!(names || report.contains("nothing connects"), "{what}: {report}");
            assert_eq!(truth_of(&contents(dir)), truth_of(&before), "{what}: it was changed");
            Outcome::Refused
        }
    }
}

/// One line that names a file and a way out, and no panic.
fn assert_refusal(log: &str, dir: &Path, what: &str) {
    let lines: Vec<&str> = log.lines().collect();
    let [line] = lines[..] else { panic!("{what}: one line was expected:\n{log}") };
    let names = line.contains(" ERROR ") && line.contains(&dir.display().to_string());
    let way_out = ["put it back", "put the right one back", "restore a backup", "start again"];
    let way_out = way_out.iter().any(|words| line.contains(words));
    assert!(names && way_out && !line.contains("panicked at"), "{what}: {line}");
}

fn assert_told_again(service: &Service, history: &History, random: &mut Random, what: &str) {
    assert_totals(service, history, what);
    let site = Site::of(service);
    let crowd = Crowd::new(&site, history);
    for _ in 0..SAMPLE {
        let member = history.take_any(random).expect("no other asks");
        crowd.come_back(member);
        history.release(&[member]);
    }
    if let Some(repair) = history.take_repair(random) {
        crowd.ask_about(&repair);
        history.release(&repair.members);
    }
}

/// Damages a file; `false` if that changes nothing.
fn damage(dir: &Path, file: &Path, harm: Harm, random: &mut Random, other: &Path) -> bool {
    let path = dir.join(file);
    let before = fs::read(&path).unwrap();
    let length = before.len();
    if length == 0 && harm != Harm::Delete {
        return false;
    }
    let mut bytes = before.clone();
    match harm {
        Harm::CutByte => bytes.truncate(length - 1),
        Harm::CutTail => bytes.truncate(length.saturating_sub(1000)),
        Harm::CutHalf => bytes.truncate(length / 2),
        Harm::FlipBit => bytes[random.below(length)] ^= 1 << random.below(8),
        Harm::ZeroPage => {
            let page = random.below(length) / 4096 * 4096;
            bytes[page..length.min(page + 4096)].fill(0);
        }
        Harm::Delete => {
            fs::remove_file(path).unwrap();
            return true;
        }
        Harm::Swap => match fs::read(other.join(file)) {
            Ok(theirs) => bytes = theirs,
            Err(_) => return false,
        },
    }
    fs::write(&path, &bytes).unwrap();
    bytes != before
}

/// The exit code of `check`, and all that it says.
pub(crate) fn check(dir: &Path) -> (i32, String) {
    let mut check = Command::new(env!("CARGO_BIN_EXE_EMNetChain"));
    let output = check.args(["check", "--data-dir"]).arg(dir).env_clear().finish();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).expect("it speaks text");
    assert!(!said.trim().is_empty(), "the check says something");
    (output.status.code().expect("it ends by itself"), said)
}

fn start(dir: &Path) -> Service {
    let arguments = arguments();
    Service::start(dir, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

fn arguments() -> Vec<String> {
    UNHURRIED.iter().chain(&EMNET).map(|text| (*text).to_owned()).collect()
}

/// Every file below a directory, by its path from there, sorted.
fn files_below(dir: &Path) -> Vec<PathBuf> {
    contents(dir).into_keys().collect()
}

/// Every file below a directory and what it holds. Files may go while we look.
pub(crate) fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(bytes) = fs::read(&path) {
                found.insert(path.strip_prefix(dir).unwrap().to_owned(), bytes);
            }
        }
    }
    found
}

/// What a refused start must leave as it was. The lock is no data; and the image is only a copy,
/// into which sled writes even when it is only asked to read.
fn truth_of(contents: &BTreeMap<PathBuf, Vec<u8>>) -> BTreeMap<&PathBuf, &Vec<u8>> {
    let is_truth = |path: &Path| !path.ends_with("LOCK") && !path.starts_with("registry");
    contents.iter().filter(|(path, _)| is_truth(path)).collect()
}

fn ends_with(path: &Path, ending: &str) -> bool {
    path.to_string_lossy().ends_with(ending)
}

fn copy_of(dir: &Path) -> TempDir {
    let copy = TempDir::new().unwrap();
    copy_dir(dir, copy.path());
    copy
}

/// Copies a directory, empty ones in it included.
pub(crate) fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy_dir(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}
