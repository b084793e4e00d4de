//! Files of released versions are read for ever: `tests/fixtures/`. The files of version
//! 0.2.0 were made by its own program; those of the first rules version with a number by
//! `EMNETCHAIN_REWRITE_BYTES_THAT_USERS_HAVE_ON_DISK=yes`, before it was released.

use std::{collections::BTreeSet, path::PathBuf};

use openraft::{
    EntryPayload, RaftSnapshotBuilder as _,
    storage::{IOFlushed, RaftLogStorage as _, RaftStateMachine as _},
    type_config::TypeConfigExt as _,
};
use tokio::sync::mpsc;

use super::{backup::entry, golden as samples, *};
use crate::{
    codec::golden,
    ids::{HistoryId, StoreId},
    raft::{Entry, Member, Vote},
    registry::{Command, Policy, Proposal, Registry, Rules},
    storage::{self, ClusterId, RealDisk, Stores, disk::Disk as _},
};

const NEW_NODE: InstanceId = InstanceId(9);
const CLUSTER: ClusterId = ClusterId(0x51);
const HISTORY: HistoryId = HistoryId(0x1234);

/// Entries in the fixture, and those of them in the snapshot and in the image.
const ENTRIES: u64 = 40;
const IN_SNAPSHOT: u64 = 20;
const IN_IMAGE: u64 = 30;

fn of_0_2(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v0.2.0").join(name)
}

fn open(dir: &Path, node: InstanceId) -> Stores {
    let (sender, effects) = mpsc::channel(1000);
    std::mem::forget(effects); // kept open, and never read
    let (faults, _) = fault::channel();
    Stores::open(dir, node, Some(CLUSTER), sender, &Metrics::new(), &faults).unwrap()
}

#[tokio::test]
async fn a_backup_of_version_0_2_0_is_restored_as_a_new_history() {
    let room = tempfile::tempdir().unwrap();
    let mut histories = BTreeSet::new();
    for name in ["first", "second"] {
        let new = room.path().join(name);
        let member = Member::at("here:1");
        let restored = storage::restore(&of_0_2("chain.backup"), &new, NEW_NODE, member).unwrap();
        let says = "entries through 20, 5 clients, 4 links, checksum 56fa2a95";
        assert_eq!(restored.backup.to_string(), says, "as version 0.2.0 said it");
        let stores = open(&new, NEW_NODE);
        let store = stores.log.store();
        let registry = stores.view.read(Clone::clone);
        histories.insert(registry.history().unwrap());
        assert_eq!(registry.rules(), Rules::FIRST);
        assert_eq!(registry.instance(NEW_NODE).unwrap().store, Some(store));
        for old in (1..=3).map(InstanceId) {
            assert_eq!(registry.instance(old).unwrap().removed_by, Some(21), "{old:?}");
        }
        let Stores { mut machine, .. } = stores;
        let (_, members) = machine.applied_state().await.unwrap();
        let members: Vec<_> = members.nodes().collect();
        let member = Member { store: Some(store), ..Member::at("here:1") };
        assert_eq!(members, [(&NEW_NODE.0, &member)]);
        assert_eq!((registry.totals().asks, registry.totals().peers), (2, 1));
        let answers = registry.image().records.iter();
        assert_eq!(answers.filter(|(_, one)| matches!(one, Record::Answer(_))).count(), 2);
    }
    assert_eq!(histories.len(), 2, "each restoration is a history of its own");
}

#[tokio::test]
async fn a_directory_of_version_0_2_0_is_refused_with_the_way_out_and_left_alone() {
    let dir = copy_of(&of_0_2("data"));
    let before = backup::contents(dir.path());
    let refusals = [
        DataDir::open(dir.path(), NODE, None).unwrap_err(),
        storage::check(dir.path()).unwrap_err(),
        storage::backup(dir.path(), &dir.path().join("no.backup")).unwrap_err(),
    ];
    for error in refusals {
        assert_eq!(error.exit_code(), 78);
        let text = error.to_string();
        assert!(text.contains("a data directory of version 0.2.0"), "{text}");
        assert!(text.contains("run `EMNetChain backup --data-dir DIR FILE` of version"), "{text}");
        assert!(text.contains("`EMNetChain restore FILE --data-dir NEW`"), "{text}");
    }
    assert!(backup::contents(dir.path()) == before);
    // Not even its parts are taken for ours.
    let identity = fs::read_to_string(dir.path().join("identity.json")).unwrap();
    let cluster = identity.split('"').skip_while(|word| *word != "cluster").nth(2).unwrap();
    let cluster = u128::from_str_radix(cluster, 16).unwrap();
    let log = storage::LogStore::check(&dir.path().join("raft"), cluster.to_be_bytes());
    assert!(log.is_err(), "{log:?}");
    let registry = dir.path().join("registry");
    let found = RealDisk.image_store(&registry, ClusterId(cluster)).open().unwrap();
    assert!(matches!(found, image::Found::Damaged(_)), "{found:?}");
}

