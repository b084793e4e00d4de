//! Replication over real connections.

use std::fs;

use openraft::{
    EntryPayload, async_runtime::WatchReceiver, raft::AppendEntriesRequest, vote::RaftLeaderId as _,
};
use tokio::io::AsyncWriteExt as _;

use super::*;
use crate::{
    cluster::rpc::{CallError, FrameReader, Link, Request, Response, frame},
    raft::{Entry, LogId, Vote},
    registry::Verdict,
};

async fn three(world: &World, dirs: &[TempDir]) -> Vec<Node> {
    let mut nodes = Vec::new();
    for (node, dir) in (1..).zip(dirs) {
        nodes.push(world.start(node, dir.path()).await);
    }
    Node::found(&nodes.iter().collect::<Vec<_>>()).await;
    until("a leader", || nodes.iter().any(|node| node.leader().is_some())).await;
    nodes
}

fn dirs(count: usize) -> Vec<TempDir> {
    (0..count).map(|_| tempfile::tempdir().unwrap()).collect()
}

/// Returns the index of the leader, once all know the same one.
async fn leader(nodes: &[Node]) -> usize {
    let mut at = None;
    until("all know the same leader", || {
        let known: Vec<_> = nodes.iter().map(Node::leader).collect();
        at = nodes.iter().position(|node| known.iter().all(|leader| *leader == Some(node.id)));
        at.is_some()
    })
    .await;
    at.unwrap()
}

