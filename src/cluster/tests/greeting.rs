//! The conclusions of an instance from the statements of another one, about itself and about it.

use openraft::{async_runtime::WatchReceiver as _, vote::RaftLeaderIdExt as _};
use tokio::io::AsyncReadExt as _;

use super::*;
use crate::{
    cluster::{
        admin::Change,
        greeted::Greeted,
        greeter::{Greeter, Guest, Unwelcome},
        peers::Reach,
        progress::Progress,
        rpc::hello::{Facts, Hello, Known, Refusal},
        turned::Turned,
    },
    ids::{HistoryId, StoreId},
    raft::{LogId, TypeConfig, Vote},
    registry::Rules,
};

type LeaderId = openraft::type_config::alias::LeaderIdOf<TypeConfig>;

fn progress(term: u64, entry: u64) -> Progress {
    let last = Some(LogId::new(LeaderId::new_committed(term, 1), entry));
    Progress { vote: Vote::new(term, 1), last }
}

/// Returns a greeter of number 1 with this store, that knows what `of` has applied.
fn greets(of: &Instance, store: StoreId, held: Progress) -> Greeter {
    let me = NodeName { cluster: CLUSTER, node: InstanceId(1) };
    Greeter::new(me, store, held, Rules::NEWEST, of.view().clone())
}

