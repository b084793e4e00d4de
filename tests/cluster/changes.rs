//! Changes of the cluster while one of its members is away, and members that move, join late or
//! were removed: an operator is told what is the case, and what to do.

use std::time::Duration;

use emnetchain::clock;
use tempfile::TempDir;

use crate::{
    replicas::{Cluster, chain_through},
    support::{
        Client, Member, Service, eventually, free_address,
        operator::{done, is_ready, operate, refused},
        told,
    },
};

/// Starts a cluster whose member list says that a member is not heard.
fn with_a_dead_follower() -> (Cluster, usize, usize, usize) {
    let mut cluster = Cluster::start(&[]);
    let (leader, followers) = (cluster.leader(), cluster.followers());
    let (dead, living) = (followers[0], followers[1]);
    cluster.kill(dead);
    cluster.wait_ready();
    (cluster, leader, dead, living)
}

#[test]
fn the_leadership_goes_to_a_member_that_is_heard() {
    let (cluster, leader, dead, living) = with_a_dead_follower();
    let begun = clock::now();
    let leads = format!("instance {leader} keeps the leadership");
    refused(cluster.at(living), &["transfer-leader", &dead.to_string()], &["is not heard", &leads]);
    assert!(clock::now() - begun < Duration::from_millis(2_500), "it is said at once");
    let said = done(cluster.at(living), &["transfer-leader"]);
    assert!(said.contains(&format!("instance {living} leads")), "{said}");
    done(cluster.at(living), &["drain"]);
    eventually("the drained one leads no longer", || {
        (cluster.status(leader)["leader"] == leader as u64).then_some(())
    });
}

/// With one of three gone, taking out another one would leave no majority.
#[test]
fn a_removal_that_leaves_no_majority_is_refused() {
    let (cluster, leader, dead, living) = with_a_dead_follower();
    eventually("it is silent", || {
        let status = cluster.status(leader);
        let mut members = status["members"].as_array().unwrap().iter();
        let silent = members.find(|one| one["node"] == dead as u64)?["silent_ms"].as_u64();
        silent.is_none_or(|silent| silent > 700).then_some(())
    });
    let expected = ["of the 2 voters that would be left only 1 are there"];
    refused(cluster.at(leader), &["remove", &living.to_string()], &expected);
    cluster.wait_ready();
    done(cluster.at(leader), &["remove", &dead.to_string()]);
    cluster.wait_ready();
}

#[test]
fn a_wrong_address_of_a_new_member_is_corrected_while_the_leader_runs() {
    let dir = TempDir::new().unwrap();
    let first = free_address().to_string();
    let alone = Service::start(&dir.path().join("1"), &["--raft-addr", &first]);
    eventually("it serves", || is_ready(&alone));
    done(&alone, &["add", &format!("2={}", free_address())]);
    let said = done(&alone, &["add", &format!("2={}", free_address())]);
    assert!(said.contains("start it with an empty data directory"), "{said}");
    let flags = said.lines().last().unwrap().split_whitespace().collect::<Vec<_>>();
    let second = Service::start(&dir.path().join("2"), &flags);
    eventually("the newcomer serves", || is_ready(&second));
    eventually("it votes", || (operate(&alone, &["promote", "2"]).0 == 0).then_some(()));
}

#[test]
fn a_member_that_moves_is_found_at_its_new_address_and_serves_clients_there() {
    let (cluster, leader, moved, living) = with_a_dead_follower();
    let members = [0, 1].map(Member);
    let mut tip = chain_through(&members, || cluster.at(living));
    // A member that is well is not sent to an address where it is not.
    let nowhere = format!("{living}={}", free_address());
    refused(cluster.at(leader), &["add", &nowhere], &["runs and is reached at", "stop it first"]);
    // Nor is any sent to the address of another one.
    let taken = format!("{moved}={}", cluster.raft(living));
    let another = format!("is the address of instance {living}");
    refused(cluster.at(leader), &["add", &taken], &[&another]);
    let address = free_address();
    eventually("the dead one is not heard any more", || {
        let (code, said) = operate(cluster.at(leader), &["add", &format!("{moved}={address}")]);
        assert!(!said.contains("start it with an empty data directory"), "{said}");
        (code == 0 && said.contains("with its data directory as it is")).then_some(())
    });
    let arguments = cluster.arguments(moved);
    let raft = cluster.raft(moved).to_string();
    let arguments =
        arguments.iter().map(|word| if *word == raft { address.to_string() } else { word.clone() });
    let service = Service::try_start(&cluster.data_dir(moved), arguments.collect()).unwrap();
    eventually("it serves", || is_ready(&service));
    // It votes, and what its clients say gets to the leader.
    let hand_over = ["transfer-leader", &moved.to_string()];
    eventually("it is heard", || (operate(cluster.at(leader), &hand_over).0 == 0).then_some(()));
    eventually("it leads", || (cluster.status(leader)["leader"] == moved as u64).then_some(()));
    let newcomer = Member(7);
    let mut client = Client::say(service.chain(), newcomer.connect());
    assert_eq!(client.object(), told("tail", &members[1].head()));
    assert_eq!(tip.rest(), told("head", &newcomer.tail()));
}

