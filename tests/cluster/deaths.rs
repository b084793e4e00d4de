//! Instances that die or freeze, one of three.

use std::{thread, time::Duration};

use emnetchain::clock;

use super::chains::expect_neighbours;
use crate::{
    replicas::{Cluster, chain_through, wait_for_asks},
    support::{Client, Member, PATIENCE, eventually, reconnect, repaired, told},
};

/// Sockets of strangers that wait for each other with an id of their own.
fn strangers(number: usize) -> [(String, String); 2] {
    let socket = |part: usize| format!("127.0.0.9:{}", 2000 + 2 * number + part);
    [0, 1].map(|part| (format!("id {number}"), socket(part)))
}

fn ask((id, socket): &(String, String), cluster: &Cluster, at: usize) -> Client {
    Client::say(cluster.at(at).repair(), reconnect(id, socket))
}

#[test]
fn clients_of_a_killed_leader_are_told_elsewhere_and_the_others_where_they_wait() {
    let mut cluster = Cluster::start(&["--resume-grace", "10min"]);
    let leader = cluster.leader();
    let [one, other] = cluster.followers()[..] else { panic!("there are two followers") };
    let members: Vec<Member> = (0..5).map(Member).collect();
    let mut tip = chain_through(&members, || cluster.at(leader));
    let pairs = [one, other, leader].map(|id| (id, strangers(id)));
    let mut waiting: Vec<Client> =
        pairs.iter().map(|(id, [first, _])| ask(first, &cluster, *id)).collect();
    wait_for_asks(cluster.at(one), 4);

    cluster.kill(leader);
    let mut lost = waiting.pop().unwrap();
    assert_eq!((tip.hear_for(PATIENCE), lost.hear_for(PATIENCE)), <_>::default());
    tip = Client::say(cluster.at(one).chain(), members[4].connect());
    assert_eq!(tip.object(), told("tail", &members[3].head()), "as it was told before");
    waiting.push(ask(&pairs[2].1[0], &cluster, other));

    let newest = Member(5);
    let mut newcomer = Client::say(cluster.at(other).chain(), newest.connect());
    assert_eq!(newcomer.object(), told("tail", &members[4].head()));
    assert_eq!(tip.rest(), told("head", &newest.tail()));
    for ((_, [first, second]), mut client) in pairs.iter().zip(waiting) {
        assert_eq!(ask(second, &cluster, one).rest(), repaired(&first.1));
        assert_eq!(client.rest(), repaired(&second.1));
    }

    cluster.start_these(&[leader]);
    cluster.wait_ready();
    for id in cluster.ids() {
        for neighbours in members.windows(3) {
            expect_neighbours(cluster.at(id), neighbours[1], Some(neighbours[0]), neighbours[2]);
        }
        for (_, [first, second]) in &pairs {
            assert_eq!(ask(first, &cluster, id).rest(), repaired(&second.1));
            assert_eq!(ask(second, &cluster, id).rest(), repaired(&first.1));
        }
    }
    cluster.assert_equal_registries();
}

#[test]
fn clients_of_a_dead_instance_that_do_not_come_back_are_linked_to_no_other() {
    let mut cluster = Cluster::start(&["--resume-grace", "1s"]);
    let [dying, living] = cluster.followers()[..] else { panic!("there are two followers") };
    let [first, dead, newcomer] = [0, 1, 2].map(Member);
    let _lost = chain_through(&[first, dead], || cluster.at(dying));
    let [one, other] = strangers(1);
    let _lost_too = ask(&one, &cluster, dying);
    wait_for_asks(cluster.at(living), 2);
    cluster.kill(dying);
    wait_for_asks(cluster.at(living), 0);

    let mut newest = Client::say(cluster.at(living).chain(), newcomer.connect());
    let mut alone = ask(&other, &cluster, living);
    newest.expect_silence();
    alone.expect_silence();

    // But they may come back as late as they like.
    let mut back = Client::say(cluster.at(living).chain(), dead.connect());
    let linked = told("tail", &first.head()) + &told("head", &newcomer.tail());
    assert_eq!(back.rest(), linked);
    assert_eq!(newest.object(), told("tail", &dead.head()));
    assert_eq!(ask(&one, &cluster, living).rest(), repaired(&other.1));
    assert_eq!(alone.rest(), repaired(&one.1));
    cluster.assert_equal_registries();
}

