//! A registry that moves to another machine: `backup`, `restore`, and the clients that come back.

#![expect(clippy::unwrap_used, reason = "a helper that cannot go on fails its test")]

mod support;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use support::{Client, Finish as _, Member, Service, chain, reconnect, repaired, told};
use tempfile::TempDir;

/// The node id of the instance that is restored.
const NEW_NODE: [&str; 2] = ["--node-id", "9"];

/// Runs `EMNetChain WORD FILE --data-dir DIR`, and more.
fn run(word: &str, file: &Path, dir: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_EMNetChain"));
    command.arg(word).arg(file).arg("--data-dir").arg(dir).args(more).env_clear();
    command.finish()
}

#[track_caller]
fn done(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
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

/// Every file below a directory, and its bytes.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

/// Four clients are linked, and the tip waits, when the instance ends in one of two ways.
fn a_chain_moves(end: impl Fn(&mut Service)) {
    let room = TempDir::new().unwrap();
    let [old, new, file] = ["old", "new", "it.backup"].map(|name| room.path().join(name));
    let members: Vec<Member> = (0..4).map(Member).collect();
    let mut service = Service::start(&old, &[]);
    let waiting = chain(&service, &members);
    end(&mut service);
    drop(waiting);

    let before = contents(&old);
    let line = done(&run("backup", &file, &old, &[]));
    let start = format!("{}: entries through ", file.display());
    assert!(line.starts_with(&start) && line.lines().count() == 1, "{line}");
    let (_, held) = line.trim_end().split_once(": ").unwrap();
    assert!(held.contains(", 4 clients, 3 links, checksum "), "{line}");
    assert!(contents(&old) == before, "a backup changes nothing");

    let line = done(&run("restore", &file, &new, &NEW_NODE));
    assert!(line.starts_with(&format!("{}: cluster ", new.display())), "{line}");
    assert!(line.ends_with(&format!(", node 9, {held}\n")), "{line}");

    let service = Service::start(&new, &[&NEW_NODE[..], &["--resume-grace", "1h"]].concat());
    // A client that comes back is told the same.
    let mut middle = Client::say(service.chain(), members[1].connect());
    assert_eq!(middle.rest(), told("tail", &members[0].head()) + &told("head", &members[2].tail()));
    // The tip comes back, waits on, and gets its partner.
    let mut tip = Client::say(service.chain(), members[3].connect());
    assert_eq!(tip.object(), told("tail", &members[2].head()));
    let mut newcomer = Client::say(service.chain(), Member(4).connect());
    assert_eq!(newcomer.object(), told("tail", &members[3].head()));
    assert_eq!(tip.rest(), told("head", &Member(4).tail()));
    // And it is a data directory like any other.
    let service = service.kill_and_restart();
    let mut tip = Client::say(service.chain(), members[3].connect());
    assert_eq!(tip.rest(), told("tail", &members[2].head()) + &told("head", &Member(4).tail()));
}

#[test]
fn a_chain_moves_after_a_stop() {
    a_chain_moves(|service| assert!(service.stop().success()));
}

#[test]
fn a_chain_moves_after_kill_9() {
    a_chain_moves(Service::kill);
}

#[test]
fn what_cannot_be_done_is_refused() {
    let room = TempDir::new().unwrap();
    let [old, new, file] = ["old", "new", "it.backup"].map(|name| room.path().join(name));
    let mut service = Service::start(&old, &[]);
    drop(chain(&service, &[Member(0), Member(1)]));
    refused(&run("backup", &file, &old, &[]), 78, &["old", "stop that one", "leave out --data"]);
    service.kill();
    refused(&run("backup", &file, &room.path().join("no"), &[]), 78, &["identity.json"]);
    done(&run("backup", &file, &old, &[]));
    refused(&run("backup", &file, &old, &[]), 2, &["it.backup", "nothing is overwritten"]);
    refused(&run("restore", &file, &old, &[]), 2, &["old", "nothing is overwritten"]);
    refused(&run("restore", &new, &new, &[]), 2, &["new", "no such file"]);
    refused(&run("restore", &file, &new, &["--node-id", "0"]), 2, &["--node-id"]);

    let whole = fs::read(&file).unwrap();
    for at in 0..8 {
        let at = at * (whole.len() - 1) / 7;
        let mut flipped = whole.clone();
        flipped[at] ^= 4;
        for bytes in [&flipped[..], &whole[..at]] {
            fs::write(&file, bytes).unwrap();
            refused(&run("restore", &file, &new, &[]), 78, &["it.backup"]);
            assert!(!new.exists());
        }
    }
    fs::write(&file, &whole).unwrap();
    done(&run("restore", &file, &new, &[]));
    // The old node id belongs to another cluster; the new directory knows its own.
    let other = Service::try_start(&new, NEW_NODE.map(str::to_owned).to_vec());
    assert_eq!(other.unwrap_err().0.code(), Some(78));
    drop(Service::start(&new, &[]));
}

/// A backup that the real version 0.2.0 made of three instances: five clients, a caller that waits
/// for its repair id, one id that was answered, and an address that EMNet kept.
#[test]
fn what_version_0_2_0_answered_stays_answered() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v0.2.0");
    let room = TempDir::new().unwrap();
    let new = room.path().join("new");
    let said = done(&run("restore", &fixtures.join("chain.backup"), &new, &NEW_NODE));
    assert!(said.contains("entries through 20, 5 clients, 4 links, checksum 56fa2a95"), "{said}");
    let emnet = ["--emnet-addr", "127.0.0.1:0"];
    let mut service = Service::start(&new, &[NEW_NODE, emnet].concat());
    support::eventually("it serves", || (service.get("/readyz").0 == 200).then_some(()));

    // The caller that waits has the resume grace, so it comes first.
    let mut waits = Client::say(service.repair(), reconnect("waits", "127.0.0.1:31002"));
    let mut second = Client::say(service.repair(), reconnect("waits", "127.0.0.1:31003"));
    assert_eq!(second.rest(), repaired("127.0.0.1:31002"));
    assert_eq!(waits.rest(), repaired("127.0.0.1:31003"));
    let mut answered = Client::say(service.repair(), reconnect("done", "127.0.0.1:31000"));
    assert_eq!(answered.rest(), repaired("127.0.0.1:31001"));
    let [head, tail] = [|n: u16| 20_000 + 2 * n, |n: u16| 20_001 + 2 * n];
    let at = |port: u16| format!("127.0.0.1:{port}");
    let connect = |n: u16| {
        format!(r#"{{"msg":"CONNECT","head":"{}","tail":"{}"}}"#, at(head(n)), at(tail(n)))
    };
    for n in 1..4 {
        let mut again = Client::say(service.chain(), connect(n));
        let partners = told("tail", &at(head(n - 1))) + &told("head", &at(tail(n + 1)));
        assert_eq!(again.rest(), partners);
    }
    // The tip is linked with the next that comes.
    let mut tip = Client::say(service.chain(), connect(4));
    assert_eq!(tip.object(), told("tail", &at(head(3))));
    let mut next = Client::say(service.chain(), connect(5));
    assert_eq!(next.object(), told("tail", &at(head(4))));
    assert_eq!(tip.rest(), told("head", &at(tail(5))));
    let mut peer = Client::say(service.address("EMNet"), r#"{"msg":"ASK_IP","id":405652}"#);
    assert_eq!(peer.object(), r#"{"IP":"any text","msg":"SUCCESS"}"#);
    assert_eq!(service.stop().code(), Some(0));
}

#[test]
fn a_directory_of_version_0_2_0_is_refused_with_the_way_out() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v0.2.0/data");
    let room = TempDir::new().unwrap();
    let old = room.path().join("old");
    let copied = Command::new("cp").arg("-r").args([&fixture, &old]).status().unwrap();
    assert!(copied.success());
    let before = contents(&old);
    let (status, log) = Service::try_start(&old, Vec::new()).expect_err("it is refused");
    assert_eq!(status.code(), Some(78), "{log}");
    let way_out = "run `EMNetChain backup --data-dir DIR FILE` of version 0.2.0, then `EMNetChain \
                   restore FILE --data-dir NEW` of this version";
    assert!(log.contains("a data directory of version 0.2.0"), "{log}");
    assert!(log.contains(way_out), "{log}");
    assert!(contents(&old) == before, "it is left as it was");
}
