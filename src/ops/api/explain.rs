//! All that is known of one socket. Ages are in milliseconds of log time.

use serde::{Deserialize, Serialize};

use super::{Ask, Client, Word};

/// All that is known of a socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The socket.
    pub address: String,
    /// `head` or `tail`, if a client owns it.
    pub part: Option<Word>,
    /// The client that owns it.
    pub client: Option<Client>,
    /// Its waits by RECONNECT, if no chain knows it.
    pub waits: Vec<Ask>,
    /// The same for people, a sentence each.
    pub says: Vec<String>,
    /// The events, the oldest first.
    pub events: Vec<Told>,
    /// The extent of this instance's memory.
    pub history: Remembered,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// The age of the event.
    pub ago_ms: u64,
    /// The entry that brought it about.
    pub entry: u64,
    /// The id of the request that it is about.
    pub request: Option<String>,
    /// The event, in words.
    pub text: String,
}

/// The extent of an instance's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// The number of events in memory.
    pub events: usize,
    /// The most events that it keeps.
    pub capacity: usize,
    /// The age of the oldest.
    pub since_ms: Option<u64>,
}
