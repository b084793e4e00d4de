//! Which connections are let in: the gate, the stores behind the numbers, and disks that went back.

use openraft::{raft::VoteRequest, vote::RaftLeaderIdExt as _};

use super::*;
use crate::{
    cluster::rpc::{
        CallError, Introduce, Link, Request, Response,
        hello::{Facts, Known, Refusal},
    },
    raft::{LogId, Membership, Vote},
};

type LeaderId = openraft::type_config::alias::LeaderIdOf<TypeConfig>;

fn vote_request() -> VoteRequest<TypeConfig> {
    VoteRequest::new(Vote::new(9, 2), Some(LogId::new(LeaderId::new_committed(8, 2), 99)))
}

fn entries() -> Request {
    Request::AppendEntries(openraft::raft::AppendEntriesRequest {
        vote: Vote::new_committed(9, 2),
        prev_log_id: None,
        entries: Vec::new(),
        leader_commit: None,
    })
}

fn link(transport: &Arc<dyn Transport>, lane: Lane) -> Link {
    Link::new(Arc::clone(transport), InstanceId(1), Member::default(), lane)
}

/// One instance that runs, and a way to it as instance 2 has it.
async fn one(world: &World, dir: &TempDir) -> (Node, Arc<dyn Transport>) {
    let node = world.start(1, dir.path()).await;
    let transport = Arc::new(world.greeted(2, world.security(2), &node.view));
    (node, transport)
}

