//! Every way in which a client can go, in every state, and what the others are told then.

use tempfile::TempDir;

use super::honest::{expect_linked, expect_metric, waiting};
use crate::support::{Client, Member, Service, eventually, reconnect, repaired, told};

const ASKS: &str = "emnetchain_asks";
const CLIENTS: &str = "emnetchain_clients";

/// Runs `act`, and waits until it has brought a raft entry about that is applied.
fn until_applied<T>(service: &Service, act: impl FnOnce() -> T) -> T {
    let applied = "emnetchain_raft_applied_index";
    let before = service.metric(applied);
    let result = act();
    eventually("an entry is applied", || (service.metric(applied) > before).then_some(()));
    result
}

/// Proves that a client that goes before its request is complete leaves nothing behind.
#[test]
fn a_client_that_goes_before_its_request_is_complete_leaves_nothing_behind() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &[]);
    let descriptors = service.descriptors();
    let message = Member(1).connect();
    for cut in [0, 1, message.len() / 2, message.len() - 1] {
        for address in [service.chain(), service.repair()] {
            let [reset, closed, half_closed] =
                [(); 3].map(|()| Client::say(address, &message[..cut]));
            reset.reset();
            drop(closed);
            half_closed.half_close();
            let mut half_closed = half_closed;
            half_closed.expect_end();
        }
    }
    for listener in ["chain", "repair"] {
        let name = format!("emnetchain_connections{{listener=\"{listener}\"}}");
        expect_metric(&service, &name, 0.0);
    }
    expect_metric(&service, CLIENTS, 0.0);
    eventually("the descriptors are back", || (service.descriptors() == descriptors).then_some(()));
}

/// Proves that a legal half-close after the request, by either side of a link or of a repair or by
/// both, costs no client an answer.
#[test]
fn a_half_closed_client_is_told_and_its_partner_too() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &[]);
    let mut members = (1..).map(Member);
    let mut tip = (Member(0), waiting(&service, Member(0)));
    // In the last round the earlier one is half-closed too, since the round before.
    for [early, late] in [[true, false], [false, true], [false, true]] {
        if early {
            until_applied(&service, || tip.1.half_close());
        }
        let member = members.next().unwrap();
        let mut client = Client::say(service.chain(), member.connect());
        if late {
            client.half_close();
        }
        expect_linked((tip.0, &mut tip.1), (member, &mut client));
        tip = (member, client);
    }
    let [a, b] = ["10.0.0.1:1000", "10.0.0.2:1000"];
    for (id, [early, late]) in ["1", "2", "3"].iter().zip([[true, false], [false, true], [true; 2]])
    {
        let mut first = until_applied(&service, || Client::say(service.repair(), reconnect(id, a)));
        if early {
            until_applied(&service, || first.half_close());
        }
        let mut second = Client::say(service.repair(), reconnect(id, b));
        if late {
            second.half_close();
        }
        assert_eq!((first.rest(), second.rest()), (repaired(b), repaired(a)), "{early} {late}");
    }
}

/// Proves that a client that resets while it waits is told to no other: its ask is withdrawn, the
/// newcomer waits and is linked with the next one.
#[test]
fn a_client_that_resets_while_it_waits_is_told_to_no_other() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &[]);
    waiting(&service, Member(1)).reset();
    expect_metric(&service, CLIENTS, 0.0);
    expect_metric(&service, ASKS, 0.0);
    next_two_are_linked(&service);
}

/// Proves the same of the tip of a chain: the newcomer waits, hears nothing of the tip's partner,
/// is linked with the next one, and with the tip should it come back.
#[test]
fn a_tip_that_resets_is_told_to_no_other_until_it_is_back() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &[]);
    let mut first = waiting(&service, Member(1));
    let mut tip = waiting(&service, Member(2));
    expect_linked((Member(1), &mut first), (Member(2), &mut tip));
    tip.reset();
    expect_metric(&service, ASKS, 0.0);
    let mut third = waiting(&service, Member(3));
    third.expect_silence();
    let mut fourth = Client::say(service.chain(), Member(4).connect());
    assert_eq!(third.object(), told("head", &Member(4).tail()));
    assert_eq!(fourth.object(), told("tail", &Member(3).head()));
    third.expect_silence();
    let mut tip = Client::say(service.chain(), Member(2).connect());
    assert_eq!(tip.rest(), told("tail", &Member(1).head()) + &told("head", &Member(3).tail()));
    assert_eq!(third.rest(), told("tail", &Member(2).head()));
}

