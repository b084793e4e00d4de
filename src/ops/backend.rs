//! The views and changes of the operators' HTTP. A trait, so that the server can be tested without
//! a cluster.

use std::{io, sync::Arc};

use futures_util::future::BoxFuture;

use super::{
    api::{Digest, Status},
    running::NoBackup,
};
use crate::{
    cluster::admin::{Change, ChangeError},
    registry::Look,
};

/// An instance, as its operators' HTTP needs it.
pub trait Backend: Send + Sync {
    /// Brings up to date the metrics that are counted only when they are read; it must not block.
    fn refresh(&self);

    /// Makes the status; it must not block.
    fn status(&self) -> Status;

    /// Makes a digest of the registry; it may take seconds.
    fn digest(&self) -> Digest;

    /// Shows the registry and its history; `show` must not block for long.
    fn look(&self, show: &mut dyn FnMut(Look<'_>));

    /// Changes the cluster, and returns a sentence that says what is now the case.
    fn change(&self, change: Change) -> BoxFuture<'_, Result<String, ChangeError>>;

    /// Takes this instance out of service: no new clients, no leadership. It goes on replicating
    /// until it is stopped. Returns a sentence that says so.
    fn drain(&self) -> BoxFuture<'_, String>;

    /// Makes a backup of everything that was answered before.
    fn backup(&self) -> BoxFuture<'_, Result<Backup, NoBackup>>;
}

/// A file that can be handed out.
pub struct Backup {
    /// Its length.
    pub bytes: u64,
    /// The last entry that it covers.
    pub entry: u64,
    /// The number of its records.
    pub records: u64,
    /// Fills a buffer from a place in the file; it may block.
    pub read_at: ReadAt,
}

/// Fills a buffer from a place in a file.
pub type ReadAt = Arc<dyn Fn(&mut [u8], u64) -> io::Result<()> + Send + Sync>;

impl std::fmt::Debug for Backup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backup").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}
