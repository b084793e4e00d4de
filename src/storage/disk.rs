//! The seam between the storage and the disk. The service uses [`RealDisk`]. Tests and the
//! simulator use a double that loses what was not synced, fails, hangs, or comes back older than
//! it was.
//!
//! A name (of a new file, or a renamed one) is durable only once its directory was synced, and the
//! contents of a file only once the file was. Every error says what was tried on which file,
//! because that is what an operator needs.

use std::{
    any::Any,
    fmt,
    fs::{self, File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::UNIX_EPOCH,
};

use futures_util::future::BoxFuture;

use super::{
    fault::DiskFault,
    files::{failed, parent},
    identity::ClusterId,
    image::{self, ImageStore, SledStore},
};
use crate::platform;

/// The use that a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Looking only.
    Read,
    /// Reading and writing.
    Write,
}

/// Holds the lock on a file until all clones are dropped.
pub type DiskLock = Arc<dyn Any + Send + Sync>;

/// A directory tree that may lose its unsynced part.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Lists the names in a directory, sorted; none if it does not exist.
    ///
    /// # Errors
    /// If the system refuses it.
    fn names(&self, dir: &Path) -> Result<Vec<String>, DiskFault>;

    /// Makes a directory and its parents, for their owner only, and makes the name durable. A
    /// directory that exists is left as it is.
    ///
    /// # Errors
    /// If the system refuses it.
    fn create_dir(&self, dir: &Path) -> Result<(), DiskFault>;

    /// Makes a file that must not exist yet, for its owner only.
    ///
    /// # Errors
    /// If the file exists ([`io::ErrorKind::AlreadyExists`]), or the system refuses it.
    fn create(&self, path: &Path) -> Result<Arc<dyn DiskFile>, DiskFault>;

    /// Opens a file.
    ///
    /// # Errors
    /// If there is none ([`io::ErrorKind::NotFound`]), or the system refuses it.
    fn open(&self, path: &Path, access: Access) -> Result<Arc<dyn DiskFile>, DiskFault>;

    /// Gives a file another name in the same directory, in place of the file that had it.
    ///
    /// # Errors
    /// If the system refuses it.
    fn rename(&self, from: &Path, to: &Path) -> Result<(), DiskFault>;

    /// Removes a file; one that is gone already is fine.
    ///
    /// # Errors
    /// If the system refuses it.
    fn remove(&self, path: &Path) -> Result<(), DiskFault>;

    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// If the system refuses it. It must not be tried again.
    fn sync_dir(&self, dir: &Path) -> Result<(), DiskFault>;

    /// Locks a file against all other processes; `None` while another one holds it. With
    /// [`Access::Write`] a missing file is made first.
    ///
    /// # Errors
    /// If there is no file, or the system refuses it.
    fn lock(&self, path: &Path, access: Access) -> Result<Option<DiskLock>, DiskFault>;

    /// Returns the place where the image of a registry is kept. sled writes to the machine's own
    /// disk only, so a simulated disk brings something in its place.
    fn image_store(&self, path: &Path, cluster: ClusterId) -> Arc<dyn ImageStore>;

    /// Returns the time that a simulated disk takes before the next batch of writes below `dir`,
    /// as something to wait for: in a simulation nothing may block the only thread. A real disk
    /// takes its time within each call.
    fn pause(&self, _dir: &Path) -> Option<BoxFuture<'static, ()>> {
        None
    }
}

/// One open file; it stays readable after its name is removed.
pub trait DiskFile: Send + Sync + fmt::Debug {
    /// Returns the name that it was opened by.
    fn path(&self) -> &Path;

    /// Returns its length in bytes.
    ///
    /// # Errors
    /// If the system refuses it.
    fn size(&self) -> Result<u64, DiskFault>;

    /// Returns when it was last written, in seconds since 1970.
    ///
    /// # Errors
    /// If the system refuses it.
    fn modified(&self) -> Result<u64, DiskFault>;

    /// Fills the buffer from an offset.
    ///
    /// # Errors
    /// If the file ends before, or the system refuses it.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), DiskFault>;