/// One address has many spellings, and the members look at what it stands for.
#[test]
fn an_address_is_the_same_however_it_is_spelled() {
    let cluster = Cluster::start(&[]);
    let (leader, followers) = (cluster.leader(), cluster.followers());
    let port = |id: usize| cluster.raft(id).port();
    for spelled in ["LocalHost:0", "[::ffff:127.0.0.1]:", "127.0.0.1:0"] {
        let taken = format!("{}={spelled}{}", followers[0], port(followers[1]));
        let another = format!("is the address of instance {}", followers[1]);
        refused(cluster.at(leader), &["add", &taken], &[&another]);
    }
    // A member that runs may move to another spelling of its own address; so may the leader.
    for id in [followers[0], leader] {
        let said = done(cluster.at(leader), &["add", &format!("{id}=LocalHost:0{}", port(id))]);
        assert!(said.contains(&format!("is now reached at localhost:{}", port(id))), "{said}");
    }
    let dotted = format!("{}=LOCALHOST.:{}", followers[1], port(leader));
    let as_known = format!("(as localhost:{})", port(leader));
    refused(cluster.at(leader), &["add", &dotted], &[&as_known]);
    cluster.wait_ready();
    drop(chain_through(&[0, 1].map(Member), || cluster.at(followers[0])));
}

/// That it was heard a moment ago does not mean that it is there.
#[test]
fn a_member_that_was_stopped_just_now_can_be_moved_at_once() {
    let mut cluster = Cluster::start(&[]);
    let (leader, stopped) = (cluster.leader(), cluster.followers()[0]);
    cluster.kill(stopped);
    let said = done(cluster.at(leader), &["add", &format!("{stopped}={}", free_address())]);
    assert!(said.contains("with its data directory as it is"), "{said}");
}

/// `--cluster-id` without a list: the leader finds the newcomer, so it needs to know no member.
#[test]
fn an_instance_without_a_list_gets_in_once_it_is_added() {
    let dir = TempDir::new().unwrap();
    let first = free_address().to_string();
    let alone = Service::start(&dir.path().join("1"), &["--raft-addr", &first]);
    eventually("it serves", || is_ready(&alone));
    let status: serde_json::Value = serde_json::from_str(&alone.get("/status").1).unwrap();
    let (cluster, own) = (status["cluster"].as_str().unwrap(), free_address().to_string());
    let flags = ["--node-id", "2", "--raft-addr", &own, "--cluster-id", cluster];
    let second = Service::start(&dir.path().join("2"), &flags);
    eventually("it says what it waits for", || {
        second.get("/readyz").1.contains("EMNetChain cluster add 2=").then_some(())
    });
    done(&alone, &["add", &format!("2={own}")]);
    eventually("it serves", || is_ready(&second));
}

/// It can answer no client any more, and an operator may stop it late.
#[test]
fn a_removed_member_that_runs_on_sends_its_clients_away() {
    let cluster = Cluster::start(&[]);
    let (leader, removed) = (cluster.leader(), cluster.followers()[0]);
    let mut waiting = Client::say(cluster.at(removed).chain(), Member(0).connect());
    waiting.expect_silence();
    done(cluster.at(leader), &["remove", &removed.to_string()]);
    waiting.expect_end();
    let why = eventually("it says that it was removed", || {
        let (code, why) = cluster.at(removed).get("/readyz");
        (code == 503 && why.contains("was removed from the cluster by entry")).then_some(why)
    });
    assert!(why.contains("is never used again"), "{why}");
    let mut late = Client::say(cluster.at(removed).chain(), Member(0).connect());
    late.expect_end();
}

#[test]
fn a_removed_member_that_starts_again_says_so() {
    let mut cluster = Cluster::start(&[]);
    let (leader, removed) = (cluster.leader(), cluster.followers()[0]);
    cluster.kill(removed);
    eventually("it is removed", || {
        (operate(cluster.at(leader), &["remove", &removed.to_string()]).0 == 0).then_some(())
    });
    cluster.wait_ready();
    let again = cluster.try_start(removed).expect("it keeps running");
    let why = eventually("it says that it was removed", || {
        let (code, why) = again.get("/readyz");
        (code == 503 && why.contains("was removed from the cluster by entry")).then_some(why)
    });
    assert!(why.contains("is never used again"), "{why}");
    let (_, status) = operate(&again, &["status"]);
    assert!(status.contains("was removed from the cluster by entry"), "{status}");
    assert!(again.log().contains("was removed from the cluster by entry"), "{}", again.log());
    cluster.wait_ready();
}
