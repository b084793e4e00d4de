//! Work on the data of an instance that does not run: one line on standard output says
//! what was found or made, and one on standard error what is at fault, because there are no logs
//! here.

use std::path::Path;

use super::error_chain;
use crate::{
    console::{self, Exit},
    ids::InstanceId,
    raft::Member,
    storage::{self, StorageError},
};

/// Checks a data directory.
pub fn check(data_dir: &Path) -> Exit {
    match storage::check(data_dir) {
        Ok(report) => {
            let damaged = report.is_damaged();
            let said = console::say(&format!("{report}\n"));
            if damaged { Exit::Data } else { said }
        }
        Err(error) => refuse(&error),
    }
}

/// Writes the registry of a data directory into a new file.
pub fn backup(data_dir: &Path, file: &Path) -> Exit {
    match storage::backup(data_dir, file) {
        Ok(backup) => console::say(&format!("{}: {backup}\n", file.display())),
        Err(error @ StorageError::Locked { .. }) => {
            console::complain(&format!(
                "{error}; or leave out --data-dir, and the instance that runs is asked, at \
                 --http-addr"
            ));
            Exit::of(error.exit_code())
        }
        Err(error) => refuse(&error),
    }
}

/// Founds a new cluster with the registry of a backup.
pub fn restore(file: &Path, data_dir: &Path, node: InstanceId) -> Exit {
    // How others reach it is settled when it starts.
    match storage::restore(file, data_dir, node, Member::default()) {
        Ok(restored) => console::say(&format!("{restored}\n")),
        Err(error) => refuse(&error),
    }
}

fn refuse(error: &StorageError) -> Exit {
    console::complain(&error_chain(error));
    Exit::of(error.exit_code())
}
