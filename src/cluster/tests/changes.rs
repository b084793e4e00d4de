//! Changes of the members and of the leader: what is made, what is refused, and the words of both.

use super::*;
use crate::{
    cluster::{
        admin::{Change, ChangeError},
        proposer::{WriteError, Writer, Written},
        upgrade::Upgrades,
    },
    registry::{BatchId, Rules, Verdict},
};

fn add(id: u64, at: &str) -> Change {
    Change::Add { instance: InstanceId(id), member: Member::at(at) }
}

fn promote(id: u64) -> Change {
    Change::Promote(InstanceId(id))
}

fn remove(id: u64) -> Change {
    Change::Remove(InstanceId(id))
}

fn transfer(id: u64) -> Change {
    Change::TransferLeader(Some(InstanceId(id)))
}

/// Asks for a change, and expects that it is made, or refused, in words that have these parts.
async fn expect(by: &Instance, change: Change, made: bool, parts: &[&str]) {
    let what = format!("{change:?} at {}", by.id.0);
    let text = match by.change(change).await {
        Ok(text) => {
            assert!(made, "{what} was made: {text}");
            text
        }
        Err(ChangeError::Refused(why)) => {
            assert!(!made, "{what} was refused: {why}");
            why
        }
        Err(other) => panic!("{what}: {other}"),
    };
    assert_says(&text, parts);
}

fn voters(instance: &Instance) -> Vec<u64> {
    let members = instance.status().members.into_iter();
    members.filter(|(_, member)| member.voter).map(|(id, _)| id.0).collect()
}

