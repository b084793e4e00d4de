//! All of the storage on a disk in memory, on one thread whose chance follows a seed, as the
//! simulator runs it: slow and hanging disks, power cuts at every operation, and images and whole
//! directories that come back older.

use std::time::Duration;

use openraft::{
    EntryPayload, RaftLogReader as _, RaftSnapshotBuilder as _,
    storage::{IOFlushed, RaftLogStorage as _, RaftStateMachine as _},
    type_config::{TypeConfigExt as _, alias::OneshotReceiverOf},
};
use tokio::sync::mpsc;

use super::*;
use crate::{
    clock,
    raft::{Entry, Vote},
    registry::{Applied, Command, Proposal},
    runtime,
    storage::{
        ClusterId, Stores,
        sim_disk::{Faults, Pace, Rng, SimDisk, Survives},
    },
};

const DIR: &str = "/data";

/// One process on a simulated disk.
struct Process {
    stores: Stores,
    faults: FaultWatch,
    _effects: mpsc::Receiver<Applied>,
}

fn start(disk: &SimDisk) -> Result<Process, StorageError> {
    let (sender, effects) = mpsc::channel(1000);
    let (reporter, faults) = fault::channel();
    let cluster = Some(ClusterId(7));
    let metrics = Metrics::new();
    let path = Path::new(DIR);
    let stores = Stores::open_on(disk.share(), path, NODE, cluster, sender, &metrics, &reporter)?;
    Ok(Process { stores, faults, _effects: effects })
}

/// Returns an entry that changes the registry.
fn entry(index: u64) -> Entry {
    let session =
        SessionId { instance: InstanceId(1), incarnation: Incarnation(1), connection: index };
    let socket = |port: u64| Socket::parse(&format!("10.0.0.1:{}", 1000 + port)).unwrap();
    let command = Command::Connect {
        session,
        source: Source::of(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))),
        chain: ChainName("".into()),
        head: HeadAddr(socket(2 * index)),
        tail: TailAddr(socket(2 * index + 1)),
    };
    let proposal = Proposal { at: Timestamp(index), batch: None, commands: vec![command] };
    Entry { log_id: log_id(index), payload: EntryPayload::Normal(proposal) }
}

impl Process {
    async fn append(&mut self, entries: Vec<Entry>) -> OneshotReceiverOf<TypeConfig, AppendDone> {
        let (flushed, answer) = TypeConfig::oneshot();
        // An error is answered as well.
        let _ = self.stores.log.append(entries, IOFlushed::signal(flushed)).await;
        answer
    }

    async fn apply(&mut self, entries: impl IntoIterator<Item = u64>) -> std::io::Result<()> {
        let entries: Vec<_> = entries.into_iter().map(|index| Ok((entry(index), None))).collect();
        self.stores.machine.apply(futures_util::stream::iter(entries)).await
    }

    fn image(&self) -> Option<u64> {
        self.stores.image.durable().map(|durable| durable.index)
    }
}

type AppendDone = std::io::Result<()>;

