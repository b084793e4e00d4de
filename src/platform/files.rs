//! Differences between the systems' file systems.
//!
//! On Windows the permissions of a new file are those of the directory that it is made in: the
//! data directory is as private as the place that the operator chose for it.

use std::{
    fs::{DirBuilder, File, Metadata, OpenOptions},
    io,
    path::Path,
};

/// Has new files made for their owner only. Windows gives them the rights of their directory.
pub(crate) fn for_owner_only(options: &mut OpenOptions) -> &mut OpenOptions {
    system::for_owner_only(options)
}

/// Makes a directory and its parents, for their owner only. Windows gives them the rights of the
/// directory above. A directory that exists is left as it is.
///
/// # Errors
/// If the system refuses it.
pub(crate) fn create_private_dir(dir: &Path) -> io::Result<()> {
    system::private_dirs(DirBuilder::new().recursive(true)).create(dir)
}

/// Takes the rights of all other users away, from one file or one directory. On Windows its rights
/// stay what they are.
///
/// # Errors
/// If the system refuses it.
pub(crate) fn make_private(path: &Path) -> io::Result<()> {
    system::make_private(path)
}

/// Returns the permission bits of a file and the number of its owner; `None` on Windows, where no
/// file is refused for being readable by others.
pub(crate) fn mode_and_owner(about: &Metadata) -> Option<(u32, u32)> {
    system::mode_and_owner(about)
}

/// Makes the names in a directory durable. NTFS keeps a journal of names, and writes it out for a
/// directory that is flushed; a Windows file system that flushes no directories is trusted to keep
/// names in order, so that a power cut may undo the last ones.
///
/// # Errors
/// If the disk fails.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    system::sync_dir(dir)
}

/// Fills the buffer from an offset.
///
/// # Errors
/// If the file ends before, or the system refuses it.
pub(crate) fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    system::read_exact_at(file, buffer, offset)
}

/// Writes all bytes at an offset.
///
/// # Errors
/// If the disk is full or fails. Some of the bytes may have been written.
pub(crate) fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    system::write_all_at(file, bytes, offset)
}

/// Returns whether a path leads to this open file, and not to another one or through one that
/// was moved.
///
/// # Errors
/// If there is no file at the path, or the system does not tell.
pub(crate) fn leads_to(path: &Path, file: &File) -> io::Result<bool> {
    system::leads_to(path, file)
}

/// Renames a file to a name that must be free, in one step. Returns false, and does nothing, if the
/// file system cannot do both in one, as those of a network.
///
/// # Errors
/// If the name is taken ([`io::ErrorKind::AlreadyExists`]), or the system refuses it.
pub(crate) fn rename_new(from: &Path, to: &Path) -> io::Result<bool> {
    system::rename_new(from, to)
}

/// Returns whether an error says that the disk fails, or the process is out of descriptors,
/// rather than anything about the bytes in a file.
pub(crate) fn is_of_the_system(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    code.is_some_and(|code| system::FAILURES.contains(&code))
}

#[cfg(unix)]
mod system {
    use std::{
        fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions},
        io,
        os::unix::fs::{
            DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _,
            PermissionsExt as _,
        },
        path::Path,
    };

    #[cfg(any(target_os = "linux", target_vendor = "apple"))]
    use rustix::{
        fs::{CWD, RenameFlags, renameat_with},
        io::Errno,
    };

    pub(super) const FAILURES: [i32; 3] = [libc::EIO, libc::EMFILE, libc::ENFILE];

    pub(super) fn for_owner_only(options: &mut OpenOptions) -> &mut OpenOptions {
        options.mode(0o600)
    }

    pub(super) fn private_dirs(builder: &mut DirBuilder) -> &mut DirBuilder {
        builder.mode(0o700)
    }

    pub(super) fn make_private(path: &Path) -> io::Result<()> {
        set_mode(path, if path.is_dir() { 0o700 } else { 0o600 })
    }

    pub(super) fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
        fs::set_permissions(path, Permissions::from_mode(mode))
    }

    #[expect(clippy::unnecessary_wraps, reason = "other systems have neither")]
    pub(super) fn mode_and_owner(about: &Metadata) -> Option<(u32, u32)> {
        Some((about.mode() & 0o777, about.uid()))
    }

    pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    pub(super) fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        file.read_exact_at(buffer, offset)
    }

    pub(super) fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    pub(super) fn leads_to(path: &Path, file: &File) -> io::Result<bool> {
        let number = |about: Metadata| (about.dev(), about.ino());
        let named = fs::metadata(path).map(number)?;
        Ok(named == number(file.metadata()?))
    }

    #[cfg(any(target_os = "linux", target_vendor = "apple"))]
    pub(super) fn rename_new(from: &Path, to: &Path) -> io::Result<bool> {
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(true),
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    #[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
    pub(super) fn rename_new(_from: &Path, _to: &Path) -> io::Result<bool> {
        Ok(false)
    }
}

#[cfg(windows)]
mod system {
    use std::{
        fs::{self, DirBuilder, File, Metadata, OpenOptions},
        io,
        os::windows::fs::{FileExt as _, OpenOptionsExt as _},
        path::Path,
    };

    use same_file::Handle;

    /// `ERROR_TOO_MANY_OPEN_FILES`, `ERROR_NOT_READY`, `ERROR_CRC`, `ERROR_WRITE_FAULT`,
    /// `ERROR_READ_FAULT`, `ERROR_GEN_FAILURE`, `ERROR_IO_DEVICE`, and a file that another process
    /// holds: `ERROR_SHARING_VIOLATION`, `ERROR_LOCK_VIOLATION`.
    pub(super) const FAILURES: [i32; 9] = [4, 21, 23, 29, 30, 31, 32, 33, 1117];

