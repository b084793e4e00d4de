//! A whole cluster in one thread, from a seed: the real registry, openraft, proposer, keeper and
//! rpc code of three or five instances over a simulated network and simulated disks, with clients
//! on all of them, while everything goes wrong that can. An oracle sees every entry that is applied
//! and every word that is told; afterwards everything must come right by itself.
//!
//! - `EMNETCHAIN_TEST_SEED=7 cargo test --test sim seeds` runs one seed, and with
//!   `EMNETCHAIN_SIM_SECONDS=60` as many from there on as fit into that time;
//! - `EMNETCHAIN_SIM_SECONDS=3600 cargo test --profile sim --test sim seeds -- --nocapture` runs as
//!   many as fit into an hour.
//!
//! The same seed gives the same run with the same program: tasks, timers, chance and blocking work
//! all are of one thread. Another version of tokio or openraft may make another run of it, and so
//! would a `select!` of ours that is not `biased`, for tokio throws dice there.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::wildcard_enum_match_arm,
    reason = "a test fails by panicking, and says why"
)]

#[path = "../support/chance.rs"]
#[allow(dead_code, unreachable_pub, reason = "other test programs use the rest")]
mod chance;
mod clients;
mod disk;
mod faults;
mod founding;
mod health;
mod instance;
mod leaders;
mod liveness;
mod log_store;
mod lost_disks;
mod members;
mod mixed;
mod network;
mod oracle;
mod page;
mod people;
mod pipe;
mod planted;
mod plays;
mod post;
mod run;
#[path = "../support/sim_disk/mod.rs"]
mod sim_disk;
#[path = "../registry_model/told.rs"]
mod told;
mod trace;
mod visit;
mod witness;
mod world;

use std::{
    cell::Cell,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use tokio::time::Instant;

use chance::Chance;
use oracle::Figures;
use planted::Planted;
use run::{Outcome, Play, run};

thread_local! {
    static BEGINNING: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Virtual time now.
fn now() -> Instant {
    Instant::from_std(emnetchain::clock::now())
}

/// Virtual time begins here.
fn begin_time() {
    BEGINNING.set(Some(now()));
}

/// Virtual milliseconds since the run began.
fn now_ms() -> u64 {
    let beginning = BEGINNING.get().expect("the run has begun");
    u64::try_from((now() - beginning).as_millis()).expect("runs are short")
}

/// How long to try seeds, if it is given.
fn given_budget() -> Option<Duration> {
    let seconds = std::env::var("EMNETCHAIN_SIM_SECONDS").ok()?;
    Some(Duration::from_secs(seconds.parse().expect("a number of seconds")))
}

fn assert_passes(seed: u64, outcome: &Outcome) {
    if let Some(failure) = &outcome.failure {
        panic!(
            "{}\nseed {seed} fails: {failure}\nrepeat with\n  EMNETCHAIN_TEST_SEED={seed} cargo \
             test --test sim seeds",
            outcome.trace
        );
    }
}

#[test]
fn seeds() {
    let (seed, budget) = (Chance::given_seed(), given_budget());
    if let (Some(seed), None) = (seed, budget) {
        let outcome = run(seed, Play::Wild, Planted::Nothing);
        assert_passes(seed, &outcome);
        eprintln!("seed {seed} passes: {:?}", outcome.figures);
        return;
    }
    let begun = emnetchain::clock::now();
    let budget = budget.unwrap_or(Duration::from_secs(20));
    let next = AtomicU64::new(seed.unwrap_or_else(Chance::any_seed));
    let failed = AtomicBool::new(false);
    let work = || {
        let mut all = Vec::new();
        while emnetchain::clock::now() - begun < budget && !failed.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let outcome = run(seed, Play::Wild, Planted::Nothing);
            failed.fetch_or(outcome.failure.is_some(), Ordering::Relaxed);
            assert_passes(seed, &outcome);
            all.push(outcome.figures);
        }
        all
    };
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let all: Vec<Figures> = thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let finished = workers.into_iter().map(|worker| worker.join());
        finished
            .flat_map(|figures| figures.unwrap_or_else(|why| std::panic::resume_unwind(why)))
            .collect()
    });
    let sum = |of: fn(&Figures) -> u64| all.iter().map(of).sum::<u64>();
    eprintln!(
        "{} seeds, {} virtual seconds, {} crashes, {} elections, {} snapshots, {} entries, \
         {} links, {} messages",
        all.len(),
        sum(|f| f.virtual_ms) / 1000,
        sum(|f| f.crashes),
        sum(|f| f.elections),
        sum(|f| f.snapshots),
        sum(|f| f.entries),
        sum(|f| f.links),
        sum(|f| f.told),
    );
}

/// openraft would let a leader go on in its old term. What its disk lost, others may have, and the
/// next entries would bear the same numbers.
#[test]
fn a_leader_that_comes_back_is_elected_again() {
    assert_plays(Play::LeaderComesBack, 0..2);
}

/// Plays some seeds of a play.
fn assert_plays(play: Play, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let outcome = run(seed, play, Planted::Nothing);
        assert!(outcome.failure.is_none(), "seed {seed}: {}\n{:?}", outcome.trace, outcome.failure);
        eprintln!("{play:?}, seed {seed}: {:?}", outcome.figures);
    }
}

/// B1: at 100 ms a sync, no instance of version 0.2.0 was ever elected.
#[test]
fn slow_disks_elect() {
    assert_plays(Play::SlowDisks, 0..6);
}

#[test]
fn an_older_copy_is_refused_before_it_votes() {
    assert_plays(Play::OlderCopy, 0..4);
}

#[test]
fn a_list_that_names_a_stranger_is_refused() {
    assert_plays(Play::Stranger, 0..2);
}

#[test]
fn a_replica_that_differs_leaves_service() {
    assert_plays(Play::Damaged, 0..3);
}

#[test]
fn a_leader_that_no_majority_reaches_is_replaced() {
    assert_plays(Play::LeaderCutOff, 0..3);
}

#[test]
fn a_leader_whose_disk_hangs_makes_way() {
    assert_plays(Play::LeaderHangs, 0..2);
}

#[test]
fn those_that_were_given_up_serve_again() {
    assert_plays(Play::GivenUp, 0..2);
}

#[test]
fn a_member_that_moves_is_reached() {
    assert_plays(Play::Moves, 0..3);
}

#[cfg(feature = "rules-3")]
#[test]
fn two_versions_run_side_by_side_and_the_rules_are_raised() {
    assert_plays(Play::Mixed, 0..3);
}

#[test]
fn a_seed_is_one_run() {
    let [first, second] = [(); 2].map(|()| run(1, Play::Wild, Planted::Nothing));
    assert_eq!(first.digest, second.digest, "{}\n{}", first.trace, second.trace);
}
