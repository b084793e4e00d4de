//! Looks into a data directory that no process uses, and changes nothing in it.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use super::{
    StorageError, files,
    identity::{self, ClusterId, DirLock, Identity},
    image::{self, Found},
    snapshot::{self, Survey},
    start::LogEnds,
};
use crate::raft::LogId;

/// What a data directory holds beside its raft log. [`fmt::Display`] prints a line for each.
#[derive(Debug)]
pub struct CheckReport {
    /// Whose it is.
    pub identity: Identity,
    /// The image of the registry.
    pub image: Finding,
    /// The newest snapshot that is whole; or what is wrong with the newest, if none is.
    pub snapshot: Finding,
}

/// What was found in one place.
#[derive(Debug)]
pub enum Finding {
    /// Nothing.
    Absent,
    /// Something that is whole.
    Intact {
        /// The file or directory.
        path: PathBuf,
        /// The last entry that it covers.
        applied: Option<LogId>,
        /// How many records it holds.
        records: u64,
    },
    /// Something that is not.
    Damaged {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

impl CheckReport {
    /// Whether anything is damaged. It may still be healed at the next start.
    pub fn is_damaged(&self) -> bool {
        self.findings().iter().any(|finding| matches!(finding, Finding::Damaged { .. }))
    }

    /// Whether a start would succeed with this raft log: it has its first entry still, or image
    /// or snapshot reach to where it begins.
    pub fn can_start(&self, log: LogEnds) -> bool {
        let Some(purged) = log.purged else { return true };
        self.findings().iter().any(|finding| match finding {
            Finding::Intact { applied, .. } => applied.is_some_and(|at| at.index >= purged.index),
            Finding::Absent | Finding::Damaged { .. } => false,
        })
    }

    fn findings(&self) -> [&Finding; 2] {
        [&self.image, &self.snapshot]
    }
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Identity { cluster, node, initialised } = self.identity;
        let used = if initialised { "" } else { ", never used" };
        writeln!(f, "identity: cluster {cluster}, node {}{used}", node.0)?;
        writeln!(f, "image:    {}", self.image)?;
        write!(f, "snapshot: {}", self.snapshot)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("none"),
            Self::Intact { path, applied, records } => {
                write!(f, "{}: whole, {records} records, ", path.display())?;
                match applied {
                    Some(entry) => write!(f, "through entry {}", entry.index),
                    None => f.write_str("before the first entry"),
                }
            }
            Self::Damaged { path, what } => write!(f, "{}: {what}", path.display()),
        }
    }
}

/// Checks identity, image and snapshots of a data directory.
///
/// The directory is locked meanwhile, so nobody writes into it. sled cannot open files without
/// writing to them (it repairs what it takes for a torn tail), so a copy of the image is opened,
/// in the system's directory for temporary files.
///
/// # Errors
/// If a process uses the directory, it has no identity, is another cluster's, or cannot be read.
pub fn check(data_dir: &Path) -> Result<CheckReport, StorageError> {
    let _lock = DirLock::take(data_dir)?;
    let identity = identity::read_identity(data_dir)?.ok_or_else(|| StorageError::Damaged {
        path: data_dir.to_path_buf(),
        what: "no identity.json: this is no data directory, or it has lost its identity".into(),
        way_out: identity::WAY_OUT,
    })?;
    Ok(CheckReport {
        identity,
        image: check_image(data_dir, identity.cluster)?,
        snapshot: check_snapshot(data_dir, identity.cluster)?,
    })
}

fn check_image(data_dir: &Path, cluster: ClusterId) -> Result<Finding, StorageError> {
    let path = identity::registry_dir(data_dir);
    if !path.exists() {
        return Ok(Finding::Absent);
    }
    let scratch = Scratch::new()?;
    let copy = scratch.0.join("registry");
    copy_dir(&path, &copy)?;
    Ok(match image::open(&copy, cluster, &image::Options::default())? {
        Found::Absent => Finding::Absent,
        Found::Intact(intact) => {
            Finding::Intact { path, applied: intact.at.last_log_id, records: intact.disk.records() }
        }
        Found::Damaged(what) => Finding::Damaged { path, what },
        Found::Hung => Finding::Damaged { path, what: "sled did not open it in time".into() },
    })
}

fn check_snapshot(data_dir: &Path, cluster: ClusterId) -> Result<Finding, StorageError> {
    let Survey { intact, damaged } = snapshot::survey(data_dir, cluster)?;
    Ok(match (intact, damaged.into_iter().next()) {
        (_, Some((path, what))) => Finding::Damaged { path, what },
        (Some(file), None) => Finding::Intact {
            path: file.path().to_path_buf(),
            applied: file.meta().last_log_id,
            records: file.records(),
        },
        (None, None) => Finding::Absent,
    })
}

/// A directory that is gone when this is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self, StorageError> {
        let base = std::env::temp_dir();
        let random = getrandom::u64().map_err(io::Error::from);
        let random = random.map_err(files::failed("draw a name in", &base))?;
        let path = base.join(format!("emnetchain-check-{random:016x}"));
        files::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(fault) = files::remove(&self.0) {
            tracing::warn!(%fault, "a temporary copy is left behind");
        }
    }
}

/// Copies a directory and what is in it.
pub(super) fn copy_dir(from: &Path, to: &Path) -> Result<(), StorageError> {
    files::create_dir(to)?;
    for path in files::list(from)? {
        let target = to.join(path.file_name().expect("a listed path has a name"));
        if path.is_dir() {
            copy_dir(&path, &target)?;
        } else {
            fs::copy(&path, &target).map_err(files::failed("copy", &path))?;
        }
    }
    Ok(())
}
