//! A cluster that changes while it serves: it grows from one instance to five, loses some for good
//! and gets others, all by the commands of an operator.

#![expect(clippy::unwrap_used, reason = "a helper that cannot go on fails its test")]

mod support;

use std::{net::TcpStream, path::Path, process::Command};

use support::{
    Client, Finish as _, Member, Service, chain, eventually, free_address,
    operator::{done, is_ready, operate, read_status, refused},
    repaired, told,
};
use tempfile::TempDir;

fn status(service: &Service) -> serde_json::Value {
    read_status(service, "/status")
}

/// Starts an instance that is to be taken in, by the flags that `cluster add` prints.
fn join(by: &Service, id: u64, dir: &Path) -> Service {
    let said = done(by, &["add", &format!("{id}={}", free_address())]);
    let flags = said.lines().last().unwrap().split_whitespace().collect::<Vec<_>>();
    let joined = Service::start(&dir.join(id.to_string()), &flags);
    eventually("the newcomer serves", || is_ready(&joined));
    joined
}

/// Lets an instance vote, once it has caught up.
fn promote(by: &Service, id: u64) {
    eventually("it may vote", || (operate(by, &["promote", &id.to_string()]).0 == 0).then_some(()));
}

#[test]
fn one_grows_to_three_and_five_and_loses_its_first_with_all_its_data() {
    let dir = TempDir::new().unwrap();
    let raft = free_address().to_string();
    let alone = Service::start(&dir.path().join("1"), &["--raft-addr", &raft]);
    let members: Vec<Member> = (0..6).map(Member).collect();
    let mut tip = chain(&alone, &members);

    let second = join(&alone, 2, dir.path());
    let third = join(&second, 3, dir.path());
    promote(&third, 2);
    promote(&second, 3);
    // A client that comes back is told the same anywhere; one that waits is told by the instance
    // that it asked.
    let mut again = Client::say(third.chain(), members[2].connect());
    let partners = told("tail", &members[1].head()) + &told("head", &members[3].tail());
    assert_eq!(again.rest(), partners);
    let newcomer = Member(100);
    let mut next = Client::say(third.chain(), newcomer.connect());
    assert_eq!(next.object(), told("tail", &members[5].head()));
    assert_eq!(tip.rest(), told("head", &newcomer.tail()));

    let fourth = join(&second, 4, dir.path());
    let fifth = join(&fourth, 5, dir.path());
    promote(&fifth, 4);
    // A leader that is new has heard no member yet, and knows that this says nothing.
    let caught_up = |id: u64| {
        let status = status(&alone);
        let members = status["members"].as_array().unwrap();
        members.iter().any(|member| member["node"] == id && member["lag"] == 0)
    };
    eventually("the fifth has caught up", || caught_up(5).then_some(()));
    done(&fifth, &["transfer-leader", "2"]);
    done(&fifth, &["promote", "5"]);
    done(&fifth, &["transfer-leader", "1"]);
    let voters = |service: &Service| {
        let status = status(service);
        let members = status["members"].as_array().unwrap().clone();
        members.iter().filter(|member| member["voter"] == true).count()
    };
    for service in [&alone, &second, &third, &fourth, &fifth] {
        eventually("all know of five", || (voters(service) == 5).then_some(()));
        assert_eq!(status(service)["chains"]["clients"], 7);
    }

    // The first one is taken out and stopped; its number is gone for good.
    assert!(done(&second, &["remove", "1"]).contains("never use its number again"));
    drop(alone);
    refused(&second, &["add", &format!("1={}", free_address())], &["a number is never used twice"]);
    eventually("another one leads", || is_ready(&fifth));
    let mut again = Client::say(fifth.chain(), members[2].connect());
    assert_eq!(again.rest(), partners);
    let (mut left, mut right) = (
        Client::say(second.repair(), support::reconnect("7", &members[2].head())),
        Client::say(fourth.repair(), support::reconnect("8", &members[4].tail())),
    );
    assert_eq!(left.rest(), repaired(&members[4].tail()));
    assert_eq!(right.rest(), repaired(&members[2].head()));
    assert_eq!(voters(&fifth), 4);
}