fn members(instance: &Instance) -> Vec<u64> {
    instance.status().members.keys().map(|id| id.0).collect()
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_is_added_promoted_and_removed_and_its_number_never_comes_back() {
    runtime::follow_seed(11);
    let wires = Wires::default();
    let three = found(&wires, &[1, 2, 3]).await;
    let (first, second) = (lead(&three, 1).await, &three[1]);
    let leader = &three[first];

    // The leader and a follower say the same.
    for by in [leader, second] {
        expect(by, promote(4), false, &["4 is not a member; members are 1, 2, 3"]).await;
        expect(by, add(4, "host-2:7000"), false, &["host-2:7000 is the address of instance 2"])
            .await;
        expect(by, promote(2), true, &["instance 2 votes already"]).await;
        expect(by, remove(5), false, &["5 is not a member; members are 1, 2, 3"]).await;
    }
    expect(
        second,
        add(4, "host-4:7000"),
        true,
        &["instance 4 at host-4:7000 is a learner", "start it with an empty"],
    )
    .await;
    assert_eq!((members(leader), voters(leader)), (vec![1, 2, 3, 4], vec![1, 2, 3]));
    expect(second, promote(4), false, &["instance 4 is not reached (", "refused"]).await;
    expect(second, add(4, "host-4:7000"), true, &["instance 4 at host-4:7000 is a learner"]).await;
    expect(second, transfer(4), false, &["instance 4 does not vote, so it cannot lead"]).await;
    expect(second, transfer(7), false, &["7 is not a member"]).await;

    let fourth = Instance::start(&wires, Given::with(4, &[1, 2, 3])).await;
    until("it serves", || fourth.serves()).await;
    expect(&fourth, promote(4), true, &["instance 4 votes"]).await;
    until("it may vote", || fourth.may_vote()).await;
    assert_eq!(voters(leader), [1, 2, 3, 4]);
    assert_eq!(leader.member(4).unwrap().store, Some(fourth.greeter.store()));
    until("it is the leader's to follow", || leader.status().failure_tolerance() == Some(1)).await;

    expect(second, remove(4), true, &["instance 4 is no longer a member"]).await;
    assert_eq!(members(leader), [1, 2, 3]);
    until("it knows", || fourth.is_removed()).await;
    assert!(!fourth.may_vote());
    until("its life is over", || fourth.was_over() == "this instance was removed from the cluster")
        .await;
    assert_says(&fourth.trouble().unwrap(), &["was removed from the cluster by entry", "number 4"]);
    expect(second, add(4, "host-4:7000"), false, &["instance 4 was a member before"]).await;
    // A learner goes as well.
    expect(second, add(5, "host-5:7000"), true, &["instance 5 at host-5:7000"]).await;
    expect(second, remove(5), true, &["instance 5 is no longer a member"]).await;
}

#[tokio::test(start_paused = true)]
async fn the_leadership_goes_to_one_that_is_there_and_has_caught_up() {
    runtime::follow_seed(12);
    let wires = Wires::default();
    let mut three = found(&wires, &[1, 2, 3]).await;
    lead(&three, 1).await;
    expect(&three[1], transfer(1), true, &["instance 1 leads"]).await;
    expect(&three[1], transfer(2), true, &["instance 2 leads"]).await;
    assert_eq!(leader(&three).await, 1);
    assert_eq!(three[0].step_down().await, None, "it does not lead");
    assert_eq!(three[1].step_down().await, None);
    assert_ne!(leader(&three).await, 1, "it gave the leadership away");
    // Removing the leader hands the leadership over first.
    let leads = leader(&three).await;
    let gone = three.remove(leads);
    let asked = &three[0];
    expect(asked, add(0, "host:7000"), false, &["0 is not the number of an instance"]).await;
    expect(asked, remove(gone.id.0), true, &["is no longer a member; stop it"]).await;
    let now = leader(&three).await;
    assert_eq!(members(&three[now]).len(), 2);
    gone.stop();

    // One of two voters that is away can neither take the leadership nor be done without.
    let away = three.remove(1 - now);
    let (id, disk) = (away.id.0, away.stop());
    let only = three.remove(0);
    let stays = only.id.0;
    let why = only.step_down().await.unwrap();
    assert_says(
        &why,
        &[
            "no other voter is there and has caught up",
            &format!("instance {} keeps the leadership", only.id.0),
        ],
    );
    seconds(0.6).await;
    expect(
        &only,
        transfer(id),
        false,
        &[&format!("instance {id} is not heard ("), "keeps the leadership"],
    )
    .await;
    expect(
        &only,
        remove(only.id.0),
        false,
        &["of the 1 voters that would be left only 0 are there"],
    )
    .await;
    seconds(2.0).await;
    match only.change(remove(id)).await {
        Err(ChangeError::NoMajority(why)) => {
            assert_says(&why, &["no majority of the voters is reached"])
        }
        other => panic!("{other:?}"),
    }
    let back = Instance::start(&wires, Given::with(id, &[1, 2, 3]).on(disk)).await;
    until("it serves", || back.serves()).await;
    let two = [only, back];
    let only = &two[lead(&two, stays).await];
    expect(only, remove(id), true, &["is no longer a member"]).await;
    expect(only, remove(only.id.0), false, &["is the only voter; promote another one first"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_member_is_moved_when_it_is_not_well_where_it_is() {
    runtime::follow_seed(13);
    let wires = Wires::default();
    let mut three = found(&wires, &[1, 2, 3]).await;
    let first = lead(&three, 1).await;
    expect(
        &three[1],
        add(1, "new:7000"),
        false,
        &["instance 1 leads and is reached at host-1:7000: stop it"],
    )
    .await;
    expect(
        &three[1],
        add(3, "new:7000"),
        false,
        &["instance 3 runs and is reached at host-3:7000, but not at new:7000 ("],
    )
    .await;
    expect(&three[1], add(3, "host-3:7000"), true, &["instance 3 is now reached at host-3:7000"])
        .await;
    // It listens there as well.
    wires.listen_also("host-3:7000", "also:7000");
    expect(&three[1], add(3, "also:7000"), true, &["instance 3 is now reached at also:7000"]).await;
    assert_eq!(three[first].member(3).unwrap().raft_addr, "also:7000");

    let third = three.pop().unwrap();
    let store = Some(third.greeter.store());
    let disk = third.stop();
    seconds(5.0).await;
    expect(
        &three[1],
        add(3, "new:7000"),
        true,
        &["instance 3 is now looked for at new:7000", "data directory as it is"],
    )
    .await;
    assert_eq!(three[first].member(3), Some(Member { store, ..Member::at("new:7000") }));
    let given = Given { address: "new:7000".to_owned(), ..Given::with(3, &[1, 2, 3]).on(disk) };
    let third = Instance::start(&wires, given).await;
    until("it serves", || third.serves()).await;
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_no_other_could_reach_takes_none_in() {
    runtime::follow_seed(14);
    let founding = Founding::Alone(Member::default());
    let given = Given { founding, address: String::new(), ..Given::alone(1) };
    let alone = Instance::start(&Wires::default(), given).await;
    until("it serves", || alone.serves()).await;
    expect(
        &alone,
        add(2, "host-2:7000"),
        false,
        &["no instance reaches instance 1, because it has no --raft-addr"],
    )
    .await;
    expect(&alone, add(1, "host-1:7000"), true, &["instance 1 is now reached at host-1:7000"])
        .await;
    expect(&alone, add(2, "host-2:7000"), true, &["instance 2 at host-2:7000 is a learner"]).await;
}

#[tokio::test(start_paused = true)]
async fn rules_are_raised_once_every_member_knows_them() {
    runtime::follow_seed(15);
    let (wires, ids) = (Wires::default(), [1, 2, 3]);
    let newer =
        RulesOptions { newest: Rules(Rules::NEWEST.0 + 1), raise_after: Duration::from_secs(3) };
    let mut three = Vec::new();
    for (id, rules) in [(1, newer), (2, newer), (3, RulesOptions::default())] {
        three.push(Instance::start(&wires, Given { rules, ..Given::with(id, &ids) }).await);
    }
    until("all serve", || three.iter().all(Instance::serves)).await;
    lead(&three, 1).await;
    for by in &three {
        expect(
            by,
            Change::Upgrade,
            false,
            &["is not raised", "instance 3 (host-3:7000) knows versions up to"],
        )
        .await;
    }
    let status = three[0].status();
    assert_eq!((status.rules, status.newest_rules), (Rules::NEWEST, newer.newest));
    let known: Vec<_> = status.members.values().map(|member| member.newest_rules).collect();
    assert_eq!(known, [Some(newer.newest), Some(newer.newest), Some(Rules::NEWEST)]);
    seconds(12.0).await;
    assert_eq!(three[0].status().rules, Rules::NEWEST, "not while one cannot follow");
    // One whose program was changed says so from its next start on.
    for id in [1, 2] {
        let disk = three.remove(0).stop();
        let given = Given::with(id, &ids).on(disk);
        three.push(Instance::start(&wires, given).await);
        until("it serves", || three[2].serves()).await;
    }
    for by in &three {
        expect(by, Change::Upgrade, true, &["is in force, and no instance knows a newer one"])
            .await;
    }
}

/// Takes note of what is to be written.
#[derive(Default)]
struct Recorder(Mutex<Vec<Command>>);

impl Writer for Recorder {
    fn write(
        &self,
        _: Option<BatchId>,
        commands: Vec<Command>,
    ) -> BoxFuture<'static, Result<Written, WriteError>> {
        self.0.lock().unwrap().extend(commands);
        Box::pin(std::future::ready(Ok(Written { index: 1, verdict: Verdict::Applied })))
    }
}

/// No program of today can apply newer rules, so it is seen what would be written.
#[tokio::test(start_paused = true)]
async fn the_leader_raises_the_rules_when_told_to_or_when_all_have_known_them_for_long_enough() {
    runtime::follow_seed(16);
    let (wires, ids) = (Wires::default(), [1, 2, 3]);
    let newest = Rules(Rules::NEWEST.0 + 1);
    let mut three = Vec::new();
    for id in ids {
        let rules = RulesOptions { newest, ..RulesOptions::default() };
        three.push(Instance::start(&wires, Given { rules, ..Given::with(id, &ids) }).await);
    }
    until("all serve", || three.iter().all(Instance::serves)).await;
    lead(&three, 1).await;
    let upgrades = |it: &Instance, raise_after| {
        let (writer, view) = (Arc::new(Recorder::default()), it.view().clone());
        let (raft, network, greeter) = (it.raft.clone(), it.network.clone(), it.greeter.clone());
        let made = Upgrades::new(raft, network, greeter, writer.clone(), view, raise_after);
        (made, writer)
    };
    let raise = Command::Raise { rules: newest };
    let (told, written) = upgrades(&three[0], Duration::from_secs(3600));
    let text = told.raise().await.unwrap();
    assert_says(&text, &["rules version 3 is in force now, version 2 was before"]);
    assert_eq!(written.0.lock().unwrap().first(), Some(&raise));

    let raise_after = Duration::from_secs(30);
    let (led, at_leader) = upgrades(&three[0], raise_after);
    let (follows, at_follower) = upgrades(&three[1], raise_after);
    let keeping = async {
        seconds(32.0).await;
        assert!(at_leader.0.lock().unwrap().is_empty(), "not yet");
        // One that does not answer may run an older program next.
        wires.set_apart(1, 3, true);
        seconds(8.0).await;
        wires.set_apart(1, 3, false);
        seconds(28.0).await;
        assert!(at_leader.0.lock().unwrap().is_empty(), "all must have known them all the time");
        seconds(15.0).await;
        assert_eq!(at_leader.0.lock().unwrap().first(), Some(&raise));
        assert!(at_follower.0.lock().unwrap().is_empty(), "it does not lead");
    };
    tokio::select! {
        () = keeping => {}
        ended = led.keep() => panic!("{ended:?}"),
        ended = follows.keep() => panic!("{ended:?}"),
    }
}
