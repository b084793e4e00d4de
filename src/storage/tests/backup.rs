//! Backups, and what is founded with them.

use openraft::{
    EntryPayload,
    storage::{IOFlushed, RaftLogStorage as _, RaftStateMachine as _},
    type_config::TypeConfigExt as _,
};
use tokio::sync::mpsc;

use super::*;
use crate::{
    ids::{OrphanAddr, Source},
    raft::{Entry, Member},
    registry::{Command, Proposal, Registry},
    storage::{self, RealDisk, Stores, files},
};

const ENTRIES: u64 = 60;
const NEW_NODE: InstanceId = InstanceId(9);

/// A client joins, or a caller waits for a partner that never calls.
pub(super) fn entry(index: u64) -> Entry {
    let instance = InstanceId(1 + index % 3);
    let session = SessionId { instance, incarnation: Incarnation(1), connection: index };
    let socket = |port: u64| Socket::parse(&format!("10.0.0.1:{}", 1000 + port)).unwrap();
    let source = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    let (head, tail) = (HeadAddr(socket(2 * index)), TailAddr(socket(2 * index + 1)));
    let command = match index {
        0..3 => Command::Start { instance, incarnation: Incarnation(1) },
        3 => {
            let (id, orphan) = (RepairId("alone".into()), OrphanAddr(socket(0)));
            Command::Reconnect { session, source: Source::of(source), id, orphan }
        }
        _ => Command::Connect {
            session,
            source: Source::of(source),
            chain: ChainName("".into()),
            head,
            tail,
        },
    };
    let proposal = Proposal { at: Timestamp(index), batch: None, commands: vec![command] };
    Entry { log_id: log_id(index), payload: EntryPayload::Normal(proposal) }
}

/// Returns the registry after all entries.
fn expected() -> Registry {
    let mut registry = Registry::default();
    for index in 0..ENTRIES {
        let EntryPayload::Normal(proposal) = entry(index).payload else { continue };
        registry.apply(&proposal);
    }
    registry
}

/// Returns a data directory with all entries in its log, of which the first `applied` were applied.
async fn directory(applied: u64) -> TempDir {
    let temp = tempfile::tempdir().unwrap();
    let (sender, mut effects) = mpsc::channel(1000);
    let (faults, _) = fault::channel();
    let stores = Stores::open(temp.path(), NODE, None, sender, &Metrics::new(), &faults).unwrap();
    let Stores { mut log, mut machine, mut image, view, .. } = stores;
    let (flushed, answer) = TypeConfig::oneshot();
    log.append((0..ENTRIES).map(entry), IOFlushed::signal(flushed)).await.unwrap();
    answer.await.unwrap().unwrap();
    let entries = (0..applied).map(|index| Ok((entry(index), None)));
    machine.apply(futures_util::stream::iter(entries)).await.unwrap();
    drop((machine, log, view));
    soon(image.ended()).await;
    effects.close();
    temp
}

