//! What commands do that no instance serves: how they end, what they read, and what they refuse.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, and says why")]

#[path = "support/mod.rs"]
mod support;

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::PermissionsExt as _,
    process::{Command, Output},
};

use support::{Finish as _, Service};
use tempfile::TempDir;

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_EMNetChain"));
    command.args(words).env_clear();
    command
}

#[track_caller]
fn ends(output: &Output, code: i32, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} in {said}");
    }
}

const ADDRESSES: [&str; 4] = ["-chain-addr", "127.0.0.1:8081", "-dis-addr", "127.0.0.1:8080"];

/// Proves that an answer that cannot be written is no success: a full disk is noticed.
#[test]
fn output_that_fails_is_a_failure() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(&dir.path().join("data"), &[]);
    let http = service.address("HTTP").to_string();
    let room = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (backup, certs) = (room("it.backup"), room("certs"));
    let at = ["--http-addr", http.as_str()];
    let asked: [&[&str]; 5] = [
        &["cluster", "status"],
        &["cluster", "members", "--json"],
        &["chain", "list"],
        &["explain", "127.0.0.1:9"],
        &["backup", &backup],
    ];
    let alone: [&[&str]; 6] = [
        &["id"],
        &["--help"],
        &["--version"],
        &["config", "print"],
        &["config", "check", ADDRESSES[0], ADDRESSES[1], ADDRESSES[2], ADDRESSES[3]],
        &["cluster", "certs", &certs, "--initial-cluster", "1=a.example:1"],
    ];
    let asked = asked.iter().map(|words| [*words, &at].concat());
    for words in asked.chain(alone.iter().map(|words| words.to_vec())) {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = command(&words).stdout(full).output().unwrap();
        ends(&output, 74, &["standard output cannot be written"]);
    }
    // As a shell closes it, and as a shell has it that mixes up its arrows.
    for redirection in [">&-", "1</dev/null"] {
        for words in alone {
            drop(fs::remove_dir_all(&certs));
            let line = format!("exec \"$0\" \"$@\" {redirection}");
            let mut shell = Command::new("sh");
            shell.args(["-c", &line, env!("CARGO_BIN_EXE_EMNetChain")]).args(words).env_clear();
            ends(&shell.output().unwrap(), 74, &["standard output cannot be written"]);
        }
    }
    // A reader that has seen enough is none.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    ends(&command(&["config", "print"]).stdout(writer).output().unwrap(), 0, &[]);
}

/// Proves that commands take a name, and the address that a configuration has for all interfaces.
#[test]
fn an_instance_is_asked_by_name() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &[]);
    let port = service.address("HTTP").port();
    for host in ["localhost", "127.0.0.1", "0.0.0.0"] {
        let at = format!("{host}:{port}");
        ends(&command(&["cluster", "drain", "--http-addr", &at]).finish(), 0, &[]);
    }
    let nowhere = ["cluster", "status", "--http-addr", "no-such-host.invalid:9180"];
    ends(&command(&nowhere).finish(), 69, &["no-such-host.invalid:9180", "--http-addr"]);
    for wrong in ["localhost", "localhost:", ":9180", "::1:9180", "localhost:http", "localhost:0"] {
        let output = command(&["cluster", "status", "--http-addr", wrong]).finish();
        ends(&output, 2, &["--http-addr", "HOST:PORT"]);
    }
}

/// Proves that what no instance can take is a slip, whether one runs or not.
#[test]
fn questions_that_mean_nothing_are_not_asked() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &[]);
    let http = service.address("HTTP").to_string();
    let slips: [(&[&str], &str); 6] = [
        (&["explain", "nonsense"], "nonsense"),
        (&["explain", "127.0.0.1"], "IP:PORT"),
        (&["chain", "show", "--at", "here"], "--at"),
        (&["chain", "show", "--from", "x"], "--from"),
        (&["chain", "show", "--limit", "0"], "--limit"),
        (&["chain", "list", "--limit", "1001"], "--limit"),
    ];
    for (words, named) in slips {
        for at in [http.as_str(), "127.0.0.1:1"] {
            let output = command(&[words, &["--http-addr", at]].concat()).finish();
            ends(&output, 2, &[named]);
        }
    }
    let asked = ["explain", "127.0.0.1:9", "--http-addr", &http];
    ends(&command(&asked).finish(), 0, &[]);
}

/// Proves that a new file system is as good as a new directory: it has one directory of its own.
#[test]
fn a_backup_is_restored_into_a_fresh_file_system() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(&dir.path().join("data"), &[]);
    let http = service.address("HTTP").to_string();
    let file = dir.path().join("it.backup").to_str().unwrap().to_owned();
    ends(&command(&["backup", &file, "--http-addr", &http]).finish(), 0, &[]);
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("lost+found")).unwrap();
    let root = root.to_str().unwrap();
    ends(&command(&["restore", &file, "--data-dir", root]).finish(), 0, &[]);
    ends(&command(&["check", "--data-dir", root]).finish(), 0, &[]);
    ends(&command(&["restore", &file, "--data-dir", root]).finish(), 2, &["not empty"]);
}

