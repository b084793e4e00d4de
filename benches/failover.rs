//! How long clients wait when an instance of three goes: the leader is killed, the leader is
//! stopped in order, a follower is killed. Three instances on loopback, as they are shipped; the
//! clients are pairs of strangers that ask for each other through the two that stay.
//! `benches/README.md` tells more.

#![expect(clippy::print_stderr, reason = "progress is printed as it is made")]

#[path = "../tests/support/cluster.rs"]
mod replicas;
#[path = "service/report.rs"]
#[allow(dead_code, reason = "the other benchmark uses the rest")]
mod report;
#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use clap::{Parser, ValueEnum};
use emnetchain::clock;
use replicas::Cluster;
use report::{Table, milliseconds};
use support::{Client, Service, eventually, reconnect, repaired};

/// Pairs that are told before and after each event, so that it happens amid answers.
const PAIRS_AROUND: usize = 20;

/// Measures how long clients wait when an instance of three goes.
#[derive(Debug, Parser)]
#[command(name = "failover")]
struct Options {
    /// What to measure.
    #[arg(value_enum, default_values_t = [Job::LeaderKill, Job::LeaderStop, Job::FollowerKill])]
    jobs: Vec<Job>,
    /// How often each happens.
    #[arg(long, default_value_t = 100)]
    rounds: usize,
    /// Passed by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Job {
    /// kill -9 of the leader, until the first pair that asked then gets its answers.
    LeaderKill,
    /// SIGTERM to the leader: the longest time without an answer.
    LeaderStop,
    /// kill -9 of a follower: the longest time without an answer.
    FollowerKill,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let mut cluster = Cluster::start(&["--resume-grace", "1h"]);
    let pairs = Pairs::default();
    let mut table = Table::new(&["job", "aim", "rounds", "p50 ms", "p99 ms", "max ms", "failed"]);
    let mut failed = 0;
    for job in &options.jobs {
        let mut waits = Vec::new();
        for round in 0..options.rounds {
            let wait = match job {
                Job::LeaderKill => leader_kill(&mut cluster, &pairs),
                Job::LeaderStop => leader_stop(&mut cluster, &pairs),
                Job::FollowerKill => follower_kill(&mut cluster, &pairs),
            };
            cluster.wait_ready();
            eprintln!("{job:?} {round}: {wait:?}");
            waits.push(wait.as_secs_f64() * 1000.0);
        }
        let failures = pairs.failures.swap(0, Ordering::SeqCst);
        failed += failures;
        waits.sort_unstable_by(f64::total_cmp);
        let rank = |share: f64| waits[((waits.len() as f64 * share).ceil() as usize).max(1) - 1];
        let (name, aim) = match job {
            Job::LeaderKill => ("leader killed", "p99 <= 1500, max <= 3000"),
            Job::LeaderStop => ("leader stopped", "max <= 300"),
            Job::FollowerKill => ("follower killed", "failed = 0"),
        };
        table.row(vec![
            name.to_owned(),
            aim.to_owned(),
            waits.len().to_string(),
            milliseconds(rank(0.5)),
            milliseconds(rank(0.99)),
            milliseconds(rank(1.0)),
            failures.to_string(),
        ]);
    }
    cluster.assert_equal_registries();
    table.print();
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn leader_kill(cluster: &mut Cluster, pairs: &Pairs) -> Duration {
    let leader = cluster.leader();
    let mut dying = cluster.take(leader);
    let at = cluster.running();
    let at = [cluster.at(at[0]), cluster.at(at[1])];
    pairs.tell(at);
    let killed = clock::now();
    dying.kill();
    pairs.tell(at);
    let wait = clock::now() - killed;
    cluster.start_these(&[leader]);
    wait
}

fn leader_stop(cluster: &mut Cluster, pairs: &Pairs) -> Duration {
    let leader = cluster.leader();
    let mut leaving = cluster.take(leader);
    let at = cluster.running();
    let at = [cluster.at(at[0]), cluster.at(at[1])];
    let wait = pairs.longest_wait(at, || {
        let status = leaving.stop();
        assert_eq!(status.code(), Some(0), "{}", leaving.log());
    });
    cluster.start_these(&[leader]);
    wait
}

fn follower_kill(cluster: &mut Cluster, pairs: &Pairs) -> Duration {
    let follower = cluster.followers()[0];
    let mut dying = cluster.take(follower);
    let at = cluster.running();
    let at = [cluster.at(at[0]), cluster.at(at[1])];
    let wait = pairs.longest_wait(at, || dying.kill());
    cluster.start_these(&[follower]);
    wait
}

/// Pairs of strangers, each with an id and sockets of its own.
#[derive(Debug, Default)]
struct Pairs {
    last: AtomicU64,
    /// Requests that were not answered, though their instance ran.
    failures: AtomicU64,
}

impl Pairs {
    /// Has the next pair ask at these two instances, and returns when both are told.
    fn tell(&self, at: [&Service; 2]) {
        let number = self.last.fetch_add(1, Ordering::SeqCst);
        let sockets = [0, 1].map(|part| {
            let [.., high, middle, low] = number.to_be_bytes();
            format!("127.{}.{middle}.{low}:{}", 100 + high, 1000 + part)
        });
        let ask = |part: usize| {
            let request = reconnect(&format!("pair {number}"), &sockets[part]);
            Client::say(at[part].repair(), request)
        };
        let asking = [ask(0), ask(1)];
        for (mut client, partner) in asking.into_iter().zip(sockets.iter().rev()) {
            let answer = client.hear_for(support::PATIENCE);
            if answer != repaired(partner) {
                eprintln!("told {answer:?} instead of {partner}");
                self.failures.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    /// Has pairs ask one after the other while something happens; the longest time from one pair's
    /// answers to those of the next.
    fn longest_wait(&self, at: [&Service; 2], happen: impl FnOnce()) -> Duration {
        let (stopping, told) = (AtomicBool::new(false), Mutex::new(Vec::<Instant>::new()));
        let count = || told.lock().expect("no thread panics with it").len();
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stopping.load(Ordering::SeqCst) {
                    self.tell(at);
                    told.lock().expect("no thread panics with it").push(clock::now());
                }
            });
            let more = || {
                let enough = count() + PAIRS_AROUND;
                eventually("pairs are told", || (count() >= enough).then_some(()));
            };
            more();
            happen();
            more();
            stopping.store(true, Ordering::SeqCst);
        });
        let told = told.into_inner().expect("no thread panicked with it");
        told.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }
}