/// Every file of a directory and its bytes.
pub(super) fn contents(path: &Path) -> BTreeMap<std::path::PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for path in files::list(&RealDisk, path).unwrap() {
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

fn member() -> Member {
    Member::at("here:1")
}

#[tokio::test]
async fn entries_that_only_the_log_has_are_in_the_backup() {
    let room = tempfile::tempdir().unwrap();
    for applied in [0, 20, ENTRIES] {
        let dir = directory(applied).await;
        let before = contents(dir.path());
        let file = room.path().join(format!("{applied}.backup"));
        let backup = storage::backup(dir.path(), &file).unwrap();
        assert_eq!(backup.applied, Some(ENTRIES - 1));
        assert_eq!((backup.clients, backup.links), (ENTRIES - 4, ENTRIES - 5));
        assert!(contents(dir.path()) == before, "a backup changes nothing");
        let bytes = fs::read(&file).unwrap();
        let error = storage::backup(dir.path(), &file).unwrap_err();
        assert!(matches!(error, StorageError::Unfit { .. }), "{error}");
        assert_eq!(fs::read(&file).unwrap(), bytes, "nothing is overwritten");

        let new = room.path().join(format!("{applied}.new"));
        let restored = storage::restore(&file, &new, NEW_NODE, member()).unwrap();
        assert_eq!(restored.backup, backup);
        assert_founded(&new).await;
    }
}

#[tokio::test]
async fn a_backup_that_arrives_is_counted_as_it_was_made_or_leaves_nothing() {
    let room = tempfile::tempdir().unwrap();
    let dir = directory(ENTRIES).await;
    let [sent, taken] = ["sent", "taken"].map(|name| room.path().join(name));
    let made = storage::backup(dir.path(), &sent).unwrap();
    let bytes = fs::read(&sent).unwrap();
    let receive = |bytes: &[u8]| {
        let mut draft = storage::BackupDraft::create(&taken)?;
        bytes.chunks(100).try_for_each(|some| draft.write(some))?;
        draft.finish()
    };
    for cut in [0, 1, bytes.len() / 2, bytes.len() - 1] {
        let error = receive(&bytes[..cut]).unwrap_err();
        assert!(matches!(error, StorageError::Damaged { .. }), "{error}");
    }
    assert_eq!(fs::read_dir(room.path()).unwrap().count(), 1, "nothing is left of those");
    assert_eq!(receive(&bytes).unwrap(), made);
    assert_eq!(fs::read(&taken).unwrap(), bytes);
    // One that is there stays as it is, even if it came later.
    assert!(matches!(receive(&bytes), Err(StorageError::Unfit { .. })));
    fs::remove_file(&taken).unwrap();
    let mut late = storage::BackupDraft::create(&taken).unwrap();
    late.write(&bytes).unwrap();
    fs::write(&taken, "a person's letters").unwrap();
    assert!(matches!(late.finish(), Err(StorageError::Unfit { .. })));
    assert_eq!(fs::read(&taken).unwrap(), b"a person's letters");
    assert_eq!(fs::read_dir(room.path()).unwrap().count(), 2);
}

/// A start finds everything, no other member, and no old session that would be waited for.
async fn assert_founded(dir: &Path) {
    let (sender, _effects) = mpsc::channel(1000);
    let (faults, _) = fault::channel();
    let stores = Stores::open(dir, NEW_NODE, None, sender, &Metrics::new(), &faults).unwrap();
    let Stores { log, mut machine, view, .. } = stores;
    let (applied, members) = machine.applied_state().await.unwrap();
    let applied = applied.unwrap();
    assert_eq!((applied.index, applied.committed_leader_id().term), (ENTRIES, 2));
    assert_eq!((log.purged(), log.last()), (Some(applied), Some(applied)));
    let restored = Member { store: Some(log.store()), ..member() };
    assert_eq!(members.nodes().collect::<Vec<_>>(), [(&NEW_NODE.0, &restored)]);
    assert_eq!(members.voter_ids().collect::<Vec<_>>(), [NEW_NODE.0]);

    let mut registry = view.read(Clone::clone);
    assert_eq!(registry.totals(), expected().totals());
    assert_eq!(registry.totals().asks, 2, "the tip and the caller wait");
    let grace_ends = registry.now().plus_ms(registry.policy().resume_grace_ms);
    registry.apply(&Proposal { at: grace_ends, batch: None, commands: vec![Command::Tick] });
    assert_eq!(registry.totals().asks, 0, "no client is waited for longer than the grace");
    assert_eq!(registry.totals().links, expected().totals().links);
}

#[tokio::test]
async fn no_harm_to_a_backup_goes_unseen() {
    let mut random = Random::new("no_harm_to_a_backup");
    let dir = directory(ENTRIES).await;
    let room = tempfile::tempdir().unwrap();
    let (file, new) = (room.path().join("it.backup"), room.path().join("new"));
    storage::backup(dir.path(), &file).unwrap();
    let whole = fs::read(&file).unwrap();
    for round in 0..400 {
        let mut bytes = whole.clone();
        let at = random.below(bytes.len() as u64) as usize;
        match round % 3 {
            0 => bytes.truncate(at),
            1 => bytes.extend(&whole[at..]),
            _ => bytes[at] ^= 1 << random.below(8),
        }
        fs::write(&file, &bytes).unwrap();
        let error = storage::restore(&file, &new, NEW_NODE, member()).unwrap_err();
        assert_eq!(error.exit_code(), 78, "{error}");
        assert!(error.to_string().contains("it.backup"), "{error}");
        assert!(!new.exists(), "nothing is made before all of it is read");
    }
}

#[tokio::test]
async fn a_restoration_overwrites_nothing_and_is_not_served_by_halves() {
    let dir = directory(ENTRIES).await;
    let room = tempfile::tempdir().unwrap();
    let (file, new) = (room.path().join("it.backup"), room.path().join("new"));
    storage::backup(dir.path(), &file).unwrap();
    for (from, to) in [(&file, dir.path()), (&file, &file), (&room.path().join("no"), &new)] {
        let error = storage::restore(from, to, NEW_NODE, member()).unwrap_err();
        assert!(matches!(error, StorageError::Unfit { .. }), "{error}");
        assert_eq!(error.exit_code(), 2);
    }
    storage::restore(&file, &new, NEW_NODE, member()).unwrap();
    fs::remove_file(new.join("identity.json")).unwrap();
    let error = DataDir::open(&new, NEW_NODE, None).unwrap_err();
    assert!(matches!(error, StorageError::Damaged { .. }), "{error}");
}

#[tokio::test]
async fn a_snapshot_is_a_backup() {
    let (base, model) = filled(Random::new("a_snapshot_is_a_backup"), 50, 30).await;
    let [snapshot] = &files::list(&RealDisk, &base.path().join("snapshot")).unwrap()[..] else {
        panic!()
    };
    let room = tempfile::tempdir().unwrap();
    let new = room.path().join("new");
    let restored = storage::restore(snapshot, &new, NEW_NODE, member()).unwrap();
    assert_eq!(restored.backup.applied, Some(30));
    let dir = DataDir::open(&new, NEW_NODE, None).unwrap();
    let found = restore(&dir, ends(Some(31), 31)).unwrap();
    assert!(found.registry.image().records == model.history[&Some(30)].records);
    assert_ne!(dir.cluster_id(), DataDir::open(base.path(), NODE, None).unwrap().cluster_id());
}

#[tokio::test]
async fn a_log_that_connects_with_nothing_makes_no_backup() {
    let dir = directory(ENTRIES).await;
    let room = tempfile::tempdir().unwrap();
    let (file, new) = (room.path().join("it.backup"), room.path().join("new"));
    storage::backup(dir.path(), &file).unwrap();
    fs::remove_file(&file).unwrap();
    // A directory that is in use is left alone.
    let held = DataDir::open(dir.path(), NODE, None).unwrap();
    let error = storage::backup(dir.path(), &file).unwrap_err();
    assert!(matches!(error, StorageError::Locked { .. }), "{error}");
    drop(held);
    // A log that was purged, and neither image nor snapshot.
    storage::backup(dir.path(), &file).unwrap();
    storage::restore(&file, &new, NEW_NODE, member()).unwrap();
    fs::remove_dir_all(new.join("snapshot")).unwrap();
    let other = room.path().join("other.backup");
    let error = storage::backup(&new, &other).unwrap_err();
    assert_eq!(error.exit_code(), 78, "{error}");
    assert!(error.to_string().contains("begins after entry 60"), "{error}");
    assert!(!other.exists(), "half a backup is removed");
}
