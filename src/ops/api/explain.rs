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
    /// What happened, the oldest first.
    pub events: Vec<Told>,
    /// How far this instance remembers.
    pub history: Remembered,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// How long ago.
    pub ago_ms: u64,
    /// The entry that brought it about.
    pub entry: u64,
    /// The id of the request that it is about.
    pub request: Option<String>,
    /// What it was, in words.
    pub text: String,
}

/// How far an instance remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// How many events it has in memory.
    pub events: usize,
    /// How many it keeps at the most.
    pub capacity: usize,
    /// The age of the oldest.
    pub since_ms: Option<u64>,
}
