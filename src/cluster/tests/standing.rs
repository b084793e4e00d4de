//! The figures and sentences of an instance about the cluster and itself, while members
//! are lost and come back.

use super::*;
use crate::cluster::{
    ClusterStatus,
    admin::{Change, ChangeError},
    backup::BackupError,
};
use crate::storage::sim_disk::Pace;

/// Lag and whether it was heard lately, by number.
fn seen(status: &ClusterStatus) -> Vec<(Option<u64>, Option<bool>)> {
    let lately = |silence: Duration| silence < Duration::from_millis(1500);
    status.members.values().map(|member| (member.lag, member.silence.map(lately))).collect()
}

#[tokio::test(start_paused = true)]
async fn the_leader_knows_the_lag_of_all_and_a_follower_its_leader() {
    runtime::follow_seed(21);
    let wires = Wires::default();
    let mut three = found(&wires, &[1, 2, 3]).await;
    lead(&three, 1).await;
    three[0].write(vec![add_peer(1)]).await;
    until("all have everything", || {
        seen(&three[0].status()) == [(Some(0), Some(true)); 3]
            && three.iter().all(|it| it.peers() == 1)
    })
    .await;
    let (leads, follows) = (three[0].status(), three[1].status());
    assert_eq!(
        (leads.role, leads.leader, leads.node),
        ("leader", Some(InstanceId(1)), InstanceId(1))
    );
    assert_eq!(
        (follows.role, follows.leader, follows.node),
        ("follower", Some(InstanceId(1)), InstanceId(2))
    );
    assert!(leads.term > 0 && leads.term == follows.term && leads.cluster == CLUSTER);
    assert_eq!(leads.members[&InstanceId(1)].silence, Some(Duration::ZERO));
    assert!(leads.members.values().all(|member| member.voter));
    assert_eq!(leads.last_log_index, leads.applied_index);
    assert_eq!(leads.applied_index, follows.applied_index);
    assert_eq!(seen(&follows), [(None, Some(true)), (None, None), (None, None)]);
    assert_eq!((leads.failure_tolerance(), follows.failure_tolerance()), (Some(1), None));
    assert_eq!((three[0].stall(), three[0].hang()), (None, None));

    drop(three.pop().unwrap().stop());
    seconds(1.0).await;
    assert_eq!(three[0].status().failure_tolerance(), Some(1), "it may just be slow");
    for number in 2..9 {
        three[0].write(vec![add_peer(number)]).await;
    }
    seconds(1.5).await;
    let status = three[0].status();
    assert_eq!(
        seen(&status),
        [(Some(0), Some(true)), (Some(0), Some(true)), (Some(7), Some(false))]
    );
    assert_eq!(status.failure_tolerance(), Some(0));
    assert_eq!(three[0].trouble(), None, "two of three are a majority");
}

