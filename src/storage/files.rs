//! The few things that this layer does with files and directories: private modes, writes that a
//! power cut cannot tear, and an error that names the file.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
};

use super::{StorageError, fault::DiskFault};

/// Names the operation and the path of an IO error.
pub(super) fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DiskFault {
    let path = path.to_path_buf();
    move |source| DiskFault { operation, path, source }
}

/// Creates a directory and its parents, for the owner alone; nothing happens if it is there.
pub(super) fn create_dir(path: &Path) -> Result<(), DiskFault> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("create", path))
}

/// Creates or empties a file for writing, for the owner alone.
pub(super) fn create_file(path: &Path) -> Result<File, DiskFault> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path).map_err(failed("create", path))
}

/// Creates a file for writing, for the owner alone; one that is there is left alone.
pub(super) fn create_new_file(path: &Path) -> Result<File, StorageError> {
    let mut options = OpenOptions::new();
    match options.write(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => Ok(file),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(is_there(path)),
        Err(error) => Err(failed("create", path)(error).into()),
    }
}

/// Refuses a name that is taken.
pub(super) fn refuse_existing(path: &Path) -> Result<(), StorageError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Err(is_there(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("read", path)(error).into()),
    }
}

fn is_there(path: &Path) -> StorageError {
    let what = "is there already, and nothing is overwritten; name another file";
    StorageError::Unfit { path: path.to_path_buf(), what }
}

/// Renames to a name that nobody has, and makes it durable.
pub(super) fn rename_new(from: &Path, to: &Path) -> Result<(), StorageError> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => {}
        Err(Errno::EXIST) => return Err(is_there(to)),
        // Some file systems, those of a network above all, cannot do both in one.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            refuse_existing(to)?;
            fs::rename(from, to).map_err(failed("rename", from))?;
        }
        Err(error) => return Err(failed("rename", from)(error.into()).into()),
    }
    Ok(sync_dir(parent(to))?)
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(path: &Path) -> Result<(), DiskFault> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(failed("sync", path))
}

/// Writes a whole file so that after a crash it holds either the old bytes or the new ones.
pub(super) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), DiskFault> {
    let draft = draft_of(path);
    let mut file = create_file(&draft)?;
    file.write_all(bytes).map_err(failed("write", &draft))?;
    publish(&file, &draft, path)
}

/// Makes a finished draft durable and gives it its name.
pub(super) fn publish(file: &File, draft: &Path, path: &Path) -> Result<(), DiskFault> {
    file.sync_all().map_err(failed("sync", draft))?;
    rename(draft, path)
}

/// Renames, and makes the new name durable.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), DiskFault> {
    fs::rename(from, to).map_err(failed("rename", from))?;
    sync_dir(parent(to))
}

/// The name under which a file is written before it is whole.
pub(super) fn draft_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    PathBuf::from(name)
}

/// The directory that holds `path`.
pub(super) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        Some(_) | None => Path::new("."),
    }
}

/// What a directory holds, sorted; nothing if it does not exist.
pub(super) fn list(path: &Path) -> Result<Vec<PathBuf>, DiskFault> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("list", path)(error)),
    };
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed("list", path))?;
    paths.sort();
    Ok(paths)
}

/// Removes a file or a whole directory; nothing happens if it is not there.
pub(super) fn remove(path: &Path) -> Result<(), DiskFault> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Takes everybody else's rights away, from a directory and all that it holds.
pub(super) fn make_private(path: &Path) -> Result<(), DiskFault> {
    let is_dir = path.is_dir();
    let mode = if is_dir { 0o700 } else { 0o600 };
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed("protect", path))?;
    if is_dir {
        for inner in list(path)? {
            make_private(&inner)?;
        }
    }
    Ok(())
}