async fn all_alike(nodes: &[Node], peers: usize) {
    until("all have everything", || nodes.iter().all(|node| node.peers() == peers)).await;
    let first = nodes[0].contents();
    assert!(nodes.iter().all(|node| node.contents() == first));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_elect_replicate_and_forward_and_one_that_was_gone_catches_up() {
    let (world, dirs) = (World::new(3), dirs(3));
    let mut nodes = three(&world, &dirs).await;
    let leads = leader(&nodes).await;
    nodes[leads].write(0..20).await;

    // A follower's batch is applied through the leader; another follower passes nothing on.
    let (from, to) = (&nodes[(leads + 1) % 3], &nodes[(leads + 2) % 3]);
    let instance = from.id;
    let propose = |target: &Node| {
        let (network, target) = (from.network.clone(), target.id);
        async move {
            let commands = vec![add(instance, 500_000)];
            network.propose(target, &Member::default(), None, commands, PATIENCE).await
        }
    };
    assert!(matches!(propose(to).await, Err(WriteError::Again(_))));
    assert_eq!(propose(&nodes[leads]).await.unwrap().verdict, Verdict::Applied);
    all_alike(&nodes, 2001).await;

    // One is gone and comes back, elsewhere; then the leader goes.
    let gone = (leads + 1) % 3;
    let id = nodes[gone].id;
    let at = nodes.remove(gone);
    at.stop().await;
    let leads = leader(&nodes).await;
    nodes[leads].write(30..50).await;
    nodes.push(world.start(id.0, dirs[gone].path()).await);
    all_alike(&nodes, 4001).await;
    let leads = leader(&nodes).await;
    let term = nodes[leads].term();
    nodes.remove(leads).stop().await;
    let leads = leader(&nodes).await;
    assert!(nodes[leads].term() > term);
    nodes[leads].write(60..61).await;
    all_alike(&nodes, 4101).await;
    assert_eq!(nodes[leads].refused("forged") + nodes[leads].refused("frame"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_gets_a_snapshot_while_writes_go_on_and_the_leadership_is_handed_over() {
    let (world, dirs) = (World::new(4), dirs(4));
    let mut nodes = three(&world, &dirs[..3]).await;
    let leads = leader(&nodes).await;
    nodes[leads].write(0..100).await;
    let raft = nodes[leads].raft.clone();
    raft.trigger().snapshot().await.unwrap();
    until("the log is cut", || {
        let metrics = raft.metrics();
        let purged = metrics.borrow_watched().purged;
        purged.is_some_and(|purged| purged.index > 50)
    })
    .await;
    assert!(nodes[leads].metrics.snapshot_bytes.get() > 2_000_000, "several frames");

    let learner = world.start(4, dirs[3].path()).await;
    let write = nodes[leads].write(100..160);
    let add = async { raft.add_learner(4, Member::default(), true).await.unwrap() };
    tokio::join!(write, within("the learner is added", add));
    assert!(learner.raft.metrics().borrow_watched().snapshot.is_some(), "it came by snapshot");
    nodes.push(learner);
    all_alike(&nodes, 16_000).await;
    let left: Vec<_> = fs::read_dir(dirs[3].path().join("snapshot"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(left.len() == 1 && left[0].ends_with(".snap"), "{left:?}");

    // The leader names its successor.
    let leads = leader(&nodes).await;
    let heir = if leads == 0 { 1 } else { 0 };
    within("the leadership is handed over", async {
        while nodes[leads].leader() != Some(nodes[heir].id) {
            nodes[leads].raft.trigger().transfer_leader(nodes[heir].id.0).await.unwrap();
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_breaks_off_or_is_damaged_leaves_nothing_behind() {
    let (world, dirs) = (World::new(2), dirs(1));
    let node = world.start(1, dirs[0].path()).await;
    node.found_alone().await;
    let transport = world.greeted(2, world.security(2), &node.view);
    let drafts = || {
        let dir = fs::read_dir(dirs[0].path().join("snapshot")).unwrap();
        dir.filter(|entry| entry.as_ref().unwrap().path().extension().unwrap() == "new").count()
    };
    let vote = Vote::new_committed(1, 2);
    let announce = |bytes| frame::encode(7, &Request::Snapshot { vote, bytes }).unwrap();
    let chunk = || {
        let fill = |body: &mut [u8]| {
            body.fill(9);
            Ok(())
        };
        frame::encode_raw(0, 1000, fill).unwrap()
    };

    let connect = || transport.connect(node.id, &Member::default(), Lane::Snapshot);
    let mut stream = connect().await.unwrap();
    stream.write_all(&announce(5000)).await.unwrap();
    stream.write_all(&chunk()).await.unwrap();
    stream.flush().await.unwrap();
    until("a draft", || drafts() == 1).await;
    drop(stream);
    until("no draft", || drafts() == 0).await;

    let mut stream = connect().await.unwrap();
    stream.write_all(&announce(2000)).await.unwrap();
    stream.write_all(&[chunk(), chunk()].concat()).await.unwrap();
    stream.flush().await.unwrap();
    let mut frames = FrameReader::new(stream);
    let answer = within("an answer", frames.next()).await.unwrap().unwrap();
    let answer: Response = frame::decode(&answer.body).unwrap();
    assert!(matches!(answer, Response::Failed(_)), "{answer:?}");
    until("no draft", || drafts() == 0).await;

    let mut stream = connect().await.unwrap();
    stream.write_all(&announce(u64::MAX)).await.unwrap();
    stream.flush().await.unwrap();
    until("it is refused", || node.refused("frame") == 1).await;
    assert_eq!(drafts(), 0);
}

/// A leader of another history: raft would take its first entry for the one that was applied, or
/// cut the applied one away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_contradicts_what_was_applied_is_refused_before_raft_hears_it() {
    let vote = Vote::new_committed(99, 2);
    let entry = Entry {
        log_id: LogId::new(vote.leader_id.to_committed(), 0),
        payload: EntryPayload::Blank,
    };
    let with_it = (None, vec![entry.clone()]);
    let behind_it = (Some(entry.log_id), Vec::new());
    for (lane, (prev_log_id, entries)) in
        [(Lane::Append, with_it.clone()), (Lane::Calls, with_it), (Lane::Calls, behind_it)]
    {
        let (world, dirs) = (World::new(2), dirs(1));
        let node = world.start(1, dirs[0].path()).await;
        node.found_alone().await;
        let applied = || node.raft.metrics().borrow_watched().last_applied;
        until("the first entry is applied", || applied().is_some()).await;
        let term = node.term();
        let transport: Arc<dyn Transport> =
            Arc::new(world.greeted(2, world.security(2), &node.view));
        let link = Link::new(transport, node.id, Member::default(), lane);
        let rpc = AppendEntriesRequest { vote, prev_log_id, entries, leader_commit: None };
        let answer = link.call(&Request::AppendEntries(rpc), Duration::from_secs(20)).await;
        let Err(CallError::Failed(why)) = answer else { panic!("{answer:?}") };
        assert!(why.contains("T99-N2.0"), "{why}");
        let fault = node.faults.current().expect("the instance ends");
        assert!(matches!(&*fault, fault::Fault::Data(_)), "{fault}");
        assert_eq!(node.term(), term, "raft has heard of it");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_connection_takes_the_place_of_the_older() {
    let (world, dirs) = (World::new(2), dirs(1));
    let node = world.start(1, dirs[0].path()).await;
    let transport: Arc<dyn Transport> = Arc::new(world.greeted(2, world.security(2), &node.view));
    let open = |kind| node.metrics.raft_connections.with_label_values(&[kind]).get();
    let link = |lane| Link::new(Arc::clone(&transport), node.id, Member::default(), lane);
    let propose = Request::Propose { batch: None, commands: Vec::new() };
    for _ in 0..3 {
        // Each is kept, and each asks over a connection of its own.
        let link = std::mem::ManuallyDrop::new(link(Lane::Calls));
        assert!(link.call(&propose, PATIENCE).await.is_err(), "it does not lead");
        until("the earlier one is closed", || open("calls") == 1).await;
    }
    let appends = link(Lane::Append);
    assert!(appends.call(&propose, PATIENCE).await.is_err(), "that is not for this connection");
    until("it is refused", || node.refused("frame") == 1 && open("append") == 0).await;
    assert_eq!(open("calls"), 1);
}
