//! The seam between the log and the disk. The service uses [`RealDisk`]; tests use a double that
//! loses what was not synced, or fails when told to.
//!
//! Every error says what was tried on which file, for that is what an operator needs.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::storage::fault::DiskFault;

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::storage) enum Access {
    /// Looking only, for `check`.
    Read,
    /// Reading and writing.
    Write,
}

/// A directory tree that can lose its unsynced part.
pub(in crate::storage) trait Disk: Send + Sync + fmt::Debug {
    /// The names in a directory, sorted; none if it does not exist.
    fn names(&self, dir: &Path) -> Result<Vec<String>, DiskFault>;
    /// Makes a directory, for its owner only, and syncs the one that holds it.
    fn create_dir(&self, dir: &Path) -> Result<(), DiskFault>;
    /// Makes a file that must not exist yet, for its owner only.
    fn create(&self, path: &Path) -> Result<Arc<dyn DiskFile>, DiskFault>;
    /// Opens a file that exists.
    fn open(&self, path: &Path, access: Access) -> Result<Arc<dyn DiskFile>, DiskFault>;
    /// Gives a file another name, in place of whatever had it.
    fn rename(&self, from: &Path, to: &Path) -> Result<(), DiskFault>;
    /// Removes a file; one that is gone already is fine.
    fn remove(&self, path: &Path) -> Result<(), DiskFault>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> Result<(), DiskFault>;
}

/// One open file; it stays readable after its name is removed.
pub(in crate::storage) trait DiskFile: Send + Sync + fmt::Debug {
    /// The name it was opened by.
    fn path(&self) -> &Path;
    /// Its length in bytes.
    fn size(&self) -> Result<u64, DiskFault>;
    /// Fills the buffer from an offset.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), DiskFault>;
    /// Writes all bytes at an offset; they are durable after [`DiskFile::sync`].
    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), DiskFault>;
    /// Cuts the file.
    fn set_size(&self, size: u64) -> Result<(), DiskFault>;
    /// Returns once everything written is durable, the file's length included.
    fn sync(&self) -> Result<(), DiskFault>;
}

/// The machine's file system.
#[derive(Debug)]
pub(in crate::storage) struct RealDisk;

impl Disk for RealDisk {
    fn names(&self, dir: &Path) -> Result<Vec<String>, DiskFault> {
        let entries = match fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(fault("list", dir))?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(fault("list", dir))?;
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    fn create_dir(&self, dir: &Path) -> Result<(), DiskFault> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(fault("create", dir))?;
        let owner_only = fs::Permissions::from_mode(0o700);
        fs::set_permissions(dir, owner_only).map_err(fault("set permissions of", dir))?;
        match dir.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => self.sync_dir(parent),
            _ => self.sync_dir(Path::new(".")),
        }
    }

    fn create(&self, path: &Path) -> Result<Arc<dyn DiskFile>, DiskFault> {
        let file =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
        let file = file.map_err(fault("create", path))?;
        Ok(Arc::new(RealFile { path: path.to_owned(), file }))
    }

    fn open(&self, path: &Path, access: Access) -> Result<Arc<dyn DiskFile>, DiskFault> {
        let file = OpenOptions::new().read(true).write(access == Access::Write).open(path);
        let file = file.map_err(fault("open", path))?;
        Ok(Arc::new(RealFile { path: path.to_owned(), file }))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), DiskFault> {
        fs::rename(from, to).map_err(fault("rename", from))
    }

    fn remove(&self, path: &Path) -> Result<(), DiskFault> {
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(fault("remove", path)),
        }
    }

    fn sync_dir(&self, dir: &Path) -> Result<(), DiskFault> {
        File::open(dir).and_then(|opened| opened.sync_all()).map_err(fault("sync", dir))
    }
}

#[derive(Debug)]
struct RealFile {
    path: PathBuf,
    file: File,
}

impl DiskFile for RealFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn size(&self) -> Result<u64, DiskFault> {
        Ok(self.file.metadata().map_err(fault("stat", &self.path))?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), DiskFault> {
        self.file.read_exact_at(buffer, offset).map_err(fault("read", &self.path))
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), DiskFault> {
        self.file.write_all_at(bytes, offset).map_err(fault("write", &self.path))
    }

    fn set_size(&self, size: u64) -> Result<(), DiskFault> {
        self.file.set_len(size).map_err(fault("cut", &self.path))
    }

    fn sync(&self) -> Result<(), DiskFault> {
        self.file.sync_data().map_err(fault("sync", &self.path))
    }
}

fn fault(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DiskFault {
    move |source| DiskFault { operation, path: path.to_owned(), source }
}
