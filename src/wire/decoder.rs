//! Splits a connection's bytes into messages, however the network cut them.
//!
//! The decoder is told every byte once and gives each message as soon as its last byte is there.
//! The results depend on the bytes alone, never on how they were split into packets. It keeps
//! at most one message, and nothing at all between messages.

use super::{
    Dialect, Object, WireError,
    scanner::{Scanner, Step},
};
use crate::limits::MESSAGE_BYTES_MAX;

/// The messages in the bytes of one connection.
///
/// ```
/// use emnetchain::wire::{Decoder, Dialect};
///
/// let mut decoder = Decoder::new(Dialect::Seed);
/// let mut packet: &[u8] = br#"{"msg":"CON"#;
/// assert!(decoder.next(&mut packet).is_none(), "not yet complete");
/// let mut packet: &[u8] = br#"NECT"} and more"#;
/// let object = decoder.next(&mut packet).expect("complete").expect("well-formed");
/// assert_eq!(object.text("msg"), Some("CONNECT"));
/// assert_eq!(packet, b" and more", "what is behind the message is still to be read");
/// ```
#[derive(Debug)]
pub struct Decoder {
    dialect: Dialect,
    state: State,
    /// The message so far, from its opening brace on; empty unless [`State::Within`].
    text: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Within a message that is too large: it is followed to its end and not kept.
    Beyond(Scanner),
    /// Between messages; `junk` once something else than white space was seen, or a fault was
    /// reported to which what follows belongs.
    Between { junk: bool },
    /// The peer speaks HTTP: its bytes are not for us.
    Deaf,
    /// At the beginning of the connection, with this much of an HTTP request line seen.
    Opening(Http),
    /// Within a message.
    Within(Scanner),
}

/// The part of an HTTP request line that was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Http {
    /// Part of a method, or all of it.
    Method,
    /// No byte yet.
    Nothing,
    /// A method and the space behind it.
    Space,
}

impl Decoder {
    /// For a connection that has not sent anything yet. Allocates nothing.
    pub fn new(dialect: Dialect) -> Self {
        Self { dialect, state: State::Opening(Http::Nothing), text: Vec::new() }
    }

