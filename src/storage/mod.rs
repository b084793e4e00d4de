//! What an instance keeps on disk, and how it comes back from it.
//!
//! ```text
//! LOCK             held by the process that works here
//! identity.json    cluster id, node id, format; see `identity`
//! raft/            the raft log and the vote: the truth
//! snapshot/        one whole registry in a checksummed file; the log is purged only behind it
//! registry/        the image of the registry in sled, written behind, for a quick start
//! ```
//!
//! The rule is one: *an entry is in the raft log, on disk, before it is acknowledged; and it stays
//! there until a snapshot file that holds its outcome is on disk.* The image is a convenience. If
//! it is lost or damaged it is rebuilt, with a warning; if a snapshot is damaged a new one is
//! written from the image. What cannot be rebuilt is refused ([`StorageError::Damaged`], exit code
//! 78), and nothing is ever silently older than what was acknowledged. When a write or a sync
//! fails, the instance stops ([`fault`], exit code 74).
//!
//! # Order of opening
//!
//! 1. [`DataDir::open`] locks the directory and makes sure whose it is. It refuses a directory
//!    that has lost its raft log, so it must come before the log creates one.
//! 2. The raft log is opened in [`DataDir::raft_dir`]; it gives its [`LogEnds`]. On the first
//!    start it must have created at least one file there, for an empty `raft/` counts as lost
//!    afterwards.
//! 3. [`StateMachine::open`] restores the registry, starts to write its image, and marks the
//!    directory as initialised.
//! 4. Somebody begins to receive from the channel of effects, for
//! 5. `openraft::Raft::new` applies what is left of the log before it returns.
//!
//! At the end: shut raft down, which drops the state machine; then [`ImageProgress::ended`] tells
//! when the last write into `registry/` is done. Skipping that wait loses nothing.

pub mod fault;

mod check;
mod error;
mod files;
mod identity;
mod image;
mod snapshot;
mod start;
mod state_machine;

#[cfg(test)]
mod tests;

pub use check::{CheckReport, Finding, check};
pub use error::StorageError;
pub use identity::{ClusterId, DataDir, Identity};
pub use image::ImageProgress;
pub use snapshot::SnapshotFile;
pub use start::LogEnds;
pub use state_machine::{RegistryView, SnapshotBuilder, StateMachine, StateMachineOptions};
