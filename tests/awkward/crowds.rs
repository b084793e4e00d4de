//! Crowds that hold connections and give nothing for them.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::Duration,
};

use emnetchain::clock;
use tempfile::TempDir;

use super::{
    honest::{Honest, expect_metric, waiting},
    kernel::{Cost, crowd_turn, has_ended, room_for},
};
use crate::support::{Client, Member, Service, eventually, told};

const CHAIN: &str = "emnetchain_connections{listener=\"chain\"}";

/// Proves that connections which say nothing delay no client, cost little, and are not thrown out
/// while there is room for them.
#[test]
fn a_thousand_silent_connections_hold_up_no_client() {
    let _turn = crowd_turn();
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &[]);
    let mut honest = Honest::begin(&service);
    honest.rounds(10);
    let cost = Cost::begin(&service);
    let count = room_for(1000);
    let silent = honest.beside("silent connections", || {
        let silent: Vec<_> = (0..count).map(|_| connect(&service)).collect();
        expect_metric(&service, CHAIN, count as f64 + 1.0);
        silent
    });
    cost.expect_kib(&service, "silent connections", 4096 + 4 * count as u64);
    assert!(!silent.iter().any(has_ended), "there is room for all of them");
    drop(silent);
    expect_metric(&service, CHAIN, 1.0);
    honest.rounds(1);
}

/// Proves that of more silent connections than may be the oldest go, in their order, and that a
/// client with a request in hand is not one of them, however old.
#[test]
fn of_too_many_silent_connections_the_oldest_go_first() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &["--silent-connections-max", "16"]);
    let mut honest = Honest::begin(&service);
    let mut silent: Vec<_> = (0..48).map(|_| connect(&service)).collect();
    let ended = |silent: &[TcpStream]| silent.iter().take_while(|stream| has_ended(stream)).count();
    eventually("the 32 oldest are closed", || (ended(&silent) == 32).then_some(()));
    assert!(!silent[32..].iter().any(has_ended), "the newest stay");
    for stream in &mut silent[..32] {
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "closed in order, without a byte");
    }
    // An honest client needs a place for a moment, and takes it from the oldest.
    honest.rounds(5);
    let gone = eventually("all that were closed are seen as such", || {
        let gone = ended(&silent);
        let told = service.metric("emnetchain_rejected_total{reason=\"silent\"}");
        (told == gone as f64).then_some(gone)
    });
    assert!(!silent[gone..].iter().any(has_ended), "only the oldest");
    assert!(gone < 48, "honest clients need no place of their own for long");
}

/// Proves that a client without a complete request at the deadline is closed, not before and
/// without a byte, and that a client which waits for its answer has no deadline.
#[test]
fn a_client_without_a_request_by_the_deadline_is_closed() {
    const DEADLINE: Duration = Duration::from_millis(1500);
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &["--first-message-deadline", "1500ms"]);
    let mut honest = Honest::begin(&service);
    let began = clock::now();
    let beginnings =
        ["", " ", "{", "[", "no JSON", r#"{"msg":"CONNECT","head":"127.0.0.1:1""#, "{}"];
    let late = honest.beside("clients that never finish", || {
        let mut late = beginnings.map(|text| Client::say(service.chain(), text));
        late.each_mut().map(Client::expect_end)
    });
    assert!(clock::now() - began >= DEADLINE, "no client is closed early");
    let overdue = "emnetchain_rejected_total{reason=\"overdue\"}";
    expect_metric(&service, overdue, late.len() as f64);
    honest.rounds(1); // its tip has waited for longer than the deadline
}

/// Proves that a crowd which sends a byte now and then is ended by the deadline, and that a client
/// no quicker than they, which finishes in time, is linked.
#[test]
fn a_client_that_drips_has_until_the_deadline() {
    const DEADLINE: Duration = Duration::from_secs(5);
    const PACE: Duration = Duration::from_millis(50);
    let _turn = crowd_turn();
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &["--first-message-deadline", "5s"]);
    let count = room_for(300);
    let mut tip = waiting(&service, Member(0));
    let began = clock::now();
    let mut honest = Honest::pairs(&service);
    honest.beside("drip-feeders", || {
        let mut crowd: Vec<_> = (0..count).map(|_| connect(&service)).collect();
        let endless = thread::scope(|scope| {
            let endless = scope.spawn(|| {
                let mut bytes =
                    br#"{"msg":"CONNECT","head":""#.iter().chain([b'1'; 1].iter().cycle());
                eventually("the deadline ends them all", || {
                    let byte = [*bytes.next().unwrap()];
                    crowd.retain_mut(|stream| stream.write_all(&byte).is_ok());
                    thread::sleep(PACE);
                    crowd.is_empty().then(|| clock::now() - began)
                })
            });
            drip_in_time(&service, &mut tip, DEADLINE, PACE);
            endless.join().expect("they are ended")
        });
        println!("{count} endless drip-feeders were gone after {endless:?}");
        assert!(endless >= DEADLINE, "no client is closed early");
    });
    expect_metric(&service, CHAIN, 1.0);
}

