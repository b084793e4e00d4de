//! The power is cut at every single operation of a script that does everything a log does, and
//! what is found afterwards is compared with what was acknowledged before.
//!
//! The canaries run the same with a disk whose syncs do nothing, and expect a loss to be seen.

use std::time::Duration;

use super::*;
use crate::{
    clock,
    storage::{
        disk::Access,
        sim_disk::{Faults, Rng, SimDisk, Survives},
        wal::state::{NEW_STATE_NAME, STATE_NAME, State, StateFile, encode_slot},
    },
};

/// One call of raft, or several appends at once.
#[derive(Clone, Debug)]
enum Step {
    Append(Vec<Vec<Entry>>),
    Truncate(u64),
    Purge(LogId),
    Vote(Vote),
}

const SURVIVALS: [Survives; 3] = [Survives::Nothing, Survives::Everything, Survives::Sectors];

#[tokio::test]
async fn nothing_acknowledged_is_lost_wherever_the_power_is_cut() {
    let script = script(12);
    let operations = operations_of(&script).await;
    assert!(operations > 150, "{operations} operations exercise the log");
    for cut_at in 1..=operations {
        for survives in SURVIVALS {
            let outcome = cut_power(&script, cut_at, survives, Faults::default()).await;
            if let Err(loss) = outcome {
                panic!("power cut at operation {cut_at}, {survives:?} survives: {loss}");
            }
        }
    }
}

/// A killed process leaves bytes in the kernel's cache that were never synced. The next one finds
/// them, and raft takes what it finds for durable: so it must be, also when the power is cut then.
#[tokio::test]
async fn what_is_found_after_a_kill_survives_a_power_cut() {
    let script = script(12);
    for cut_at in 1..=operations_of(&script).await {
        let disk = SimDisk::new(1);
        disk.set_faults(Faults { dead_from: Some(cut_at), ..Faults::default() });
        let (acknowledged, cut_short) = run(&disk, &script).await;
        disk.set_faults(Faults::default());
        let mut store = open(disk.share(), &sim_dir(), false).unwrap();
        let found = Model::of(&mut store).await.unwrap();
        assert!(possible(&acknowledged, cut_short.as_ref()).contains(&found), "{cut_at}");
        drop(store);
        let disk = disk.after_power_cut(Survives::Nothing, &mut Rng(cut_at));
        let mut store = open(disk.share(), &sim_dir(), true).unwrap();
        assert_eq!(Model::of(&mut store).await.unwrap(), found, "killed at operation {cut_at}");
    }
}

/// The power comes back, the log is repaired, and the power is cut again.
#[tokio::test]
async fn a_second_power_cut_finds_everything_as_well() {
    let first = |index, size| Step::Append(vec![vec![entry(1, index, size)]]);
    let script =
        [Step::Vote(Vote::new(1, 1)), first(0, 50), Step::Vote(Vote::new(2, 1)), first(1, 60)];
    for cut_at in 1..=operations_of(&script).await {
        for survives in [Survives::Nothing, Survives::Sectors] {
            let disk = SimDisk::new(1);
            disk.set_faults(Faults { dead_from: Some(cut_at), ..Faults::default() });
            let _ = run(&disk, &script).await;
            for second_cut_at in 1..16 {
                let mut rng = Rng(cut_at * 100 + second_cut_at);
                let disk = disk.after_power_cut(survives, &mut rng);
                let mut store = open(disk.share(), &sim_dir(), false).unwrap();
                let mut model = Model::of(&mut store).await.unwrap();
                drop(store);
                let end = model.end();
                let steps =
                    [Step::Vote(Vote::new(3, 1)), first(end, 70), Step::Vote(Vote::new(4, 1))];
                let dead_from = Some(disk.operations() + second_cut_at);
                disk.set_faults(Faults { dead_from, ..Faults::default() });
                let cut_short = run_from(&disk, &mut model, &steps).await;
                let disk = disk.after_power_cut(Survives::Sectors, &mut rng);
                let found = Model::of(&mut open(disk.share(), &sim_dir(), true).unwrap()).await;
                let possible = possible(&model, cut_short.as_ref());
                assert!(
                    possible.contains(&found.unwrap()),
                    "cut at {cut_at}, then {second_cut_at}"
                );
            }
        }
    }
}

#[tokio::test]
async fn canary_a_file_sync_that_does_nothing_is_seen() {
    canary(Faults { file_sync_lies: true, ..Faults::default() }).await;
}

#[tokio::test]
async fn canary_a_directory_sync_that_does_nothing_is_seen() {
    canary(Faults { dir_sync_lies: true, ..Faults::default() }).await;
}

