//! A replica whose registry is not that of the others.

use std::process::Command;

use crate::{
    replicas::{Cluster, chain_through},
    support::{Client, Member, eventually, told},
    wrong::make_registry_wrong,
};

const DIFFERS: &str = "emnetchain_replicas_differ";

/// Stops an instance and gives it a registry that its log does not say.
fn damage(cluster: &mut Cluster, id: usize, source: [u8; 4]) {
    cluster.take(id).stop();
    make_registry_wrong(&cluster.data_dir(id), id, source.into());
}

/// Waits until an instance has left service because of this.
fn expect_out_of_service(cluster: &Cluster, id: usize, why: &str) {
    eventually("it has left service", || {
        let (status, said) = cluster.at(id).get("/readyz");
        (status == 503 && said.contains(why) && said.contains("at entry")).then_some(())
    });
    assert_eq!(cluster.at(id).metric(DIFFERS), 1.0);
}

fn expect_in_service(cluster: &Cluster, id: usize) {
    eventually("it is in service", || cluster.is_ready(id).then_some(()));
    assert_eq!(cluster.at(id).metric(DIFFERS), 0.0);
}

#[test]
fn one_that_differs_from_the_majority_tells_no_client_anything() {
    let members = [0, 1, 2, 3].map(Member);
    let mut cluster = Cluster::start(&[]);
    drop(chain_through(&members[..3], || cluster.at(1)));
    let wrong = cluster.followers()[0];
    damage(&mut cluster, wrong, [192, 0, 2, 1]);
    cluster.start_these(&[wrong]);
    expect_out_of_service(&cluster, wrong, "differs from that of a majority");
    let log = cluster.at(wrong).log();
    assert_eq!(log.matches("leaving service").count(), 1, "{log}");

    // It is still a voter: with it and one more, entries are written and clients are told.
    let other = cluster.ids().find(|id| *id != wrong && *id != leader_of(&cluster)).unwrap();
    cluster.kill(other);
    let healthy = cluster.ids().find(|id| *id != wrong && *id != other).unwrap();
    expect_in_service(&cluster, healthy);
    let mut newcomer = Client::say(cluster.at(healthy).chain(), members[3].connect());
    assert_eq!(newcomer.object(), told("tail", &members[2].head()));
    expect_out_of_service(&cluster, wrong, "differs from that of a majority");

    // It cannot keep the leadership either.
    cluster.start_these(&[other]);
    expect_in_service(&cluster, other);
    let mut transfer = Command::new(env!("CARGO_BIN_EXE_EMNetChain"));
    transfer.args(["cluster", "transfer-leader", &wrong.to_string()]).env_clear();
    transfer.args(["--http-addr", &cluster.at(healthy).address("HTTP").to_string()]);
    // It may have lost the leadership before the command sees that it had it.
    drop(transfer.output().unwrap());
    eventually("another one leads, and all of them know", || {
        let leader = |id: &usize| cluster.status(*id)["leader"].as_u64();
        let leaders: Vec<_> = cluster.running().iter().map(leader).collect();
        let is_healthy = leaders[0].is_some_and(|leader| leader != wrong as u64);
        (is_healthy && leaders.iter().all(|leader| *leader == leaders[0])).then_some(())
    });
}

fn leader_of(cluster: &Cluster) -> usize {
    let leads = |id: &usize| cluster.status(*id)["role"] == "leader";
    eventually("one leads", || cluster.running().into_iter().find(leads))
}

#[test]
fn without_a_majority_none_answers_until_there_is_one() {
    let members = [0, 1, 2].map(Member);
    let mut cluster = Cluster::start(&[]);
    drop(chain_through(&members, || cluster.at(1)));
    let [absent, wrong] = cluster.followers()[..] else { panic!("there are two followers") };
    let right = cluster.leader();
    cluster.take(absent).stop();
    damage(&mut cluster, wrong, [192, 0, 2, 1]);
    cluster.start_these(&[wrong]);
    expect_out_of_service(&cluster, wrong, "no majority of the voters has the same");
    expect_out_of_service(&cluster, right, "no majority of the voters has the same");
    let mut client = Client::say(cluster.at(right).chain(), members[1].connect());
    client.expect_end();

    cluster.start_these(&[absent]);
    expect_in_service(&cluster, right);
    expect_in_service(&cluster, absent);
    expect_out_of_service(&cluster, wrong, "differs from that of a majority");
    let mut client = Client::say(cluster.at(right).chain(), members[1].connect());
    let all = told("tail", &members[0].head()) + &told("head", &members[2].tail());
    assert_eq!(client.rest(), all);
}
