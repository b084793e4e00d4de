//! The state machine as openraft drives it.

use std::collections::BTreeSet;

use futures_util::stream;
use openraft::{
    EntryPayload, Membership, RaftSnapshotBuilder as _, storage::RaftStateMachine as _,
};
use tokio::sync::mpsc;

use super::*;
use crate::{
    raft::{Entry, Member},
    registry::{Applied, Command, LinkedBy, Proposal, Rules, What},
    storage::{Point, RealDisk, RegistryView, StateMachine, StateMachineOptions, digest, files},
};

type Opened = (StateMachine, RegistryView, ImageProgress);

fn open(dir: &mut DataDir, log: LogEnds) -> (Opened, mpsc::Receiver<Applied>) {
    let (effects, receiver) = mpsc::channel(1000);
    let (reporter, _) = fault::channel();
    let options = StateMachineOptions::new(effects, Metrics::new(), reporter);
    (StateMachine::open(dir, log, options).unwrap(), receiver)
}

fn entry(index: u64, payload: EntryPayload<Proposal, u64, Member>) -> Entry {
    Entry { log_id: log_id(index), payload }
}

fn members(ids: &[u64]) -> EntryPayload<Proposal, u64, Member> {
    let ids = BTreeSet::from_iter(ids.iter().copied());
    EntryPayload::Membership(Membership::new_with_defaults(vec![ids], []))
}

fn nothing() -> EntryPayload<Proposal, u64, Member> {
    EntryPayload::Normal(Proposal { at: Timestamp(1), batch: None, commands: Vec::new() })
}

async fn apply(machine: &mut StateMachine, entries: Vec<Entry>) {
    let entries = entries.into_iter().map(|entry| Ok((entry, None)));
    machine.apply(stream::iter(entries)).await.unwrap();
}

#[tokio::test]
async fn position_and_members_survive_a_restart() {
    let (temp, mut dir) = new_dir();
    let ((mut machine, view, mut progress), _effects) = open(&mut dir, LogEnds::default());
    assert_eq!(machine.applied_state().await.unwrap(), Default::default());
    apply(&mut machine, vec![entry(0, members(&[1])), entry(1, EntryPayload::Blank)]).await;
    apply(&mut machine, vec![entry(2, nothing()), entry(3, members(&[1, 2]))]).await;
    // An entry that comes again changes nothing.
    apply(&mut machine, vec![entry(3, members(&[9])), entry(4, nothing())]).await;
    let (applied, membership) = machine.applied_state().await.unwrap();
    assert_eq!(applied, Some(log_id(4)));
    assert_eq!(*membership.log_id(), Some(log_id(3)));
    assert_eq!(membership.voter_ids().collect::<Vec<_>>(), [1, 2]);
    assert!(soon(progress.reaches(4)).await);
    assert_eq!(
        view.read(|registry| registry.now()),
        view.read(|registry| registry.image().meta.now)
    );
    assert_eq!(*view.next_deadline().borrow(), None);
    drop((machine, dir));
    soon(progress.ended()).await;

    let mut dir = DataDir::open(temp.path(), NODE, None).unwrap();
    assert!(!dir.is_new());
    let ((mut machine, ..), _effects) = open(&mut dir, ends(None, 4));
    assert_eq!(machine.applied_state().await.unwrap(), (applied, membership));
}

/// A client joins the chain behind the one before.
fn join(number: u8) -> EntryPayload<Proposal, u64, Member> {
    let socket = |port| Socket::parse(&format!("10.0.0.{number}:{port}")).unwrap();
    let (instance, incarnation) = (NODE, Incarnation(0));
    let connect = Command::Connect {
        session: SessionId { instance, incarnation, connection: number.into() },
        source: Source::of(IpAddr::from([10, 0, 0, number])),
        chain: ChainName::default(),
        head: HeadAddr(socket(1)),
        tail: TailAddr(socket(2)),
    };
    let commands = vec![connect];
    EntryPayload::Normal(Proposal { at: Timestamp(number.into()), batch: None, commands })
}

#[tokio::test]
async fn what_the_log_had_at_the_start_is_not_counted_again() {
    let (_temp, mut dir) = new_dir();
    let ((mut machine, view, _), mut effects) = open(&mut dir, ends(None, 2));
    apply(&mut machine, (0..5).map(|index| entry(index.into(), join(index))).collect()).await;
    drop(machine);
    let mut notes = Vec::new();
    while let Some(applied) = effects.recv().await {
        notes.extend(applied.notes);
    }
    assert_eq!(view.read(|registry| registry.totals().links), 4, "all of it was applied");
    let link = What::Linked { by: LinkedBy::Join, waited_ms: 1 };
    let links = notes.iter().filter(|note| note.what == link);
    assert_eq!(links.count(), 2, "only entries 3 and 4 are news: {notes:?}");
    let remembered = view.look(|look| look.history.room().0);
    assert_eq!(remembered, 5 + 4, "the history knows all of it");
}