/// Waits in virtual time.
async fn after(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_or_hanging_log_keeps_its_callers_waiting_and_no_other() {
    runtime::follow_seed(1);
    let disk = SimDisk::new(1);
    let mut process = start(&disk).unwrap();
    disk.set_pace("raft", Pace::Slow(100, 100));
    let began = clock::now();
    soon(process.append(vec![entry(0)]).await).await.unwrap().unwrap();
    assert_eq!(clock::now() - began, Duration::from_millis(100));

    disk.set_pace("raft", Pace::Hangs);
    let first = process.append(vec![entry(1)]).await;
    let mut second = Box::pin(process.append(vec![entry(2)]).await);
    after(3_600_000).await;
    assert!(futures_util::poll!(&mut second).is_pending(), "an hour later it still hangs");
    process.apply([0]).await.unwrap();
    after(1000).await;
    assert_eq!(process.image(), Some(0), "the image is on another part of the disk");
    disk.set_pace("raft", Pace::Quick);
    soon(first).await.unwrap().unwrap();
    soon(second).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_hanging_image_lags_and_loses_its_end() {
    runtime::follow_seed(2);
    let disk = SimDisk::new(2);
    let mut process = start(&disk).unwrap();
    process.stores.log.save_vote(&Vote::new(1, 1)).await.unwrap();
    soon(process.append((0..40).map(entry).collect()).await).await.unwrap().unwrap();
    process.apply(0..10).await.unwrap();
    after(1000).await;
    assert_eq!(process.image(), Some(9));
    disk.set_pace("registry", Pace::Hangs);
    process.apply(10..20).await.unwrap();
    after(3_600_000).await;
    assert_eq!(process.image(), Some(9));
    let disk = disk.after_power_cut(Survives::Nothing, &mut Rng(2));
    let mut process = start(&disk).unwrap();
    assert_eq!(process.stores.machine.applied_state().await.unwrap().0, Some(log_id(9)));
    process.apply(10..20).await.unwrap();
    after(1000).await;
    assert_eq!(process.image(), Some(19));

    // It may come back older, or damaged: the log makes up for it.
    let disk = disk.after_kill();
    disk.image_goes_back(1);
    let mut process = start(&disk).unwrap();
    assert_eq!(process.stores.machine.applied_state().await.unwrap().0, Some(log_id(9)));
    let disk = disk.after_kill();
    disk.image_is_damaged();
    let mut process_again = start(&disk).unwrap();
    assert_eq!(process_again.stores.machine.applied_state().await.unwrap().0, None);
    drop(process.stores);
}

/// Starts with the raft log of one disk, or a part of it, put in the place of another's.
fn start_with(disk: &SimDisk, others: &SimDisk, files: &str) -> StorageError {
    disk.take_files(others, files);
    match start(&disk.after_kill()) {
        Ok(_) => panic!("{files} of another disk are taken"),
        Err(error) => error,
    }
}

/// Returns a disk with entries of one term, all applied and in the image.
async fn written(term: u64, seed: u64) -> SimDisk {
    runtime::follow_seed(seed);
    let disk = SimDisk::new(seed);
    let mut process = start(&disk).unwrap();
    process.stores.log.save_vote(&Vote::new(term, 1)).await.unwrap();
    write_more(&mut process, term, 0..10).await;
    drop(process);
    after(1000).await;
    disk.after_kill()
}

async fn write_more(process: &mut Process, term: u64, indexes: std::ops::Range<u64>) {
    let of_term = |index| {
        let id = LogId::new(CommittedLeaderIdOf::<TypeConfig>::new(term, NODE.0), index);
        Entry { log_id: id, ..entry(index) }
    };
    let entries: Vec<_> = indexes.map(of_term).collect();
    soon(process.append(entries.clone()).await).await.unwrap().unwrap();
    let entries = entries.into_iter().map(|entry| Ok((entry, None)));
    process.stores.machine.apply(futures_util::stream::iter(entries)).await.unwrap();
    after(1000).await;
}

#[tokio::test(start_paused = true)]
async fn a_log_that_went_back_behind_a_vote_is_refused() {
    let disk = written(1, 8).await;
    let older = disk.copy();
    let mut process = start(&disk).unwrap();
    process.stores.log.save_vote(&Vote::new(2, 1)).await.unwrap();
    write_more(&mut process, 2, 10..20).await;
    drop(process);
    after(1000).await;
    // All of `raft/` is older than the image. Of `state` alone the log itself tells.
    let error = start_with(&disk, &older, "/data/raft/");
    assert_eq!(error.exit_code(), 78, "{error}");
    let text = error.to_string();
    assert!(text.contains("term 1") && text.contains("T2-N1.19"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn an_image_of_another_history_is_refused() {
    let (ours, theirs) = (written(1, 9).await, written(2, 9).await);
    ours.take_images(&theirs);
    let Err(error) = start(&ours.after_kill()) else { panic!("two histories are mixed") };
    assert_eq!(error.exit_code(), 78, "{error}");
    let text = error.to_string();
    assert!(text.contains("T1-N1.9") && text.contains("T2-N1.9"), "{text}");
}

/// The acknowledgements of one run of [`script`].
#[derive(Debug, Default, PartialEq)]
struct Acknowledged {
    vote: Option<Vote>,
    end: u64,
    purged: Option<u64>,
    operations: u64,
}

/// Appends, votes, applies, builds a snapshot and purges behind it, twice, until something fails.
async fn script(disk: &SimDisk) -> Acknowledged {
    let mut done = Acknowledged::default();
    let Ok(mut process) = start(disk) else { return done };
    for round in 0..2 {
        let vote = Vote::new(round + 1, 1);
        if soon(process.stores.log.save_vote(&vote)).await.is_err() {
            return done;
        }
        done.vote = Some(vote);
        let end = done.end + 20;
        let appended = process.append((done.end..end).map(entry).collect()).await;
        if !soon(appended).await.is_ok_and(|answer| answer.is_ok()) {
            return done;
        }
        let applied = process.apply(done.end..end).await;
        done.end = end;
        let mut builder = process.stores.machine.get_snapshot_builder().await;
        let built = builder.build_snapshot().await;
        if applied.is_err() || built.is_err() {
            return done;
        }
        if process.stores.log.purge(log_id(end - 5)).await.is_err() {
            return done;
        }
        done.purged = Some(end - 5);
        after(400).await;
    }
    drop(process);
    after(400).await;
    done.operations = disk.operations();
    done
}

/// Starts again and says what is missing.
async fn what_is_missing(disk: &SimDisk, acknowledged: &Acknowledged) -> Result<(), String> {
    let mut process = start(disk).map_err(|error| error.to_string())?;
    let vote = process.stores.log.get_log_reader().await.read_vote().await.unwrap();
    if vote < acknowledged.vote {
        return Err(format!("the vote {:?} is now {vote:?}", acknowledged.vote));
    }
    let end = process.stores.log.last().map_or(0, |last| last.index + 1);
    if end < acknowledged.end {
        return Err(format!("the log ends at {end} instead of {}", acknowledged.end));
    }
    let applied = process.stores.machine.applied_state().await.unwrap().0;
    let next = applied.map_or(0, |applied| applied.index + 1);
    process.apply(next..end).await.map_err(|error| error.to_string())?;
    let clients = process.stores.view.read(|registry| registry.totals().clients);
    if clients != end { Err(format!("{clients} clients of {end} are there")) } else { Ok(()) }
}

async fn cut_power(seed: u64, cut_at: u64, survives: Survives, lies: Faults) -> Result<(), String> {
    let disk = SimDisk::new(seed);
    disk.set_faults(Faults { dead_from: Some(cut_at), ..lies });
    let acknowledged = script(&disk).await;
    let disk = disk.after_power_cut(survives, &mut Rng(seed ^ cut_at));
    what_is_missing(&disk, &acknowledged).await
}

#[tokio::test(start_paused = true)]
async fn nothing_acknowledged_is_lost_wherever_the_power_is_cut() {
    runtime::follow_seed(3);
    let whole = script(&SimDisk::new(3)).await;
    assert!(whole.operations > 60, "{whole:?}");
    for cut_at in 1..=whole.operations {
        for survives in [Survives::Nothing, Survives::Everything, Survives::Sectors] {
            let outcome = cut_power(3, cut_at, survives, Faults::default()).await;
            if let Err(loss) = outcome {
                panic!("power cut at operation {cut_at}, {survives:?} survives: {loss}");
            }
        }
    }
}

/// A snapshot that was renamed before it was synced may be empty after a power cut, and then the
/// log was purged behind nothing.
#[tokio::test(start_paused = true)]
async fn canary_a_disk_whose_syncs_do_nothing_is_found_out() {
    runtime::follow_seed(4);
    let lies = [
        Faults { file_sync_lies: true, ..Faults::default() },
        Faults { dir_sync_lies: true, ..Faults::default() },
    ];
    let operations = script(&SimDisk::new(4)).await.operations;
    for lie in lies {
        let mut losses = 0;
        for cut_at in 1..=operations {
            losses += u64::from(cut_power(4, cut_at, Survives::Nothing, lie).await.is_err());
        }
        assert!(losses > operations / 10, "{lie:?}: {losses} losses in {operations} power cuts");
    }
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_is_the_same_run() {
    let mut runs = Vec::new();
    for _ in 0..2 {
        runtime::follow_seed(5);
        let disk = SimDisk::new(5);
        disk.set_pace("raft", Pace::Slow(1, 40));
        disk.set_pace("registry", Pace::Slow(0, 300));
        disk.set_pace("snapshot", Pace::Slow(5, 50));
        let began = clock::now();
        let done = script(&disk).await;
        let took = clock::now() - began;
        let mut process = start(&disk).unwrap();
        let applied = process.stores.machine.applied_state().await.unwrap();
        runs.push((done, took, applied, process.stores.log.store(), disk.bytes()));
    }
    assert!(runs[0] == runs[1], "{:?} {:?}", runs[0].0, runs[1].0);
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_fails_from_some_operation_on_ends_the_process() {
    runtime::follow_seed(6);
    let operations = script(&SimDisk::new(6)).await.operations;
    for fail_from in 1..=operations {
        let disk = SimDisk::new(6);
        disk.set_faults(Faults { fail_from: Some(fail_from), ..Faults::default() });
        let acknowledged = script(&disk).await;
        disk.set_faults(Faults::default());
        let disk = disk.after_kill();
        let outcome = what_is_missing(&disk, &acknowledged).await;
        if let Err(loss) = outcome {
            panic!("failed from operation {fail_from} on: {loss}");
        }
    }
    let disk = SimDisk::new(6);
    let mut process = start(&disk).unwrap();
    disk.set_faults(Faults { fail_from: Some(1), ..Faults::default() });
    assert!(soon(process.append(vec![entry(0)]).await).await.unwrap().is_err());
    assert!(process.faults.current().is_some());
}
