//! The reasons why a data directory cannot be used.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{LogError, fault::DiskFault, files, identity::ClusterId};
use crate::codec::{Newer, Undecodable};

/// Why a data directory cannot be used. Each says what the operator can do about it.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// Another process works on the directory.
    #[error(
        "{}: another process holds this data directory; stop that one, or choose another \
         directory with --data-dir",
        directory.display()
    )]
    Locked {
        /// The data directory.
        directory: PathBuf,
    },
    /// The directory, or a part of it, belongs to another node or cluster.
    #[error(
        "{}: belongs to {found}, not to {expected}; put the right one back, or choose another \
         directory with --data-dir",
        path.display()
    )]
    Foreign {
        /// The file or directory that says so.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Whose it should be.
        expected: String,
    },
    /// Something is missing or broken that cannot be healed from the rest of the directory.
    #[error("{}: {what}; {way_out}", path.display())]
    Damaged {
        /// The file or directory.
        path: PathBuf,
        /// The fault.
        what: String,
        /// The way out for the operator.
        way_out: &'static str,
    },
    /// It is of a rules version that this binary does not know.
    #[error("{}: {newer}", path.display())]
    Newer {
        /// The file or directory.
        path: PathBuf,
        /// Which version.
        newer: Newer,
    },
    /// A file or directory that was named cannot serve for what it was named for.
    #[error("{}: {what}", path.display())]
    Unfit {
        /// The path that was named.
        path: PathBuf,
        /// Why it cannot serve, and what can.
        what: &'static str,
    },
    /// The raft log cannot be used.
    #[error(transparent)]
    Log(LogError),
    /// The system refused a read or a write.
    #[error(transparent)]
    Io(#[from] DiskFault),
}

impl From<LogError> for StorageError {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Io(fault) => Self::Io(fault),
            damaged @ LogError::Damaged { .. } => Self::Log(damaged),
        }
    }
}

impl StorageError {
    /// Returns the exit code of a process that stops because of this: 2 when it was given the wrong
    /// name, 74 when the disk fails, 78 when the data is refused.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Unfit { .. } => 2,
            Self::Io(_) => 74,
            Self::Locked { .. }
            | Self::Foreign { .. }
            | Self::Damaged { .. }
            | Self::Newer { .. }
            | Self::Log(_) => 78,
        }
    }
}

/// Why an image or a snapshot cannot serve as the source of a registry. At start another source
/// is tried; only if there is none does this become a [`StorageError`].
#[derive(Debug)]
pub(super) enum Unusable {
    /// Its bytes contradict themselves.
    Damaged(String),
    /// It is another cluster's.
    Foreign {
        /// Whose it is.
        found: ClusterId,
        /// Whose it should be.
        expected: ClusterId,
    },
    /// It is of a rules version that this binary does not know.
    Newer(Newer),
    /// The system refused to read it, which says nothing about the bytes.
    Io(io::Error),
}

impl From<DiskFault> for Unusable {
    /// [`Self::damage`] names the file again.
    fn from(fault: DiskFault) -> Self {
        Self::Io(fault.source)
    }
}

impl From<Newer> for Unusable {
    fn from(newer: Newer) -> Self {
        Self::Newer(newer)
    }
}

impl From<Undecodable> for Unusable {
    fn from(error: Undecodable) -> Self {
        match error {
            Undecodable::Newer(newer) => Self::Newer(newer),
            Undecodable::Malformed => {
                Self::Damaged("a part is unreadable though its checksum matches".into())
            }
        }
    }
}

impl Unusable {
    /// Parts damage, which another source may heal, from what must end the start.
    ///
    /// # Errors
    /// If the file is another cluster's or of a later version, or the system refused to read it.
    pub(super) fn damage(self, path: &Path) -> Result<String, StorageError> {
        match self {
            Self::Damaged(what) => Ok(what),
            Self::Foreign { found, expected } => Err(StorageError::Foreign {
                path: path.to_path_buf(),
                found: format!("cluster {found}"),
                expected: format!("cluster {expected}"),
            }),
            Self::Newer(newer) => Err(StorageError::Newer { path: path.to_path_buf(), newer }),
            Self::Io(error) => Err(files::failed("read", path)(error).into()),
        }
    }

    /// Returns the end of an undertaking that has no other source.
    pub(super) fn refusal(self, path: &Path, way_out: &'static str) -> StorageError {
        match self.damage(path) {
            Ok(what) => StorageError::Damaged { path: path.to_path_buf(), what, way_out },
            Err(error) => error,
        }
    }
}
