//! A disk that hangs: what waits for it, and what must not. All of it runs on one thread in virtual
//! time, over the simulated disk.

use std::time::Duration;

use futures_util::stream;
use openraft::{
    EntryPayload, RaftSnapshotBuilder as _,
    storage::{RaftLogStorage as _, RaftStateMachine as _},
};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use super::*;
use crate::{
    clock,
    limits::DISK_WAIT_MAX,
    raft::{Entry, Vote},
    registry::{Applied, Command, Proposal},
    runtime,
    storage::{
        Stores,
        sim_disk::{Pace, SimDisk},
    },
};

/// More entries than may wait for the image's writer.
const MANY: u64 = 70_000;

/// An instance's stores on a simulated disk.
struct Site {
    disk: SimDisk,
    stores: Stores,
    metrics: Metrics,
    next: u64,
}

impl Site {
    fn open(disk: &SimDisk) -> Self {
        let (effects, mut said) = mpsc::channel::<Applied>(1000);
        tokio::spawn(async move { while said.recv().await.is_some() {} });
        let (reporter, _) = fault::channel();
        let metrics = Metrics::new();
        let path = Path::new("/data");
        let opened =
            Stores::open_on(disk.share(), path, NODE, None, effects, &metrics, &reporter).unwrap();
        Self { disk: disk.clone(), stores: opened, metrics, next: 0 }
    }

    /// Applies entries that each add a record, and returns how long the slowest took.
    async fn apply(&mut self, count: u64) -> Duration {
        let mut slowest = Duration::ZERO;
        for _ in 0..count {
            let session =
                SessionId { instance: NODE, incarnation: Incarnation(0), connection: self.next };
            let (address, candidate) = ("a".to_owned(), PeerId(self.next as u32));
            let source = Source::of([10, 0, 0, 1].into());
            let commands = vec![Command::AddPeer { session, source, address, candidate }];
            let proposal = Proposal { at: Timestamp(1), batch: None, commands };
            let payload = EntryPayload::Normal(proposal);
            let entry = Entry { log_id: log_id(self.next), payload };
            let began = clock::now();
            self.stores.machine.apply(stream::iter([Ok((entry, None))])).await.unwrap();
            slowest = slowest.max(clock::now() - began);
            self.next += 1;
        }
        slowest
    }
}

#[tokio::test(start_paused = true)]
async fn entries_go_on_without_an_image_that_hangs_and_it_is_written_again() {
    runtime::follow_seed(1);
    let disk = SimDisk::new(1);
    let mut site = Site::open(&disk);
    site.apply(10).await;
    assert!(soon(site.stores.image.reaches(9)).await);

    disk.set_pace("registry", Pace::Hangs);
    let slowest = site.apply(MANY).await;
    assert!(slowest >= Duration::from_secs(1), "{slowest:?}: it waited for the writer once");
    assert!(slowest < Duration::from_secs(2), "{slowest:?}: and not for longer");
    assert_eq!(site.metrics.image_given_up.get(), 1);
    assert_eq!(site.apply(1000).await, Duration::ZERO, "then no entry waits any more");
    let pulse = site.stores.pulses.image.clone();
    sleep(Duration::from_secs(1)).await;
    assert!(pulse.stuck().is_some(), "it is seen from outside");
    sleep(DISK_WAIT_MAX).await;
    assert!(pulse.pending() >= Some(DISK_WAIT_MAX));

    disk.set_pace("registry", Pace::Quick);
    let patience = async {
        while site.stores.image.durable() < Some(log_id(site.next - 1)) {
            site.apply(1).await;
            sleep(Duration::from_millis(200)).await;
        }
    };
    timeout(Duration::from_secs(600), patience).await.expect("it is written again");
    assert_eq!(site.metrics.image_given_up.get(), 1);
    assert_eq!((pulse.pending(), pulse.stuck()), (None, None));

    // What it holds now is the registry, and not what was handed over before and after the gap.
    let all = site.stores.view.image();
    let Site { stores, .. } = site;
    drop(stores);
    sleep(Duration::from_secs(1)).await;
    let dir = DataDir::open_on(disk.share(), Path::new("/data"), NODE, None).unwrap();
    let found = dir.image_store().open().unwrap();
    let image::Found::Intact(intact) = found else { panic!("{found:?}") };
    assert_eq!(intact.at.last_log_id.map(|last| last.index), Some(all.0));
    assert!(*intact.registry.image() == all.1, "it differs from the registry");
}

#[tokio::test(start_paused = true)]
async fn a_log_that_hangs_is_seen_and_holds_up_writers_alone() {
    runtime::follow_seed(1);
    let disk = SimDisk::new(1);
    let mut site = Site::open(&disk);
    site.stores.log.save_vote(&Vote::new(1, 1)).await.unwrap();
    let pulse = site.stores.pulses.log.clone();
    assert_eq!((pulse.pending(), pulse.stuck()), (None, None));
    disk.set_pace("raft", Pace::Hangs);
    let vote = Vote::new(2, 1);
    let saved = timeout(Duration::from_secs(2), site.stores.log.save_vote(&vote)).await;
    assert!(saved.is_err(), "nothing is acknowledged");
    assert!(pulse.stuck() >= Some(Duration::from_secs(1)), "{:?}", pulse.stuck());
    assert_eq!(site.apply(1000).await, Duration::ZERO, "what is committed is applied");
    disk.set_pace("raft", Pace::Quick);
    site.stores.log.save_vote(&Vote::new(3, 1)).await.unwrap();
    assert_eq!((pulse.pending(), pulse.stuck()), (None, None));
}

#[tokio::test(start_paused = true)]
async fn an_idle_log_sees_that_its_disk_hangs_and_costs_little() {
    runtime::follow_seed(1);
    let disk = SimDisk::new(1);
    let mut site = Site::open(&disk);
    site.stores.log.save_vote(&Vote::new(1, 1)).await.unwrap();
    sleep(Duration::from_secs(30)).await;
    let before = disk.operations();
    sleep(Duration::from_secs(60)).await;
    let operations = disk.operations() - before;
    assert!((20..=60).contains(&operations), "in a minute {operations} writes and syncs");
    let pulse = site.stores.pulses.log.clone();
    assert_eq!(pulse.stuck(), None);
    disk.set_pace("raft", Pace::Hangs);
    sleep(Duration::from_secs(5)).await;
    assert!(pulse.stuck().is_some(), "nothing was asked of it");
    disk.set_pace("raft", Pace::Quick);
    site.stores.log.save_vote(&Vote::new(2, 1)).await.unwrap();
    assert_eq!((pulse.pending(), pulse.stuck()), (None, None));
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_hangs_is_seen_and_holds_up_nothing() {
    runtime::follow_seed(1);
    let disk = SimDisk::new(1);
    let mut site = Site::open(&disk);
    site.apply(10).await;
    let pulse = site.stores.pulses.snapshot.clone();
    site.disk.set_pace("snapshot", Pace::Hangs);
    let mut builder = site.stores.machine.get_snapshot_builder().await;
    let building = tokio::spawn(async move { builder.build_snapshot().await });
    sleep(Duration::from_secs(2)).await;
    assert!(pulse.stuck() >= Some(Duration::from_secs(1)), "{:?}", pulse.stuck());
    assert_eq!(site.apply(1000).await, Duration::ZERO, "entries go on");
    site.disk.set_pace("snapshot", Pace::Quick);
    soon(building).await.unwrap().unwrap();
    assert_eq!((pulse.pending(), pulse.stuck()), (None, None));
}
