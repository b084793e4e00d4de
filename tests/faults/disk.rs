//! The disks of instances: folders, file systems whose power can be cut, and syncs that take as
//! long as a test wants.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use tempfile::TempDir;

use super::mount::{Mount, cut_power_of, path, run};

/// What the disks of a fleet can do beyond keeping files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disks {
    /// Nothing.
    Plain,
    /// Their power can be cut.
    Powered,
    /// Their syncs can be slow, or hang.
    Slowed,
}

/// Syncs that first take the milliseconds in a file, which may change meanwhile. It stands before
/// the C library, and does not touch any other call, unlike a tracer.
const SLOW_SYNC: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static long wanted(void) {
    char text[16] = {0};
    int file = open(getenv("SYNCS_TAKE"), O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    long count = read(file, text, sizeof text - 1);
    close(file);
    return count > 0 ? atol(text) : 0;
}

static void take_time(void) {
    struct timespec piece = {0, 5000000};
    for (long taken = 0; taken < wanted(); taken += 5) nanosleep(&piece, 0);
}

int fsync(int file) { take_time(); return syscall(SYS_fsync, file); }
int fdatasync(int file) { take_time(); return syscall(SYS_fdatasync, file); }
"#;

/// Compiles [`SLOW_SYNC`] in a folder, and returns where it is.
pub(crate) fn make_slow_sync(dir: &Path) -> PathBuf {
    let (source, library) = (dir.join("slow.c"), dir.join("slow.so"));
    fs::write(&source, SLOW_SYNC).unwrap();
    run(&["cc", "-O1", "-shared", "-fPIC", "-o", path(&library), path(&source)]);
    library
}

/// Where one instance keeps its data.
#[derive(Debug)]
pub(crate) struct Disk {
    dir: TempDir,
    mount: Option<Mount>,
    /// The library that slows syncs.
    slow: Option<PathBuf>,
}

impl Disk {
    /// An empty disk; `slow` is the library for [`Disks::Slowed`].
    pub(crate) fn new(disks: Disks, slow: &Path) -> Self {
        let dir = TempDir::new().unwrap();
        let mount = (disks == Disks::Powered).then(|| Mount::ext4(&dir.path().join("image")));
        let slow = (disks == Disks::Slowed).then(|| slow.to_owned());
        Self { dir, mount, slow }
    }

    /// The data directory, as the instance calls it.
    pub(crate) fn data(&self) -> PathBuf {
        self.mount.as_ref().map_or_else(|| self.dir.path().join("data"), Mount::data)
    }

    /// What an instance with this disk is started through.
    pub(crate) fn wrapper(&self) -> Vec<String> {
        let mut wrapper = Vec::new();
        if let Some(mount) = &self.mount {
            wrapper.extend(mount.wrapper(&[]).into_iter().map(str::to_owned));
        }
        if let Some(library) = &self.slow {
            let takes = self.dir.path().join("takes");
            wrapper.push("env".to_owned());
            wrapper.push(format!("LD_PRELOAD={}", path(library)));
            wrapper.push(format!("SYNCS_TAKE={}", path(&takes)));
        }
        wrapper
    }

    /// From now on each sync takes so long, those included that have begun.
    pub(crate) fn take(&self, time: Duration) {
        assert!(self.slow.is_some(), "these disks cannot be slowed");
        let (draft, takes) = (self.dir.path().join("draft"), self.dir.path().join("takes"));
        fs::write(&draft, time.as_millis().to_string()).unwrap();
        fs::rename(draft, takes).unwrap();
    }

    /// Loses everything, as a new disk in the place of a broken one.
    pub(crate) fn wipe(&self) {
        fs::remove_dir_all(self.data()).unwrap();
    }

    /// Copies what it has now; [`Self::put_back`] brings it back.
    pub(crate) fn copy(&self) {
        let copy = self.dir.path().join("copy");
        run(&["cp", "-a", path(&self.data()), path(&copy)]);
    }

    /// Brings the copy back.
    pub(crate) fn put_back(&self) {
        self.wipe();
        fs::rename(self.dir.path().join("copy"), self.data()).unwrap();
    }

    /// Exchanges what two disks have.
    pub(crate) fn exchange(&self, other: &Self) {
        let aside = self.dir.path().join("aside");
        fs::rename(self.data(), &aside).unwrap();
        fs::rename(other.data(), self.data()).unwrap();
        fs::rename(aside, other.data()).unwrap();
    }

    /// The power is back. What used the disk has ended.
    pub(crate) fn restore_power(&self) {
        self.mount.as_ref().expect("powered").restore_power(&self.dir.path().join("image"));
    }
}

/// Cuts the power of all these at once.
pub(crate) fn cut_power<'a>(disks: impl IntoIterator<Item = &'a Disk>) {
    cut_power_of(disks.into_iter().map(|disk| disk.mount.as_ref().expect("powered")));
}