/// Returns the entries of the fixture: members, the history, settings, and clients that join.
fn entries(store: StoreId) -> Vec<Entry> {
    let member = Member { store: Some(store), ..Member::at("127.0.0.1:7000") };
    let members = openraft::Membership::new(
        vec![BTreeSet::from([NODE.0])],
        BTreeMap::from([(NODE.0, member)]),
    );
    let begin = vec![Command::Found { history: HISTORY }, Command::SetPolicy(Policy::default())];
    let begin = Proposal { at: Timestamp(0), batch: None, commands: begin };
    let first = [EntryPayload::Membership(members.unwrap()), EntryPayload::Normal(begin)];
    let others = (0..ENTRIES - 2).map(|index| entry(index).payload);
    let payloads = first.into_iter().chain(others);
    (0..).zip(payloads).map(|(index, payload)| Entry { log_id: log_id(index), payload }).collect()
}

/// Makes the fixture.
async fn write_data_dir(to: &Path) {
    let Stores { mut log, mut machine, mut image, view, .. } = open(to, NODE);
    log.save_vote(&Vote::new_committed(1, NODE.0)).await.unwrap();
    let entries = entries(log.store());
    let (flushed, answer) = TypeConfig::oneshot();
    log.append(entries.clone(), IOFlushed::signal(flushed)).await.unwrap();
    answer.await.unwrap().unwrap();
    for entry in entries.into_iter().take(IN_IMAGE as usize) {
        let index = entry.log_id.index;
        machine.apply(futures_util::stream::iter([Ok((entry, None))])).await.unwrap();
        if index + 1 == IN_SNAPSHOT {
            machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
        }
    }
    drop((machine, log, view));
    soon(image.ended()).await;
}

#[tokio::test]
async fn a_directory_and_a_backup_of_the_first_rules_version_are_read() {
    let (data, kept) = (golden::folder().join("data"), golden::folder().join("chain.backup"));
    if golden::is_rewriting() {
        for old in [&data, &kept] {
            drop(fs::remove_dir_all(old).or_else(|_| fs::remove_file(old)));
        }
        fs::create_dir_all(golden::folder()).unwrap();
        write_data_dir(&data).await;
        storage::backup(&data, &kept).unwrap();
    }
    let mut expected = Registry::default();
    // Without the image, the snapshot is what the registry comes from.
    for image in [true, false] {
        let dir = copy_of(&data);
        if !image {
            fs::remove_dir_all(dir.path().join("registry")).unwrap();
        }
        let Stores { mut log, mut machine, view, .. } = open(dir.path(), NODE);
        use openraft::RaftLogReader as _;
        let mut reader = log.get_log_reader().await;
        assert_eq!(reader.read_vote().await.unwrap(), Some(Vote::new_committed(1, NODE.0)));
        let entries = entries(log.store());
        assert_eq!(reader.try_get_log_entries(..).await.unwrap(), entries);
        let applied = machine.applied_state().await.unwrap().0;
        let reached = if image { IN_IMAGE } else { IN_SNAPSHOT };
        assert_eq!(applied, Some(log_id(reached - 1)));
        let rest = entries.iter().cloned().map(|entry| Ok((entry, None)));
        machine.apply(futures_util::stream::iter(rest)).await.unwrap();
        let mut at = SnapshotMeta::default();
        expected = Registry::default();
        for entry in entries {
            storage::state_machine::apply_to(&mut expected, &mut at, entry);
        }
        assert!(view.read(Clone::clone) == expected, "from the image: {image}");
    }
    let room = tempfile::tempdir().unwrap();
    let again = room.path().join("again");
    storage::backup(copy_of(&data).path(), &again).unwrap();
    assert!(fs::read(&again).unwrap() == fs::read(&kept).unwrap(), "a backup has the same bytes");
    let new = room.path().join("new");
    let restored = storage::restore(&kept, &new, NEW_NODE, Member::at("here:1")).unwrap();
    assert_eq!(restored.backup.applied, Some(ENTRIES - 1));
    let found = open(&new, NEW_NODE).view.read(Clone::clone);
    assert_eq!(found.totals(), expected.totals());
    assert_ne!(found.history(), Some(HISTORY));
}

#[test]
fn golden_bytes_of_entries_and_records() {
    let mut page = golden::Page::open("storage.txt");
    for entry in entries(StoreId(7)).into_iter().take(7) {
        page.holds(&format!("entry-{}", entry.log_id.index), &entry);
    }
    for (name, command) in samples::commands() {
        let batch = Some(samples::batch());
        let proposal = Proposal { at: Timestamp(70_000), batch, commands: vec![command] };
        page.holds(&format!("entry-{name}"), &EntryPayload::<_, u64, Member>::Normal(proposal));
    }
    for (name, record) in samples::records() {
        page.holds(&format!("record-{name}"), &(Serial(300), record));
    }
    let mut registry = Registry::default();
    let mut at = SnapshotMeta::default();
    for entry in entries(StoreId(7)) {
        storage::state_machine::apply_to(&mut registry, &mut at, entry);
    }
    page.holds("meta", &registry.image().meta);
    page.holds("position", &at);
    page.close();
}
