//! An image in memory, in the place of sled on a [`super::SimDisk`]. A power cut takes any
//! end of what was not flushed; it may also come back older, or damaged.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use emnetchain::{
    raft::SnapshotMeta,
    registry::{Image, Meta, Record, Registry, Serial, Table},
    storage::{ClusterId, Found, ImageStore, Intact, OpenImage, StorageError, fault::DiskFault},
};

use super::{
    Inner, Rng, Survives,
    state::{Kind, fault},
};

/// Flushed versions that are kept, so that an image can come back older.
const VERSIONS_MAX: usize = 16;

/// All images of a disk, by their directory.
#[derive(Clone, Debug, Default)]
pub(super) struct Images(BTreeMap<PathBuf, Versions>);

/// What an image held after each batch; `None` without a stamp.
#[derive(Clone, Debug)]
struct Versions {
    cluster: ClusterId,
    /// The last is the one that survives.
    flushed: Vec<Version>,
    written: Vec<Version>,
    is_damaged: bool,
}

type Version = Option<(SnapshotMeta, Image)>;

impl Images {
    pub(super) fn cut_power(&mut self, survives: Survives, rng: &mut Rng) {
        for image in self.0.values_mut() {
            let kept = match survives {
                Survives::Nothing => 0,
                Survives::Everything => image.written.len(),
                Survives::Sectors => rng.below(image.written.len() as u64 + 1) as usize,
            };
            image.written.truncate(kept);
            image.flush();
        }
    }

    pub(super) fn go_back(&mut self, flushes: usize) {
        for image in self.0.values_mut() {
            image.written.clear();
            image.flushed.truncate(image.flushed.len().saturating_sub(flushes).max(1));
        }
    }

    pub(super) fn damage(&mut self) {
        self.0.values_mut().for_each(|image| image.is_damaged = true);
    }
}

impl Versions {
    fn flush(&mut self) {
        self.flushed.extend(self.written.pop());
        self.written.clear();
        let old = self.flushed.len().saturating_sub(VERSIONS_MAX);
        self.flushed.drain(..old);
    }
}

/// The image in a directory of a disk.
pub(super) fn store(disk: Arc<Inner>, path: &Path, cluster: ClusterId) -> Arc<dyn ImageStore> {
    Arc::new(Store { disk, path: path.to_path_buf(), cluster })
}

#[derive(Clone, Debug)]
struct Store {
    disk: Arc<Inner>,
    path: PathBuf,
    cluster: ClusterId,
}

impl ImageStore for Store {
    fn open(&self) -> Result<Found, StorageError> {
        let sim = self.disk.sim();
        let Some(image) = sim.images.0.get(&self.path) else { return Ok(Found::Absent) };
        if image.is_damaged {
            return Ok(Found::Damaged("it was damaged by the simulation".to_owned()));
        }
        if image.cluster != self.cluster {
            return Err(StorageError::Foreign {
                path: self.path.clone(),
                found: format!("cluster {}", image.cluster),
                expected: format!("cluster {}", self.cluster),
            });
        }
        let newest = image.written.last().or(image.flushed.last()).cloned().flatten();
        let Some((at, image)) = newest else {
            return Ok(Found::Damaged("it holds no stamp: never finished, or lost".to_owned()));
        };
        let records = image.records.clone();
        let registry = Registry::from_image(image).expect("a whole registry was written");
        let image = Box::new(Open { store: self.clone(), records });
        Ok(Found::Intact(Box::new(Intact { image, at, registry })))
    }

    fn replace(&self) -> Result<Box<dyn OpenImage>, DiskFault> {
        let mut sim = self.disk.sim();
        sim.begin(Kind::NeedsRoom, "create", &self.path)?;
        let (cluster, flushed, written) = (self.cluster, vec![None], Vec::new());
        let new = Versions { cluster, flushed, written, is_damaged: false };
        sim.images.0.insert(self.path.clone(), new);
        Ok(Box::new(Open { store: self.clone(), records: Table::default() }))
    }

    fn remove_superseded(&self) -> Result<(), DiskFault> {
        Ok(())
    }

    fn set_aside(&self) -> Result<PathBuf, DiskFault> {
        let mut sim = self.disk.sim();
        sim.begin(Kind::Other, "rename", &self.path)?;
        sim.images.0.remove(&self.path);
        Ok(self.path.with_extension("bad-1"))
    }
}

/// An image that is written.
struct Open {
    store: Store,
    records: Table<Record>,
}

impl OpenImage for Open {
    fn write(
        &mut self,
        changes: &BTreeMap<Serial, Option<Record>>,
        stamp: Option<(&SnapshotMeta, &Meta)>,
    ) -> Result<(), DiskFault> {
        let mut sim = self.store.disk.sim();
        sim.begin(Kind::NeedsRoom, "write", &self.store.path)?;
        for (serial, record) in changes {
            match record {
                Some(record) => drop(self.records.insert(*serial, record.clone())),
                None => drop(self.records.remove(*serial)),
            }
        }
        let version = stamp.map(|(at, meta)| {
            (at.clone(), Image { meta: meta.clone(), records: self.records.clone() })
        });
        if let Some(image) = sim.images.0.get_mut(&self.store.path) {
            image.written.push(version);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), DiskFault> {
        let mut sim = self.store.disk.sim();
        sim.begin(Kind::Other, "sync", &self.store.path)?;
        let Some(image) = sim.images.0.get_mut(&self.store.path) else {
            return Err(fault("sync", &self.store.path, libc::ENOENT));
        };
        image.flush();
        Ok(())
    }

    fn records(&self) -> u64 {
        self.records.len() as u64
    }

    fn bytes(&self) -> u64 {
        0
    }
}
