//! An instance that is told to stop.

use std::time::Duration;

use emnetchain::clock;

use crate::{
    replicas::{Cluster, chain_through},
    strangers::longest_wait_while,
    support::{Client, Member, PATIENCE, eventually, operator::done, told},
};

#[test]
fn a_leader_that_is_stopped_hands_over_and_lets_its_clients_wait_until_the_deadline() {
    let mut cluster = Cluster::start(&["--shutdown-deadline", "2s"]);
    let leader = cluster.leader();
    let members = [0, 1, 2].map(Member);
    let mut tip = chain_through(&members[..2], || cluster.at(leader));
    let mut leaving = cluster.take(leader);
    let others = cluster.running();
    let at = [others[0], others[1]].map(|id| cluster.at(id));
    let gap = longest_wait_while(at, |strangers| {
        leaving.signal("TERM");
        let why = eventually("it is not ready", || {
            let (code, why) = leaving.get("/readyz");
            (code == 503).then_some(why)
        });
        assert!(why.contains("stopped"), "{why}");
        assert!(leaving.wait_within(Duration::ZERO).is_none(), "it still runs");
        eventually("another one leads", || {
            let now = cluster.status(others[0])["leader"].as_u64()?;
            (now != leader as u64).then_some(())
        });
        strangers.more();
        assert_eq!(tip.hear_for(PATIENCE), "", "it is closed");
        assert_eq!(leaving.wait().code(), Some(0), "{}", leaving.log());
    });
    println!("the longest time without an answer: {gap:?}");

    let mut back = Client::say(at[0].chain(), members[1].connect());
    assert_eq!(back.object(), told("tail", &members[0].head()));
    let mut newcomer = Client::say(at[1].chain(), members[2].connect());
    assert_eq!(newcomer.object(), told("tail", &members[1].head()));
    assert_eq!(back.rest(), told("head", &members[2].tail()));
    cluster.assert_equal_registries();
}

/// Without a majority nothing is written any more, and the deadline is all that ends the wait.
#[test]
fn the_deadline_holds_for_the_whole_stop_without_a_majority() {
    const DEADLINE: Duration = Duration::from_secs(4);
    let mut cluster = Cluster::start(&["--shutdown-deadline", "4s"]);
    let last = cluster.leader();
    for other in cluster.followers() {
        cluster.kill(other);
    }
    eventually("it is not ready", || (!cluster.is_ready(last)).then_some(()));
    let mut waiting = Client::say(cluster.at(last).chain(), Member(0).connect());
    waiting.expect_silence();
    let mut service = cluster.take(last);
    let told = clock::now();
    assert_eq!(service.stop().code(), Some(0), "{}", service.log());
    let took = clock::now() - told;
    println!("it took {took:?}");
    assert!(took < DEADLINE + Duration::from_millis(2500), "{took:?}");
}

#[test]
fn an_instance_without_clients_that_never_served_stops_at_once() {
    let limit = Duration::from_secs(25);
    let flags = ["--shutdown-deadline", "50s"];
    let stops_at_once = |cluster: &mut Cluster, id: usize, waits_for: &str| {
        eventually("it says what it waits for", || {
            cluster.at(id).get("/readyz").1.contains(waits_for).then_some(())
        });
        let mut service = cluster.take(id);
        let told = clock::now();
        service.signal("TERM");
        let ended = service.wait_within(limit);
        let took = clock::now() - told;
        println!("{waits_for}: it took {took:?}");
        assert_eq!(ended.and_then(|status| status.code()), Some(0), "{took:?} {}", service.log());
    };
    let mut cluster = Cluster::new(&flags);
    cluster.start_these(&[1]);
    stops_at_once(&mut cluster, 1, "founding the cluster: waiting for");
    cluster.start_these(&[1, 2, 3]);
    cluster.wait_ready();
    cluster.ids().for_each(|id| cluster.kill(id));
    cluster.start_these(&[2]);
    stops_at_once(&mut cluster, 2, "no majority of its 3 voters is reached");
}

#[test]
fn an_instance_that_was_drained_says_so_and_what_is_missing_besides() {
    let mut cluster = Cluster::start(&[]);
    let (leader, drained) = (cluster.leader(), cluster.followers()[0]);
    let said = done(cluster.at(drained), &["drain"]);
    assert!(!said.contains("leads"), "it does not lead: {said}");
    let says = |cluster: &Cluster, words: &[&str]| {
        eventually(&format!("it says {words:?}"), || {
            let (code, why) = cluster.at(drained).get("/readyz");
            assert!(!why.contains("is being stopped"), "{why}");
            (code == 503 && words.iter().all(|word| why.contains(word))).then_some(())
        });
    };
    let way_out = "restart it to have it serve again";
    says(&cluster, &["an operator drained this instance", way_out]);
    for other in cluster.ids().filter(|id| *id != drained) {
        cluster.kill(other);
    }
    let away = format!("{leader} ({})", cluster.raft(leader));
    says(&cluster, &[way_out, "no majority of its 3 voters is reached", &away]);
}

#[test]
fn a_leader_that_is_drained_and_cannot_hand_over_says_that_it_still_leads() {
    let mut cluster = Cluster::start(&[]);
    let (leader, others) = (cluster.leader(), cluster.followers());
    others.iter().for_each(|id| cluster.kill(*id));
    let said = done(cluster.at(leader), &["drain"]);
    assert!(said.contains("it still leads: no other voter is there"), "{said}");
}
