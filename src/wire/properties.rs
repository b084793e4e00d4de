//! The decoder's promises for all bytes, and not only for those that a test names. A failing case
//! is printed by proptest and kept in `proptest-regressions/`.

use proptest::{collection::vec, prelude::*};

use super::{Decoder, Dialect, Object, Value, WireError, chain, emnet, repair};
use crate::{
    ids::{Endpoint, Part, PeerId, Socket},
    limits::{MESSAGE_BYTES_MAX, PEER_TEXT_BYTES_MAX},
};

type Found = Result<Object, WireError>;

/// Returns everything that a decoder finds in these packets.
fn decode(dialect: Dialect, packets: &[&[u8]]) -> Vec<Found> {
    let mut decoder = Decoder::new(dialect);
    let mut found = Vec::new();
    for mut input in packets.iter().copied() {
        while let Some(next) = decoder.next(&mut input) {
            found.push(next);
        }
        assert!(input.is_empty(), "None means that all is read");
    }
    found
}

/// Cuts `bytes` at these points, taken modulo its length.
fn cut<'a>(bytes: &'a [u8], points: &[usize]) -> Vec<&'a [u8]> {
    let mut points: Vec<usize> = points.iter().map(|at| at % (bytes.len() + 1)).collect();
    points.push(bytes.len());
    points.sort_unstable();
    let begins = std::iter::once(&0).chain(&points);
    begins.zip(&points).map(|(begin, end)| &bytes[*begin..*end]).collect()
}

/// Bytes that come close to messages: pieces of them, structure, junk.
fn almost_messages() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => prop::sample::select(vec![
            "{", "}", "[", "]", ",", ":", "\"", "\\", " ", "\n", "\\u", "00e9", "1.2.3.4:5",
            "{\"msg\":\"CONNECT\"", "\"a\":1", "\"tail\":\"[::1]:6\"}", "msg:RECONNECT", "POST /",
            "{\"msg\":\"CONNECT\",\"head\":\"1.2.3.4:5\",\"tail\":\"1.2.3.4:6\"}",
        ]).prop_map(|piece| piece.as_bytes().to_vec()),
        1 => vec(any::<u8>(), 0..8),
        1 => (0_usize..3000, prop::sample::select(b"[{ax\"".to_vec()))
            .prop_map(|(count, byte)| std::iter::repeat_n(byte, count).collect()),
    ];
    vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

/// Any JSON value, nested a few levels.
fn json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        (-1e12..1e12).prop_map(|number: f64| number.into()),
        text().prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 24, 5, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..5).prop_map(Into::into),
            vec((text(), inner), 0..5)
                .prop_map(|fields| { serde_json::Value::Object(fields.into_iter().collect()) }),
        ]
    })
}

/// Text in which structure and escapes are frequent.
fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[{}\\[\\],:\"\\\\ /a\\x00-\\x1f]{0,6}", "\\PC{0,6}", any::<String>()]
}

fn object() -> impl Strategy<Value = serde_json::Map<String, serde_json::Value>> {
    vec((text(), json()), 0..6).prop_map(|fields| fields.into_iter().collect())
}

/// Returns whether a field is what JSON says it is.
fn same(value: Option<&Value>, json: &serde_json::Value) -> bool {
    match value {
        Some(Value::Text(text)) => json.as_str() == Some(text),
        Some(Value::Number(number)) => json.as_f64() == Some(*number),
        Some(Value::Other) => !json.is_string() && !json.is_number(),
        None => false,
    }
}

fn socket() -> impl Strategy<Value = Socket> {
    (any::<std::net::IpAddr>(), any::<u16>()).prop_map(|(ip, port)| {
        let text = Endpoint { ip: ip.to_canonical(), port }.to_string();
        Socket::parse(&text).expect("an endpoint prints as a socket")
    })
}

