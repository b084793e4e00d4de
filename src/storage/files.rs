//! The few things that this layer does with files beyond the calls of a [`Disk`]: writes that a
//! power cut cannot tear, reading and writing in sequence, and an error that names the file.

use std::{
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    StorageError,
    disk::{Access, Disk, DiskFile},
    fault::DiskFault,
};

/// Names the operation and the path of an IO error.
pub(super) fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DiskFault {
    let path = path.to_path_buf();
    move |source| DiskFault { operation, path, source }
}

/// Reads a whole file; `None` if it does not exist.
pub(super) fn read(disk: &dyn Disk, path: &Path) -> Result<Option<Vec<u8>>, DiskFault> {
    let file = match disk.open(path, Access::Read) {
        Ok(file) => file,
        Err(fault) if fault.source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(fault) => return Err(fault),
    };
    let mut bytes = Vec::new();
    Cursor::new(&*file)?.read_to_end(&mut bytes).map_err(failed("read", path))?;
    Ok(Some(bytes))
}

/// Makes an empty file, in place of one that may be left from an interrupted try.
pub(super) fn create_draft(disk: &dyn Disk, path: &Path) -> Result<Arc<dyn DiskFile>, DiskFault> {
    disk.remove(path)?;
    disk.create(path)
}

/// Makes a file for the user; one that is there is left alone.
pub(super) fn create_new(disk: &dyn Disk, path: &Path) -> Result<Arc<dyn DiskFile>, StorageError> {
    disk.create(path).map_err(|fault| {
        let is_taken = fault.source.kind() == io::ErrorKind::AlreadyExists;
        if is_taken { is_there(path) } else { fault.into() }
    })
}

/// Returns the refusal of a name that is taken.
pub(super) fn is_there(path: &Path) -> StorageError {
    let what = "exists already, and nothing is overwritten; name another file";
    StorageError::Unfit { path: path.to_path_buf(), what }
}

/// Writes a whole file so that after a crash it holds either the old bytes or the new ones.
pub(super) fn write_atomically(
    disk: &dyn Disk,
    path: &Path,
    bytes: &[u8],
) -> Result<(), DiskFault> {
    let draft = draft_of(path);
    let file = create_draft(disk, &draft)?;
    file.write_at(bytes, 0)?;
    file.sync()?;
    rename(disk, &draft, path)
}

/// Renames, and makes the new name durable.
pub(super) fn rename(disk: &dyn Disk, from: &Path, to: &Path) -> Result<(), DiskFault> {
    disk.rename(from, to)?;
    disk.sync_dir(parent(to))
}

/// Returns the name under which a file is written before it is whole.
pub(super) fn draft_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    PathBuf::from(name)
}

/// Returns the directory that holds `path`.
pub(super) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        Some(_) | None => Path::new("."),
    }
}

/// Returns the paths of what a directory holds, sorted; none if it does not exist.
pub(super) fn list(disk: &dyn Disk, dir: &Path) -> Result<Vec<PathBuf>, DiskFault> {
    Ok(disk.names(dir)?.iter().map(|name| dir.join(name)).collect())
}

/// A large file is synced each time this number of bytes is written. One sync of all of it could
/// take minutes, would keep the syncs of the raft log waiting, and could not be told from a disk
/// that hangs.
pub(super) const SYNC_BYTES: u64 = 32 * 1024 * 1024;

/// Reads a file from its beginning to its end, or writes one from its beginning on. Its errors do
/// not name the file, because the caller knows more of what it does with it.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    file: &'a dyn DiskFile,
    at: u64,
    size: u64,
    synced: u64,
}

impl<'a> Cursor<'a> {
    /// Creates a cursor at the beginning.
    pub(super) fn new(file: &'a dyn DiskFile) -> Result<Self, DiskFault> {
        Ok(Self { file, at: 0, size: file.size()?, synced: 0 })
    }
}

impl Read for Cursor<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.size - self.at).unwrap_or(usize::MAX);
        let length = buffer.len().min(left);
        self.file.read_at(&mut buffer[..length], self.at).map_err(|fault| fault.source)?;
        self.at += length as u64;
        Ok(length)
    }
}

impl Write for Cursor<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_at(bytes, self.at).map_err(|fault| fault.source)?;
        self.at += bytes.len() as u64;
        if self.at - self.synced >= SYNC_BYTES {
            self.file.sync().map_err(|fault| fault.source)?;
            self.synced = self.at;
        }
        self.size = self.size.max(self.at);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
