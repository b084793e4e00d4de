//! When connections or descriptors run out.

use std::{net::TcpStream, path::Path, process::Command, thread, time::Duration};

use tempfile::TempDir;

use super::{
    honest::{expect_linked, expect_metric, waiting},
    kernel::{Cost, crowd_turn, has_ended},
};
use crate::support::{Client, Finish as _, Member, Service, eventually, reconnect, repaired, told};

/// What the process may open in these tests.
const FILES_MAX: usize = 64;

/// Proves that without descriptors, of which an operator allowed to use more than there are, those
/// that are connected are served and their links reach the disk, that the processor idles, and that
/// newcomers are accepted again as soon as others go.
#[test]
fn without_descriptors_those_that_are_there_are_served() {
    let _turn = crowd_turn();
    let dir = TempDir::new().unwrap();
    let service =
        Service::start_with_files_max(dir.path(), FILES_MAX, &["--connections-max", "999"]);
    let mut tip = waiting(&service, Member(1));
    let mut early: Vec<_> = (0..3).map(|_| Client::connect(service.chain())).collect();
    let [mut a, mut b] = [(); 2].map(|()| Client::connect(service.repair()));
    expect_metric(&service, "emnetchain_connections{listener=\"chain\"}", 4.0);
    expect_metric(&service, "emnetchain_connections{listener=\"repair\"}", 2.0);

    let crowd: Vec<_> = (0..100).map(|_| TcpStream::connect(service.chain()).unwrap()).collect();
    eventually("descriptors run out", || (service.descriptors() >= FILES_MAX).then_some(()));
    eventually("it is noticed", || service.log().contains("cannot accept").then_some(()));

    let cost = Cost::begin(&service);
    thread::sleep(Duration::from_secs(2)); // what is measured is this time
    let cpu = cost.cpu(&service);
    println!("without descriptors, {cpu:?} of the processor in 2 s");
    assert!(cpu < Duration::from_secs(1), "{cpu:?} of the processor in 2 s");

    let mut before = Member(1);
    for (client, member) in early.iter_mut().zip((2..).map(Member)) {
        client.send(member.connect());
        expect_linked((before, &mut tip), (member, client));
        std::mem::swap(&mut tip, client);
        before = member;
    }
    a.send(reconnect("1", "10.0.0.1:1"));
    b.send(reconnect("1", "10.0.0.2:1"));
    assert_eq!((a.rest(), b.rest()), (repaired("10.0.0.2:1"), repaired("10.0.0.1:1")));

    drop(crowd);
    let mut newcomer = Client::say(service.chain(), Member(9).connect());
    expect_linked((before, &mut tip), (Member(9), &mut newcomer));
    let paused = service.metric("emnetchain_accept_pauses_total{listener=\"chain\"}");
    println!("the chain server paused {paused} times");
    assert!((5.0..200.0).contains(&paused), "the pauses are neither missing nor a busy loop");

    // Answers given without descriptors were on the disk: they are given again after kill -9.
    let service = service.kill_and_restart();
    let mut again = Client::say(service.chain(), Member(3).connect());
    assert_eq!(again.object(), told("tail", &Member(2).head()));
    assert_eq!(again.object(), told("head", &Member(4).tail()));
}

/// Proves that clients and operators, however many, leave the disk the descriptors that it needs
/// when no setting says how many connections there may be.
#[test]
fn connections_leave_descriptors_to_the_disk_and_to_operators() {
    let _turn = crowd_turn();
    let dir = TempDir::new().unwrap();
    let service = Service::start_with_files_max(dir.path(), FILES_MAX, &[]);
    let connect = |address, count| -> Vec<_> {
        (0..count).map(|_| TcpStream::connect(address).unwrap()).collect()
    };
    let crowds = [
        connect(service.address("HTTP"), 100),
        connect(service.chain(), 100),
        connect(service.repair(), 100),
    ];
    for (listener, least) in [("http", 101.0), ("chain", 100.0), ("repair", 100.0)] {
        let name = format!("emnetchain_accepted_total{{listener=\"{listener}\"}}");
        eventually("all of them are accepted", || (service.metric(&name) >= least).then_some(()));
    }
    let left = FILES_MAX - service.descriptors();
    println!("{left} descriptors of {FILES_MAX} are left");
    assert!(left >= 8, "{left} descriptors are left for the disk");
    assert_eq!(service.metric("emnetchain_accept_pauses_total{listener=\"chain\"}"), 0.0);
    drop(crowds);
}

