//! Backups of instances that go on serving: what is in them, and what becomes of those that cannot
//! be had, or not whole.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, reason = "figures are for people")]

#[path = "support/crowd.rs"]
mod crowd;
#[path = "support/history.rs"]
mod history;
#[path = "support/random.rs"]
mod random;
#[path = "support/cluster.rs"]
mod replicas;
#[path = "support/site.rs"]
mod site;
mod support;

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
};

use crowd::{Crowd, UNHURRIED};
use history::History;
use random::Random;
use replicas::{Cluster, wait_for_clients};
use site::Site;
use support::{Client, Finish as _, Member, PATIENCE, Service, chain, eventually, told};
use tempfile::TempDir;

/// The node id of an instance that is restored.
const NEW_NODE: [&str; 2] = ["--node-id", "11"];

/// `EMNetChain backup FILE`, asked of this address, and more.
fn backup(at: SocketAddr, file: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_EMNetChain"));
    command.arg("backup").arg(file).args(["--http-addr", &at.to_string()]).args(more);
    command.env_clear();
    command
}

/// The line on standard output, without the file's name.
#[track_caller]
fn done(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    let line = String::from_utf8(output.stdout.clone()).unwrap();
    line.trim_end().split_once(": ").expect("a name and what it holds").1.to_owned()
}

/// Asserts that it ended with this code, and one line that contains all of these.
#[track_caller]
fn refused(output: &Output, code: i32, words: &[&str]) {
    let line = std::str::from_utf8(&output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{line}");
    assert_eq!((line.lines().count(), output.stdout.len()), (1, 0), "{line}");
    for word in words {
        assert!(line.contains(word), "{word:?} in {line}");
    }
}

/// A new cluster out of a backup, and the line that told how much was in it.
fn restore(file: &Path, dir: &Path) -> (Service, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_EMNetChain"));
    command.arg("restore").arg(file).arg("--data-dir").arg(dir).args(NEW_NODE).env_clear();
    let held = done(&command.finish());
    let (_, held) = held.split_once(", node 11, ").expect("whose it is");
    (Service::start(dir, &[&NEW_NODE[..], &UNHURRIED[..]].concat()), held.to_owned())
}

fn http(service: &Service) -> SocketAddr {
    service.address("HTTP")
}

const KEPT: &str = "emnetchain_backup_timestamp_seconds";

#[test]
fn a_backup_under_load_holds_what_was_told_before_it() {
    let cluster = Cluster::start(&UNHURRIED);
    let room = TempDir::new().unwrap();
    let (leader, follower) = (cluster.leader(), cluster.followers()[0]);
    let (site, history) = (Site::of(cluster.at(leader)), History::default());
    let crowd = Crowd::new(&site, &history);
    let mut random = Random::new("a_backup_under_load");
    let mut made = Vec::new();
    let (_, _tip) = crowd.work_while(&mut random, || {
        for (round, from) in [follower, leader, follower].into_iter().enumerate() {
            let enough = history.count() + 150;
            eventually("clients are answered", || (history.count() >= enough).then_some(()));
            let settled = history.settled().into_iter();
            let told: Vec<_> = settled.map(|member| (member, history.expected(member))).collect();
            let file = room.path().join(format!("{round}.backup"));
            let count = history.count();
            let line = done(&backup(http(cluster.at(from)), &file, &[]).finish());
            let meanwhile = history.count() - count;
            eprintln!("{line}; {meanwhile} answers while it was made");
            made.push((file, line, told));
            assert!(cluster.at(from).metric(KEPT) > 1_600_000_000.0);
        }
        let enough = history.count() + 50;
        eventually("clients are answered still", || (history.count() >= enough).then_some(()));
    });
    cluster.assert_equal_registries();
    let lives = "emnetchain_lives_total";
    cluster.ids().for_each(|id| assert_eq!(cluster.at(id).metric(lives), 1.0, "nothing was hurt"));
    for (file, line, told) in made {
        let (restored, held) = restore(&file, &file.with_extension("dir"));
        assert_eq!(held, line, "restored is what was backed up");
        // Repairs may have changed some of it while the backup was made, or later.
        let same = told.iter().filter(|(member, told)| history.expected(*member) == *told);
        let same: Vec<_> = same.collect();
        assert!(same.len() >= 10, "{} of {} stayed", same.len(), told.len());
        for (member, told) in same {
            let mut again = Client::say(restored.chain(), member.connect());
            assert_eq!(again.rest(), *told, "client {}", member.0);
        }
    }
}

#[test]
fn an_instance_that_was_behind_hands_out_what_others_answered() {
    let cluster = Cluster::start(&UNHURRIED);
    let room = TempDir::new().unwrap();
    let (leader, follower) = (cluster.leader(), cluster.followers()[0]);
    let members: Vec<Member> = (0..40).map(Member).collect();
    let mut tip = chain(cluster.at(leader), &members[..2]);
    wait_for_clients(cluster.at(follower), 2);
    cluster.at(follower).signal("STOP");
    for pair in members[1..].windows(2) {
        let mut newcomer = Client::say(cluster.at(leader).chain(), pair[1].connect());
        assert_eq!(newcomer.object(), told("tail", &pair[0].head()));
        assert_eq!(tip.rest(), told("head", &pair[1].tail()));
        tip = newcomer;
    }
    // It reads the request before it hears anything of the others.
    let mut asking = TcpStream::connect(http(cluster.at(follower))).unwrap();
    asking.set_read_timeout(Some(PATIENCE)).unwrap();
    asking.write_all(b"GET /api/v1/backup HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    cluster.at(follower).signal("CONT");
    let mut answer = Vec::new();
    asking.read_to_end(&mut answer).unwrap();
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer[..head]));
    let file = room.path().join("it.backup");
    fs::write(&file, &answer[head..]).unwrap();
    let (restored, held) = restore(&file, &room.path().join("new"));
    assert!(held.contains(", 40 clients, 39 links, "), "{held}");
    for three in members.windows(3) {
        let mut again = Client::say(restored.chain(), three[1].connect());
        assert_eq!(again.rest(), told("tail", &three[0].head()) + &told("head", &three[2].tail()));
    }
}

