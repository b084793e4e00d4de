//! Every bound in one place, each with the reason for its size. What an operator may want to
//! change is a key of [`crate::config`]; what replicas must agree on travels through the log as
//! [`crate::registry::Policy`].

use std::time::Duration;

/// A message of a client, in bytes: four times what the seed's chain server reads.
pub const MESSAGE_BYTES_MAX: usize = 4096;

/// The deepest nesting of arrays and objects in a message; the protocols need one level.
pub const MESSAGE_DEPTH_MAX: usize = 32;

/// The text of a socket: `[` + 45 characters of IPv6 + `]:65535` is 53.
pub const SOCKET_TEXT_BYTES_MAX: usize = 64;

/// A repair id, in bytes: the seed reads 512 bytes for the whole message.
pub const REPAIR_ID_BYTES_MAX: usize = 512;

/// The address that EMNet keeps, in bytes; it is any text, as in the seed.
pub const PEER_TEXT_BYTES_MAX: usize = 256;

/// Commands in one raft entry: enough to hide the disk's sync, small enough for sled's batches. A
/// command is at most about 800 bytes, so an entry stays below 128 KiB.
pub const ENTRY_COMMANDS_MAX: usize = 128;

/// Raft entries in flight from one proposer.
pub const PROPOSALS_IN_FLIGHT_MAX: usize = 8;

/// Commands waiting for the proposer; beyond it, connections wait their turn.
pub const PROPOSER_QUEUE_MAX: usize = 8192;

/// Longest time for one operation on the disk before the instance ends. The kernel gives up on a
/// device after 30 s as well; a machine that is only slow has answered long before.
pub const DISK_WAIT_MAX: Duration = Duration::from_secs(30);

/// A frame between instances, in bytes, checked before anything is allocated for it: 64 entries of
/// the largest size, and room for their envelope.
pub const RPC_FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Raft entries after which a snapshot is made, so that the log can be cut.
pub const SNAPSHOT_AFTER_ENTRIES: u64 = 20_000;

/// Bytes of log after which a snapshot is made, with any number of entries.
pub const SNAPSHOT_AFTER_LOG_BYTES: u64 = 256 * 1024 * 1024;

/// Raft entries kept behind a snapshot, for members that lag a little.
pub const LOG_ENTRIES_KEPT: u64 = 10_000;

/// The most bytes that a client may send without a request in them before it is cut off: room for
/// mistakes, not for keeping us busy.
pub const JUNK_BYTES_MAX: usize = 64 * 1024;

/// The most bytes that are read and discarded behind a client's request; beyond it the client's
/// kernel keeps them.
pub const DISCARDED_BYTES_MAX: usize = 1024 * 1024;

/// Bytes told to a slow reader that may wait beyond what its socket takes; an answer is below 400.
pub const UNSENT_BYTES_MAX: usize = 8 * 1024;

/// A snapshot that is taken from another instance, in bytes: more than fits into memory as a
/// registry, so that none can fill the disk.
pub const SNAPSHOT_BYTES_MAX: u64 = 16 * 1024 * 1024 * 1024;

/// Connections of other instances that have introduced themselves: three of each are kept, so this
/// is enough for 21. It is what the budget of descriptors sets aside for both directions, which is
/// enough for ten.
pub const RPC_CONNECTIONS_MAX: usize = 64;

/// Connections at the raft port that have not introduced themselves yet, with those that have made
/// room and are being closed, for which there is a quarter. An honest one is in that state for some
/// milliseconds, and strangers make room for each other, so few are enough.
pub const RPC_STRANGERS_MAX: usize = 32;

/// Chains that have metrics of their own. Clients name chains, so their number has no bound;
/// Prometheus pays for each label.
pub const CHAIN_LABELS_MAX: usize = 50;

/// The factor by which a source in the operator's own networks may exceed the rate of a public one,
/// where there is a rate: one such address often stands for many clients.
pub const LOCAL_RATE_FACTOR: u32 = 20;

/// Wrong ids that a source may ask EMNet for at once. People that mistype need a few; of 5,000 ids
/// in use among a million, twenty tries find one in ten times.
pub const PEER_GUESSES_BURST: u32 = 20;

/// Between two further wrong ids of one source: 43,200 a day, so that in the ten minutes that an
/// entry lives one source in 3,300 finds it. It is as short as that because those that share a
/// guesser's address wait behind it, this time for each of its questions that wait.
pub const PEER_GUESS_INTERVAL: Duration = Duration::from_secs(2);

/// Questions of one source that may wait at one time because of its wrong ids: the last of them is
/// answered after half a minute, before most clients give up.
pub const PEER_GUESSES_WAITING_MAX: usize = 16;

/// Wrong tokens that a source may show to the operators' HTTP at once.
pub const TOKEN_GUESSES_BURST: u32 = 5;

/// Between two further wrong tokens of one source: a token of 64 bits outlives that by far.
pub const TOKEN_GUESS_INTERVAL: Duration = Duration::from_secs(10);

/// Descriptors that connections which must make room may still have when the next newcomer is let
/// in. Each listener may go one beyond, which is within what is kept for the instance itself.
pub const CLOSING_MAX: usize = 8;

/// Sources of one IPv6 /48 that may do at one time all that a source may: have its connections, be
/// answered its datagrams, show wrong ids and tokens. A /48 has 65,536, often in one hand.
pub const NETWORK_SOURCES: u32 = 16;

/// Connections of one of the operator's own networks that weigh as one of a public source where
/// one must make room: an address there often stands for many clients, or is a supervisor's.
pub const LOCAL_PLACES: usize = 8;

/// One IPv6 /48 may have all connections divided by this.
pub const NETWORK_SHARE: usize = 4;

/// One in this number of connections is kept for those that have no request in hand yet: a newcomer
/// needs a round trip to ask, and is not to lose its place in that time.
pub const SILENT_SHARE: usize = 8;

/// Things that happened lately and are remembered for `explain`: at some 120 bytes each, 8 MiB. An
/// event of a waiting RECONNECT holds its id as well, so if each had one of
/// [`REPAIR_ID_BYTES_MAX`], it would be 42 MiB.
pub const HISTORY_EVENTS: usize = 65_536;

/// Clients, chains or events that one answer of the operators' HTTP holds at most.
pub const VIEW_ITEMS_MAX: usize = 1000;
