//! Messages in pieces: wherever the network cuts, and whatever stands around a message, it means
//! the same.

use std::net::SocketAddr;

use tempfile::TempDir;

use super::{
    honest::{expect_linked, expect_metric, waiting},
    kernel::expect_read,
};
use crate::support::{Client, Member, Service, reconnect, repaired, told};

/// Sends a text as two packets; the second only when the service has read the first.
fn say_cut(address: SocketAddr, text: &str, at: usize) -> Client {
    let mut client = Client::connect(address);
    send_cut(&mut client, address, text, at);
    client
}

fn send_cut(client: &mut Client, address: SocketAddr, text: &str, at: usize) {
    let (first, second) = text.as_bytes().split_at(at);
    client.send(first);
    expect_read(address, client.local_address());
    client.send(second);
}

/// Sends a text byte by byte, each when the service has read the one before.
fn send_bytes(client: &mut Client, address: SocketAddr, text: &str) {
    for byte in text.bytes() {
        expect_read(address, client.local_address());
        client.send([byte]);
    }
}

/// Proves that a CONNECT cut at any byte joins: each member of a chain cuts its own elsewhere, and
/// every link is checked.
#[test]
fn a_connect_may_be_cut_at_every_byte() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &[]);
    let forms: [fn(Member) -> String; 3] = [
        Member::connect,
        |member| format!("{{msg:CONNECT,head:{},tail:{},}}", member.head(), member.tail()),
        |member| {
            let (head, tail) = (member.head().replace(':', "\\u003a"), member.tail());
            format!(r#" {{"x":[{{"}}":"\""}}],"msg":"CONNECT","tail":"{tail}","head":"{head}"}}"#)
        },
    ];
    let mut tip = (Member(0), waiting(&service, Member(0)));
    let mut members = (1..).map(Member);
    for form in forms {
        let length = form(Member(4500)).len();
        for (at, member) in (0..=length).zip(&mut members) {
            let text = form(member);
            let mut client = say_cut(service.chain(), &text, at.min(text.len() - 1));
            expect_linked((tip.0, &mut tip.1), (member, &mut client));
            tip = (member, client);
        }
        let member = members.next().unwrap();
        let mut client = Client::connect(service.chain());
        send_bytes(&mut client, service.chain(), &form(member));
        expect_linked((tip.0, &mut tip.1), (member, &mut client));
        tip = (member, client);
    }
    println!("{} members were linked", members.next().unwrap().0);
}

/// Proves the same of RECONNECT, for the first and the second caller.
#[test]
fn a_reconnect_may_be_cut_at_every_byte() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &[]);
    let [a, b] = ["10.0.0.1:1000", "[2001:db8::1]:2000"];
    for at in 1..reconnect("0-0", b).len() {
        let id = format!("{:03}", at);
        let mut first = say_cut(service.repair(), &reconnect(&id, a), at.min(30));
        let mut second = say_cut(service.repair(), &reconnect(&id, b), at);
        assert_eq!((first.rest(), second.rest()), (repaired(b), repaired(a)));
    }
    let mut clients = [a, b].map(|ip| {
        let mut client = Client::connect(service.repair());
        send_bytes(&mut client, service.repair(), &reconnect("bytes", ip));
        client
    });
    assert_eq!(clients.each_mut().map(Client::rest), [repaired(b), repaired(a)]);
}