    /// Reads on in `input`, up to the end of the next message or fault, and leaves the rest there.
    /// `None` once all of it is read. After a fault the decoder looks for the next message.
    pub fn next(&mut self, input: &mut &[u8]) -> Option<Result<Object, WireError>> {
        while !input.is_empty() {
            let found = match self.state {
                State::Beyond(scanner) => self.follow(scanner, input),
                State::Between { junk } => self.seek(junk, input).map(Err),
                State::Deaf => {
                    *input = &[];
                    None
                }
                State::Opening(seen) => self.begin(seen, input).map(Err),
                State::Within(scanner) => self.collect(scanner, input),
            };
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// Bytes of memory that the message so far holds.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.text.capacity()
    }

    /// Tells an HTTP request line from everything else. Where the bytes part from it, the byte is
    /// left for [`Self::seek`].
    fn begin(&mut self, seen: Http, input: &mut &[u8]) -> Option<WireError> {
        let seen = match (seen, input[0]) {
            (Http::Nothing | Http::Method, b'A'..=b'Z') => Http::Method,
            (Http::Method, b' ') => Http::Space,
            (Http::Space, b'/' | b'*') => {
                self.state = State::Deaf;
                return Some(WireError::Http);
            }
            (Http::Nothing, _) => {
                self.state = State::Between { junk: false };
                return None;
            }
            (Http::Method | Http::Space, _) => {
                self.state = State::Between { junk: true };
                return Some(WireError::Junk);
            }
        };
        *input = &input[1..];
        self.state = State::Opening(seen);
        None
    }

    /// Passes over what is between messages. Of one run of junk only the first byte is reported.
    fn seek(&mut self, junk: bool, input: &mut &[u8]) -> Option<WireError> {
        let wanted = |byte: &u8| *byte == b'{' || !(junk || byte.is_ascii_whitespace());
        let Some(at) = input.iter().position(wanted) else {
            *input = &[];
            return None;
        };
        let found = input[at];
        *input = &input[at + 1..];
        if found == b'{' {
            self.text.push(found);
            self.state = State::Within(Scanner::new());
            return None;
        }
        self.state = State::Between { junk: true };
        Some(WireError::Junk)
    }

    /// Collects a message up to its end, its limit or the end of `input`.
    fn collect(
        &mut self,
        mut scanner: Scanner,
        input: &mut &[u8],
    ) -> Option<Result<Object, WireError>> {
        while let [byte, rest @ ..] = *input {
            if self.text.len() == MESSAGE_BYTES_MAX {
                self.text = Vec::new();
                self.state = State::Beyond(scanner);
                return Some(Err(WireError::TooLarge));
            }
            let step = scanner.step(*byte);
            match step {
                Step::Colon | Step::Comma | Step::Within => {}
                Step::End => {
                    *input = rest;
                    self.state = State::Between { junk: false };
                    let mut text = std::mem::take(&mut self.text);
                    text.push(*byte);
                    return Some(Object::parse(&text, self.dialect));
                }
                Step::Restart => {
                    // The brace is left for the new message, which can use the memory.
                    self.text.clear();
                    self.state = State::Between { junk: true };
                    return Some(Err(WireError::Malformed));
                }
                Step::TooDeep => {
                    *input = rest;
                    self.text = Vec::new();
                    self.state = State::Between { junk: true };
                    return Some(Err(WireError::TooDeep));
                }
            }
            *input = rest;
            self.text.push(*byte);
        }
        self.state = State::Within(scanner);
        None
    }

    /// Follows a message that was already reported as too large.
    fn follow(
        &mut self,
        mut scanner: Scanner,
        input: &mut &[u8],
    ) -> Option<Result<Object, WireError>> {
        while let [byte, rest @ ..] = *input {
            match scanner.step(*byte) {
                Step::Colon | Step::Comma | Step::Within => *input = rest,
                Step::End | Step::TooDeep => {
                    *input = rest;
                    self.state = State::Between { junk: true };
                    return None;
                }
                Step::Restart => {
                    self.state = State::Between { junk: true };
                    return None;
                }
            }
        }
        self.state = State::Beyond(scanner);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decoder_without_a_message_is_cheap() {
        assert!(size_of::<Decoder>() <= 64, "{} bytes", size_of::<Decoder>());
        let mut decoder = Decoder::new(Dialect::Seed);
        assert_eq!(decoder.capacity(), 0);
        for mut input in [&b"junk and more junk"[..], b"{}", b"{\"a\":[1,2,3]} ", b"{,{}"] {
            while decoder.next(&mut input).is_some() {}
            assert_eq!(decoder.capacity(), 0);
        }
    }

    #[test]
    fn endless_messages_cost_no_memory_and_one_fault() {
        let request = br#"{"msg":"CONNECT"}"#;
        for (begin, forever) in [
            ("", "["),
            ("{", "a"),
            ("{", "a:1,"),
            ("{\"a\":\"", "b"),
            ("{\"a\":\"", "\\"),
            ("{\"a\":[", "1,"),
            ("{\"a\":[", "[],"),
            ("{\"a\":", "["),
        ] {
            let mut decoder = Decoder::new(Dialect::Seed);
            let mut faults = 0;
            let packet = forever.repeat(65_536 / forever.len());
            for mut input in std::iter::once(begin).chain([packet.as_str(); 4]).map(str::as_bytes) {
                while let Some(found) = decoder.next(&mut input) {
                    assert!(found.is_err());
                    faults += 1;
                }
                assert!(decoder.capacity() <= MESSAGE_BYTES_MAX);
            }
            assert_eq!(faults, 1, "{begin}{forever}{forever}...");
            let heard = (0..2).any(|_| {
                let mut input = &request[..];
                std::iter::from_fn(|| decoder.next(&mut input))
                    .any(|found| found.is_ok_and(|object| object.text("msg") == Some("CONNECT")))
            });
            assert!(heard, "one of two messages behind {begin}{forever}{forever}...");
        }
    }
}
