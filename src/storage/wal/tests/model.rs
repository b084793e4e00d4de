//! Random calls, kills and power cuts against a model that is a vector.

use super::*;
use crate::storage::sim_disk::{Rng, SimDisk, Survives};

const RUNS: u64 = 40;
const STEPS: u64 = 60;

/// `EMNETCHAIN_SEED=n cargo test -q --lib storage::wal::tests::model` runs one seed.
#[tokio::test]
async fn random_calls_kills_and_power_cuts_do_what_the_model_does() {
    let only = std::env::var("EMNETCHAIN_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = only.map_or(0..RUNS, |seed| seed..seed + 1);
    for seed in seeds {
        let run = tokio::spawn(run(seed));
        assert!(run.await.is_ok(), "replay with EMNETCHAIN_SEED={seed}");
    }
}

async fn run(seed: u64) {
    let mut rng = Rng(seed);
    let mut disk = SimDisk::new(1);
    let mut store = open(disk.share(), &sim_dir(), false).unwrap();
    let mut model = Model::default();
    let mut term = 1;
    for _ in 0..STEPS {
        match rng.below(12) {
            0..=5 => {
                let mut answers = Vec::new();
                for _ in 0..=rng.below(4) {
                    let new = entries(&mut rng, term, model.end());
                    model.entries.extend(new.clone());
                    answers.push(append_later(&mut store, new).await.unwrap());
                    assert_eq!(store.last(), model.last(), "readable on return");
                }
                for answer in answers {
                    answer.await.unwrap().unwrap();
                }
            }
            6 => {
                let kept = rng.below(model.entries.len() as u64 + 1);
                model.entries.truncate(usize::try_from(kept).unwrap());
                store.truncate_after(model.last()).await.unwrap();
                term += 1;
            }
            7 if !model.entries.is_empty() => {
                let number = rng.below(model.entries.len() as u64);
                let upto = model.entries[usize::try_from(number).unwrap()].log_id;
                model.purge(upto);
                store.purge(upto).await.unwrap();
            }
            8 if rng.below(4) == 0 => {
                let ahead = log_id(term, model.end() + rng.below(20));
                model.purge(ahead);
                store.purge(ahead).await.unwrap();
            }
            9 => {
                term += 1;
                model.vote = Some(Vote::new(term, rng.below(3)));
                store.save_vote(&model.vote.unwrap()).await.unwrap();
            }
            10 => {
                drop(store);
                store = open(disk.share(), &sim_dir(), true).unwrap();
            }
            11 => {
                drop(store);
                let survives = [Survives::Nothing, Survives::Everything, Survives::Sectors]
                    [rng.below(3) as usize];
                disk = disk.after_power_cut(survives, &mut rng);
                store = open(disk.share(), &sim_dir(), true).unwrap();
            }
            _ => {}
        }
        assert_eq!(Model::of(&mut store).await.unwrap(), model);
    }
    assert_eq!(Model::of_every_way(&mut store).await.unwrap(), model);
}

fn entries(rng: &mut Rng, term: u64, first: u64) -> Vec<Entry> {
    let size = usize::try_from(rng.below(300)).unwrap();
    (first..first + 1 + rng.below(8)).map(|index| entry(term, index, size)).collect()
}