/// Proves the same of EMNet's requests, and that any number of them may share a packet.
#[test]
fn emnet_requests_may_be_cut_and_share_packets() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &["--emnet-addr", "127.0.0.1:0"]);
    let emnet = service.address("EMNet");
    let mut client = Client::connect(emnet);
    let line = |client: &mut Client| client.object().trim_start().to_owned();
    let add = r#"{"msg":"ADD_PEER","IP_Peer":"1.2.3.4:5"}"#;
    let mut ids = Vec::new();
    for at in 0..add.len() {
        send_cut(&mut client, emnet, add, at);
        ids.push(added(&line(&mut client)));
    }
    for (at, id) in ids.iter().enumerate() {
        let ask = format!(r#"{{"msg":"ASK_IP","id":{id}}}"#);
        send_cut(&mut client, emnet, &ask, at % ask.len());
        assert_eq!(line(&mut client), r#"{"IP":"1.2.3.4:5","msg":"SUCCESS"}"#);
    }
    send_bytes(&mut client, emnet, add);
    let id = added(&line(&mut client));
    let ask = format!(r#"{{"msg":"ASK_IP","id":{id}}}"#);
    client.send(format!("junk {ask}\r\n{ask}{{}} \0 [] {ask}{add}"));
    client.half_close();
    let answers = client.rest();
    let mut answers = answers.trim_start().lines();
    assert_eq!(answers.next(), Some(r#"{"IP":"1.2.3.4:5","msg":"SUCCESS"}"#));
    for _ in 0..3 {
        assert_eq!(answers.next(), Some(r#"{"msg":"FAILED"}"#));
    }
    added(answers.next().expect("the last request is answered after the half-close"));
    assert_eq!(answers.next(), None);
}

/// The id in an answer to ADD_PEER.
fn added(answer: &str) -> u32 {
    let id = answer.strip_prefix(r#"{"id":"#).and_then(|rest| rest.split_once(','));
    id.expect(answer).0.parse().expect(answer)
}

/// Proves that a request is heard behind junk and behind messages that mean nothing, in the same
/// packet or in pieces of three bytes, and that of two requests in a packet the first one counts.
#[test]
fn a_request_is_heard_behind_whatever_does_not_concern_us() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &[]);
    let before = [
        "",
        " \r\n\t",
        "junk ",
        "\u{fffd}\u{0}\u{1}",
        "]]]}}}\"\"'':,",
        "{}",
        "{}{}{}",
        "{\"msg\":\"connect\"}",
        "{\"msg\":\"RECONNECT\",\"id\":\"1\",\"ip\":\"1.2.3.4:5\"}",
        "{\"msg\":\"CONNECT\"}",
        "{\"msg\":\"CONNECT\",\"head\":\"nowhere\",\"tail\":\"127.0.0.1:1\"}",
        "{\"msg\":\"CONNECT\",",
        "GET",
        "POST me ",
    ];
    let mut tip = (Member(0), waiting(&service, Member(0)));
    let mut members = (1..).map(Member);
    for junk in before {
        for piece in [usize::MAX, 3] {
            let member = members.next().unwrap();
            let behind = Member(9999).connect();
            let mut client = Client::connect(service.chain());
            let text = format!("{junk}{}{behind}", member.connect());
            for piece in text.as_bytes().chunks(piece) {
                client.send(piece);
                if piece.len() == 3 {
                    expect_read(service.chain(), client.local_address());
                }
            }
            expect_linked((tip.0, &mut tip.1), (member, &mut client));
            tip = (member, client);
        }
    }
    let joined = members.next().unwrap().0;
    expect_metric(&service, "emnetchain_clients", f64::from(joined));
}

/// Proves that nobody is heard whose first bytes are an HTTP request: a browser can be made to
/// send one by any page.
#[test]
fn a_browser_is_not_heard() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &[]);
    let mut tip = waiting(&service, Member(0));
    for line in ["POST / HTTP/1.1\r\nhost: x\r\n\r\n", "OPTIONS * HTTP/1.1\r\n\r\n", "GET /"] {
        let text = format!("{line}{}", Member(1).connect());
        let at = text.len() / 2;
        let browsers = [
            Client::say(service.chain(), &text),
            say_cut(service.chain(), &text, 2),
            say_cut(service.chain(), &text, at),
        ];
        for browser in &browsers {
            expect_read(service.chain(), browser.local_address());
        }
    }
    expect_metric(&service, "emnetchain_rejected_total{reason=\"http\"}", 9.0);
    let mut next = Client::say(service.chain(), Member(2).connect());
    assert_eq!(tip.object(), told("head", &Member(2).tail()));
    assert_eq!(next.object(), told("tail", &Member(0).head()));
}
