//! The ways of instances into a cluster, back to it, and out of it.

use openraft::async_runtime::WatchReceiver as _;

use super::*;
use crate::{
    ids::StoreId,
    raft::{LeaderId, LogId},
    registry::Registry,
};

fn stores(instance: &Instance) -> Vec<Option<StoreId>> {
    instance.members().values().map(|member| member.store).collect()
}

#[tokio::test(start_paused = true)]
async fn the_listed_wait_for_each_other_and_found_one_cluster() {
    runtime::follow_seed(1);
    let (wires, ids) = (Wires::default(), [1, 2, 3]);
    let mut three = Vec::new();
    for id in [1, 2] {
        three.push(Instance::start(&wires, Given::with(id, &ids)).await);
    }
    seconds(5.0).await;
    for instance in &three {
        let told = instance.says();
        assert_says(&told, &["waiting for 3 (host-3:7000): ", "Connection refused"]);
        let trouble = instance.trouble().unwrap();
        assert_says(&trouble, &["the cluster has no leader that speaks to this instance"]);
        let status = instance.status();
        assert_eq!((status.leader, status.members.len(), status.role), (None, 0, "learner"));
        assert_eq!(status.failure_tolerance(), None);
        assert!(!instance.may_vote() && !instance.serves());
    }
    three.push(Instance::start(&wires, Given::with(3, &ids)).await);
    until("all serve", || three.iter().all(Instance::serves)).await;

    let expected: Vec<_> = three.iter().map(|it| Some(it.greeter.store())).collect();
    let history = three[0].view().read(Registry::history);
    assert!(history.is_some());
    for instance in &three {
        assert_eq!(stores(instance), expected, "each is named with its store");
        assert_eq!(instance.view().read(Registry::history), history);
        until("the settings hold", || instance.view().read(|it| *it.policy() == policy())).await;
        assert_eq!(instance.life(), 1);
        assert_eq!((instance.trouble(), instance.unwritten(Duration::ZERO)), (None, None));
        assert!(instance.may_vote());
        assert_eq!(instance.member(2).unwrap().raft_addr, "host-2:7000");
    }
}