/// Proves that each command shows what it takes, and that one which is told where to ask is not
/// kept from it by the service's file.
#[test]
fn each_command_shows_and_reads_what_it_takes() {
    for (words, takes) in [
        (&["backup"][..], &["--http-addr", "--admin-token-file", "--data-dir"][..]),
        (&["restore"], &["--data-dir", "--node-id"]),
        (&["check"], &["--data-dir"]),
    ] {
        let output = command(&[words, &["--help"]].concat()).finish();
        let page = String::from_utf8(output.stdout).unwrap();
        let flags = page.lines().filter_map(|line| line.trim().strip_prefix("--"));
        let flags: Vec<_> = flags.map(|flag| flag.split(' ').next().unwrap()).collect();
        let mut wanted: Vec<_> = takes.iter().map(|flag| &flag[2..]).collect();
        wanted.push("config");
        assert!(flags.iter().all(|flag| wanted.contains(flag)), "{words:?}: {flags:?}");
        assert_eq!(flags.len(), wanted.len(), "{words:?}: {flags:?}");
    }
    let dir = TempDir::new().unwrap();
    let service = Service::start(&dir.path().join("data"), &[]);
    let http = service.address("HTTP").to_string();
    let asked = |more: &[&str]| {
        let mut asking = command(&[&["cluster", "status"], more].concat());
        asking.env("EMNETCHAIN_CONFIG", dir.path().join("missing")).finish()
    };
    ends(&asked(&["--http-addr", &http]), 0, &[]);
    ends(&asked(&[]), 2, &["missing", "cannot be read"]);
    let named = dir.path().join("missing").to_str().unwrap().to_owned();
    ends(&asked(&["--http-addr", &http, "--config", &(named + ".too")]), 2, &["missing.too"]);
}

/// Proves that a start which its certificates forbid leaves nothing behind.
#[test]
fn certificates_that_are_not_there_are_told_before_a_directory_is_made() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let mut start = command(&ADDRESSES);
    start.args(["--raft-addr", "127.0.0.1:0", "--data-dir", &path("data")]);
    for name in ["ca", "cert", "key"] {
        start.args([format!("--raft-tls-{name}"), path(name)]);
    }
    ends(&start.finish(), 2, &[&path("cert")]);
    assert!(!dir.path().join("data").exists());
}

/// Proves that one look finds all that is wrong with a configuration.
#[test]
fn a_configuration_is_told_all_its_faults_at_once() {
    let dir = TempDir::new().unwrap();
    let missing = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (token, key) = (missing("no-token"), missing("no-key"));
    let mut check = command(&["config", "check", "-chain-addr", "0.0.0.0:8081"]);
    check.args(["-dis-addr", "127.0.0.1:8081", "--gather", "soon", "--admin-token-file", &token]);
    check.args(["--udp-addr", "127.0.0.1:8081", "--udp-addr", "0.0.0.0:8081"]);
    check.args(["--raft-tls-key", &key]).env("EMNETCHAIN_CHIAN_ADDR", "127.0.0.1:1");
    let told = [
        "--gather",
        &token,
        &key,
        "0.0.0.0:8081 of --chain-addr; give one of the two another address or port",
        "--udp-addr: 0.0.0.0:8081 and 127.0.0.1:8081 of the same list overlap; leave one of them \
         out, or give it another port",
        "EMNETCHAIN_CHIAN_ADDR: there is no such variable; did you mean EMNETCHAIN_CHAIN_ADDR?",
    ];
    ends(&check.finish(), 2, &told);
    for (text, told) in [("secret".to_owned(), "8 at least"), ("x".repeat(100_000), "4096")] {
        fs::write(&token, text).unwrap();
        fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
        let args = [&["config", "check", "--admin-token-file", &token], &ADDRESSES[..]].concat();
        ends(&command(&args).finish(), 2, &[told, "make one with"]);
    }
    fs::write(&token, "a secret").unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    let mut good =
        command(&[&["config", "check", "--admin-token-file", &token], &ADDRESSES[..]].concat());
    ends(&good.env("EMNETCHAIN_CONFIG", "").finish(), 0, &[]);
    // What a start would refuse is no good configuration.
    fs::set_permissions(&token, fs::Permissions::from_mode(0o644)).unwrap();
    let said = good.env("EMNETCHAIN_DATA_DIR", &token).finish();
    ends(&said, 2, &["other users can read it", "is not a directory"]);
}