    /// Opens a directory as if it were a file.
    const FILE_FLAG_BACKUP_SEMANTICS: u32 = 0x0200_0000;

    pub(super) fn for_owner_only(options: &mut OpenOptions) -> &mut OpenOptions {
        options
    }

    pub(super) fn private_dirs(builder: &mut DirBuilder) -> &mut DirBuilder {
        builder
    }

    #[expect(clippy::unnecessary_wraps, reason = "other systems may refuse it")]
    pub(super) fn make_private(_path: &Path) -> io::Result<()> {
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn set_mode(_path: &Path, _mode: u32) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn mode_and_owner(_about: &Metadata) -> Option<(u32, u32)> {
        None
    }

    pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).custom_flags(FILE_FLAG_BACKUP_SEMANTICS);
        match options.open(dir)?.sync_all() {
            // FAT, and the directories of some networks, are flushed by nothing.
            Err(error) if flushes_no_directory(&error) => Ok(()),
            synced => synced,
        }
    }

    fn flushes_no_directory(error: &io::Error) -> bool {
        use io::ErrorKind::{InvalidInput, PermissionDenied, Unsupported};
        /// `ERROR_INVALID_HANDLE`, `ERROR_INVALID_FUNCTION`.
        const REFUSED: [i32; 2] = [6, 1];
        matches!(error.kind(), InvalidInput | PermissionDenied | Unsupported)
            || error.raw_os_error().is_some_and(|code| REFUSED.contains(&code))
    }

    pub(super) fn read_exact_at(
        file: &File,
        mut buffer: &mut [u8],
        mut offset: u64,
    ) -> io::Result<()> {
        while !buffer.is_empty() {
            match file.seek_read(buffer, offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    buffer = &mut buffer[count..];
                    offset += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(super) fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            match file.seek_write(bytes, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    bytes = &bytes[count..];
                    offset += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(super) fn leads_to(path: &Path, file: &File) -> io::Result<bool> {
        Ok(Handle::from_path(path)? == Handle::from_file(file.try_clone()?)?)
    }

    /// A second name for the same file is refused if the name is taken; then the first name goes.
    pub(super) fn rename_new(from: &Path, to: &Path) -> io::Result<bool> {
        match fs::hard_link(from, to) {
            Ok(()) => fs::remove_file(from).map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(error),
            // FAT has no second names; the rename that follows says what else is wrong.
            Err(_) => Ok(false),
        }
    }
}

/// Returns what a failing disk says, for tests.
#[cfg(test)]
pub(crate) fn a_failure() -> io::Error {
    io::Error::from_raw_os_error(system::FAILURES[0])
}

/// Returns the permission bits of a path, for tests.
#[cfg(test)]
pub(crate) fn mode(path: &Path) -> u32 {
    mode_and_owner(&path.metadata().unwrap()).unwrap().0
}

/// Sets the permission bits of a path, for tests.
#[cfg(test)]
pub(crate) fn set_mode(path: &Path, mode: u32) {
    system::set_mode(path, mode).unwrap();
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn bytes_are_written_and_read_at_their_offset() {
        let dir = tempfile::tempdir().unwrap();
        let mut options = File::options();
        let options = options.read(true).write(true).create_new(true);
        let file = options.open(dir.path().join("file")).unwrap();
        write_all_at(&file, b"world", 6).unwrap();
        write_all_at(&file, b"hello ", 0).unwrap();
        let mut read = [0; 8];
        read_exact_at(&file, &mut read, 3).unwrap();
        assert_eq!(&read, b"lo world");
        let error = read_exact_at(&file, &mut read, 4).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_path_leads_to_the_file_that_has_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let (path, moved) = (dir.path().join("file"), dir.path().join("moved"));
        fs::write(&path, "x").unwrap();
        let file = File::open(&path).unwrap();
        assert!(leads_to(&path, &file).unwrap());
        fs::rename(&path, &moved).unwrap();
        assert_eq!(leads_to(&path, &file).unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::write(&path, "x").unwrap();
        assert!(!leads_to(&path, &file).unwrap() && leads_to(&moved, &file).unwrap());
        sync_dir(dir.path()).unwrap();
    }

    #[test]
    fn a_new_name_takes_the_place_of_none() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::write(&from, "x").unwrap();
        if rename_new(&from, &to).unwrap() {
            assert!(!from.exists() && to.exists());
        } else {
            fs::rename(&from, &to).unwrap();
        }
        fs::write(&from, "y").unwrap();
        match rename_new(&from, &to) {
            Ok(is_done) => assert!(!is_done, "the file that was there is gone"),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::AlreadyExists),
        }
        assert_eq!(fs::read(&to).unwrap(), b"x");
    }

    #[test]
    fn a_failing_disk_is_told_from_a_missing_file() {
        for code in system::FAILURES {
            assert!(is_of_the_system(&io::Error::from_raw_os_error(code)), "{code}");
        }
        assert!(!is_of_the_system(&File::open("there/is/none").unwrap_err()));
    }

    #[cfg(unix)]
    #[test]
    fn what_is_made_private_is_its_owners_only() {
        let dir = tempfile::tempdir().unwrap();
        let (inner, file) = (dir.path().join("a/b"), dir.path().join("file"));
        create_private_dir(&inner).unwrap();
        fs::write(&file, "x").unwrap();
        set_mode(&file, 0o666);
        make_private(&file).unwrap();
        assert_eq!((mode(&dir.path().join("a")), mode(&inner), mode(&file)), (0o700, 0o700, 0o600));
    }
}
