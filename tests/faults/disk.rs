//! The disks of instances: folders, file systems whose power can be cut, and syncs that take as
//! long as a test wants.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use tempfile::TempDir;

use super::{
    mount::{Frozen, Mount, cut_power_of, path, run},
    slow::Syncs,
};

/// What the disks of a fleet can do beyond keeping files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disks {
    /// Nothing.
    Plain,
    /// They are file systems of their own: their power can be cut, and they can be frozen.
    Powered,
    /// Their syncs can be slow, or hang.
    Slowed,
}

/// Where one instance keeps its data.
#[derive(Debug)]
pub(crate) struct Disk {
    dir: TempDir,
    mount: Option<Mount>,
    syncs: Option<Syncs>,
}

impl Disk {
    /// An empty disk; `slow` is the library for [`Disks::Slowed`].
    pub(crate) fn new(disks: Disks, slow: &Path) -> Self {
        let dir = TempDir::new().unwrap();
        let mount = (disks == Disks::Powered).then(|| Mount::ext4(&dir.path().join("image")));
        let syncs = (disks == Disks::Slowed).then(|| Syncs::new(slow, dir.path()));
        Self { dir, mount, syncs }
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
        wrapper.extend(self.syncs.iter().flat_map(Syncs::wrapper));
        wrapper
    }

    /// From now on each sync takes this time, those included that have begun.
    pub(crate) fn take(&self, time: Duration) {
        self.syncs.as_ref().expect("slowed").take(time);
    }

    /// Has every write wait until what is returned is dropped.
    pub(crate) fn freeze(&self) -> Frozen {
        self.mount.as_ref().expect("powered").freeze()
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