proptest! {
    #[test]
    fn the_same_bytes_are_the_same_messages_however_they_are_cut(
        bytes in almost_messages(),
        points in vec(any::<usize>(), 0..8),
    ) {
        for dialect in [Dialect::Seed, Dialect::Json] {
            let whole = decode(dialect, &[&bytes]);
            prop_assert_eq!(&decode(dialect, &cut(&bytes, &points)), &whole);
            let dripped: Vec<&[u8]> = bytes.chunks(1).collect();
            prop_assert_eq!(&decode(dialect, &dripped), &whole);
        }
    }

    #[test]
    fn any_bytes_are_survived_with_bounded_memory(bytes in vec(any::<u8>(), 0..5000)) {
        let mut decoder = Decoder::new(Dialect::Seed);
        for mut input in bytes.chunks(100) {
            while decoder.next(&mut input).is_some() {}
            prop_assert!(decoder.capacity() <= MESSAGE_BYTES_MAX);
        }
    }

    #[test]
    fn json_objects_are_read_as_serde_json_reads_them(
        objects in vec((object(), any::<bool>(), "[ \t\r\n]{0,2}"), 1..4),
        points in vec(any::<usize>(), 0..4),
    ) {
        let mut bytes = Vec::new();
        for (object, pretty, space) in &objects {
            let encode = if *pretty { serde_json::to_string_pretty } else { serde_json::to_string };
            bytes.extend(encode(object).unwrap().as_bytes());
            bytes.extend(space.as_bytes());
        }
        for dialect in [Dialect::Seed, Dialect::Json] {
            let found = decode(dialect, &cut(&bytes, &points));
            prop_assert_eq!(found.len(), objects.len());
            for (found, (object, ..)) in found.iter().zip(&objects) {
                let found = found.as_ref().expect("well-formed");
                // Through text, for serde_json may read a float one bit beside the one it wrote.
                let object: serde_json::Map<_, _> =
                    serde_json::from_str(&serde_json::to_string(object).unwrap()).unwrap();
                for (key, json) in &object {
                    let value = found.get(key);
            prop_assert!(same(value, json), "{}: {} is {:?}", key, json, value);
                }
            }
        }
    }

    #[test]
    fn replies_are_read_by_any_json_parser(ip in socket(), head in any::<bool>()) {
        let part = if head { Part::Head } else { Part::Tail };
        let link: serde_json::Value = serde_json::from_slice(&chain::reply(part, &ip)).unwrap();
        prop_assert_eq!(
            link,
            serde_json::json!({"msg": "CONNECT", "part": part.as_str(), "ip": ip.to_string()})
        );
        let repair: serde_json::Value = serde_json::from_slice(&repair::reply(&ip)).unwrap();
        prop_assert_eq!(repair, serde_json::json!({"msg": "CONNECT", "ip": ip.to_string()}));
    }

    #[test]
    fn emnet_gives_back_the_text_that_it_was_given(text in text(), id in 0_u32..1_000_000) {
        prop_assume!(text.len() <= PEER_TEXT_BYTES_MAX);
        let add = serde_json::json!({"msg": "ADD_PEER", "IP_Peer": text}).to_string();
        let found = decode(Dialect::Json, &[add.as_bytes()]).remove(0).unwrap();
        prop_assert_eq!(emnet::Request::parse(&found), Ok(emnet::Request::AddPeer(text.clone())));
        let reply = emnet::Reply::Found(&text).encode();
        prop_assert!(!reply[..reply.len() - 1].contains(&b'\n') && reply.ends_with(b"\n"));
        let reply: serde_json::Value = serde_json::from_slice(&reply).unwrap();
        prop_assert_eq!(reply, serde_json::json!({"msg": "SUCCESS", "IP": text}));
        let ask = serde_json::json!({"msg": "ASK_IP", "id": id}).to_string();
        let found = decode(Dialect::Json, &[ask.as_bytes()]).remove(0).unwrap();
        prop_assert_eq!(emnet::Request::parse(&found), Ok(emnet::Request::AskIp(PeerId(id))));
    }
}
