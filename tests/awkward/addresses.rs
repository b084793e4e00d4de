//! Which sockets a client on loopback may announce, as seen from outside.

use tempfile::TempDir;

use super::honest::expect_metric;
use crate::support::{Client, Service, reconnect, repaired, told};

const GOOD: &str = "127.0.0.1:1000";

/// What no client may announce, and the reason that is counted.
const REFUSED: &[(&str, &str)] = &[
    ("127.0.0.1:0", "address_port"),
    ("8.8.8.8:0", "address_port"),
    ("[::1]:0", "address_port"),
    ("0.0.0.0:1000", "address_unspecified"),
    ("0.1.2.3:1000", "address_unspecified"),
    ("[::]:1000", "address_unspecified"),
    ("[::ffff:0.0.0.0]:1000", "address_unspecified"),
    ("[64:ff9b::]:1000", "address_unspecified"),
    ("224.0.0.1:1000", "address_multicast"),
    ("239.255.255.255:1000", "address_multicast"),
    ("[ff02::1]:1000", "address_multicast"),
    ("[::ffff:224.0.0.1]:1000", "address_multicast"),
    ("[2002:e000:1::]:1000", "address_multicast"),
    ("255.255.255.255:1000", "address_broadcast"),
    ("[::ffff:255.255.255.255]:1000", "address_broadcast"),
    ("", "not_a_socket"),
    ("127.0.0.1", "not_a_socket"),
    ("127.0.0.1:", "not_a_socket"),
    ("127.0.0.1:65536", "not_a_socket"),
    ("127.0.0.1:-1", "not_a_socket"),
    ("127.0.0.01:1000", "not_a_socket"),
    (" 127.0.0.1:1000", "not_a_socket"),
    ("localhost:1000", "not_a_socket"),
    ("::1:1000", "not_a_socket"),
    ("[fe80::1%eth0]:1000", "not_a_socket"),
    ("256.0.0.1:1000", "not_a_socket"),
];

/// What a client on loopback may announce under `auto`, told as it was spelled.
const ALLOWED: &[&str] = &[
    "127.0.0.2:1",
    "10.1.2.3:65535",
    "192.168.0.1:1000",
    "169.254.1.1:1000",
    "100.64.0.1:1000",
    "8.8.8.8:53",
    "[::1]:1000",
    "[fe80::1]:1000",
    "[2001:db8::1]:1000",
    "[2001:DB8::2]:1000",
    "[::ffff:10.9.8.7]:1000",
];

fn connect(head: &str, tail: &str) -> String {
    format!(r#"{{"msg":"CONNECT","head":"{head}","tail":"{tail}"}}"#)
}

fn counted(service: &Service, reason: &str) -> f64 {
    service.metric(&format!("emnetchain_rejected_total{{reason=\"{reason}\"}}"))
}

/// Proves that each forbidden socket, as head, as tail or in a repair, is met with silence and its
/// counter, that the connection may go on to make an allowed request, and that no client is told
/// one.
#[test]
fn what_no_client_may_announce_is_met_with_silence_and_counted() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &[]);
    let mut chain = Client::connect(service.chain());
    let mut repair = Client::connect(service.repair());
    for (socket, reason) in REFUSED {
        let before = counted(&service, reason);
        chain.send(connect(socket, GOOD));
        chain.send(connect(GOOD, socket));
        repair.send(reconnect("1", socket));
        let name = format!("emnetchain_rejected_total{{reason=\"{reason}\"}}");
        println!("{socket:?} is refused");
        expect_metric(&service, &name, before + 3.0);
    }
    for spelled in [GOOD, "[::ffff:127.0.0.1]:1000"] {
        let before = counted(&service, "head_is_tail");
        chain.send(connect(GOOD, spelled));
        let name = "emnetchain_rejected_total{reason=\"head_is_tail\"}";
        expect_metric(&service, name, before + 1.0);
    }
    for nothing in ["emnetchain_clients", "emnetchain_asks", "emnetchain_repairs_pending"] {
        assert_eq!(service.metric(nothing), 0.0, "{nothing}");
    }
    chain.expect_silence();
    repair.expect_silence();
    // Both connections may still make a good request.
    chain.send(connect(GOOD, "127.0.0.1:1001"));
    expect_metric(&service, "emnetchain_clients", 1.0);
    let mut next = Client::say(service.chain(), connect("127.0.0.1:2000", "127.0.0.1:2001"));
    assert_eq!(chain.rest(), told("head", "127.0.0.1:2001"));
    assert_eq!(next.object(), told("tail", GOOD));
}

/// Proves that a client on loopback may announce any host's socket, and that it is passed on as it
/// was spelled.
#[test]
fn what_a_client_on_loopback_announces_is_told_as_it_was_spelled() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &[]);
    for (number, socket) in ALLOWED.iter().enumerate() {
        let id = format!("id {number}");
        let partner = format!("10.0.0.1:{}", 2000 + number);
        let mut first = Client::say(service.repair(), reconnect(&id, socket));
        let mut second = Client::say(service.repair(), reconnect(&id, &partner));
        assert_eq!(second.rest(), repaired(socket));
        assert_eq!(first.rest(), repaired(&partner));
    }
}

/// Proves that under `source-ip` a client may announce the address it comes from and no other.
#[test]
fn under_source_ip_only_the_clients_own_address_is_allowed() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &["--address-policy", "source-ip"]);
    let mut client = Client::connect(service.chain());
    let strangers = ["127.0.0.2:1", "10.1.2.3:1000", "8.8.8.8:1000", "[::1]:1000"];
    for stranger in strangers {
        client.send(connect(stranger, GOOD));
    }
    let name = "emnetchain_rejected_total{reason=\"address_not_source\"}";
    expect_metric(&service, name, strangers.len() as f64);
    client.expect_silence();
    client.send(connect(GOOD, "[::ffff:127.0.0.1]:1001"));
    expect_metric(&service, "emnetchain_clients", 1.0);
}
