//! A disk each of whose operations is marked in a [`Pulse`], so that one that hangs is seen.

use std::{path::Path, sync::Arc};

use futures_util::future::BoxFuture;

use super::{
    disk::{Access, Disk, DiskFile, DiskLock},
    fault::DiskFault,
    identity::ClusterId,
    image::ImageStore,
    pulse::Pulse,
};

/// Another disk, watched.
#[derive(Debug)]
pub(super) struct WatchedDisk {
    disk: Arc<dyn Disk>,
    pulse: Pulse,
}

impl WatchedDisk {
    /// Watches what is done with a disk through this one.
    pub(super) fn new(disk: Arc<dyn Disk>, pulse: Pulse) -> Self {
        Self { disk, pulse }
    }

    fn watched(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(WatchedFile { file, pulse: self.pulse.clone() })
    }
}

impl Disk for WatchedDisk {
    fn names(&self, dir: &Path) -> Result<Vec<String>, DiskFault> {
        let _beat = self.pulse.begin();
        self.disk.names(dir)
    }

    fn create_dir(&self, dir: &Path) -> Result<(), DiskFault> {
        let _beat = self.pulse.begin();
        self.disk.create_dir(dir)
    }

    fn create(&self, path: &Path) -> Result<Arc<dyn DiskFile>, DiskFault> {
        let _beat = self.pulse.begin();
        Ok(self.watched(self.disk.create(path)?))
    }

    fn open(&self, path: &Path, access: Access) -> Result<Arc<dyn DiskFile>, DiskFault> {
        let _beat = self.pulse.begin();
        Ok(self.watched(self.disk.open(path, access)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), DiskFault> {
        let _beat = self.pulse.begin();
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> Result<(), DiskFault> {
        let _beat = self.pulse.begin();
        self.disk.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> Result<(), DiskFault> {
        let _beat = self.pulse.begin();
        self.disk.sync_dir(dir)
    }

    fn lock(&self, path: &Path, access: Access) -> Result<Option<DiskLock>, DiskFault> {
        let _beat = self.pulse.begin();
        self.disk.lock(path, access)
    }

    fn image_store(&self, path: &Path, cluster: ClusterId) -> Arc<dyn ImageStore> {
        self.disk.image_store(path, cluster)
    }

    fn pause(&self, dir: &Path) -> Option<BoxFuture<'static, ()>> {
        let pause = self.disk.pause(dir)?;
        let beat = self.pulse.begin();
        Some(Box::pin(async move {
            pause.await;
            drop(beat);
        }))
    }
}

#[derive(Debug)]
struct WatchedFile {
    file: Arc<dyn DiskFile>,
    pulse: Pulse,
}

impl DiskFile for WatchedFile {
    fn path(&self) -> &Path {
        self.file.path()
    }

    fn size(&self) -> Result<u64, DiskFault> {
        self.file.size()
    }

    fn modified(&self) -> Result<u64, DiskFault> {
        self.file.modified()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), DiskFault> {
        let _beat = self.pulse.begin();
        self.file.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), DiskFault> {
        let _beat = self.pulse.begin();
        self.file.write_at(bytes, offset)
    }

    fn set_size(&self, size: u64) -> Result<(), DiskFault> {
        let _beat = self.pulse.begin();
        self.file.set_size(size)
    }

    fn sync(&self) -> Result<(), DiskFault> {
        let beat = self.pulse.begin();
        self.file.sync()?;
        self.pulse.took(beat.elapsed());
        Ok(())
    }
}
