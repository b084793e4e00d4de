//! Messages in pieces: however the network cuts, and with anything around a message, it means
//! the same.

use std::{net::SocketAddr, thread};

use tempfile::TempDir;

use super::{
    honest::{expect_linked, expect_metric, waiting},
    kernel::expect_read,
};
use crate::support::{Client, Member, Service, reconnect, repaired, told};

/// Messages that each come as two packets, the second when the service has read the first one.
struct Cut {
    clients: Vec<(Client, String)>,
}

impl Cut {
    /// Sends the first packet of each message, and waits until the service has read them all.
    fn begin(server: SocketAddr, messages: impl IntoIterator<Item = (String, usize)>) -> Self {
        let begin = |(mut first, at): (String, usize)| {
            let second = first.split_off(at);
            (Client::say(server, first), second)
        };
        let clients = messages.into_iter().map(begin).collect();
        expect_read(server);
        Self { clients }
    }

    /// The clients one by one, after each has sent its second packet.
    fn finish(self) -> impl Iterator<Item = Client> {
        self.clients.into_iter().map(|(mut client, second)| {
            client.send(second);
            client
        })
    }
}

/// Sends a text byte by byte.
fn say_bytes(server: SocketAddr, text: &str) -> Client {
    let mut client = Client::connect(server);
    for byte in text.bytes() {
        client.send([byte]);
        thread::yield_now();
    }
    client
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
    let mut tip = (Member(4500), waiting(&service, Member(4500)));
    let mut numbers = 4501..; // their addresses are all of one length
    for form in forms {
        let length = form(tip.0).len();
        let members: Vec<_> = numbers.by_ref().take(length + 1).map(Member).collect();
        let messages = members.iter().zip(0..length).map(|(member, at)| (form(*member), at));
        let cut = Cut::begin(service.chain(), messages);
        let by_bytes = || say_bytes(service.chain(), &form(members[length]));
        let clients = cut.finish().chain(std::iter::once_with(by_bytes));
        for (member, mut client) in members.iter().zip(clients) {
            expect_linked((tip.0, &mut tip.1), (*member, &mut client));
            tip = (*member, client);
        }
    }
    println!("{} members were linked", numbers.start - 4500);
}

/// Proves the same of RECONNECT, for the first and the second caller.
#[test]
fn a_reconnect_may_be_cut_at_every_byte() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &[]);
    let [a, b] = ["10.0.0.1:1000", "[2001:db8::1]:2000"];
    let [first, second] = [a, b].map(|ip| {
        let message = |at| (reconnect(&format!("{at:03}"), ip), at);
        Cut::begin(service.repair(), (0..reconnect("000", ip).len()).map(message))
    });
    let short = first.clients.len();
    let mut second = second.finish();
    for (mut first, mut second) in first.finish().zip(&mut second) {
        assert_eq!((first.rest(), second.rest()), (repaired(b), repaired(a)));
    }
    for (id, mut second) in (short..).zip(second) {
        let mut first = say_bytes(service.repair(), &reconnect(&format!("{id:03}"), a));
        assert_eq!((first.rest(), second.rest()), (repaired(b), repaired(a)));
    }
}

/// Proves the same of EMNet's requests, and that any number of them may share a packet.
#[test]
fn emnet_requests_may_be_cut_and_share_packets() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &["--emnet-addr", "127.0.0.1:0"]);
    let emnet = service.address("EMNet");
    let line = |client: &mut Client| client.object().trim_start().to_owned();
    let add = r#"{"msg":"ADD_PEER","IP_Peer":"1.2.3.4:5"}"#;
    let found = r#"{"IP":"1.2.3.4:5","msg":"SUCCESS"}"#;
    let cut = Cut::begin(emnet, (0..add.len()).map(|at| (add.to_owned(), at)));
    let mut ids: Vec<_> = cut.finish().map(|mut client| added(&line(&mut client))).collect();

    let mut client = say_bytes(emnet, add);
    let last = added(&line(&mut client));
    let ask = |id| format!(r#"{{"msg":"ASK_IP","id":{id}}}"#);
    let messages = ids.drain(..).enumerate().map(|(at, id)| (ask(id), at % ask(id).len()));
    for mut client in Cut::begin(emnet, messages).finish() {
        assert_eq!(line(&mut client), found);
    }

    let ask = ask(last);
    client.send(format!("junk {ask}\r\n{ask}{{}} \0 [] {ask}{add}"));
    client.half_close();
    let answers = client.rest();
    let mut answers = answers.trim_start().lines();
    assert_eq!(answers.next(), Some(found));
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
fn a_request_is_read_behind_foreign_bytes() {
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
                thread::yield_now();
            }
            expect_linked((tip.0, &mut tip.1), (member, &mut client));
            tip = (member, client);
        }
    }
    let joined = members.next().unwrap().0;
    expect_metric(&service, "emnetchain_clients", f64::from(joined));
}

/// Proves that no client is heard whose first bytes are an HTTP request: a browser can be made to
/// send one by any page.
#[test]
fn a_browser_is_not_heard() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &[]);
    let mut tip = waiting(&service, Member(0));
    let lines = ["POST / HTTP/1.1\r\nhost: x\r\n\r\n", "OPTIONS * HTTP/1.1\r\n\r\n", "GET /"];
    let text = |line| format!("{line}{}", Member(1).connect());
    let messages = lines.iter().flat_map(|line| [0, 2, line.len()].map(|at| (text(line), at)));
    let browsers: Vec<_> = Cut::begin(service.chain(), messages).finish().collect();
    expect_read(service.chain());
    expect_metric(&service, "emnetchain_rejected_total{reason=\"http\"}", 9.0);
    expect_metric(&service, "emnetchain_connections{listener=\"chain\"}", 10.0);
    drop(browsers);
    let mut next = Client::say(service.chain(), Member(2).connect());
    assert_eq!(tip.object(), told("head", &Member(2).tail()));
    assert_eq!(next.object(), told("tail", &Member(0).head()));
}
