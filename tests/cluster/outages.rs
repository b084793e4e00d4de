//! Outages of a majority, and of all.

use serde_json::Value;

use super::chains::expect_neighbours;
use crate::{
    replicas::{Cluster, chain_through, wait_for_asks},
    support::{
        Chance, Client, Member, eventually,
        operator::{done, operate, refused},
        reconnect, repaired, told,
    },
};

#[test]
fn after_an_outage_of_all_each_client_gets_its_place_again() {
    let mut cluster = Cluster::start(&["--resume-grace", "10min"]);
    let mut chance = Chance::new();
    let members: Vec<Member> = (0..5).map(Member).collect();
    let _tip = chain_through(&members, || cluster.at(1 + chance.below(3)));
    let half = reconnect("half", "127.0.0.9:2000");
    let _half = Client::say(cluster.at(2).repair(), &half);
    wait_for_asks(cluster.at(1), 2);
    let before = cluster.status(1);

    let mut order = [1, 2, 3];
    order.iter().for_each(|id| cluster.kill(*id));
    chance.shuffle(&mut order);
    println!("they are started again as {order:?}");
    cluster.start_these(&order);
    cluster.wait_ready();

    let mut tip = Client::say(cluster.at(order[0]).chain(), members[4].connect());
    assert_eq!(tip.object(), told("tail", &members[3].head()));
    for neighbours in members.windows(3) {
        let at = cluster.at(1 + chance.below(3));
        expect_neighbours(at, neighbours[1], Some(neighbours[0]), neighbours[2]);
    }
    expect_neighbours(cluster.at(order[1]), members[0], None, members[1]);
    let other = reconnect("half", "127.0.0.9:2001");
    assert_eq!(
        Client::say(cluster.at(order[1]).repair(), &other).rest(),
        repaired("127.0.0.9:2000"),
        "half a repair waits as well"
    );
    assert_eq!(
        Client::say(cluster.at(order[2]).repair(), &half).rest(),
        repaired("127.0.0.9:2001")
    );
    for id in cluster.ids() {
        let now = cluster.status(id);
        assert_eq!(now["cluster"], before["cluster"]);
        assert_eq!(now["chains"]["links"], before["chains"]["links"]);
        assert_eq!(voters(&now), voters(&before));
        let index = |status: &Value| status["applied_index"].as_u64().unwrap();
        assert!(index(&now) > index(&before), "the log goes on; it did not begin again");
    }
    cluster.assert_equal_registries();
}

/// Number and address of those that vote.
fn voters(status: &Value) -> Vec<(Value, Value)> {
    let members = status["members"].as_array().unwrap().iter();
    let voters = members.filter(|member| member["voter"] == true);
    voters.map(|member| (member["node"].clone(), member["address"].clone())).collect()
}

#[test]
fn one_of_three_says_that_it_is_not_ready_and_its_clients_wait() {
    let mut cluster = Cluster::start(&["--resume-grace", "10min"]);
    let leader = cluster.leader();
    let [down, left] = cluster.followers()[..] else { panic!("there are two followers") };
    let members = [0, 1, 2].map(Member);
    let mut tip = chain_through(&members[..2], || cluster.at(left));
    cluster.kill(down);
    cluster.kill(leader);
    let why = eventually("it is not ready", || {
        let (code, why) = cluster.at(left).get("/readyz");
        (code == 503).then_some(why)
    });
    assert!(why.contains("leader") || why.contains("majority"), "{why:?} is a reason");

    let mut newcomer = Client::say(cluster.at(left).chain(), members[2].connect());
    newcomer.expect_silence();
    tip.expect_silence();
    cluster.start_these(&[down]);
    assert_eq!(newcomer.object(), told("tail", &members[1].head()));
    assert_eq!(tip.rest(), told("head", &members[2].tail()));
    cluster.wait_ready();
    cluster.assert_equal_registries();
}

#[test]
fn operators_are_told_that_no_majority_is_reached_and_no_leader_that_is_gone() {
    let mut cluster = Cluster::start(&[]);
    let leader = cluster.leader();
    let [down, left] = cluster.followers()[..] else { panic!("there are two followers") };
    cluster.kill(down);
    cluster.kill(leader);
    let at = cluster.at(left);
    eventually("it names no leader", || cluster.status(left)["leader"].is_null().then_some(()));
    let page = done(at, &["status"]);
    let is_leader = |line: &str| line.split_whitespace().nth(1) == Some("leader");
    assert!(!page.lines().any(is_leader), "{page}");
    let away = [leader, down].map(|id| format!("{id} ({})", cluster.raft(id)));
    let expected = ["no majority of its 3 voters is reached", &away[0], &away[1], "start what is"];
    refused(at, &["add", "9=127.0.0.1:9"], &expected);
    let (code, said) = operate(at, &["upgrade"]);
    assert!(code == 69 && expected.iter().all(|part| said.contains(part)), "{said}");
    assert!(!said.contains("cluster remove"), "{said}");
}

#[test]
fn a_leader_whose_majority_has_just_gone_says_so_to_operators() {
    let mut cluster = Cluster::start(&[]);
    let leader = cluster.leader();
    let others = cluster.followers();
    others.iter().for_each(|id| cluster.kill(*id));
    // It does not know yet, and begins.
    let expected = ["no majority", &format!("{} ({})", others[0], cluster.raft(others[0]))];
    refused(cluster.at(leader), &["add", "9=127.0.0.1:9"], &expected);
    let (code, said) = operate(cluster.at(leader), &["upgrade"]);
    assert!(code == 69 && said.contains("no majority"), "{said}");
    assert!(!said.contains("cluster remove"), "{said}");
}