/// A vote takes one sync, because the copy that is not written holds everything acknowledged. If
/// both copies were written before that sync, a power cut could tear both.
#[test]
fn canary_one_sync_for_both_copies_of_the_state_is_seen() {
    let state = |generation: u64| State {
        generation,
        cluster: CLUSTER,
        store: [7; 16],
        vote: Some(Vote::new(generation, 1)),
        purged: None,
        segments: (0..200).map(|number| number * 100_000).collect(),
        dropped: Vec::new(),
        durable: 100,
    };
    let is_refused = |mistake: bool, seed: u64| {
        let disk = SimDisk::new(seed);
        disk.share().create_dir(&sim_dir()).unwrap();
        StateFile::create(&*disk.share(), &sim_dir(), &state(1)).unwrap();
        let names = [NEW_STATE_NAME, STATE_NAME].map(|name| sim_dir().join(name));
        disk.share().rename(&names[0], &names[1]).unwrap();
        disk.share().sync_dir(&sim_dir()).unwrap();
        let open = |disk: &SimDisk| StateFile::open(&*disk.share(), &sim_dir(), Access::Write);
        let mut file = open(&disk).unwrap().file;
        if mistake {
            let raw = disk.share().open(&names[1], Access::Write).unwrap();
            for slot in [0, 4096] {
                raw.write_at(&encode_slot(&state(2)), slot).unwrap();
            }
        } else {
            // Its sync does not come about.
            let dead_from = Some(disk.operations() + 2);
            disk.set_faults(Faults { dead_from, ..Faults::default() });
            assert!(file.write(&state(2)).is_err());
        }
        open(&disk.after_power_cut(Survives::Sectors, &mut Rng(seed))).is_err()
    };
    assert!((0..100).all(|seed| !is_refused(false, seed)));
    let count = (0..100).filter(|seed| is_refused(true, *seed)).count();
    assert!(count > 10, "only {count} of 100 power cuts tore both copies");
}

