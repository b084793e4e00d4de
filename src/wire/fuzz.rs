//! Hostile bytes for the ports of clients.

use std::net::IpAddr;

use super::{
    AddressPolicy, Decoder, Dialect, Object, Value, WireError,
    chain::ConnectRequest,
    emnet,
    reflector::{answer, is_reflection},
    repair::ReconnectRequest,
};
use crate::{
    fuzz::{Chance, Target, pieces},
    ids::{Endpoint, PeerId, Socket},
    limits::{MESSAGE_BYTES_MAX, MESSAGE_DEPTH_MAX, PEER_TEXT_BYTES_MAX},
};

const KIB: usize = 1024;
const SOURCES: [&str; 4] = ["127.0.0.1", "203.0.113.9", "2001:db8::9", "::ffff:203.0.113.9"];
const POLICIES: [AddressPolicy; 3] =
    [AddressPolicy::Auto, AddressPolicy::Any, AddressPolicy::SourceIp];

type Found = Result<Object, WireError>;

fn decode(dialect: Dialect, pieces: &[&[u8]]) -> Vec<Found> {
    let mut decoder = Decoder::new(dialect);
    let mut found = Vec::new();
    for mut input in pieces.iter().copied() {
        while let Some(next) = decoder.next(&mut input) {
            found.push(next);
        }
        assert!(input.is_empty() && decoder.capacity() <= MESSAGE_BYTES_MAX);
    }
    found
}

fn depth(json: &serde_json::Value) -> usize {
    let deepest = match json {
        serde_json::Value::Array(items) => items.iter().map(depth).max(),
        serde_json::Value::Object(fields) => fields.values().map(depth).max(),
        serde_json::Value::Null
        | serde_json::Value::Bool(_)
        | serde_json::Value::Number(_)
        | serde_json::Value::String(_) => return 0,
    };
    1 + deepest.unwrap_or(0)
}

/// Checks that one JSON object, as another parser reads it, is one message with the same fields.
fn is_as_json_says(input: &[u8], found: &[Found]) {
    let text = input.trim_ascii();
    let json = serde_json::from_slice::<serde_json::Value>(text).ok();
    let Some(json) = json.filter(|json| json.is_object()) else { return };
    if text.len() > MESSAGE_BYTES_MAX || depth(&json) > MESSAGE_DEPTH_MAX {
        return;
    }
    let [Ok(object)] = found else { panic!("one object, and not {found:?}") };
    for (key, value) in json.as_object().expect("it was looked at") {
        let same = match object.get(key) {
            Some(Value::Text(text)) => value.as_str() == Some(text),
            Some(Value::Number(number)) => value.as_f64() == Some(*number),
            Some(Value::Other) => !value.is_string() && !value.is_number(),
            None => false,
        };
        assert!(same, "{key}: {value} is {:?}", object.get(key));
    }
}

/// Feeds a port, whole and in pieces. `request` reads a message, as its re-encoded text if it is a
/// request; the text must mean the same again.
fn port(
    name: &'static str,
    dialect: Dialect,
    request: impl Fn(&Object, AddressPolicy, IpAddr) -> Option<String>,
) {
    // What is found is kept here twice; an empty message of two bytes is found as some 150.
    Target::new(name, 2048 * KIB).run(8000, |input, chance| {
        let found = decode(dialect, &[input]);
        let again = decode(dialect, &pieces(input, chance));
        let shown = |found: &[Found]| format!("{found:?}"); // a number may be NaN
        assert!(found == again || shown(&found) == shown(&again), "{found:?} and {again:?}");
        is_as_json_says(input, &found);
        let source: IpAddr = chance.pick(&SOURCES).parse().expect("an address");
        let policy = chance.pick(&POLICIES);
        let mut taken = false;
        for object in found.iter().filter_map(|found| found.as_ref().ok()) {
            let Some(text) = request(object, policy, source) else { continue };
            let same = decode(dialect, &[text.as_bytes()]);
            let [Ok(object)] = &same[..] else { panic!("{text} is {same:?}") };
            assert_eq!(request(object, policy, source), Some(text));
            taken = true;
        }
        taken
    });
}