/// With one voter an entry is applied only after it is in this very log.
#[tokio::test]
async fn a_log_that_lost_applied_entries_is_refused_where_no_other_has_them() {
    for (voters, accepted) in [(&[NODE.0][..], false), (&[NODE.0, 2, 3][..], true)] {
        let (temp, mut dir) = new_dir();
        let ((mut machine, _, mut progress), _effects) = open(&mut dir, LogEnds::default());
        apply(&mut machine, vec![entry(0, members(voters)), entry(1, nothing())]).await;
        assert!(soon(progress.reaches(1)).await);
        drop((machine, dir));
        soon(progress.ended()).await;

        let dir = DataDir::open(temp.path(), NODE, None).unwrap();
        assert!(restore(&dir, ends(None, 1)).is_ok());
        match restore(&dir, ends(None, 0)) {
            Ok(_) => assert!(accepted),
            Err(error) => {
                assert!(!accepted && error.exit_code() == 78);
                assert!(error.to_string().contains("entry 1 was applied"), "{error}");
            }
        }
    }
}

#[tokio::test]
async fn the_lock_lasts_until_the_last_write() {
    let (temp, mut dir) = new_dir();
    let ((machine, _, mut progress), _effects) = open(&mut dir, LogEnds::default());
    drop(dir);
    assert!(matches!(DataDir::open(temp.path(), NODE, None), Err(StorageError::Locked { .. })));
    drop(machine);
    soon(progress.ended()).await;
    DataDir::open(temp.path(), NODE, None).unwrap();
}

#[tokio::test]
async fn a_snapshot_is_built_while_entries_go_on_and_replaces_the_older_one() {
    let (temp, mut dir) = new_dir();
    let ((mut machine, ..), _effects) = open(&mut dir, LogEnds::default());
    assert!(machine.get_current_snapshot().await.unwrap().is_none());
    for (first, last) in [(0, 3), (5, 8)] {
        apply(&mut machine, (first..=last).map(|index| entry(index, nothing())).collect()).await;
        let mut builder = machine.get_snapshot_builder().await;
        apply(&mut machine, vec![entry(last + 1, nothing())]).await;
        let built = builder.build_snapshot().await.unwrap();
        assert_eq!(built.meta.last_log_id, Some(log_id(last)), "as it was when it was asked for");
        let current = machine.get_current_snapshot().await.unwrap().unwrap();
        assert_eq!(current.meta, built.meta);
        let files = files::list(&RealDisk, &temp.path().join("snapshot")).unwrap();
        assert_eq!(files, [current.snapshot.path()], "only the newest is kept");
        let length = fs::metadata(current.snapshot.path()).unwrap().len();
        assert_eq!(length, current.snapshot.bytes());
    }
}

#[tokio::test]
async fn an_installed_snapshot_replaces_registry_and_image() {
    // The giver: a directory restored from hand-made records.
    let (theirs, model) = filled(Random::new("an_installed_snapshot"), 80, 79).await;
    // The taker: same cluster, another node in the test's eyes; a copy of the identity suffices.
    let taken = tempfile::tempdir().unwrap();
    fs::copy(theirs.path().join("identity.json"), taken.path().join("identity.json")).unwrap();
    fs::create_dir(taken.path().join("raft")).unwrap();
    fs::write(taken.path().join("raft/log"), "entries").unwrap();
    let mut dir = DataDir::open(taken.path(), NODE, None).unwrap();
    let ((mut machine, view, mut progress), _effects) = open(&mut dir, LogEnds::default());
    apply(&mut machine, vec![entry(0, members(&[1])), entry(1, nothing())]).await;

    let their_dir = DataDir::open(theirs.path(), NODE, None).unwrap();
    let file = restore(&their_dir, ends(None, 79)).unwrap().snapshots.current().unwrap();
    let mut draft = dir.inbox().begin(InstanceId(2)).await.unwrap();
    for chunk in fs::read(file.path()).unwrap().chunks(1000) {
        draft = draft.write(chunk.to_vec()).await.unwrap();
    }
    let received = draft.check().await.unwrap();
    let meta = received.meta().clone();
    machine.install_snapshot(&meta, received).await.unwrap();

    assert_eq!(machine.applied_state().await.unwrap().0, Some(log_id(79)));
    view.read(|registry| assert_eq!(*registry.image(), model.image));
    let point = Point { entry: 79, digest: digest(&model.image) };
    assert_eq!(view.digests().points, [point], "the points before were of another registry");
    assert_eq!(machine.get_current_snapshot().await.unwrap().unwrap().meta, meta);
    apply(&mut machine, vec![entry(80, nothing())]).await;
    assert!(soon(progress.reaches(80)).await);
    drop((machine, dir));
    soon(progress.ended()).await;

    // openraft has cut its log back to the snapshot by now.
    let mut dir = DataDir::open(taken.path(), NODE, None).unwrap();
    let ((mut machine, view, _), _effects) = open(&mut dir, ends(Some(79), 80));
    assert_eq!(machine.applied_state().await.unwrap().0, Some(log_id(80)));
    view.read(|registry| assert_eq!(registry.image().records, model.image.records));
}