#[test]
fn what_an_operator_cannot_mean_is_refused_with_the_way_out() {
    let dir = TempDir::new().unwrap();
    // No instance can come to one that does not listen for others.
    let unreached = Service::start(&dir.path().join("0"), &[]);
    eventually("it serves", || is_ready(&unreached));
    refused(&unreached, &["add", "2=127.0.0.1:9"], &["it has no --raft-addr: start it again with"]);
    drop(unreached);
    let raft = free_address().to_string();
    let alone = Service::start(&dir.path().join("1"), &["--raft-addr", &raft]);
    eventually("it serves", || is_ready(&alone));
    refused(&alone, &["promote", "7"], &["7 is not a member; members are 1"]);
    refused(&alone, &["remove", "1"], &["is the only voter; promote another one first"]);
    refused(&alone, &["transfer-leader"], &["no other voter is there"]);
    let newest = emnetchain::registry::Rules::NEWEST.0;
    let current = format!("rules version {newest} is in force, and no instance knows a newer one");
    let raised = done(&alone, &["upgrade"]);
    assert!(raised.contains(&current) || newest > 2, "{raised}");
    assert!(done(&alone, &["status"]).contains(&format!("knows versions up to {newest}")));
    assert!(done(&alone, &["promote", "1"]).contains("votes already"));
    let absent = free_address().to_string();
    let said = done(&alone, &["add", &format!("2={absent}")]);
    assert!(said.contains("--node-id 2") && said.contains(&format!("1={raft}")), "{said}");
    let said = done(&alone, &["add", "2=b.example:7000"]);
    assert!(said.contains("--raft-addr [::]:7000"), "a name is no address to listen at: {said}");
    done(&alone, &["add", &format!("2={absent}")]);
    refused(&alone, &["promote", "2"], &["instance 2 is not reached"]);
    refused(&alone, &["transfer-leader", "2"], &["does not vote"]);
    assert!(done(&alone, &["members"]).contains(&format!("2     learner  {absent}")));
    refused(
        &alone,
        &["upgrade"],
        &[&format!("instance 2 ({absent}) is not reached: start it, or")],
    );
    assert!(done(&alone, &["remove", "2"]).contains("instance 2 is no longer a member"));
    for wrong in [
        &["promote", "two"][..],
        &["add", "2"],
        &["add", "2=here"],
        &["add", "2=0.0.0.0:7"],
        &["remove"],
        &[],
    ] {
        assert_eq!(operate(&alone, wrong).0, 2, "{wrong:?}");
    }
    let address = alone.address("HTTP").to_string();
    drop(alone);
    let mut command = Command::new(env!("CARGO_BIN_EXE_EMNetChain"));
    let output = command.args(["cluster", "status", "--http-addr", &address]).finish();
    assert_eq!(output.status.code(), Some(69));
    assert!(String::from_utf8(output.stderr).unwrap().contains("no instance answers at"));
}

#[test]
fn a_drained_instance_takes_no_clients_and_keeps_the_data() {
    let dir = TempDir::new().unwrap();
    let raft = free_address().to_string();
    let mut first = Service::start(&dir.path().join("1"), &["--raft-addr", &raft]);
    let second = join(&first, 2, dir.path());
    let third = join(&first, 3, dir.path());
    promote(&first, 2);
    promote(&first, 3);
    let members = [Member(0), Member(1)];
    let tip = chain(&first, &members);
    assert!(done(&first, &["drain"]).contains("takes no new clients"));
    let (code, why) = first.get("/readyz");
    assert!(code == 503 && why.contains("drained"), "{code} {why}");
    eventually("it is closed", || TcpStream::connect(first.chain()).is_err().then_some(()));
    // It gave the leadership away, and goes on replicating; a client that waits there is told.
    eventually("another leads", || (status(&second)["leader"] != 1).then_some(()));
    let mut next = Client::say(third.chain(), Member(2).connect());
    assert_eq!(next.object(), told("tail", &members[1].head()));
    let mut tip = tip;
    assert_eq!(tip.rest(), told("head", &Member(2).tail()));
    eventually("it has it too", || (status(&first)["chains"]["clients"] == 3).then_some(()));
    assert_eq!(first.stop().code(), Some(0));
}