/// No client makes the service send others to a stranger.
fn may_be_told(policy: AddressPolicy, source: IpAddr, socket: &Socket) {
    let (endpoint, source) = (socket.endpoint(), source.to_canonical());
    assert!(endpoint.port != 0 && !endpoint.ip.is_unspecified() && !endpoint.ip.is_multicast());
    if !source.is_loopback() {
        assert!(!endpoint.ip.is_loopback(), "{source} announces {endpoint}");
        assert!(policy == AddressPolicy::Any || endpoint.ip == source);
    }
}

#[test]
fn chain() {
    port("chain", Dialect::Seed, |object, policy, source| {
        let ConnectRequest { head, tail } = ConnectRequest::parse(object, policy, source).ok()?;
        for socket in [&head.0, &tail.0] {
            may_be_told(policy, source, socket);
        }
        let (head, tail) = (head.0.to_string(), tail.0.to_string());
        Some(serde_json::json!({"msg": "CONNECT", "head": head, "tail": tail}).to_string())
    });
}

#[test]
fn repair() {
    port("repair", Dialect::Seed, |object, policy, source| {
        let ReconnectRequest { id, orphan } =
            ReconnectRequest::parse(object, policy, source).ok()?;
        may_be_told(policy, source, &orphan.0);
        let ip = orphan.0.to_string();
        Some(serde_json::json!({"msg": "RECONNECT", "id": &*id.0, "ip": ip}).to_string())
    });
}

#[test]
fn emnet() {
    port("emnet", Dialect::Json, |object, _, _| {
        Some(match emnet::Request::parse(object).ok()? {
            emnet::Request::AddPeer(text) => {
                assert!(text.len() <= PEER_TEXT_BYTES_MAX);
                let reply = emnet::Reply::Found(&text).encode();
                let reply: serde_json::Value = serde_json::from_slice(&reply).expect("JSON");
                assert_eq!(reply["IP"], text);
                serde_json::json!({"msg": "ADD_PEER", "IP_Peer": text}).to_string()
            }
            emnet::Request::AskIp(id) => {
                assert!(id.0 < PeerId::COUNT);
                serde_json::json!({"msg": "ASK_IP", "id": id.0}).to_string()
            }
        })
    });
}

/// Makes a length right, and the checksum behind it where there is one.
fn right(input: &[u8]) -> Vec<u8> {
    let mut message = input.to_vec();
    if let Some(length) = message.len().checked_sub(20) {
        message[2..4].copy_from_slice(&u16::try_from(length).expect("short").to_be_bytes());
        let at = message.len() - 8;
        if length >= 8 && message[at..at + 4] == [0x80, 0x28, 0, 4] {
            let check = crc32fast::hash(&message[..at]) ^ 0x5354_554e;
            message[at + 4..].copy_from_slice(&check.to_be_bytes());
        }
    }
    message
}

fn source(chance: &mut Chance) -> Endpoint {
    let ip: IpAddr = chance.pick(&SOURCES).parse().expect("an address");
    let port = u16::try_from(chance.between(1, 65_535)).expect("in range");
    Endpoint { ip: ip.to_canonical(), port }
}

#[test]
fn stun() {
    Target::new("stun", 64 * KIB).inputs_below(1500).run(20_000, |input, chance| {
        let repaired = chance.percent(60).then(|| right(input));
        let input = repaired.as_deref().unwrap_or(input);
        let source = source(chance);
        let Ok(answered) = answer(input, source) else { return false };
        let bytes = answered.as_bytes();
        assert!(source.port >= 1024 && !is_reflection(input));
        assert!(is_reflection(bytes), "an answer is known as one");
        assert!(answer(bytes, source).is_err(), "an answer is not answered");
        if answered.kind() == "text" {
            assert_eq!(bytes, source.to_string().as_bytes());
            return false;
        }
        assert_eq!(bytes[4..20], input[4..20], "the transaction");
        assert_eq!(usize::from(u16::from_be_bytes([bytes[2], bytes[3]])), bytes.len() - 20);
        assert!(bytes.len() <= input.len() + 32, "{} for {}", bytes.len(), input.len());
        true
    });
}