    /// Writes all bytes at an offset; they are durable after [`DiskFile::sync`].
    ///
    /// # Errors
    /// If the disk is full or fails. Some of the bytes may have been written.
    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), DiskFault>;

    /// Cuts the file.
    ///
    /// # Errors
    /// If the system refuses it.
    fn set_size(&self, size: u64) -> Result<(), DiskFault>;

    /// Returns once everything written is durable, the file's length included.
    ///
    /// # Errors
    /// If the disk fails. It must not be tried again: the kernel may have dropped what it could
    /// not write.
    fn sync(&self) -> Result<(), DiskFault>;

    /// Makes sure that its name still leads to it: what is written to a file that was removed or
    /// moved away is on the disk, and lost to the next start. Simulated files stay where they are.
    ///
    /// # Errors
    /// If there is no file of that name, or another one.
    fn in_place(&self) -> Result<(), DiskFault> {
        Ok(())
    }
}

/// The machine's file system.
#[derive(Clone, Copy, Debug)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn names(&self, dir: &Path) -> Result<Vec<String>, DiskFault> {
        let entries = match fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed("list", dir))?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed("list", dir))?;
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    fn create_dir(&self, dir: &Path) -> Result<(), DiskFault> {
        if dir.is_dir() {
            return Ok(());
        }
        platform::files::create_private_dir(dir).map_err(failed("create", dir))?;
        self.sync_dir(parent(dir))
    }

    fn create(&self, path: &Path) -> Result<Arc<dyn DiskFile>, DiskFault> {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create_new(true);
        let file = platform::files::for_owner_only(options).open(path);
        let file = file.map_err(failed("create", path))?;
        Ok(Arc::new(RealFile { path: path.to_owned(), file }))
    }

    fn open(&self, path: &Path, access: Access) -> Result<Arc<dyn DiskFile>, DiskFault> {
        let file = OpenOptions::new().read(true).write(access == Access::Write).open(path);
        let file = file.map_err(failed("open", path))?;
        Ok(Arc::new(RealFile { path: path.to_owned(), file }))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), DiskFault> {
        fs::rename(from, to).map_err(failed("rename", from))
    }

    fn remove(&self, path: &Path) -> Result<(), DiskFault> {
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(failed("remove", path)),
        }
    }

    fn sync_dir(&self, dir: &Path) -> Result<(), DiskFault> {
        platform::files::sync_dir(dir).map_err(failed("sync", dir))
    }

    fn lock(&self, path: &Path, access: Access) -> Result<Option<DiskLock>, DiskFault> {
        let write = access == Access::Write;
        let mut options = OpenOptions::new();
        let options = options.read(true).write(write).create(write).truncate(false);
        let file = platform::files::for_owner_only(options).open(path);
        let file = file.map_err(failed("open", path))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Arc::new(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(failed("lock", path)(error)),
        }
    }

    fn image_store(&self, path: &Path, cluster: ClusterId) -> Arc<dyn ImageStore> {
        Arc::new(SledStore::new(path, cluster, image::Options::default()))
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
        Ok(self.file.metadata().map_err(failed("stat", &self.path))?.len())
    }

    fn modified(&self) -> Result<u64, DiskFault> {
        let modified = self.file.metadata().and_then(|about| about.modified());
        let modified = modified.map_err(failed("stat", &self.path))?;
        Ok(modified.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), DiskFault> {
        let read = platform::files::read_exact_at(&self.file, buffer, offset);
        read.map_err(failed("read", &self.path))
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), DiskFault> {
        let written = platform::files::write_all_at(&self.file, bytes, offset);
        written.map_err(failed("write", &self.path))
    }

    fn set_size(&self, size: u64) -> Result<(), DiskFault> {
        self.file.set_len(size).map_err(failed("cut", &self.path))
    }

    fn sync(&self) -> Result<(), DiskFault> {
        self.file.sync_data().map_err(failed("sync", &self.path))
    }

    fn in_place(&self) -> Result<(), DiskFault> {
        let is_same = platform::files::leads_to(&self.path, &self.file);
        match is_same.map_err(failed("find", &self.path))? {
            true => Ok(()),
            false => {
                let why = "it was moved or replaced while the instance ran";
                Err(failed("find", &self.path)(io::Error::other(why)))
            }
        }
    }
}