#[tokio::test(start_paused = true)]
async fn a_peer_is_judged_by_its_history_its_store_and_what_it_has_forgotten() {
    runtime::follow_seed(51);
    let wires = Wires::default();
    let three = found(&wires, &[1, 2, 3]).await;
    let by = leader(&three).await;
    let me = three[by].greeter.clone();
    let (second, other) = (three[(by + 1) % 3].id, StoreId(99));
    let said = three[(by + 1) % 3].greeter.facts_for(three[by].id);
    assert_eq!(said.known, Known::Named { store: Some(me.store()), lived: true });
    assert_eq!(me.meet_again(second, &said), Ok(()));
    let judged = |peer: InstanceId, facts: Facts| me.meet_again(peer, &facts);
    let strange = Facts { history: Some(HistoryId(1)), ..said };
    for (facts, expected) in [
        (Facts { history: None, ..said }, Ok(())),
        (strange, Err(Refusal::History)),
        (Facts { store: other, ..said }, Err(Refusal::Store)),
        // What another run of the process has forgotten counts; facts of this one may be old.
        (Facts { progress: Progress::default(), ..said }, Ok(())),
        (
            Facts { progress: Progress::default(), run: said.run + 1, ..said },
            Err(Refusal::RolledBack),
        ),
        (Facts { run: said.run + 1, ..said }, Ok(())),
    ] {
        assert_eq!(judged(second, facts), expected, "{facts:?}");
        let reach = me.peers().reach(second);
        match expected {
            Ok(()) => assert_eq!(me.peers().run(second), Some(facts.run)),
            Err(refusal) => assert_eq!(reach, Reach::Refused(refusal.words().to_owned())),
        }
    }
    assert_eq!(me.learnt().borrow().turned, None, "one that serves ignores what is said");
    assert!(me.gate().is_open());

    // A number that no entry names may come with any store, until entries of it count.
    let (unknown, known) = (InstanceId(7), Known::Unknown);
    let newcomer =
        Facts { known, store: StoreId(7), progress: progress(9, 9), acknowledged: None, ..said };
    assert_eq!(judged(unknown, newcomer), Ok(()));
    assert_eq!(judged(unknown, Facts { store: other, ..newcomer }), Ok(()));
    me.peers().acknowledged(unknown, progress(9, 8));
    assert_eq!(judged(unknown, newcomer), Err(Refusal::Store));
    assert_eq!(judged(unknown, Facts { store: other, ..newcomer }), Ok(()));
    let behind = Facts { store: other, progress: progress(9, 7), run: 4, ..newcomer };
    assert_eq!(judged(unknown, behind), Err(Refusal::RolledBack));

    // And one that was removed is refused by all.
    let third = three[(by + 2) % 3].id;
    three[by].change(Change::Remove(third)).await.unwrap();
    let removed = three[(by + 2) % 3].greeter.facts_for(three[by].id);
    assert!(matches!(me.known(third), Known::Removed(entry) if entry > 0));
    assert_eq!(judged(third, removed), Err(Refusal::Removed));
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_has_forgotten_learns_it_from_any_other_and_never_votes_again() {
    runtime::follow_seed(52);
    let one = Instance::start(&Wires::default(), Given::alone(2)).await;
    until("it serves", || one.serves()).await;
    let (mine, other, by) = (StoreId(1), StoreId(9), InstanceId(2));
    let empty = Progress::default();
    let told = one.greeter.facts_for(InstanceId(1));
    let named =
        |store: Option<StoreId>, lived| Facts { known: Known::Named { store, lived }, ..told };
    let remembers = |entry| Facts { remembered: Some(progress(3, entry)), ..told };
    let strange = Facts { history: Some(HistoryId(1)), ..told };
    // What is said, what the store holds, whether that ends it, and whether the gate opens.
    for (facts, held, ends, opens) in [
        (told, empty, None, false),
        (named(None, false), empty, None, true),
        (named(None, false), progress(3, 7), None, false),
        (named(Some(mine), false), empty, None, false),
        (named(Some(mine), true), progress(3, 7), None, false),
        (named(Some(mine), true), empty, Some("lost"), false),
        (named(None, true), empty, Some("lost"), false),
        (named(Some(other), false), progress(3, 7), Some("lost"), false),
        (remembers(7), progress(3, 7), None, false),
        (remembers(8), progress(3, 7), Some("older"), false),
        (strange, progress(3, 7), Some("history"), false),
    ] {
        let greeter = greets(&one, mine, held);
        let _ = greeter.meet_again(by, &facts);
        let learnt = greeter.learnt().borrow().clone();
        let turned = learnt.turned.map(|turned| match turned {
            Turned::Lost { .. } => "lost",
            Turned::RolledBack { .. } => "older",
            Turned::History { .. } => "history",
        });
        assert_eq!(turned, ends, "{facts:?}");
        assert_eq!(greeter.gate().is_open(), opens, "{facts:?}");
        greeter.gate().open();
        assert_eq!(greeter.gate().is_open(), ends.is_none(), "{facts:?}");
        assert_eq!(learnt.removed, None);
    }
    // One that serves already is not ended by a stranger; and removal is learnt once.
    let greeter = greets(&one, mine, progress(3, 7));
    greeter.settled();
    assert_eq!(greeter.meet_again(by, &strange), Err(Refusal::History));
    for (entry, from) in [(17, by), (18, InstanceId(3))] {
        let facts = Facts { known: Known::Removed(entry), ..told };
        let _ = greeter.meet_again(from, &facts);
    }
    let learnt = greeter.learnt().borrow().clone();
    assert_eq!((learnt.turned, learnt.removed), (None, Some((17, by))));
}

/// Two ends of a connection.
fn ends() -> [Box<dyn Stream>; 2] {
    let (near, far) = tokio::io::duplex(4096);
    [Box::new(near), Box::new(far)]
}

#[tokio::test(start_paused = true)]
async fn both_ends_of_a_connection_know_whether_it_is_open_and_why_not() {
    runtime::follow_seed(53);
    let wires = Wires::default();
    let two = found(&wires, &[1, 2]).await;
    let (mine, yours) = (two[0].greeter.clone(), two[1].greeter.clone());
    let [first, second] = [InstanceId(1), InstanceId(2)];
    let name = |node| NodeName { cluster: CLUSTER, node: InstanceId(node) };
    let shake = |from: Greeter, to: Greeter, proven: bool| async move {
        let [mut near, mut far] = ends();
        let greeting = from.greet(&mut near, to.me(), Lane::Append);
        let (greeted, heard) = tokio::join!(greeting, to.hear(&mut far, |_| proven));
        (greeted.map_err(|error| error.to_string()), heard)
    };
    let (greeted, heard) = shake(mine.clone(), yours.clone(), true).await;
    assert_eq!((greeted, heard), (Ok(()), Ok(Guest { peer: first, lane: Lane::Append })));
    assert_eq!(mine.peers().reach(second), Reach::Reached);

    // What is not proven, the one that is asked refuses; what has another store, it refuses too.
    let (greeted, heard) = shake(mine.clone(), yours.clone(), false).await;
    assert_says(&greeted.unwrap_err(), &["it refuses this instance", Refusal::Identity.words()]);
    assert_eq!(heard, Err(Unwelcome::Refused(Refusal::Identity)));
    assert_says(
        &format!("{:?}", mine.peers().reach(second)),
        &["Refused", "it refuses this instance"],
    );
    let other = greets(&two[0], StoreId(9), Progress::default());
    let (greeted, heard) = shake(other, yours.clone(), true).await;
    assert_says(&greeted.unwrap_err(), &["it refuses this instance", Refusal::Store.words()]);
    assert_eq!(heard, Err(Unwelcome::Refused(Refusal::Store)));
    assert_eq!(yours.peers().reach(first), Reach::Refused(Refusal::Store.words().to_owned()));
    // And one that finds another store where it called declines.
    let me = name(2);
    let replaced =
        Greeter::new(me, StoreId(9), Progress::default(), Rules::NEWEST, two[1].view().clone());
    let (greeted, heard) = shake(mine.clone(), replaced.clone(), true).await;
    assert_says(&greeted.unwrap_err(), &[Refusal::Store.words()]);
    assert_eq!(heard, Err(Unwelcome::Declined(Refusal::Store)));
    assert_eq!(mine.peers().reach(second), Reach::Refused(Refusal::Store.words().to_owned()));

    // A connection that was let in says that a member calls, and a stranger's does not.
    for (from, calls) in [(9, false), (1, true)] {
        let view = two[0].view().clone();
        let caller =
            Greeter::new(name(from), mine.store(), mine.acknowledged().now(), Rules::NEWEST, view);
        let called = Greeter::new(
            name(2),
            yours.store(),
            yours.acknowledged().now(),
            Rules::NEWEST,
            two[1].view().clone(),
        );
        called.set_roster(&two[1].raft.metrics().borrow_watched().membership_config);
        called.place().listens_at("10.0.0.2:9".parse().unwrap());
        let (_, heard) = shake(caller, called.clone(), true).await;
        assert!(heard.is_ok(), "{heard:?}");
        assert_eq!(called.place().differing(None, "10.0.0.2:7000").is_none(), calls);
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_does_not_introduce_itself_in_time_or_at_all_is_let_go() {
    runtime::follow_seed(54);
    let wires = Wires::default();
    let two = found(&wires, &[1, 2]).await;
    let greeter = two[0].greeter.clone();
    let [mut near, mut far] = ends();
    let begun = clock::now();
    let heard = greeter.hear(&mut far, |_| true).await;
    assert_eq!(heard, Err(Unwelcome::Refused(Refusal::Timeout)));
    assert_eq!((clock::now() - begun).as_secs(), 2);
    drop(far);
    assert_eq!(near.read(&mut [0; 9]).await.unwrap(), 0, "no byte reaches it");

    // What speaks the first version is told so in its words; what is no instance, nothing.
    let facts = two[1].greeter.facts_for(InstanceId(1));
    let from = NodeName { cluster: CLUSTER, node: InstanceId(2) };
    let mut old = Hello { lane: Lane::Calls, from, to: InstanceId(1), facts }.encode();
    old[8] = 1;
    for (bytes, refusal, answered) in
        [(old, Refusal::Version, 13), (vec![7; 64], Refusal::Preamble, 0)]
    {
        let [mut near, mut far] = ends();
        tokio::io::AsyncWriteExt::write_all(&mut near, &bytes).await.unwrap();
        let heard = greeter.hear(&mut far, |_| true).await;
        assert_eq!(heard, Err(Unwelcome::Refused(refusal)));
        drop(far);
        let mut answer = Vec::new();
        near.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer.len(), answered, "{answer:?}");
        assert!(answer.get(10).is_none_or(|code| *code == refusal.code()));
    }
    // The other way: what listens there says nothing.
    let silent = Silent;
    let greeted = Greeted::new(Arc::new(silent), greeter.clone());
    let begun = clock::now();
    let opened = greeted.connect(InstanceId(2), &Member::default(), Lane::Calls).await;
    assert_says(&opened.err().unwrap().to_string(), &["no answer to the greeting"]);
    assert_eq!((clock::now() - begun).as_secs(), 2);
    assert_eq!(
        greeter.peers().reach(InstanceId(2)),
        Reach::Lost("no answer to the greeting".to_owned())
    );
}

/// A listener that takes connections and says nothing.
struct Silent;

impl Transport for Silent {
    fn connect(
        &self,
        _: InstanceId,
        _: &Member,
        _: Lane,
    ) -> BoxFuture<'static, io::Result<Box<dyn Stream>>> {
        let [near, far] = ends();
        Box::pin(async move {
            runtime::spawn(async move {
                let _far = far;
                seconds(60.0).await;
            });
            Ok(near)
        })
    }
}