/// A moment after a vote both copies hold it, and until then the one that does is missed if it is
/// damaged: the vote is never taken back without a word.
#[tokio::test]
async fn the_only_copy_of_a_vote_is_missed_and_a_second_one_is_made_soon() {
    let votes = [Vote::new(1, 1), Vote::new(2, 1)];
    let disk = SimDisk::new(1);
    let mut store = open(disk.share(), &sim_dir(), false).unwrap();
    for vote in &votes {
        store.save_vote(vote).await.unwrap();
    }
    let lost = |disk: &SimDisk| {
        let disk = disk.copy();
        let state = disk.share().open(&sim_dir().join(STATE_NAME), Access::Write).unwrap();
        let slots = [0, 4096].map(|slot| {
            let mut before = [0; 64];
            state.read_at(&mut before, slot).unwrap();
            state.write_at(&[0; 64], slot).unwrap();
            let opened = open(disk.share(), &sim_dir(), true);
            state.write_at(&before, slot).unwrap();
            opened.map(|store| store.vote())
        });
        slots
            .into_iter()
            .filter(|slot| match slot {
                Ok(vote) => {
                    assert_eq!(*vote, Some(votes[1]), "never the older vote");
                    false
                }
                Err(error) => {
                    assert!(error.to_string().contains("newest copy"), "{error}");
                    true
                }
            })
            .count()
    };
    assert_eq!(lost(&disk), 1, "there is one copy");
    let deadline = clock::now() + Duration::from_secs(20);
    while lost(&disk) > 0 {
        assert!(clock::now() < deadline, "the second copy is made");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Without this sync, at least one in ten power cuts must be seen to lose something.
async fn canary(lie: Faults) {
    let script = script(12);
    let operations = operations_of(&script).await;
    let mut losses = 0;
    for cut_at in 1..=operations {
        losses += u64::from(cut_power(&script, cut_at, Survives::Nothing, lie).await.is_err());
    }
    assert!(losses > operations / 10, "only {losses} of {operations} power cuts lost anything");
}

/// Steps that fill several segments, truncate within one and across several, purge within the log
/// and ahead of it, and vote in between.
fn script(seed: u64) -> Vec<Step> {
    let mut rng = Rng(seed);
    let mut steps = vec![Step::Vote(Vote::new(1, 1))];
    let (mut end, mut first) = (0, 0);
    for term in 1..=6 {
        for _ in 0..4 {
            let mut group = Vec::new();
            for _ in 0..=rng.below(3) {
                let count = 1 + rng.below(4);
                let size = usize::try_from(rng.below(300)).unwrap();
                group.push((end..end + count).map(|index| entry(term, index, size)).collect());
                end += count;
            }
            steps.push(Step::Append(group));
        }
        steps.push(Step::Vote(Vote::new(term + 1, term)));
        match term {
            1 => end -= 3,
            2 => end -= 22,
            3 => first = end - 12,
            4 => first = end,
            5 => (first, end) = (end + 30, end + 30),
            _ => {}
        }
        steps.push(match term {
            1 | 2 => Step::Truncate(end),
            3..=5 => Step::Purge(log_id(term, first - 1)),
            _ => Step::Vote(Vote::new_committed(term + 2, 3)),
        });
    }
    steps
}

/// Returns the number of disk operations of the script.
async fn operations_of(script: &[Step]) -> u64 {
    let disk = SimDisk::new(1);
    assert!(run(&disk, script).await.1.is_none());
    disk.operations()
}

/// Runs the script up to the power cut, opens the log again, and says what is wrong with it.
async fn cut_power(
    script: &[Step],
    cut_at: u64,
    survives: Survives,
    faults: Faults,
) -> Result<(), String> {
    let disk = SimDisk::new(1);
    disk.set_faults(Faults { dead_from: Some(cut_at), ..faults });
    let (acknowledged, cut_short) = run(&disk, script).await;
    let disk = disk.after_power_cut(survives, &mut Rng(cut_at));

    let created = acknowledged != Model::default();
    let opened = open(disk.share(), &sim_dir(), created).map_err(|error| error.to_string());
    let mut store = opened?;
    let mut found = Model::of(&mut store).await.map_err(|error| error.to_string())?;
    if !possible(&acknowledged, cut_short.as_ref()).contains(&found) {
        return Err(format!(
            "{} was acknowledged, then {cut_short:?} was cut short, and {} is there",
            short(&acknowledged),
            short(&found)
        ));
    }

    // What was repaired must carry on, and hold after another start.
    let more: Vec<_> = (0..9).map(|n| entry(99, found.end() + n, 400)).collect();
    append(&mut store, more.clone()).await.map_err(|error| error.to_string())?;
    found.entries.extend(more);
    drop(store);
    let mut store = open(disk.share(), &sim_dir(), true).map_err(|error| error.to_string())?;
    let again = Model::of(&mut store).await.map_err(|error| error.to_string())?;
    if again == found { Ok(()) } else { Err(format!("{} became {}", short(&found), short(&again))) }
}

/// Carries out the script until it ends or fails: what was acknowledged, and the step that was
/// not (a group of appends without those of its appends that were).
async fn run(disk: &SimDisk, script: &[Step]) -> (Model, Option<Step>) {
    let mut model = Model::default();
    let cut_short = run_from(disk, &mut model, script).await;
    (model, cut_short)
}

/// Does the same on a disk that holds `model`, which becomes what was acknowledged.
async fn run_from(disk: &SimDisk, model: &mut Model, script: &[Step]) -> Option<Step> {
    let mut store = open(disk.share(), &sim_dir(), false).ok()?;
    for step in script {
        let done = match step {
            Step::Append(group) => {
                let acknowledged = append_group(&mut store, group).await;
                for entries in &group[..acknowledged] {
                    model.entries.extend(entries.clone());
                }
                if acknowledged < group.len() {
                    return Some(Step::Append(group[acknowledged..].to_vec()));
                }
                Ok(())
            }
            Step::Truncate(end) => {
                let mut after = model.clone();
                after.truncate(*end);
                store.truncate_after(after.last()).await.map(|()| *model = after)
            }
            Step::Purge(upto) => store.purge(*upto).await.map(|()| model.purge(*upto)),
            Step::Vote(vote) => store.save_vote(vote).await.map(|()| model.vote = Some(*vote)),
        };
        if done.is_err() {
            return Some(step.clone());
        }
    }
    None
}

/// Appends all of them without waiting; returns how many were acknowledged.
async fn append_group(store: &mut LogStore, group: &[Vec<Entry>]) -> usize {
    let mut answers = Vec::new();
    for entries in group {
        answers.push(append_later(store, entries.clone()).await);
    }
    let mut acknowledged = Vec::new();
    for answer in answers {
        acknowledged.push(match answer {
            Ok(answer) => soon(answer).await.expect("every callback is completed").is_ok(),
            Err(_) => false,
        });
    }
    assert!(acknowledged.is_sorted_by(|a, b| a >= b), "appends are acknowledged in order");
    acknowledged.iter().filter(|answer| **answer).count()
}

/// Every state that a log may be in whose last step was cut short.
fn possible(acknowledged: &Model, cut_short: Option<&Step>) -> Vec<Model> {
    let mut models = vec![acknowledged.clone()];
    let mut add = |change: &dyn Fn(&mut Model)| {
        let mut model = acknowledged.clone();
        change(&mut model);
        models.push(model);
    };
    match cut_short {
        None => {}
        Some(Step::Append(group)) => {
            let entries: Vec<_> = group.iter().flatten().cloned().collect();
            for count in 1..=entries.len() {
                add(&|model| model.entries.extend_from_slice(&entries[..count]));
            }
        }
        Some(Step::Truncate(end)) => {
            for end in *end..acknowledged.end() {
                add(&|model| model.truncate(end));
            }
        }
        Some(Step::Purge(upto)) => add(&|model| model.purge(*upto)),
        Some(Step::Vote(vote)) => add(&|model| model.vote = Some(*vote)),
    }
    models
}

fn short(model: &Model) -> String {
    let first = model.entries.first().map(|entry| entry.log_id.index);
    format!("(vote {:?}, purged {:?}, {first:?}..{})", model.vote, model.purged, model.end())
}