/// Proves that all listeners of a member, the raft port among them, leave the disk what a backup
/// needs, even if strangers take all the rest.
#[test]
fn strangers_at_every_port_of_a_member_leave_descriptors_to_the_disk() {
    const FILES_MAX: usize = 256;
    let _turn = crowd_turn();
    let dir = TempDir::new().unwrap();
    let raft = crate::support::free_address();
    let list = format!("1={raft}");
    let arguments =
        ["--node-id", "1", "--raft-addr", &raft.to_string(), "--initial-cluster", &list];
    let service = Service::start_with_files_max(dir.path(), FILES_MAX, &arguments);
    let _tip = waiting(&service, Member(1));
    let addresses = [service.chain(), service.repair(), service.address("HTTP"), raft, raft];
    let crowd: Vec<_> = addresses.iter().flat_map(|address| [address; 256]).collect();
    let crowd: Vec<_> = crowd.into_iter().map(|it| TcpStream::connect(it).unwrap()).collect();
    let refused = "emnetchain_raft_refused_total{reason=\"crowded\"}";
    eventually("strangers make room", || (service.metric(refused) >= 400.0).then_some(()));
    let left = FILES_MAX - service.descriptors();
    println!("{left} descriptors of {FILES_MAX} are left");
    assert!(left >= 12, "{left} descriptors are left for the disk");
    back_up(&service, &dir.path().join("kept"));
    for listener in ["chain", "repair", "http"] {
        let name = format!("emnetchain_accept_pauses_total{{listener=\"{listener}\"}}");
        assert_eq!(service.metric(&name), 0.0, "{listener}");
    }
    drop(crowd);
}

fn back_up(service: &Service, file: &Path) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_EMNetChain"));
    command.arg("backup").env_clear();
    command.arg("--http-addr").arg(service.address("HTTP").to_string()).arg(file);
    let output = command.finish();
    assert!(output.status.success(), "{output:?}");
}

/// Proves that the cap on all connections gives the place of the oldest silent one to a newcomer,
/// and that of a client with a request to a later request only: none is turned away.
#[test]
fn at_the_cap_silence_gives_way_and_then_the_oldest_request() {
    let dir = TempDir::new().unwrap();
    let arguments = ["--connections-max", "8", "--connections-per-address-max", "1"];
    let service = Service::start(dir.path(), &arguments);
    let silent: Vec<_> = (0..4).map(|_| TcpStream::connect(service.chain()).unwrap()).collect();
    expect_metric(&service, "emnetchain_connections{listener=\"chain\"}", 4.0);
    let ask = |n: usize, asks: usize| {
        let client =
            Client::say(service.repair(), reconnect(&n.to_string(), &format!("10.0.0.{n}:1")));
        expect_metric(&service, "emnetchain_asks", asks as f64);
        client
    };
    let mut waiters: Vec<_> = (1..=4).map(|n| ask(n, n)).collect();
    assert!(!silent.iter().any(has_ended), "eight is not too many, from one address on loopback");
    for n in 5..=7 {
        waiters.push(ask(n, n));
        eventually("the oldest silent one goes", || has_ended(&silent[n - 5]).then_some(()));
        assert!(!silent[n - 4..].iter().any(has_ended), "and no other");
    }
    let later: Vec<_> = (0..3).map(|_| TcpStream::connect(service.chain()).unwrap()).collect();
    eventually("silence makes room for silence", || has_ended(&later[1]).then_some(()));
    waiters.iter_mut().for_each(Client::expect_silence);
    waiters.push(ask(8, 7));
    waiters.remove(0).expect_end();
    waiters.iter_mut().for_each(Client::expect_silence);
    let mut second = Client::say(service.repair(), reconnect("8", "10.0.0.9:1"));
    assert_eq!(second.rest(), repaired("10.0.0.8:1"));
    assert_eq!(waiters.last_mut().unwrap().rest(), repaired("10.0.0.9:1"));
    for (reason, count) in [("silent", 7.0), ("displaced", 2.0)] {
        let name = format!("emnetchain_rejected_total{{reason=\"{reason}\"}}");
        assert_eq!(service.metric(&name), count, "{reason}");
    }
}