/// Stops an instance until the others have given it up, and lets it go on.
fn an_instance_is_frozen(leads: bool) {
    let cluster = Cluster::start(&["--resume-grace", "10min"]);
    let [frozen, other] = match (leads, &cluster.followers()[..]) {
        (true, [one, _]) => [cluster.leader(), *one],
        (false, [one, other]) => [*one, *other],
        (_, others) => panic!("followers: {others:?}"),
    };
    let members = [0, 1, 2].map(Member);
    let mut tip = chain_through(&members, || cluster.at(frozen));
    cluster.at(frozen).signal("STOP");
    eventually("the others give it up", || {
        let mut others = cluster.ids().filter(|id| *id != frozen);
        others.any(|id| cluster.at(id).log().contains("its clients may come back")).then_some(())
    });
    cluster.at(frozen).signal("CONT");
    assert_eq!(tip.hear_for(PATIENCE), "", "it is closed");
    cluster.wait_ready();

    // Between its two lives, a client that comes is sent away once more.
    let (mut back, answer) = eventually("it serves", || {
        let mut back = Client::say(cluster.at(frozen).chain(), members[2].connect());
        let answer = back.object_or_end()?;
        Some((back, answer))
    });
    assert_eq!(answer, told("tail", &members[1].head()));
    let newest = Member(3);
    let mut newcomer = Client::say(cluster.at(other).chain(), newest.connect());
    assert_eq!(newcomer.object(), told("tail", &members[2].head()));
    assert_eq!(back.rest(), told("head", &newest.tail()));
    cluster.assert_equal_registries();
}

#[test]
fn a_frozen_follower_wakes_and_sends_its_clients_away() {
    an_instance_is_frozen(false);
}

#[test]
fn a_frozen_leader_wakes_and_sends_its_clients_away() {
    an_instance_is_frozen(true);
}

#[test]
fn clients_of_a_dead_instance_have_the_grace_to_come_back() {
    let mut cluster = Cluster::start(&["--resume-grace", "10min"]);
    let [dying, living] = cluster.followers()[..] else { panic!("there are two followers") };
    let [first, second, third] = [0, 1, 2].map(Member);
    let _lost = chain_through(&[first, second], || cluster.at(dying));
    cluster.kill(dying);
    let mut newcomer = Client::say(cluster.at(living).chain(), third.connect());
    assert_eq!(newcomer.object(), told("tail", &second.head()), "it counts as asking");
    expect_neighbours(cluster.at(living), second, Some(first), third);
    let silent = newcomer.hear_for(Duration::from_millis(100));
    assert_eq!(silent, "");
}

/// What it sent to others may not have reached its own disk. If it led in the same term again, it
/// would give the same places in the log to other entries, and replicas would differ.
#[test]
fn a_leader_that_was_killed_does_not_go_on_in_its_old_term() {
    let mut cluster = Cluster::start(&[]);
    for _ in 0..3 {
        let leader = cluster.leader();
        let term = |id: usize| cluster.status(id)["term"].as_u64().unwrap();
        let before = term(leader);
        cluster.kill(leader);
        cluster.start_these(&[leader]);
        cluster.wait_ready();
        let now = cluster.status(leader)["term"].as_u64().unwrap();
        assert!(now > before, "term {now} after term {before}");
    }
}

/// A leader that was stopped itself has heard no instance, and is not one to judge.
#[test]
fn a_pause_of_all_instances_ends_no_life() {
    let cluster = Cluster::start(&["--resume-grace", "10min"]);
    let mut waiting: Vec<Client> =
        cluster.ids().map(|id| ask(&strangers(id)[0], &cluster, id)).collect();
    wait_for_asks(cluster.at(1), 3);
    let signal = |name: &str| cluster.ids().for_each(|id| cluster.at(id).signal(name));
    signal("STOP");
    thread::sleep(Duration::from_secs(5));
    signal("CONT");
    cluster.wait_ready();
    // The leader looks twice a second.
    thread::sleep(Duration::from_secs(2));
    cluster.wait_ready();
    let ended = |id: usize| cluster.at(id).metric("emnetchain_lives_ended_total");
    assert_eq!(cluster.ids().map(ended).sum::<f64>(), 0.0);
    waiting.iter_mut().for_each(Client::expect_silence);
}

/// A batch that was passed on to a leader is passed on to the next one as soon as there is one,
/// and does not wait for the answer of the first. One of three tries may be slow for other reasons.
#[test]
fn a_request_does_not_wait_for_a_leader_that_was_replaced() {
    let cluster = Cluster::start(&["--resume-grace", "10min"]);
    let mut times = Vec::new();
    for number in 0..3 {
        let leader = cluster.leader();
        let [one, other] = cluster.followers()[..] else { panic!("there are two followers") };
        cluster.at(leader).signal("STOP");
        let began = clock::now();
        let pair = strangers(number);
        let mut asking = [ask(&pair[0], &cluster, one), ask(&pair[1], &cluster, other)];
        assert_eq!(asking[0].rest(), repaired(&pair[1].1));
        assert_eq!(asking[1].rest(), repaired(&pair[0].1));
        times.push(clock::now() - began);
        cluster.at(leader).signal("CONT");
        cluster.wait_ready();
    }
    println!("a frozen leader costs {times:?}");
    // The leader had 6 s to answer.
    assert!(times.iter().min() < Some(&Duration::from_millis(4500)), "{times:?}");
}
