//! The seam between the registry and its image: sled in the service, a double in simulations, which
//! lags, loses its unsynced end, hangs, or comes back older than it was.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use crate::{
    raft::SnapshotMeta,
    registry::{Meta, Record, Registry, Serial},
    storage::{StorageError, fault::DiskFault},
};

/// The place of one image.
pub trait ImageStore: Send + Sync + fmt::Debug {
    /// Opens the image and reads all of it. What contradicts itself is not believed.
    ///
    /// # Errors
    /// If it is another cluster's, or the system refused to open it.
    fn open(&self) -> Result<Found, StorageError>;

    /// Begins an empty image. The one before is kept beside it until
    /// [`Self::remove_superseded`].
    ///
    /// # Errors
    /// If the disk fails.
    fn replace(&self) -> Result<Box<dyn OpenImage>, DiskFault>;

    /// Removes what a replacement, finished or not, has superseded.
    ///
    /// # Errors
    /// If the disk fails.
    fn remove_superseded(&self) -> Result<(), DiskFault>;

    /// Moves a damaged image out of the way, for an operator to look into; returns where it is
    /// now. One is kept.
    ///
    /// # Errors
    /// If the disk fails.
    fn set_aside(&self) -> Result<PathBuf, DiskFault>;
}

/// An image that is written. Only its writer has it.
pub trait OpenImage: Send {
    /// Writes records (`None` removes one) and, in the same batch, the stamp of the registry that
    /// they make complete: its log position and the values beside its records. An image without
    /// a stamp counts as none.
    ///
    /// The caller stops at the first error.
    ///
    /// # Errors
    /// If the disk fails.
    fn write(
        &mut self,
        changes: &BTreeMap<Serial, Option<Record>>,
        stamp: Option<(&SnapshotMeta, &Meta)>,
    ) -> Result<(), DiskFault>;

    /// Makes durable all that was written.
    ///
    /// # Errors
    /// If the disk fails. It must not be tried again.
    fn flush(&mut self) -> Result<(), DiskFault>;

    /// Returns how many records it holds.
    fn records(&self) -> u64;

    /// Returns how many bytes it takes on disk.
    fn bytes(&self) -> u64;
}

impl fmt::Debug for dyn OpenImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenImage").field("records", &self.records()).finish_non_exhaustive()
    }
}

/// The state of the place of an image.
#[derive(Debug)]
pub enum Found {
    /// Nothing.
    Absent,
    /// An image that agrees with its stamp.
    Intact(Box<Intact>),
    /// Something else; the text says what.
    Damaged(String),
    /// It could not be opened in time. A thread still holds the files.
    Hung,
}

/// An image that agrees with its stamp.
#[derive(Debug)]
pub struct Intact {
    /// The image, for its writer.
    pub image: Box<dyn OpenImage>,
    /// The log position that it stands for.
    pub at: SnapshotMeta,
    /// The registry at that position.
    pub registry: Registry,
}