/// A leader cuts away an entry that it has under another id. A power cut then leaves no members.
#[tokio::test(start_paused = true)]
async fn the_founding_entry_has_one_id_wherever_it_is_written() {
    for (seed, order) in (40..).zip([[1, 2, 3], [3, 2, 1], [2, 1, 3], [3, 1, 2]]) {
        runtime::follow_seed(seed);
        let wires = Wires::default();
        let mut three = Vec::new();
        for id in order {
            three.push(Instance::start(&wires, Given::with(id, &[1, 2, 3])).await);
        }
        let mut seen = Vec::new();
        until("all serve", || {
            for instance in &three {
                let states = instance.raft.metrics();
                seen.extend(*states.borrow_watched().membership_config.log_id());
            }
            three.iter().all(Instance::serves)
        })
        .await;
        seen.dedup();
        assert_eq!(seen, [LogId::new(LeaderId { term: 0, node_id: 0 }, 0)], "order {order:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_comes_back_begins_another_life_and_keeps_what_there_was() {
    runtime::follow_seed(2);
    let wires = Wires::default();
    let mut three = found(&wires, &[1, 2, 3]).await;
    three[0].write(vec![add_peer(1)]).await;
    let history = three[0].view().read(Registry::history);
    for id in [3, 2, 1] {
        let disk = three.pop().unwrap().stop();
        let given = Given::with(id, &[1, 2, 3]).on(disk);
        three.insert(0, Instance::start(&wires, given).await);
        until("it serves again", || three[0].serves()).await;
        assert_eq!(
            (three[0].says().as_str(), three[0].life()),
            ("greeting the other instances", 2)
        );
        until("it has everything", || {
            three[0].view().read(|registry| registry.totals().peers) == 1
        })
        .await;
        assert_eq!(three[0].view().read(Registry::history), history);
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_was_started_alone_leads_alone_and_is_reached_where_its_flags_say() {
    runtime::follow_seed(3);
    let wires = Wires::default();
    let alone = Instance::start(&wires, Given::alone(1)).await;
    until("it serves", || alone.serves()).await;
    let store = Some(alone.greeter.store());
    assert_eq!(alone.member(1), Some(Member { store, ..Member::at("host-1:7000") }));
    let membership = alone.raft.metrics().borrow_watched().membership_config.clone();
    assert_eq!(membership.log_id().unwrap().index, 0, "the founding entry says all of it");
    let status = alone.status();
    assert_eq!(
        (status.role, status.leader, status.failure_tolerance()),
        ("leader", Some(alone.id), Some(0))
    );
    assert_eq!((alone.trouble(), alone.step_down().await), (None, None));
    let mut disk = alone.stop();
    for (started, reached) in [("", "host-1:7000"), ("new:7000", "new:7000")] {
        let founding = Founding::Alone(Member::at(started));
        let given = Given { founding, ..Given::alone(1) };
        let alone = Instance::start(&wires, given.on(disk)).await;
        until("it serves", || alone.serves()).await;
        assert_eq!(alone.member(1), Some(Member { store, ..Member::at(reached) }));
        disk = alone.stop();
    }
}

/// Each of these would have forgotten votes that count, or mix two histories.
#[tokio::test(start_paused = true)]
async fn data_that_cannot_be_one_with_the_others_end_an_instance() {
    runtime::follow_seed(4);
    let wires = Wires::default();
    let mut three = found(&wires, &[1, 2, 3]).await;
    let older = three[2].disk.copy();
    three[0].write((0..50).map(add_peer).collect()).await;
    until("the third has it", || {
        three[2].status().applied_index == three[0].status().applied_index
    })
    .await;
    seconds(2.0).await;
    let disk = three.pop().unwrap().stop();

    let other = Instance::start(&Wires::default(), Given::alone(4)).await;
    until("the other one serves", || other.serves()).await;
    let foreign = other.stop();
    for (given, words) in [
        (Given::with(3, &[1, 2, 3]), "the disk was lost or replaced"),
        (Given::with(3, &[1, 2, 3]).on(older), "the data directory is an older copy"),
        (Given::with(4, &[1, 2, 3]).on(foreign), "founded apart and must not mix"),
    ] {
        let it = Instance::start(&wires, given).await;
        until(words, || it.why_ended().is_some()).await;
        assert_says(&it.why_ended().unwrap(), &[words]);
        assert!(!it.serves());
        it.stop();
        for other in &three {
            assert!(other.serves() && other.trouble().is_none(), "it did no harm: {words}");
        }
    }
    // A list that names what this history never knew is of another cluster than the data.
    let founding = Given::with(3, &[1, 2, 3, 9]).founding;
    let it = Instance::start(&wires, Given { founding, ..Given::with(3, &[]) }.on(disk)).await;
    until("it is refused", || it.why_ended().is_some()).await;
    let words = "names instance 9 (host-9:7000), which this history never knew";
    assert_says(&it.why_ended().unwrap(), &[words]);
    let disk = it.stop();
    let it = Instance::start(&wires, Given::with(3, &[1, 2, 3]).on(disk)).await;
    until("the right one is taken", || it.serves()).await;
}

/// Its own log names no other member yet, so only its list leads it to them.
#[tokio::test(start_paused = true)]
async fn one_that_was_named_later_waits_until_it_is_added_and_then_joins_without_a_vote() {
    runtime::follow_seed(5);
    use crate::cluster::admin::Change;
    let wires = Wires::default();
    let three = found(&wires, &[1, 2, 3]).await;
    let newcomer = Instance::start(&wires, Given::with(4, &[1, 2, 3])).await;
    seconds(3.0).await;
    assert_says(&newcomer.says(), &["waiting to be added to the cluster", "cluster add 4="]);
    assert!(!newcomer.serves() && !newcomer.greeter.gate().is_open());
    let (instance, member) = (newcomer.id, Member::at(address(4)));
    three[0].change(Change::Add { instance, member }).await.unwrap();
    until("it serves", || newcomer.serves()).await;
    assert_eq!(newcomer.status().role, "learner");
    assert!(!newcomer.may_vote(), "its store is not recorded yet");
    let disk = newcomer.stop();
    // A disk that is lost takes no vote with it, but what it acknowledged counted.
    let empty = Instance::start(&wires, Given::with(4, &[1, 2, 3])).await;
    until("it is refused", || empty.why_ended().is_some()).await;
    empty.stop();
    let same = Instance::start(&wires, Given::with(4, &[1, 2, 3]).on(disk)).await;
    until("its own disk is taken", || same.serves()).await;
}
