//! `EMNetChain backup FILE`: asks a running instance for its registry, and keeps it in a file.

use std::path::Path;

use super::call::Instance;
use crate::{
    config::Sources,
    console::{Exit, complain, say},
    ops::{api::Nothing, http::backup::PREPARATION_MAX},
    platform,
    storage::{BackupDraft, StorageError},
};

/// Why there is no backup.
enum Failure {
    /// The command line is wrong.
    Usage(String),
    /// The instance did not hand it out, or not all of it.
    Instance(String),
    /// The file that was to be written, or the data that arrived, is at fault.
    File(StorageError),
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self::Instance(why)
    }
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        Self::File(error)
    }
}

/// Has the instance make a backup, and writes it into a new file.
pub(super) fn run(file: &Path, sources: &Sources) -> Exit {
    let (why, exit) = match receive(file, sources) {
        Ok(line) => return say(&line),
        Err(Failure::Usage(why)) => (why, Exit::Usage),
        Err(Failure::Instance(why)) => (why, Exit::Unavailable),
        Err(Failure::File(error)) => {
            let exit = Exit::of(error.exit_code());
            (error.to_string(), exit)
        }
    };
    complain(&format!("{why}; no backup was made"));
    exit
}

fn receive(file: &Path, sources: &Sources) -> Result<String, Failure> {
    let instance = Instance::of(sources).map_err(Failure::Usage)?;
    let mut draft = BackupDraft::create(file)?;
    instance.download("/api/v1/backup", PREPARATION_MAX, stopped(), |piece| {
        Ok::<_, Failure>(draft.write(piece)?)
    })?;
    let backup = draft.finish()?;
    // The file is whole, whether the instance learns of it or not.
    if let Err(why) = instance.post("/api/v1/backup/kept", &Nothing {}) {
        complain(&format!("the metric of the last backup stays as it was: {why}"));
    }
    Ok(format!("{}: {backup}\n", file.display()))
}

/// Waits until the process is told to stop, so that it leaves no draft behind.
async fn stopped() -> String {
    platform::signals::stopped().await;
    "it was told to stop".to_owned()
}