async fn failure(link: &Link, request: &Request) -> String {
    match link.call(request, PATIENCE).await {
        Err(CallError::Failed(why)) => why,
        other => panic!("it is answered: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_gate_hears_no_vote_no_entry_and_no_snapshot() {
    let (world, dir) = (World::new(2), tempfile::tempdir().unwrap());
    let (node, transport) = one(&world, &dir).await;
    node.found_alone().await;
    let term = node.term();
    node.greeter.gate().lock();
    let calls = link(&transport, Lane::Calls);
    for request in [Request::PreVote(vote_request()), Request::Vote(vote_request()), entries()] {
        assert!(failure(&calls, &request).await.contains("not in the cluster yet"), "{request:?}");
    }
    let appends = link(&transport, Lane::Append);
    assert_eq!(appends.call(&entries(), PATIENCE).await.unwrap_err(), CallError::Lost);
    let snapshots = link(&transport, Lane::Snapshot);
    let request = Request::Snapshot { vote: Vote::new_committed(9, 2), bytes: 10 };
    assert_eq!(snapshots.call(&request, PATIENCE).await.unwrap_err(), CallError::Lost);
    assert_eq!(node.term(), term, "raft heard nothing of it");
    // Only a newcomer's question is answered.
    let answer = calls.call(&Request::Introduce, PATIENCE).await;
    assert!(matches!(answer, Ok(Response::Introduced(_))), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_its_own_log_does_not_name_gives_no_vote() {
    let (world, dir) = (World::new(2), tempfile::tempdir().unwrap());
    let (node, transport) = one(&world, &dir).await;
    let calls = link(&transport, Lane::Calls);
    for request in [Request::PreVote(vote_request()), Request::Vote(vote_request())] {
        assert!(failure(&calls, &request).await.contains("does not vote"), "{request:?}");
    }
    assert_eq!(node.term(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_went_back_and_a_disk_that_was_exchanged_are_refused() {
    let (world, dir) = (World::new(2), tempfile::tempdir().unwrap());
    let (node, transport) = one(&world, &dir).await;
    assert!(transport.connect(InstanceId(1), &Member::default(), Lane::Calls).await.is_ok());
    let last = Some(LogId::new(LeaderId::new_committed(3, 1), 7));
    let acknowledged = Progress { vote: Vote::new(3, 1), last };
    until("it is known", || node.greeter.peers().store(InstanceId(2)).is_some()).await;
    node.greeter.peers().acknowledged(InstanceId(2), acknowledged);

    // The same store, which has forgotten that.
    let back =
        Greeter::new(name(2), StoreId(2), Progress::default(), Rules::NEWEST, node.view.clone());
    let greeted = Greeted::new(Arc::new(world.transport(2, world.security(2))), back.clone());
    let refused = greeted.connect(InstanceId(1), &Member::default(), Lane::Calls).await;
    let why = refused.err().unwrap().to_string();
    assert!(why.contains(Refusal::RolledBack.words()), "{why}");
    assert_eq!(node.refused("rolled-back"), 1);
    let turned = back.learnt().borrow().turned.clone().unwrap().to_string();
    assert!(turned.contains("entry 7 of term 3-1") && turned.contains("no entry"), "{turned}");
    back.gate().open();
    assert!(!back.gate().is_open(), "it never votes again");

    // Another store, under a number whose acknowledgements count.
    let other = Greeter::new(name(2), StoreId(3), acknowledged, Rules::NEWEST, node.view.clone());
    let greeted = Greeted::new(Arc::new(world.transport(2, world.security(2))), other);
    assert!(greeted.connect(InstanceId(1), &Member::default(), Lane::Calls).await.is_err());
    assert_eq!(node.refused("store"), 1);

    // What it holds is enough.
    let same = Greeter::new(name(2), StoreId(2), acknowledged, Rules::NEWEST, node.view.clone());
    let greeted = Greeted::new(Arc::new(world.transport(2, world.security(2))), same.clone());
    assert!(greeted.connect(InstanceId(1), &Member::default(), Lane::Calls).await.is_ok());
    assert_eq!(same.learnt().borrow().turned, None);
}

/// A removed one learns that it was removed, even if it has forgotten more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_one_with_an_older_copy_learns_that_it_was_removed() {
    let (world, dir) = (World::new(2), tempfile::tempdir().unwrap());
    let node = world.start(1, dir.path()).await;
    let last = Some(LogId::new(LeaderId::new_committed(3, 1), 7));
    let facts = Facts {
        history: None,
        store: StoreId(1),
        run: 1,
        progress: Progress::default(),
        acknowledged: None,
        rules: Rules::NEWEST,
        known: Known::Removed(9),
        remembered: Some(Progress { vote: Vote::new(3, 1), last }),
    };
    let back = Greeter::new(name(2), StoreId(2), Progress::default(), Rules::NEWEST, node.view);
    back.gate().open();
    assert_eq!(back.meet_again(InstanceId(1), &facts), Ok(()));
    let learnt = back.learnt().borrow().clone();
    assert_eq!((learnt.turned, learnt.removed), (None, Some((9, InstanceId(1)))));
    assert!(!back.gate().is_open(), "it votes no more");
    // One that was not removed learns that its copy is older.
    let named = Known::Named { store: Some(StoreId(2)), lived: false };
    assert_eq!(back.meet_again(InstanceId(1), &Facts { known: named, ..facts }), Ok(()));
    assert!(back.learnt().borrow().turned.is_some());
}

/// A look at an address leaves alone what is open, at both ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_takes_no_connections_place() {
    use tokio::io::AsyncReadExt as _;
    let (world, dir) = (World::new(2), tempfile::tempdir().unwrap());
    let (node, transport) = one(&world, &dir).await;
    let connect = |lane| transport.connect(InstanceId(1), &Member::default(), lane);
    let mut open = connect(Lane::Calls).await.unwrap();
    for _ in 0..3 {
        let mut probe = connect(Lane::Probe).await.unwrap();
        let read = within("it is answered and closed", probe.read(&mut [0])).await;
        assert!(!matches!(read, Ok(1..)), "all was said");
    }
    let quiet = tokio::time::timeout(Duration::from_millis(300), open.read(&mut [0])).await;
    assert!(quiet.is_err(), "it goes on");
    let calls = node.metrics.raft_connections.with_label_values(&["calls"]);
    assert_eq!(calls.get(), 1);
}

/// No other instance acknowledges what a candidate or leader wrote for itself, but all hear of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_forgot_that_it_stood_or_led_is_refused() {
    for request in [Request::Vote(vote_request()), entries()] {
        let (world, dir) = (World::new(2), tempfile::tempdir().unwrap());
        let (node, transport) = one(&world, &dir).await;
        node.found_alone().await;
        let calls = link(&transport, Lane::Calls);
        let answer = calls.call(&request, PATIENCE).await;
        assert!(answer.is_ok(), "{request:?}: {answer:?}");
        let transport = world.greeted(2, world.security(2), &node.view);
        let refused = transport.connect(InstanceId(1), &Member::default(), Lane::Calls).await;
        let why = refused.err().unwrap().to_string();
        assert!(why.contains(Refusal::RolledBack.words()), "{request:?}: {why}");
    }
}

/// A vote that is durable without the founding entry would keep that out of the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_founder_hears_no_leader_before_it_holds_the_founding_entry() {
    let (world, dir) = (World::new(2), tempfile::tempdir().unwrap());
    let node = world.start(1, dir.path()).await;
    for (store, opens) in [(Some(StoreId(2)), false), (None, true)] {
        let (held, rules) = (Progress::default(), Rules::NEWEST);
        let newcomer = Greeter::new(name(2), StoreId(2), held, rules, node.view.clone());
        let known = Known::Named { store, lived: false };
        let facts = Facts { known, ..node.greeter.facts_for(InstanceId(2)) };
        newcomer.meet_again(InstanceId(1), &facts).unwrap();
        assert_eq!(newcomer.gate().is_open(), opens, "{store:?}");
    }
}

fn at(port: u16) -> Membership {
    let member = Member { store: None, ..Member::at(format!("localhost:{port}")) };
    let voters = vec![[1].into()];
    Membership::new(None, openraft::Membership::new(voters, BTreeMap::from([(1, member)])).unwrap())
}

/// openraft keeps the address that a member had when it first spoke to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_connection_is_given_up_when_the_member_has_moved() {
    let world = World::new(2);
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let before = world.start(1, dirs[0].path()).await;
    let after = world.start(1, dirs[1].path()).await;
    let greeter =
        Greeter::new(name(2), StoreId(2), Progress::default(), Rules::NEWEST, before.view.clone());
    let tcp = TcpTransport::new(name(2), world.security(2), Metrics::new());
    let greeted = Arc::new(Greeted::new(Arc::new(tcp), greeter.clone()));
    let network = Network::new(greeted, greeter.peers().clone(), greeter.acknowledged().clone());
    let open = |node: &Node| node.metrics.raft_connections.with_label_values(&["calls"]).get();
    let member = Member::default();
    let ask = || network.ask(InstanceId(1), &member, Introduce, PATIENCE);

    greeter.set_roster(&at(before.port));
    drop(ask().await);
    until("it is asked where it was", || open(&before) == 1).await;
    assert_eq!(open(&after), 0);
    greeter.set_roster(&at(after.port));
    until("that connection is given up", || open(&before) == 0).await;
    within("it is asked where it is", async {
        while open(&after) == 0 {
            drop(ask().await);
        }
    })
    .await;
    assert_eq!(open(&before), 0);
}
