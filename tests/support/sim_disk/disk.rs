//! The calls of a simulated disk.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use emnetchain::storage::{
    Access, ClusterId, Disk, DiskFile, DiskLock, ImageStore, fault::DiskFault,
};
use futures_util::future::BoxFuture;

use super::{
    Inner, Pace, SimDisk, image,
    state::{Change, Kind, Renaming, SimBytes, fault},
};

/// How long a sync of a thread hangs at most.
const HANG_MAX: Duration = Duration::from_secs(20);

impl Disk for SimDisk {
    fn names(&self, dir: &Path) -> Result<Vec<String>, DiskFault> {
        let sim = self.sim();
        let inside = sim.names.keys().filter(|path| path.parent() == Some(dir));
        let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
        Ok(inside.map(|path| name(path)).collect())
    }

    fn create_dir(&self, dir: &Path) -> Result<(), DiskFault> {
        let mut sim = self.sim();
        if !sim.dirs.contains(dir) {
            sim.begin(Kind::NeedsRoom, "create", dir)?;
            sim.dirs.extend(dir.ancestors().map(Path::to_path_buf));
        }
        Ok(())
    }

    fn create(&self, path: &Path) -> Result<Arc<dyn DiskFile>, DiskFault> {
        let mut sim = self.sim();
        sim.begin(Kind::NeedsRoom, "create", path)?;
        if sim.names.contains_key(path) {
            return Err(fault("create", path, libc::EEXIST));
        }
        if !path.parent().is_some_and(|dir| sim.dirs.contains(dir)) {
            return Err(fault("create", path, libc::ENOENT));
        }
        let number = sim.files.len();
        sim.files.push(SimBytes::default());
        sim.rename(Renaming { from: None, to: Some((path.to_owned(), number)) });
        Ok(Arc::new(SimFile { disk: Arc::clone(&self.0), path: path.to_owned(), number }))
    }

    fn open(&self, path: &Path, _: Access) -> Result<Arc<dyn DiskFile>, DiskFault> {
        let sim = self.sim();
        let number = *sim.names.get(path).ok_or_else(|| fault("open", path, libc::ENOENT))?;
        Ok(Arc::new(SimFile { disk: Arc::clone(&self.0), path: path.to_owned(), number }))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), DiskFault> {
        let mut sim = self.sim();
        sim.begin(Kind::Other, "rename", from)?;
        assert_eq!(from.parent(), to.parent(), "no file changes its directory");
        let number = *sim.names.get(from).ok_or_else(|| fault("rename", from, libc::ENOENT))?;
        let to = Some((to.to_owned(), number));
        sim.rename(Renaming { from: Some(from.to_owned()), to });
        Ok(())
    }

    fn remove(&self, path: &Path) -> Result<(), DiskFault> {
        let mut sim = self.sim();
        if sim.names.contains_key(path) {
            sim.begin(Kind::Remove, "remove", path)?;
            sim.rename(Renaming { from: Some(path.to_owned()), to: None });
        }
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> Result<(), DiskFault> {
        let mut sim = self.sim();
        sim.begin(Kind::Other, "sync", dir)?;
        if !sim.faults.dir_sync_lies {
            let pending = std::mem::take(&mut sim.pending_names);
            let (synced, pending) = pending.into_iter().partition(|renaming| renaming.is_in(dir));
            sim.pending_names = pending;
            let synced: Vec<Renaming> = synced;
            synced.iter().for_each(|renaming| renaming.apply(&mut sim.durable_names));
        }
        Ok(())
    }

    fn lock(&self, path: &Path, access: Access) -> Result<Option<DiskLock>, DiskFault> {
        let mut sim = self.sim();
        match sim.locks.get(path) {
            None if access == Access::Read => return Err(fault("open", path, libc::ENOENT)),
            Some(lock) if lock.strong_count() > 0 => return Ok(None),
            None | Some(_) => {}
        }
        let lock = Arc::new(());
        sim.locks.insert(path.to_owned(), Arc::downgrade(&lock));
        Ok(Some(lock))
    }

    fn image_store(&self, path: &Path, cluster: ClusterId) -> Arc<dyn ImageStore> {
        image::store(Arc::clone(&self.0), path, cluster)
    }

    fn pause(&self, dir: &Path) -> Option<BoxFuture<'static, ()>> {
        let (disk, dir) = (Arc::clone(&self.0), dir.file_name()?.to_string_lossy().into_owned());
        Some(Box::pin(async move {
            loop {
                let changed = disk.pace_changed.notified();
                let pace = disk.sim().paces.get(&dir).copied().unwrap_or_default();
                match pace {
                    Pace::Quick => return,
                    Pace::Slow(least, most) => {
                        let more = disk.sim().rng.below(most - least + 1);
                        return tokio::time::sleep(Duration::from_millis(least + more)).await;
                    }
                    Pace::Hangs => changed.await,
                }
            }
        }))
    }
}

#[derive(Debug)]
struct SimFile {
    disk: Arc<Inner>,
    path: PathBuf,
    number: usize,
}

impl SimFile {
    fn change(&self, change: Change) -> Result<(), DiskFault> {
        let mut sim = self.disk.sim();
        let kind = if change.end() > sim.files[self.number].now.len() {
            Kind::NeedsRoom
        } else {
            Kind::Other
        };
        let begun = sim.begin(kind, "write", &self.path);
        // A write that fails may have got half way, and so may the one that the power cut hits.
        let is_hit = sim.faults.dead_from == Some(sim.operations);
        let change = if begun.is_ok() {
            change
        } else if is_hit || sim.machine_is_on() {
            change.half()
        } else {
            return begun;
        };
        let file = &mut sim.files[self.number];
        change.apply(&mut file.now);
        file.pending.push(change);
        begun
    }
}

impl DiskFile for SimFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn size(&self) -> Result<u64, DiskFault> {
        Ok(self.disk.sim().files[self.number].now.len() as u64)
    }

    fn modified(&self) -> Result<u64, DiskFault> {
        Ok(0)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), DiskFault> {
        let sim = self.disk.sim();
        let start = usize::try_from(offset).unwrap();
        let there = sim.files[self.number].now.get(start..start + buffer.len());
        let cut_short = || DiskFault {
            operation: "read",
            path: self.path.clone(),
            source: io::ErrorKind::UnexpectedEof.into(),
        };
        buffer.copy_from_slice(there.ok_or_else(cut_short)?);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), DiskFault> {
        let offset = usize::try_from(offset).unwrap();
        self.change(Change::Write { offset, bytes: bytes.to_vec() })
    }

    fn set_size(&self, size: u64) -> Result<(), DiskFault> {
        self.change(Change::SetSize(usize::try_from(size).unwrap()))
    }

    fn sync(&self) -> Result<(), DiskFault> {
        let sim = self.disk.sim();
        // Bounded, so that a test that fails in the meantime can end.
        let wait = self.disk.changed.wait_timeout_while(sim, HANG_MAX, |sim| sim.faults.syncs_wait);
        let mut sim = wait.unwrap().0;
        sim.begin(Kind::Other, "sync", &self.path)?;
        sim.file_syncs += 1;
        if !sim.faults.file_sync_lies {
            let file = &mut sim.files[self.number];
            for change in std::mem::take(&mut file.pending) {
                change.apply(&mut file.durable);
            }
        }
        Ok(())
    }
}
