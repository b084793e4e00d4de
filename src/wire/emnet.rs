//! EMNet: swaps an address for a short number that people can pass on.
//!
//! - `{"msg":"ADD_PEER","IP_Peer":"any text"}` → `{"id":123456,"msg":"SUCCESS"}`
//! - `{"msg":"ASK_IP","id":123456}` → `{"IP":"any text","msg":"SUCCESS"}`, once
//! - any other object → `{"msg":"FAILED"}`
//!
//! Each reply ends with a newline and the connection stays open. What is not JSON gets no reply.
//! Keys are sorted and strings escaped as Go's encoder does, because the original is a Go program.

use super::Object;
use crate::{ids::PeerId, limits::PEER_TEXT_BYTES_MAX};

/// A request of a client of EMNet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Keep this text and name a number for it.
    AddPeer(String),
    /// Give back the text kept under this number, and forget it.
    AskIp(PeerId),
}

/// A message that can only be answered with [`Reply::Failed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a request to EMNet")]
pub struct Failed;

impl Request {
    /// Reads a request.
    pub fn parse(object: &Object) -> Result<Self, Failed> {
        match object.text("msg") {
            Some("ADD_PEER") => {
                let text = object.text("IP_Peer").ok_or(Failed)?;
                if text.len() > PEER_TEXT_BYTES_MAX {
                    return Err(Failed);
                }
                Ok(Self::AddPeer(text.to_owned()))
            }
            Some("ASK_IP") => {
                // Go decodes a number as a float and truncates it towards zero.
                let id = object.number("id").ok_or(Failed)?.trunc();
                let valid = id >= 0.0 && id < f64::from(PeerId::COUNT);
                if valid { Ok(Self::AskIp(PeerId(id as u32))) } else { Err(Failed) }
            }
            Some(_) | None => Err(Failed),
        }
    }
}

/// An answer of EMNet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// The address is kept under this number.
    Added(PeerId),
    /// No such number, no room, or no such request.
    Failed,
    /// The text that was kept.
    Found(&'a str),
}

impl Reply<'_> {
    /// Returns the bytes on the wire, newline included.
    pub fn encode(self) -> Vec<u8> {
        let line = match self {
            Self::Added(PeerId(id)) => format!("{{\"id\":{id},\"msg\":\"SUCCESS\"}}\n"),
            Self::Failed => "{\"msg\":\"FAILED\"}\n".to_owned(),
            Self::Found(text) => format!("{{\"IP\":{},\"msg\":\"SUCCESS\"}}\n", go_string(text)),
        };
        line.into_bytes()
    }
}

/// Returns a JSON string as Go writes it: safe in HTML and in JavaScript too.
fn go_string(text: &str) -> String {
    let mut string = String::with_capacity(text.len() + 2);
    for c in serde_json::Value::from(text).to_string().chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                string.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => string.push(c),
        }
    }
    string
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(reply: Reply<'_>) -> String {
        String::from_utf8(reply.encode()).unwrap()
    }

    #[test]
    fn replies_have_the_bytes_of_the_seed() {
        assert_eq!(encoded(Reply::Added(PeerId(123_456))), "{\"id\":123456,\"msg\":\"SUCCESS\"}\n");
        assert_eq!(encoded(Reply::Added(PeerId(0))), "{\"id\":0,\"msg\":\"SUCCESS\"}\n");
        assert_eq!(
            encoded(Reply::Found("1.2.3.4:5")),
            "{\"IP\":\"1.2.3.4:5\",\"msg\":\"SUCCESS\"}\n"
        );
        assert_eq!(encoded(Reply::Failed), "{\"msg\":\"FAILED\"}\n");
    }

    #[test]
    fn a_text_has_a_limit() {
        let add = |bytes: usize| {
            let json = format!(r#"{{"msg":"ADD_PEER","IP_Peer":"{}"}}"#, "a".repeat(bytes));
            Request::parse(&serde_json::from_str(&json).unwrap())
        };
        assert!(add(PEER_TEXT_BYTES_MAX).is_ok());
        assert_eq!(add(PEER_TEXT_BYTES_MAX + 1), Err(Failed));
    }

    #[test]
    fn strings_are_escaped_as_go_does() {
        assert_eq!(
            go_string("<a>&\"\\/\n\r\t\u{8}\u{c}\u{1}\u{1f}\u{7f}\u{2028}\u{2029}é\u{1f44b}"),
            "\"\\u003ca\\u003e\\u0026\\\"\\\\/\\n\\r\\t\\b\\f\\u0001\\u001f\u{7f}\\u2028\\u2029\
             é\u{1f44b}\""
        );
    }
}
