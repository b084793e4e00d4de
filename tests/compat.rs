//! What the seed's clients could see and a transcript cannot say: which of two connections hears
//! first, and that neither cuts in the stream nor a crowd of silent connections matter.

mod support;

use std::{collections::VecDeque, process::Command};

use support::{
    Client, Member, Service, eventually, privileged::may_run, reconnect, repaired, told,
};
use tempfile::TempDir;

/// How often the kernel may swap two answers on the way, out of [`ROUNDS`]: two processors may
/// carry them. A service that wrote them the other way round was caught ten times on a busy
/// machine.
const SWAPPED_MAX: usize = 3;

const ROUNDS: usize = 150;

#[test]
fn of_one_link_the_earlier_client_hears_first() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &[]);
    let mut swapped = 0;
    let mut tip = Client::say(service.chain(), Member(0).connect());
    eventually("the first is registered", || {
        (service.metric("emnetchain_clients") > 0.0).then_some(())
    });
    for (before, member) in (0..).map(Member).zip((1..).map(Member)).take(ROUNDS) {
        let mut newcomer = Client::say(service.chain(), member.connect());
        swapped += usize::from(!tip.hears_before(&mut newcomer));
        assert_eq!(tip.object(), told("head", &member.tail()));
        assert_eq!(newcomer.object(), told("tail", &before.head()));
        tip.expect_end();
        tip = newcomer;
    }
    assert!(swapped <= SWAPPED_MAX, "{swapped} of {ROUNDS} heard in the wrong order");
}

#[test]
fn of_one_repair_the_second_caller_hears_first() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &[]);
    let ask = |id: usize, ip: &str| Client::say(service.repair(), reconnect(&id.to_string(), ip));
    let orphan = |id: usize| Member(u16::try_from(id).unwrap());
    let mut waiting: VecDeque<Client> = (0..ROUNDS).map(|id| ask(id, &orphan(id).head())).collect();
    eventually("all wait", || {
        (service.metric("emnetchain_repairs_pending") == ROUNDS as f64).then_some(())
    });
    let mut swapped = 0;
    for id in 0..ROUNDS {
        let mut waiter = waiting.pop_front().unwrap();
        let mut second = ask(id, &orphan(id).tail());
        swapped += usize::from(!second.hears_before(&mut waiter));
        assert_eq!(second.rest(), repaired(&orphan(id).head()));
        assert_eq!(waiter.rest(), repaired(&orphan(id).tail()));
    }
    assert!(swapped <= SWAPPED_MAX, "{swapped} of {ROUNDS} heard in the wrong order");
}

/// A client of today, of another project.
#[test]
fn the_stun_client_of_coturn_is_told_its_address() {
    let tool = "turnutils_stunclient";
    if !may_run("the_stun_client_of_coturn", "the package coturn", &[tool]) {
        return;
    }
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &["--udp-addr", "0.0.0.0:0"]);
    let port = service.address("EMUDP").port().to_string();
    for asked in ["127.0.0.1", "127.0.0.2"] {
        let client = Command::new("timeout").args(["20", tool, "-p", &port, asked]).output();
        let client = client.unwrap();
        let told = String::from_utf8_lossy(&client.stdout);
        assert!(client.status.success(), "{asked}: {client:?}");
        assert!(told.contains("UDP reflexive addr: 127.0.0.1:"), "{asked}: {told}");
    }
}

#[test]
fn a_request_may_be_cut_at_every_byte() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &[]);
    let mut tip: Option<(Member, Client)> = None;
    for member in (0..Member(0).connect().len()).map(|at| Member(u16::try_from(at).unwrap())) {
        let request = member.connect();
        let (first, second) = request.split_at(usize::from(member.0));
        let mut client = Client::connect(service.chain());
        client.send(first);
        client.send(second);
        match tip.take() {
            Some((before, mut waiting)) => {
                assert_eq!(client.object(), told("tail", &before.head()));
                assert_eq!(waiting.rest(), told("head", &member.tail()));
            }
            None => eventually("the first is registered", || {
                (service.metric("emnetchain_clients") > 0.0).then_some(())
            }),
        }
        tip = Some((member, client));
    }
}

/// The seed went to a standstill with as many as there are processors.
#[test]
fn silent_connections_hold_up_no_client() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &["--emnet-addr", "127.0.0.1:0"]);
    let mut silent: Vec<Client> = (0..600)
        .map(|number| match number % 3 {
            0 => Client::connect(service.chain()),
            1 => Client::say(service.repair(), "{\"msg\":"),
            _ => Client::connect(service.address("EMNet")),
        })
        .collect();
    let mut first = Client::say(service.chain(), Member(0).connect());
    eventually("it is registered", || (service.metric("emnetchain_clients") > 0.0).then_some(()));
    let mut second = Client::say(service.chain(), Member(1).connect());
    assert_eq!(first.rest(), told("head", &Member(1).tail()));
    assert_eq!(second.object(), told("tail", &Member(0).head()));

    let mut one = Client::say(service.repair(), reconnect("7", &Member(7).head()));
    let mut other = Client::say(service.repair(), reconnect("7", &Member(8).tail()));
    assert_eq!(one.rest(), repaired(&Member(8).tail()));
    assert_eq!(other.rest(), repaired(&Member(7).head()));

    let mut peer = Client::say(service.address("EMNet"), "{}");
    assert_eq!(peer.object(), "{\"msg\":\"FAILED\"}");
    // They are still there, and may yet speak.
    silent.last_mut().unwrap().expect_silence();
    silent[0].send(Member(2).connect());
    assert_eq!(silent[0].object(), told("tail", &Member(1).head()));
}
