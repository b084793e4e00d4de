//! Holds the registry against a second, independent implementation of `proto-docs/chains.md`.
//!
//! Sequences of commands are drawn from seeds. After each command the registry, the model, a
//! replica that is rebuilt at random points, and the invariants over what sessions were told must
//! agree; at the end a replay of the whole log must give the same registry. A failure names its
//! seed and the shortest sequence that shows it:
//!
//! - `EMNETCHAIN_SEED=7 cargo test --test registry_model` runs the sequences of one seed;
//! - `EMNETCHAIN_SEQUENCES=1000000 cargo test --test registry_model` runs this number of each kind.

#[path = "registry_model/generate.rs"]
mod generate;
#[path = "registry_model/liveness.rs"]
mod liveness;
#[path = "registry_model/model.rs"]
mod model;
#[path = "registry_model/run.rs"]
mod run;
#[path = "registry_model/told.rs"]
mod told;

use generate::{CROWD, DOUBTS, LIFE, RUNS, TIGHT, WILD, Weights};
use model::Planted;

#[test]
fn clients_that_live_and_die() {
    hold("clients_that_live_and_die", LIFE, 6_000);
}

#[test]
fn clients_that_do_anything() {
    hold("clients_that_do_anything", WILD, 5_000);
}

#[test]
fn bounds_and_short_times() {
    hold("bounds_and_short_times", TIGHT, 5_000);
}

#[test]
fn crowds_for_which_room_is_made() {
    hold("crowds_for_which_room_is_made", CROWD, 2_000);
}

#[test]
fn mistakes_about_room_are_found() {
    assert_found(CROWD, &Planted::OF_ROOM);
}

#[test]
fn mistakes_about_doubt_are_found() {
    assert_found(DOUBTS, &Planted::OF_DOUBT);
}

/// The sequences notice each mistake, and without one they notice nothing.
fn assert_found(weights: Weights, mistakes: &[Planted]) {
    let finds = |planted| (0..400).find(|seed| run::finds(*seed, weights, planted));
    let found: Vec<_> = mistakes.iter().map(|planted| (planted, finds(*planted))).collect();
    assert!(found.iter().all(|(_, seed)| seed.is_some()), "not found: {found:?}");
    assert!((0..20).all(|seed| !run::finds(seed, weights, Planted::Nothing)));
}

#[test]
fn runs_that_are_cut_off_and_return() {
    hold("runs_that_are_cut_off_and_return", RUNS, 1_500);
}

#[test]
fn neighbours_that_doubt_each_other() {
    hold("neighbours_that_doubt_each_other", DOUBTS, 1_500);
}

#[test]
fn survivors_of_many_runs_become_one_path() {
    seeds(1_000).for_each(|seed| liveness::survivors_become_one_path(seed, RUNS));
}

#[test]
fn survivors_become_one_path() {
    seeds(1_000).for_each(|seed| liveness::survivors_become_one_path(seed, LIFE));
}

#[test]
fn survivors_of_a_crowd_become_one_path() {
    seeds(1_000).for_each(|seed| liveness::survivors_become_one_path(seed, CROWD));
}

#[test]
fn survivors_of_anything_become_one_path() {
    seeds(1_000).for_each(|seed| liveness::survivors_become_one_path(seed, WILD));
}

#[test]
fn a_chain_of_200_loses_a_third() {
    seeds(20).for_each(liveness::a_third_is_killed_at_once);
}

fn hold(name: &str, weights: Weights, sequences: u64) {
    for seed in seeds(sequences) {
        if let Err(failure) = run::run_seed(seed, weights) {
            panic!(
                "seed {seed} fails, replay with\n  EMNETCHAIN_SEED={seed} cargo test --test \
                 registry_model {name}\n{failure}"
            );
        }
    }
}

fn seeds(count: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
    match number("EMNETCHAIN_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("EMNETCHAIN_SEQUENCES").unwrap_or(count),
    }
}