#[tokio::test(start_paused = true)]
async fn those_that_are_not_reached_are_named_with_the_reason_and_the_way_out() {
    runtime::follow_seed(22);
    let wires = Wires::default();
    let mut three = found(&wires, &[1, 2, 3]).await;
    lead(&three, 1).await;
    let disk = three.pop().unwrap().stop();
    wires.set_apart(1, 2, true);
    seconds(1.0).await;
    assert_eq!(three[0].trouble(), None, "it may just be slow");
    seconds(3.0).await;
    assert_eq!(three[0].status().failure_tolerance(), Some(-1));
    let gone = "3 (host-3:7000): nothing listens there (connection refused); start what is missing";
    let text = three[0].trouble().unwrap();
    assert_says(
        &text,
        &["no majority of the voters is reached: 2 (host-2:7000): no answer from there, ", gone],
    );
    let text = three[1].trouble().unwrap();
    assert_says(
        &text,
        &[
            "the cluster has no leader, because no majority of its 3 voters is reached: 1 \
             (host-1:7000): \
             no answer from there, ",
            gone,
        ],
    );
    assert_eq!(three[1].status().leader, None, "it led when it was heard last");
    assert_eq!(three[1].without_majority(), three[1].trouble());

    // What clients ask for is not done, and it is said why.
    let refused = three[0].change(Change::Remove(InstanceId(3))).await.unwrap_err();
    assert!(matches!(&refused, ChangeError::NoMajority(why) if why.contains(gone)), "{refused}");
    assert!(matches!(three[1].backup().await, Err(BackupError::Behind)));
    assert_eq!(three[0].unwritten(Duration::from_secs(3)), None, "writing takes its time");
    let text = three[0].unwritten(Duration::from_millis(3001)).unwrap();
    assert_says(
        &text,
        &["this instance leads, and what it writes is not on the disks of a majority"],
    );

    wires.set_apart(1, 2, false);
    until("there is a majority", || three.iter().all(|it| it.trouble().is_none())).await;
    until("two are well", || three.iter().any(|it| it.status().failure_tolerance() == Some(0)))
        .await;
    three.push(Instance::start(&wires, Given::with(3, &[1, 2, 3]).on(disk)).await);
    until("it serves", || three[2].serves()).await;
    until("three are well", || three.iter().any(|it| it.status().failure_tolerance() == Some(1)))
        .await;
    assert!(three[1].backup().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_follower_tells_a_leader_that_is_away_from_one_that_says_nothing() {
    runtime::follow_seed(23);
    let wires = Wires::default();
    let three = found(&wires, &[1, 2, 3]).await;
    lead(&three, 1).await;
    let says = |it: &Instance| it.trouble().unwrap_or_default();
    // The leader cannot open connections to it, and is reached from there.
    wires.set_cut(1, 2, true);
    until("it says so", || {
        says(&three[1]) == "the leader, instance 1, is reached and sends nothing"
    })
    .await;
    assert_eq!(three[1].without_majority(), None, "it may do what it is asked");
    assert_says(
        &three[1].unwritten(Duration::from_millis(3001)).unwrap(),
        &["the leader, instance 1 (host-1:7000), is reached and has not written"],
    );
    assert_eq!(three[1].unwritten(Duration::from_secs(3)), None);
    wires.set_cut(2, 1, true);
    let elects = "the cluster has no leader; its voters elect one: 1 (host-1:7000): no answer from \
                  there; start";
    until("it says so", || says(&three[1]).starts_with(elects)).await;
    assert!(three[1].without_majority().is_some());
    assert_says(
        &three[1].unwritten(Duration::ZERO).unwrap(),
        &["the leader, instance 1, is heard, but it is not reached at host-1:7000: no answer \
             from \
             there"],
    );
    assert_eq!(
        three[0].status().leader,
        Some(InstanceId(1)),
        "a voter that hears it lets no other lead"
    );
    assert_eq!((three[0].trouble(), three[2].trouble()), (None, None));
    wires.set_apart(1, 2, false);
    until("it hears its leader", || three[1].trouble().is_none()).await;

    // A learner elects none.
    let (instance, member) = (InstanceId(4), Member::at(address(4)));
    three[0].change(Change::Add { instance, member }).await.unwrap();
    let learner = Instance::start(&wires, Given::with(4, &[1, 2, 3])).await;
    until("it serves", || learner.serves()).await;
    wires.set_apart(1, 4, true);
    let unheard =
        "the cluster has no leader that speaks to this instance: 1 (host-1:7000): no answer";
    until("it says so", || says(&learner).starts_with(unheard)).await;
    // A majority that is gone counts for more.
    wires.set_apart(2, 4, true);
    let no_majority =
        "the cluster has no leader, because no majority of its 3 voters is reached: 1 (host";
    until("it says so", || says(&learner).starts_with(no_majority)).await;
}

/// Once members have had the time to call it.
#[tokio::test(start_paused = true)]
async fn one_that_was_started_elsewhere_says_where_it_is_looked_for_and_does_not_stand() {
    runtime::follow_seed(24);
    let wires = Wires::default();
    let mut three = found(&wires, &[1, 2, 3]).await;
    lead(&three, 1).await;
    let disk = three.pop().unwrap().stop();
    let (at, listens) = ("10.0.0.9:7009", "10.0.0.9:7009".parse().unwrap());
    let given =
        Given { address: at.to_owned(), listens: Some(listens), ..Given::with(3, &[1, 2, 3]) };
    three.push(Instance::start(&wires, given.on(disk)).await);
    seconds(3.0).await;
    assert!(!three[2].trouble().unwrap().contains("look for this instance"), "they may yet call");
    seconds(3.0).await;
    let text = three[2].trouble().unwrap();
    assert_eq!(
        text,
        "the members look for this instance at host-3:7000, but it is started for 10.0.0.9:7009: \
         run `EMNetChain cluster add 3=10.0.0.9:7009` at another member, or start it at \
         host-3:7000 again"
    );
    assert!(!three[2].serves() && three[2].may_vote());
    let term = three[0].status().term;
    // The leader is away: an election without the third would come to nothing, with it as well.
    wires.set_apart(1, 3, true);
    wires.set_apart(2, 3, true);
    until("the majority is missing too", || {
        let text = three[2].trouble().unwrap();
        !text.contains("look for this instance") && text.contains("no majority of its 3 voters")
    })
    .await;
    wires.set_apart(1, 3, false);
    wires.set_apart(2, 3, false);
    seconds(5.0).await;
    assert_eq!((three[0].status().term, three[2].status().role), (term, "follower"));
    let change = Change::Add { instance: InstanceId(3), member: Member::at(at) };
    let said = three[1].change(change).await.unwrap();
    assert_says(&said, &["instance 3 is now looked for at 10.0.0.9:7009"]);
    until("it serves", || three[2].serves()).await;
    assert_eq!(three[2].trouble(), None);
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_disk_hangs_gives_the_leadership_away_and_says_so() {
    runtime::follow_seed(25);
    let wires = Wires::default();
    let three = found(&wires, &[1, 2, 3]).await;
    lead(&three, 1).await;
    seconds(5.0).await;
    assert_eq!(
        (three[0].hang(), three[0].metrics.disk_pending.with_label_values(&["log"]).get()),
        (None, 0.0)
    );
    three[0].disk.set_pace("raft", Pace::Hangs);
    let hung = clock::now();
    let writing = three[1].write(vec![add_peer(1)]);
    let noticed = until("it is noticed", || three[0].hang().is_some());
    tokio::join!(writing, noticed);
    assert_says(&three[0].hang().unwrap(), &["a write of the raft log has been pending for 1 s"]);
    until("another one leads", || three[1].status().leader.is_some_and(|id| id.0 != 1)).await;
    assert!(clock::now() - hung < Duration::from_secs(8), "{:?}", clock::now() - hung);
    assert_eq!(three[1].trouble(), None);
    let pending = three[0].hung().await;
    assert_eq!(pending.as_secs(), 30, "then it ends");
    assert!((30..32).contains(&(clock::now() - hung).as_secs()));
    three[0].disk.set_pace("raft", Pace::Quick);
    until("the disk answers", || three[0].hang().is_none() && three[0].trouble().is_none()).await;
}