#[tokio::test]
async fn a_bad_snapshot_is_not_installed() {
    let (temp, mut dir) = new_dir();
    let ((mut machine, ..), _effects) = open(&mut dir, LogEnds::default());
    apply(&mut machine, vec![entry(0, nothing()), entry(1, nothing())]).await;
    let built = machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    let path = built.snapshot.path().to_path_buf();
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = machine.install_snapshot(&built.meta, built.snapshot).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
    assert_eq!(machine.applied_state().await.unwrap().0, Some(log_id(1)));
    drop(temp);
}

/// The first rules that this program does not know.
const NEWER: Rules = Rules(Rules::NEWEST.0 + 1);

#[track_caller]
fn assert_names_both_versions(text: &str) {
    assert!(text.contains(&format!("rules version {}", NEWER.0)), "{text}");
    assert!(text.contains(&format!("versions up to {}", Rules::NEWEST.0)), "{text}");
    assert!(text.contains("install a newer EMNetChain"), "{text}");
}

#[tokio::test]
async fn nothing_is_applied_from_a_raise_on_that_this_program_cannot_follow() {
    let (_temp, mut dir) = new_dir();
    let (effects, _receiver) = mpsc::channel(1000);
    let (reporter, faults) = fault::channel();
    let options = StateMachineOptions::new(effects, Metrics::new(), reporter);
    let (mut machine, view, _) = StateMachine::open(&mut dir, LogEnds::default(), options).unwrap();
    let raise = |rules| {
        let commands = vec![Command::Tick, Command::Raise { rules }];
        EntryPayload::Normal(Proposal { at: Timestamp(5), batch: None, commands })
    };
    apply(&mut machine, vec![entry(0, nothing()), entry(1, raise(Rules::NEWEST))]).await;
    let behind = [entry(2, nothing()), entry(3, raise(NEWER)), entry(4, nothing())];
    let behind = behind.map(|entry| Ok((entry, None)));
    let error = machine.apply(stream::iter(behind)).await.unwrap_err();
    assert_names_both_versions(&error.to_string());
    let fault = faults.current().expect("the instance ends");
    assert!(matches!(*fault, fault::Fault::Data(_)), "{fault}");
    assert!(fault.to_string().contains("entry 3 of the raft log"), "{fault}");
    assert_eq!(machine.applied_state().await.unwrap().0, Some(log_id(2)));
    assert_eq!(view.read(|registry| registry.rules()), Rules::NEWEST);
}

#[tokio::test]
async fn an_image_a_snapshot_and_a_backup_of_newer_rules_are_refused_and_not_rebuilt() {
    let (temp, mut dir) = new_dir();
    let mut model = Model::new(Random::new("newer_rules"));
    model.image.meta.rules = NEWER;
    let restored = restore(&dir, LogEnds::default()).unwrap();
    let mut writing = Writing::begin(&dir, restored, image::Options::default());
    writing.send(Work::Step(model.step())).await.unwrap();
    let file = SnapshotDir::open(&dir, None).unwrap().write(&model.at, &model.image).unwrap();
    writing.end().await;
    dir.mark_initialised(None).unwrap();
    let error = restore(&dir, ends(None, 0)).unwrap_err();
    assert_eq!(error.exit_code(), 78);
    assert_names_both_versions(&error.to_string());
    assert!(dir.registry_dir().exists(), "nothing is put aside");
    fs::remove_dir_all(dir.registry_dir()).unwrap();
    let error = restore(&dir, ends(None, 0)).unwrap_err();
    assert_eq!(error.exit_code(), 78);
    assert_names_both_versions(&error.to_string());
    let new = temp.path().join("new");
    let error = crate::storage::restore(file.path(), &new, NODE, Member::default()).unwrap_err();
    assert_eq!(error.exit_code(), 78);
    assert_names_both_versions(&error.to_string());
    assert!(!new.exists());
}
