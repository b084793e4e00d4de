//! Replays `proto-docs/transcripts/*.txt`, byte for byte, against the real service; each
//! transcript gets one of its own with nothing in it. `proto-docs/transcripts/README.md` tells how
//! the same transcripts are held against another server.

#![expect(clippy::unwrap_used, reason = "a helper that cannot go on fails its test")]
#![expect(clippy::print_stderr, reason = "what is left out is said")]

#[path = "support/replay.rs"]
mod replay;
mod support;
#[path = "support/transcript.rs"]
mod transcript;

use std::{
    collections::BTreeMap,
    fs,
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use replay::{Host, replay};
use support::{Service, eventually};
use tempfile::TempDir;
use transcript::{Script, Server};

/// Transcripts replayed at one time; most of their time they listen to silence.
const AT_ONE_TIME: usize = 8;

#[test]
fn every_transcript_holds() {
    let only = std::env::var("CONFORMANCE_ONLY").unwrap_or_default();
    let scripts: Vec<(String, Script)> = all_scripts()
        .into_iter()
        .filter(|(name, _)| only.is_empty() || only.split(',').any(|part| name.contains(part)))
        .collect();
    assert!(!scripts.is_empty(), "no transcript has {only:?} in its name");
    let faults = match Elsewhere::from_environment() {
        Some(elsewhere) => elsewhere.replay_all(&scripts),
        None => replay_all_here(&scripts),
    };
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// A replay that finds no fault proves something only if there are faults that it finds.
#[test]
fn what_is_not_so_is_found_out() {
    const ASK: &str = "open a emnet\na > {}\na half-close\n";
    const ANSWER: &str = "a < {\"msg\":\"FAILED\"}";
    let wrong = [
        (format!("{ASK}a < {{\"msg\":\"FAiLED\"}}\\n"), "line 4: expected"),
        (format!("{ASK}{ANSWER}\\n\\n"), "line 4: the connection was closed"),
        (format!("{ASK}{ANSWER}\na < FIN"), "line 5: expected the end"),
        (format!("{ASK}{ANSWER}\na silence"), "line 5: a: expected silence, not \\n"),
        (format!("open b emnet\n{ASK}b a silence"), "line 5: a: expected silence"),
        (format!("{ASK}{ANSWER}\\n\na silence"), "line 5: a: the connection was closed"),
        (format!("{ASK}{ANSWER}"), "at the end: a: was told more"),
        (format!("{ASK}a < \\<n>"), "line 4: expected digits"),
        (format!("{ASK}open a emnet"), "line 4: a is open already"),
        ("open u udp\nu > ping\nu < 127.0.0.1:1\\x20".to_owned(), "line 3: expected"),
        ("open u udp\nu > ping\nu < 127.0.0.1".to_owned(), "line 3: the datagram goes on"),
        ("open u udp\nu > ping\nu < \\<u>\\x20".to_owned(), "line 3: the datagram ends"),
        ("a > who".to_owned(), "line 1: a is not open"),
    ];
    let dir = TempDir::new().unwrap();
    let mut here = Here::start(dir.path(), &[]);
    for (text, why) in wrong {
        let found = replay(&Script::parse(&text).unwrap(), &mut here).expect_err(&text);
        assert!(found.contains(why), "{why} is not in {found}\n{text}");
    }
}

#[test]
fn what_is_no_transcript_is_refused() {
    let wrong = [
        ("wait clients", "line 1: not understood"),
        ("open a chain\na > \\y", "line 2: \\y is no escape"),
        ("a < \\h(123)", "line 1: hexadecimal digits come in pairs"),
        ("a <", "line 1: nothing is heard"),
        ("open a mail", "line 1: there is no server mail"),
        ("restart\nserve --gather 1s", "line 2: serve stands before"),
    ];
    for (text, why) in wrong {
        let found = Script::parse(text).unwrap_err();
        assert!(found.contains(why), "{found}");
    }
}

/// Every transcript by name, in their order.
fn all_scripts() -> BTreeMap<String, Script> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto-docs/transcripts");
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.extension().is_some_and(|ending| ending == "txt"))
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let script = Script::parse(&fs::read_to_string(path).unwrap());
            let script = script.unwrap_or_else(|why| panic!("{name}: {why}"));
            (name, script)
        })
        .collect()
}