/// A CONNECT, byte by byte, that is linked with the tip. Should this machine be too busy to drip
/// it before the deadline, it is tried again.
fn drip_in_time(service: &Service, tip: &mut Client, deadline: Duration, pace: Duration) {
    for attempt in 1..10 {
        let began = clock::now();
        let mut client = Client::connect(service.chain());
        for byte in b"{msg:CONNECT,head:127.0.0.1:9,tail:127.0.0.2:9}" {
            if clock::now() - began < deadline {
                client.send([*byte]);
                thread::sleep(pace);
            }
        }
        let took = clock::now() - began;
        if took < deadline {
            println!("attempt {attempt}: dripped in {took:?}");
            assert_eq!(tip.object(), told("head", "127.0.0.2:9"));
            assert_eq!(client.object(), told("tail", &Member(0).head()));
            return;
        }
    }
    println!("this machine is too busy to drip a message in {deadline:?}");
}

/// Proves that clients which never read are linked like all others, keep no client waiting, are let
/// go although they do not close, and that their answers are all correct: one path.
#[test]
fn a_thousand_clients_that_never_read_hold_up_no_other() {
    let _turn = crowd_turn();
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &[]);
    let mut honest = Honest::pairs(&service);
    honest.rounds(10);
    let cost = Cost::begin(&service);
    let count = u16::try_from(room_for(1000)).expect("at most a thousand");
    let mut members: Vec<_> = honest.beside("clients that never read", || {
        let members = (0..count).map(|n| {
            let mut stream = connect(&service);
            stream.write_all(Member(n).connect().as_bytes()).unwrap();
            (Member(n), stream)
        });
        let members = members.collect();
        expect_metric(&service, "emnetchain_links", f64::from(count) - 1.0);
        expect_metric(&service, CHAIN, 1.0);
        members
    });
    cost.expect_kib(&service, "clients that never read", 16 * 1024);

    // Each was told its neighbours, if it had only looked.
    let mut after = BTreeMap::new();
    let mut before = BTreeMap::new();
    for (member, stream) in &mut members {
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let mut text = Vec::new();
        let closed = stream.read_to_end(&mut text).is_ok();
        for object in String::from_utf8(text).unwrap().split_inclusive('}') {
            let (part, ip) = read_link(object);
            let told = if part == "head" { &mut after } else { &mut before };
            let of = if part == "head" { member.head() } else { member.tail() };
            assert!(told.insert(of, ip).is_none(), "told once");
        }
        assert_eq!(closed, after.contains_key(&member.head()), "closed with the last answer");
    }
    assert_eq!(after.len(), usize::from(count) - 1);
    for (head, tail) in &after {
        assert_eq!(before.remove(tail).as_ref(), Some(head), "both were told the same");
    }
    assert!(before.is_empty());
    let tails: Vec<_> = after.values().collect();
    let first = members.iter().find(|(member, _)| !tails.contains(&&member.tail())).unwrap().0;
    let next = |member: &Member| {
        let tail = after.get(&member.head())?;
        members.iter().map(|(member, _)| *member).find(|member| member.tail() == *tail)
    };
    let path = std::iter::successors(Some(first), next).count();
    assert_eq!(path, members.len(), "one path from the first to the last");
}

/// The part and the address in an answer of the chain server.
fn read_link(text: &str) -> (String, String) {
    let rest = text.strip_prefix(r#"{"msg":"CONNECT","part":""#).expect(text);
    let (part, rest) = rest.split_once(r#"","ip":""#).expect(text);
    (part.to_owned(), rest.strip_suffix(r#""}"#).expect(text).to_owned())
}

fn connect(service: &Service) -> TcpStream {
    let stream = TcpStream::connect(service.chain()).expect("the backlog has room");
    stream.set_nodelay(true).unwrap();
    stream
}
