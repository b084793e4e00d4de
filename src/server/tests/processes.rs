//! Servers in a process of their own, whose descriptors and memory can be limited and counted.

#![expect(clippy::print_stdout, reason = "the child process speaks to its parent")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream as StdStream,
    process::{Child, Command as Process, Stdio},
};

use super::*;
use crate::platform::process::of::{cpu_ticks, resident_kib};

/// The other half of the tests below: servers in a process of their own, until its input ends.
/// Does nothing unless it is started as such.
#[tokio::test]
async fn child_process() {
    if std::env::var_os("EMNETCHAIN_TEST_CHILD").is_none() {
        return;
    }
    let mut bench = Bench::start(ServerOptions { connections_max: 100_000, ..Default::default() });
    println!("\nlisten {} {}", bench.addresses.chains[0], bench.addresses.emnet.unwrap());
    let mut commands = std::mem::replace(&mut bench.commands, mpsc::channel(1).1);
    tokio::spawn(async move { while commands.recv().await.is_some() {} });
    let (asks, mut asked) = mpsc::channel(1);
    std::thread::spawn(move || {
        io::stdin().lines().all(|line| asks.blocking_send(line.unwrap()).is_ok())
    });
    while asked.recv().await.is_some() {
        let pauses = ["chain", "emnet"]
            .map(|server| bench.metrics.accept_pauses.with_label_values(&[server]).get());
        println!("\nstate {} {}", bench.outbox.sessions(), pauses[0] + pauses[1]);
    }
}

/// Servers in a process of their own.
struct ChildServers {
    process: Child,
    output: BufReader<std::process::ChildStdout>,
    chain: SocketAddr,
    emnet: SocketAddr,
}

impl ChildServers {
    fn start(descriptors: usize) -> Self {
        let mut process = Process::new("bash")
            .args(["-c", r#"ulimit -n "$1"; exec "$2" --exact --nocapture "$3""#, "bash"])
            .arg(descriptors.to_string())
            .arg(std::env::current_exe().unwrap())
            .arg("server::tests::processes::child_process")
            .env("EMNETCHAIN_TEST_CHILD", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let words = words_of(&mut output, "listen");
        let (chain, emnet) = (words[1].parse().unwrap(), words[2].parse().unwrap());
        Self { process, output, chain, emnet }
    }

    /// Sessions and pauses.
    fn state(&mut self) -> [usize; 2] {
        self.process.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        let words = words_of(&mut self.output, "state");
        [1, 2].map(|at| words[at].parse().unwrap())
    }

    fn wait_for_sessions(&mut self, count: usize) {
        let began = clock::now();
        loop {
            let [sessions, _] = self.state();
            if sessions == count {
                return;
            }
            assert!(clock::now() - began < PATIENCE, "{sessions} sessions, not {count}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn cpu_ticks(&self) -> u64 {
        cpu_ticks(self.process.id())
    }
}

impl Drop for ChildServers {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn words_of(output: &mut impl BufRead, first: &str) -> Vec<String> {
    for line in output.lines() {
        let words: Vec<String> = line.unwrap().split_whitespace().map(str::to_owned).collect();
        if words.first().is_some_and(|word| word == first) {
            return words;
        }
    }
    panic!("the child said nothing of {first}");
}

#[test]
fn out_of_descriptors_the_accept_loop_pauses_and_recovers() {
    let mut servers = ChildServers::start(64);
    let mut clients = Vec::new();
    for _ in 0..80 {
        let mut client = StdStream::connect(servers.chain).unwrap(); // the backlog takes them
        client.write_all(CONNECT).unwrap();
        clients.push(client);
    }
    let began = clock::now();
    while servers.state()[1] < 3 {
        assert!(clock::now() - began < PATIENCE, "it never paused");
        std::thread::sleep(Duration::from_millis(10));
    }
    let before = servers.cpu_ticks();
    std::thread::sleep(Duration::from_millis(500));
    let spent = servers.cpu_ticks() - before;
    assert!(spent <= 5, "{spent} ticks of 50 while full");
    clients.into_iter().for_each(reset);
    let mut client = StdStream::connect(servers.emnet).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    client.write_all(b"{}").unwrap();
    let mut answer = [0; FAILED.len()];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(answer, FAILED);
}

#[test]
fn a_waiting_connection_costs_about_a_kibibyte() {
    let count = 4000;
    let mut servers = ChildServers::start(count + 64);
    let mut clients = Vec::new();
    let mut open = |servers: &mut ChildServers, until: usize| {
        while clients.len() < until {
            let mut client = StdStream::connect(servers.chain).unwrap();
            client.write_all(CONNECT).unwrap();
            clients.push(client);
        }
        servers.wait_for_sessions(until);
        resident_kib(servers.process.id())
    };
    let before = open(&mut servers, count / 4);
    let after = open(&mut servers, count);
    let each = (after - before) * 1024 / (count - count / 4);
    println!("{each} bytes of resident memory for each waiting connection");
    assert!(each < 2048, "{each} bytes for each waiting connection");
}
