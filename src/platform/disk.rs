//! The size of the disk, alike on every system.

use std::{io, path::Path};

/// The size of a file system, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DiskSize {
    /// Bytes that are free for this process.
    pub(crate) free: u64,
    /// Bytes that it holds in all.
    pub(crate) all: u64,
}

/// Asks the file system that holds `path` for its size. A disk that hangs blocks the caller.
///
/// # Errors
/// If the file system does not tell.
pub(crate) fn size(path: &Path) -> io::Result<DiskSize> {
    let told = fs4::statvfs(path)?;
    Ok(DiskSize { free: told.available_space(), all: told.total_space() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_tells_its_size_and_a_path_that_is_not_there_has_none() {
        let dir = tempfile::tempdir().unwrap();
        let DiskSize { free, all } = size(dir.path()).unwrap();
        assert!(free <= all && all > 0, "{free} of {all}");
        assert!(size(&dir.path().join("none")).is_err());
    }
}
