//! The jobs of the writing thread, its answers, and the state that it shares with its callers.

use std::{
    fmt, io,
    sync::{Mutex, MutexGuard, PoisonError},
};

use openraft::storage::IOFlushed;
use tokio::sync::{Notify, oneshot};

use super::{
    frame::Seal,
    log::{Encoded, Log},
};
use crate::raft::{LogId, TypeConfig, Vote};

/// Tells the caller once the job is durable, or why it will never be.
pub(in crate::storage) type Done = oneshot::Sender<io::Result<()>>;

/// A job of the thread.
#[derive(Debug)]
pub(in crate::storage) enum Job {
    /// Write entries that memory has already.
    Append(Append),
    /// An empty log begins at this index.
    Begin(u64, Done),
    /// Forget the entries up to and including this one.
    Purge(LogId, Done),
    /// Forget the entries behind this one.
    Truncate(Option<LogId>, Done),
    /// Keep this vote.
    Vote(Vote, Done),
}

/// Entries to be written.
#[derive(Debug)]
pub(in crate::storage) struct Append {
    pub(in crate::storage) first: u64,
    pub(in crate::storage) entries: Vec<Encoded>,
    pub(in crate::storage) flushed: Flushed,
}

/// Completes openraft's callback exactly once: with an error if nothing else does.
pub(in crate::storage) struct Flushed(Option<IOFlushed<TypeConfig>>);

impl Flushed {
    pub(in crate::storage) fn new(callback: IOFlushed<TypeConfig>) -> Self {
        Self(Some(callback))
    }

    pub(super) fn complete(mut self, result: io::Result<()>) {
        if let Some(callback) = self.0.take() {
            callback.io_completed(result);
        }
    }
}

impl Drop for Flushed {
    fn drop(&mut self) {
        if let Some(callback) = self.0.take() {
            callback.io_completed(Err(thread_ended()));
        }
    }
}

impl fmt::Debug for Flushed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Flushed")
    }
}

/// Returns the error of a job that will not be carried out.
pub(in crate::storage) fn thread_ended() -> io::Error {
    io::Error::other("the thread that writes the raft log has ended")
}

/// The state that readers, the appender and the writing thread share.
#[derive(Debug)]
pub(in crate::storage) struct Shared {
    log: Mutex<Log>,
    pub(in crate::storage) seal: Seal,
    /// Rung when unsynced entries became durable, or when they never will.
    pub(in crate::storage) room: Notify,
}

impl Shared {
    pub(super) fn new(log: Log, seal: Seal) -> Self {
        Self { log: Mutex::new(log), seal, room: Notify::new() }
    }

    /// Locks the log in memory; never held across a read, a write or a sync.
    pub(in crate::storage) fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that nothing more will become durable.
    pub(super) fn break_off(&self) {
        self.lock().broken = true;
        self.room.notify_one();
    }
}
