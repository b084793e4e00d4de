//! Work on the directories of sled. sled opens its files itself, so these
//! are always on the machine's own disk.

use std::{fs, io, path::Path};

use crate::{
    platform,
    storage::{
        disk::RealDisk,
        fault::DiskFault,
        files::{failed, list},
    },
};

/// Removes a file or a whole directory; nothing happens if it is not there.
pub(in crate::storage) fn remove(path: &Path) -> Result<(), DiskFault> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Takes the rights of all other users away, from a directory and everything in it.
pub(super) fn make_private(path: &Path) -> Result<(), DiskFault> {
    platform::files::make_private(path).map_err(failed("protect", path))?;
    if path.is_dir() {
        for inner in list(&RealDisk, path)? {
            make_private(&inner)?;
        }
    }
    Ok(())
}

/// Copies a directory and what is in it.
pub(in crate::storage) fn copy(from: &Path, to: &Path) -> Result<(), DiskFault> {
    fs::create_dir_all(to).map_err(failed("create", to))?;
    platform::files::make_private(to).map_err(failed("protect", to))?;
    for path in list(&RealDisk, from)? {
        let target = to.join(path.file_name().expect("a listed path has a name"));
        if path.is_dir() {
            copy(&path, &target)?;
        } else {
            fs::copy(&path, &target).map_err(failed("copy", &path))?;
        }
    }
    Ok(())
}