/// Proves the same of a client whose process ended, which closes with a FIN as a half-closed client
/// does: it is answered first, its kernel answers with a reset, and so no other hears of it.
#[test]
fn a_client_that_exits_while_it_waits_is_told_to_no_other() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &[]);
    let exited = waiting(&service, Member(1));
    until_applied(&service, || drop(exited));
    next_two_are_linked(&service);
}

/// Proves the same of several that exited one after the other, each as the tip.
#[test]
fn any_number_of_exited_tips_is_told_to_no_other() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &[]);
    for number in 10..20 {
        let newcomer = Client::say(service.chain(), Member(number).connect());
        // The newcomer finds the one before out by being offered to it, and is then alone.
        eventually("it is the only one", || {
            let status = service.get("/status").1;
            let asks = service.metric(ASKS);
            (service.metric(CLIENTS) == 1.0 && asks == 1.0).then_some(status)
        });
        until_applied(&service, || drop(newcomer));
    }
    next_two_are_linked(&service);
}

/// Members 2 and 3 come, and are linked with each other and with no client before them.
fn next_two_are_linked(service: &Service) {
    let mut second = Client::say(service.chain(), Member(2).connect());
    second.expect_silence();
    expect_metric(service, ASKS, 1.0);
    let mut third = Client::say(service.chain(), Member(3).connect());
    expect_linked((Member(2), &mut second), (Member(3), &mut third));
    third.expect_silence();
}

/// Proves that a waiter for a repair that is gone, by reset or by exit, poisons no id.
#[test]
fn a_waiter_that_is_gone_poisons_no_repair_id() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &[]);
    let [dead, b, c] = ["10.0.0.1:1000", "10.0.0.2:1000", "10.0.0.3:1000"];
    for id in ["reset", "exit"] {
        let waiter = until_applied(&service, || Client::say(service.repair(), reconnect(id, dead)));
        until_applied(&service, || if id == "reset" { waiter.reset() } else { drop(waiter) });
        let mut second = Client::say(service.repair(), reconnect(id, b));
        second.expect_silence();
        expect_metric(&service, ASKS, 1.0);
        let mut third = Client::say(service.repair(), reconnect(id, c));
        assert_eq!((second.rest(), third.rest()), (repaired(c), repaired(b)), "{id}");
    }
}

/// Proves that what a client sends behind its request, at once or while it waits, destroys no
/// answer: it reads them all, and then a clean end.
#[test]
fn bytes_behind_the_request_destroy_no_answer() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &[]);
    let mut tip = (Member(0), waiting(&service, Member(0)));
    let behind = ["\n", "ping", "{\"msg\":\"PING\"}", &"x".repeat(100_000), &Member(99).connect()];
    for (bytes, member) in behind.iter().zip((1..).map(Member)) {
        tip.1.send(bytes);
        let mut client = Client::say(service.chain(), member.connect() + bytes);
        client.send(bytes);
        expect_linked((tip.0, &mut tip.1), (member, &mut client)); // reads to a clean end
        client.send(bytes);
        tip = (member, client);
    }
    let [a, b] = ["10.0.0.1:1000", "10.0.0.2:1000"];
    let mut first = Client::say(service.repair(), reconnect("1", a) + "more");
    let mut second = Client::say(service.repair(), reconnect("1", b) + "more");
    first.send("and more");
    assert_eq!((first.rest(), second.rest()), (repaired(b), repaired(a)));
    expect_metric(&service, CLIENTS, 6.0);
}

/// Proves that a client which is told and does not close is let go all the same, and that one which
/// resets instead of reading harms only itself.
#[test]
fn a_told_client_may_end_as_it_likes() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &[]);
    let first = waiting(&service, Member(1));
    let second = waiting(&service, Member(2));
    first.reset();
    let mut third = waiting(&service, Member(3));
    assert_eq!(third.object(), told("tail", &Member(2).head()));
    expect_metric(&service, "emnetchain_connections{listener=\"chain\"}", 1.0);
    drop(second);
    third.expect_silence();
}