/// Replays each against a service of its own, and returns what was not so.
fn replay_all_here(scripts: &[(String, Script)]) -> Vec<String> {
    let (next, faults) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..AT_ONE_TIME {
            scope.spawn(|| {
                while let Some((name, script)) = scripts.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(fault) = replay_here(script) {
                        faults.lock().unwrap().push(format!("{name}: {fault}"));
                    }
                }
            });
        }
    });
    let mut faults = faults.into_inner().unwrap();
    faults.sort();
    faults
}

fn replay_here(script: &Script) -> Result<(), String> {
    let dir = TempDir::new().unwrap();
    let mut here = Here::start(dir.path(), &script.flags);
    replay(script, &mut here)
        .map_err(|fault| format!("{fault}\n--- log of the service\n{}", here.0.log()))
}

/// The service of this project, as a child process.
struct Here(Service);

impl Here {
    fn start(dir: &Path, flags: &[String]) -> Self {
        let mut all = vec!["--udp-addr", "127.0.0.1:0", "--emnet-addr", "127.0.0.1:0"];
        all.extend(flags.iter().map(String::as_str));
        Self(Service::start(dir, &all))
    }
}

impl Host for Here {
    fn address(&self, server: Server) -> SocketAddr {
        match server {
            Server::Chain => self.0.chain(),
            Server::Repair => self.0.repair(),
            Server::Emnet => self.0.address("EMNet"),
            Server::Udp => self.0.address("EMUDP"),
        }
    }

    fn wait(&self, figure: &str, value: u32) {
        let name = format!("emnetchain_{figure}");
        eventually(&format!("{name} is {value}"), || {
            (self.0.metric(&name) == f64::from(value)).then_some(())
        });
    }

    fn restart(&mut self) {
        self.0.kill();
        self.0 = self.0.start_again();
    }
}

/// Servers that the caller started: any implementation of the seed's protocols.
#[derive(Debug)]
struct Elsewhere {
    addresses: BTreeMap<Server, SocketAddr>,
    /// A shell command that makes the servers new, with nothing in them.
    fresh: Option<String>,
}

impl Elsewhere {
    /// `None` unless an address is given.
    fn from_environment() -> Option<Self> {
        let names = [
            (Server::Chain, "CONFORMANCE_CHAIN_ADDR"),
            (Server::Repair, "CONFORMANCE_DIS_ADDR"),
            (Server::Emnet, "CONFORMANCE_EMNET_ADDR"),
            (Server::Udp, "CONFORMANCE_UDP_ADDR"),
        ];
        let addresses: BTreeMap<Server, SocketAddr> = names
            .into_iter()
            .filter_map(|(server, name)| {
                let text = std::env::var(name).ok()?;
                Some((server, text.parse().unwrap_or_else(|error| panic!("{name}: {error}"))))
            })
            .collect();
        let fresh = std::env::var("CONFORMANCE_FRESH").ok();
        (!addresses.is_empty()).then_some(Self { addresses, fresh })
    }

    /// Replays one after the other, and returns what was not so.
    fn replay_all(mut self, scripts: &[(String, Script)]) -> Vec<String> {
        let mut faults = Vec::new();
        for (name, script) in scripts {
            let known = |server| self.addresses.contains_key(server);
            if script.needs_the_process() || !script.servers().iter().all(known) {
                eprintln!("{name}: left out");
                continue;
            }
            self.make_new();
            match replay(script, &mut self) {
                Ok(()) => eprintln!("{name}: holds"),
                Err(fault) => faults.push(format!("{name}: {fault}")),
            }
        }
        faults
    }

    fn make_new(&self) {
        let Some(fresh) = &self.fresh else { return };
        let status = Command::new("sh").args(["-c", fresh]).status().unwrap();
        assert!(status.success(), "{fresh}: {status}");
        for (server, address) in &self.addresses {
            if *server != Server::Udp {
                eventually("it listens", || TcpStream::connect(address).ok());
            }
        }
    }
}

impl Host for Elsewhere {
    fn address(&self, server: Server) -> SocketAddr {
        self.addresses[&server]
    }

    /// Other servers have no figures to look at. What is waited for takes them microseconds.
    fn wait(&self, _: &str, _: u32) {
        thread::sleep(support::SILENCE);
    }

    fn restart(&mut self) {
        unreachable!("transcripts with a restart are left out");
    }
}
