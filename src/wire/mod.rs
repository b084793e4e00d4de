//! The clients' bytes and messages. Pure: no IO, no clock, nothing that waits.
//!
//! # Framing
//!
//! A message is a bare JSON object: no length before it, no newline behind it, and any number of
//! them in one packet or any number of packets for one. A [`Decoder`] finds where each begins and
//! ends; the seed took the bytes of one `read` for a message. White space between messages is
//! nothing. Other bytes there are *junk*: they are passed over up to the next `{`, because a
//! correct message must not suffer from what a careless program sent before it.
//!
//! One kind of junk is not forgiven: a connection that begins with an HTTP request line is deaf
//! from then on. Any web page can make a browser send a POST with a body of its choosing, and the
//! body must not be taken for a message of the browser's owner.
//!
//! # Dialect
//!
//! JSON comes first: what is JSON means what JSON says. What is not is read as the seed's
//! chain and repair servers read it ([`Dialect::Seed`]): keys and values without quotes, trailing
//! commas, raw control characters in strings. Two rules hold for both: the last of equal keys
//! counts, and invalid UTF-8 becomes U+FFFD. EMNet was written with a real JSON parser and gets
//! JSON only ([`Dialect::Json`]).
//!
//! # Limits
//!
//! A message has at most [`MESSAGE_BYTES_MAX`](crate::limits::MESSAGE_BYTES_MAX) bytes and
//! [`MESSAGE_DEPTH_MAX`](crate::limits::MESSAGE_DEPTH_MAX) open brackets. One that has more is
//! reported once and never kept; its bytes are followed to its end if they can be, so that what
//! lies inside is not taken for messages, and the message behind it is heard.
//!
//! # Faults
//!
//! A legacy client sees silence and an open connection after every mistake. So nothing here
//! makes an error reply; a [`WireError`] or an [`Ignored`] is for the metrics and the log. The page
//! for authors of clients is `proto-docs/messages.md`.

mod address;
pub mod chain;
mod decoder;
pub mod emnet;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod golden;
mod object;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod ranges;
pub mod reflector;
pub mod repair;
mod scanner;
pub mod stun;

pub use address::{AddressPolicy, Forbidden, UnknownPolicy, allow};
pub use decoder::Decoder;
pub use object::{Dialect, Object, Value};

/// Bytes that are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum WireError {
    /// The connection began with an HTTP request line; nothing on it is listened to any more.
    #[error("the peer speaks HTTP")]
    Http,
    /// Something else than white space between messages.
    #[error("junk between messages")]
    Junk,
    /// A message that is not JSON where only JSON is understood, or one that has no end.
    #[error("malformed message")]
    Malformed,
    /// A message that nests deeper than [`crate::limits::MESSAGE_DEPTH_MAX`].
    #[error("message nests too deep")]
    TooDeep,
    /// A message of more than [`crate::limits::MESSAGE_BYTES_MAX`] bytes.
    #[error("message too large")]
    TooLarge,
}

impl WireError {
    /// Returns the label of the counter of rejected requests.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Junk => "junk",
            Self::Malformed => "malformed",
            Self::TooDeep => "too_deep",
            Self::TooLarge => "too_large",
        }
    }
}

/// Why a complete message is not a request to this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Ignored {
    /// The client may not announce this socket.
    #[error("forbidden socket: {0}")]
    Forbidden(Forbidden),
    /// Head and tail are the same socket.
    #[error("head and tail are one socket")]
    HeadIsTail,
    /// The repair id is longer than [`crate::limits::REPAIR_ID_BYTES_MAX`].
    #[error("id too long")]
    IdTooLong,
    /// A field that must be there is not, or is not a string.
    #[error("missing field")]
    MissingField,
    /// A field that must be an `ip:port` is not.
    #[error("not a socket")]
    NotASocket,
    /// `msg` is missing or not the word that this server listens to.
    #[error("unknown message")]
    UnknownMessage,
}

impl Ignored {
    /// Returns the label of the counter of rejected requests.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Forbidden(forbidden) => forbidden.reason(),
            Self::HeadIsTail => "head_is_tail",
            Self::IdTooLong => "id_too_long",
            Self::MissingField => "missing_field",
            Self::NotASocket => "not_a_socket",
            Self::UnknownMessage => "unknown_message",
        }
    }
}