/// What becomes of the bytes of an instance on their way.
#[derive(Clone, Copy)]
enum Way {
    /// This number arrives, and then the connection ends.
    Cut(usize),
    /// This number arrives, and then nothing does.
    Hung(usize),
    /// This one is another.
    Flipped(usize),
}

/// Passes one connection on to an instance, and spoils what it answers after its head.
fn spoil(to: SocketAddr, way: Way) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut near, _) = listener.accept().unwrap();
        let mut far = TcpStream::connect(to).unwrap();
        far.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut request = [0; 4096];
        let count = near.read(&mut request).unwrap();
        far.write_all(&request[..count]).unwrap();
        let mut answer = Vec::new();
        far.read_to_end(&mut answer).unwrap();
        let head = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        let whole = answer.len();
        let count = match way {
            Way::Cut(at) | Way::Hung(at) => head + at,
            Way::Flipped(at) => {
                answer[head + at] ^= 4;
                whole
            }
        };
        assert!(count <= whole, "the backup is as long as that");
        near.write_all(&answer[..count]).unwrap();
        if let Way::Hung(_) = way {
            // Until the other side has had enough.
            drop(near.read(&mut request));
        }
    });
    address
}

fn names(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn what_does_not_arrive_whole_leaves_nothing() {
    let room = TempDir::new().unwrap();
    let [data, files] = ["data", "files"].map(|name| room.path().join(name));
    fs::create_dir(&files).unwrap();
    let file = files.join("it.backup");
    let service = Service::start(&data, &UNHURRIED);
    let _tip = chain(&service, &[Member(0), Member(1), Member(2)]);
    for at in [0, 1, 100] {
        let output = backup(spoil(http(&service), Way::Cut(at)), &file, &[]).finish();
        let taken = format!("broke off after {at} of ");
        refused(&output, 69, &[&taken, "no backup was made"]);
        let output = backup(spoil(http(&service), Way::Flipped(at)), &file, &[]).finish();
        refused(&output, 78, &["it.backup", "is not kept; repeat", "no backup was made"]);
    }
    assert_eq!(names(&files), Vec::<PathBuf>::new());
    // A backup that is told to stop takes its draft along.
    let way = Way::Hung(50);
    let mut waiting: Child = backup(spoil(http(&service), way), &file, &[])
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("the draft is there", || {
        let found = names(&files).pop()?;
        (fs::metadata(found).ok()?.len() == 50).then_some(())
    });
    assert!(!file.exists(), "it has its name only when it is whole");
    let pid = waiting.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    eventually("it ends", || waiting.try_wait().unwrap());
    refused(&waiting.wait_with_output().unwrap(), 69, &["told to stop", "no backup was made"]);
    assert_eq!(names(&files), Vec::<PathBuf>::new());
    assert_eq!(service.metric(KEPT), 0.0, "no operator has a backup");
    done(&backup(http(&service), &file, &[]).finish());
    assert_eq!(names(&files), [file]);
}

#[test]
fn what_cannot_be_had_is_said_with_the_way_out() {
    let room = TempDir::new().unwrap();
    let path = |name: &str| room.path().join(name);
    let file = path("it.backup");
    let secret = |name: &str, text: &str| {
        fs::write(path(name), text).unwrap();
        fs::set_permissions(path(name), fs::Permissions::from_mode(0o600)).unwrap();
        path(name).to_str().unwrap().to_owned()
    };
    let (right, wrong) = (secret("right", "open sesame"), secret("wrong", "open barley"));
    let service = Service::start(&path("data"), &["--admin-token-file", &right]);
    let ask = |more: &[&str]| backup(http(&service), &file, more).finish();
    refused(
        &ask(&["--admin-token-file", &wrong]),
        69,
        &["not the operators' token; give --admin-token-file FILE"],
    );
    assert!(!file.exists());
    done(&ask(&["--admin-token-file", &right]));
    let before = fs::read(&file).unwrap();
    refused(&ask(&[]), 2, &["it.backup", "nothing is overwritten"]);
    assert_eq!(fs::read(&file).unwrap(), before);

    let nowhere = path("no/such/dir");
    refused(&backup(http(&service), &nowhere, &[]).finish(), 74, &["no/such/dir"]);
    let nowhere = "127.0.0.1:1".parse().unwrap();
    let output = backup(nowhere, &path("other"), &[]).finish();
    refused(&output, 69, &["no instance answers at", "no backup was made"]);
    assert!(!path("other").exists());

    // Only the flag itself means a stopped instance.
    let mut by_variable = backup(http(&service), &path("by variable"), &[]);
    by_variable.env("EMNETCHAIN_DATA_DIR", path("data"));
    by_variable.env("EMNETCHAIN_ADMIN_TOKEN_FILE", &right);
    done(&by_variable.finish());
}

#[test]
fn without_a_leader_it_is_unknown_what_was_answered() {
    let mut cluster = Cluster::start(&[]);
    let room = TempDir::new().unwrap();
    let tip = chain(cluster.at(1), &[Member(0), Member(1)]);
    wait_for_clients(cluster.at(3), 2);
    drop(tip);
    [1, 2].into_iter().for_each(|id| cluster.kill(id));
    let file = room.path().join("it.backup");
    let output = backup(http(cluster.at(3)), &file, &[]).finish();
    refused(&output, 69, &["the cluster has no leader", "--data-dir", "no backup was made"]);
    assert!(!file.exists());
}
