//! Clients that come to any instance are one chain.

use crate::{
    replicas::{Cluster, chain_through},
    support::{Chance, Client, Member, Service, reconnect, repaired, told},
};

/// Two neighbours of a lost client ask at these instances, and are told each other.
fn expect_repair(at: [&Service; 2], ids: [&str; 2], before: Member, after: Member) {
    let mut one = Client::say(at[0].repair(), reconnect(ids[0], &before.head()));
    let mut other = Client::say(at[1].repair(), reconnect(ids[1], &after.tail()));
    assert_eq!(one.rest(), repaired(&after.tail()));
    assert_eq!(other.rest(), repaired(&before.head()));
}

/// A client that comes back is told its neighbours, and closed if it has both or is the first.
pub(super) fn expect_neighbours(at: &Service, member: Member, tail: Option<Member>, head: Member) {
    let mut client = Client::say(at.chain(), member.connect());
    let tail = tail.map(|tail| told("tail", &tail.head())).unwrap_or_default();
    assert_eq!(client.rest(), tail + &told("head", &head.tail()));
}

/// Five clients of random instances are linked, the third is lost, and its neighbours ask at
/// different instances.
fn the_third_of_five_is_lost(ids: [&str; 2]) {
    let cluster = Cluster::start(&[]);
    let mut chance = Chance::new();
    let members @ [a, b, _, d, e] = [0, 1, 2, 3, 4].map(Member);
    let mut tip = chain_through(&members, || cluster.at(1 + chance.below(3)));
    let first = chance.below(3);
    let at = [first, first + 1].map(|number| cluster.at(1 + number % 3));
    expect_repair(at, ids, b, d);
    tip.expect_silence();
    for id in cluster.ids() {
        expect_neighbours(cluster.at(id), a, None, b);
        expect_neighbours(cluster.at(id), b, Some(a), d);
        expect_neighbours(cluster.at(id), d, Some(b), e);
    }
    cluster.assert_equal_registries();
}

#[test]
fn clients_of_all_instances_are_one_chain_and_a_leave_is_repaired() {
    the_third_of_five_is_lost(["given at parting", "given at parting"]);
}

#[test]
fn a_crash_is_repaired_by_neighbours_at_different_instances() {
    the_third_of_five_is_lost(["an id", "another id"]);
}
