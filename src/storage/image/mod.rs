//! The image: the registry as sled keeps it, written behind, for a quick start.
//!
//! Nothing depends on it for durability. Every entry is in the raft log before it is applied, and
//! the log is purged only behind a snapshot file that sled has no part in; so a lost image costs
//! a slower start and nothing else. That is why sled may be here at all: version 0.34 opens a cut
//! file *silently* as an older or an empty one, its `flush` does not reach the disk's own cache,
//! and it panics on many a damaged byte. So
//!
//! - everything is in one tree, and each batch carries, beside its records, a *stamp*: the log
//!   position, the number of records and a digest over all of them. A scan at open counts and
//!   digests again; what does not agree with its stamp, or has none, is no image.
//! - after sled's `flush` we sync the data file through our own handle ([`DiskImage::flush`]).
//! - values stay below 4 KiB, because sled moves large ones into `blobs/`, which it never syncs.
//!   A file found there makes the image worthless.
//! - opening happens on a thread of its own, which may panic or hang.
//!
//! | key | value |
//! |---|---|
//! | `R`, serial as u64 big-endian | the [`Record`], by [`codec`] |
//! | `S`, number of the piece as u16 big-endian | a piece of the [`Stamp`] |
//!
//! A stamp is its crc32 (little-endian), its format (u32, little-endian) and itself by [`codec`],
//! joined, and cut every 3 KiB. The checksum covers the rest.

mod digest;
mod open;
mod store;
pub(super) mod tree;
mod writer;

use digest::Tally;

pub use digest::{RunningDigest, digest};
pub use store::{Found, ImageStore, Intact, OpenImage};
pub use writer::ImageProgress;
pub(super) use writer::{ImageQueue, Start, Step, Work, show_lag, spawn};

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    StorageError,
    disk::{Disk as _, RealDisk},
    fault::DiskFault,
    files::{self, failed},
    identity::ClusterId,
};
use crate::{
    codec,
    raft::SnapshotMeta,
    registry::{Meta, Record, Serial},
};

/// The layout of keys and values above.
const FORMAT: u32 = 3;

/// The largest value; from some 12 KiB on sled would move a page into `blobs/`.
const VALUE_BYTES_MAX: usize = 4096;

/// A stamp is cut into pieces of this size, because it grows with the members of the cluster.
const STAMP_PIECE_BYTES: usize = 3072;

/// Memory for sled's page cache. The image is read once, at open; later only for old values.
const CACHE_BYTES: u64 = 256 * 1024 * 1024;

const RECORD_PREFIX: u8 = b'R';
const STAMP_PREFIX: u8 = b'S';

/// Syncs the data file; tests put another function in its place to see that it is called.
pub(super) type SyncFn = Arc<dyn Fn(&File) -> io::Result<()> + Send + Sync>;

/// Options that tests change.
#[derive(Clone)]
pub(super) struct Options {
    /// The longest time for `open`; 5 million records take some 30 seconds on a slow disk.
    pub(super) open_deadline: Duration,
    /// The function that syncs the data file.
    pub(super) sync: SyncFn,
}

impl Default for Options {
    fn default() -> Self {
        Self { open_deadline: Duration::from_secs(120), sync: Arc::new(File::sync_data) }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("open_deadline", &self.open_deadline)
            .finish_non_exhaustive()
    }
}

/// The summary in a batch of all the records in the tree.
#[derive(Debug, Serialize, Deserialize)]
struct Stamp {
    cluster: ClusterId,
    at: SnapshotMeta,
    meta: Meta,
    tally: Tally,
}

/// The directory in which sled keeps the image.
#[derive(Clone, Debug)]
pub(super) struct SledStore {
    path: PathBuf,
    cluster: ClusterId,
    options: Options,
}

impl SledStore {
    /// Returns the image of a cluster's registry in a directory.
    pub(super) fn new(path: &Path, cluster: ClusterId, options: Options) -> Self {
        Self { path: path.to_path_buf(), cluster, options }
    }

    /// Returns where the old image lies while a new one is written.
    fn superseded(&self) -> PathBuf {
        self.path.with_extension("old")
    }
}

impl ImageStore for SledStore {
    fn open(&self) -> Result<Found, StorageError> {
        open::open(self)
    }

    /// Until the first stamp is written the new image counts as damaged.
    fn replace(&self) -> Result<Box<dyn OpenImage>, DiskFault> {
        let old = self.superseded();
        tree::remove(&old)?;
        if self.path.exists() {
            files::rename(&RealDisk, &self.path, &old)?;
        }
        RealDisk.create_dir(&self.path)?;
        let db = sled_config(&self.path).open().map_err(into_io);
        let db = db.map_err(failed("open", &self.path))?;
        Ok(Box::new(DiskImage::around(db, self)?))
    }

    fn remove_superseded(&self) -> Result<(), DiskFault> {
        tree::remove(&self.superseded())
    }

    fn set_aside(&self) -> Result<PathBuf, DiskFault> {
        let mut number = 1;
        let mut older = Vec::new();
        for path in files::list(&RealDisk, files::parent(&self.path))? {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if let Some(old) = name.strip_prefix("registry.bad-") {
                number = number.max(old.parse::<u64>().map_or(1, |old| old.saturating_add(1)));
                older.push(path);
            }
        }
        let aside = self.path.with_extension(format!("bad-{number}"));
        files::rename(&RealDisk, &self.path, &aside)?;
        for path in older {
            tree::remove(&path)?;
        }
        Ok(aside)
    }
}

/// An image that is open in sled.
struct DiskImage {
    db: sled::Db,
    /// Our own handle on sled's data file.
    data: File,
    path: PathBuf,
    cluster: ClusterId,
    sync: SyncFn,
    tally: Tally,
    /// No serial from here on is in the tree, so that new records need no look-up.
    next_serial: Serial,
    /// The number of pieces of the stamp in the tree.
    stamp_pieces: u16,
}

impl OpenImage for DiskImage {
    fn write(
        &mut self,
        changes: &BTreeMap<Serial, Option<Record>>,
        stamp: Option<(&SnapshotMeta, &Meta)>,
    ) -> Result<(), DiskFault> {
        let mut batch = sled::Batch::default();
        for (serial, record) in changes {
            self.change(&mut batch, *serial, record.as_ref())?;
        }
        if let Some((at, meta)) = stamp {
            self.stamp(&mut batch, at, meta);
        }
        self.db.apply_batch(batch).map_err(into_io).map_err(failed("write", &self.path))
    }

    /// sled hands its buffers to the kernel, and our own sync sends them through the disk's cache.
    /// Without it a power cut loses everything since the file system's last commit, and sled does
    /// not notice.
    fn flush(&mut self) -> Result<(), DiskFault> {
        self.db.flush().map_err(into_io).map_err(failed("flush", &self.path))?;
        (self.sync)(&self.data).map_err(failed("sync", &self.path))
    }

    fn records(&self) -> u64 {
        self.tally.records
    }

    fn bytes(&self) -> u64 {
        self.data.metadata().map(|metadata| metadata.len()).unwrap_or_default()
    }
}

impl DiskImage {
    /// Takes an opened sled over: private modes, durable names, our own handle.
    fn around(db: sled::Db, store: &SledStore) -> Result<Self, DiskFault> {
        let SledStore { path, cluster, options } = store;
        tree::make_private(path)?;
        RealDisk.sync_dir(path)?;
        RealDisk.sync_dir(files::parent(path))?;
        let data_path = path.join("db");
        let mut data = File::options();
        let data = data.read(true).write(true).open(&data_path);
        Ok(Self {
            db,
            data: data.map_err(failed("open", &data_path))?,
            path: path.clone(),
            cluster: *cluster,
            sync: Arc::clone(&options.sync),
            tally: Tally::default(),
            next_serial: Serial(0),
            stamp_pieces: 0,
        })
    }

    fn change(
        &mut self,
        batch: &mut sled::Batch,
        serial: Serial,
        record: Option<&Record>,
    ) -> Result<(), DiskFault> {
        let key = record_key(serial);
        if serial < self.next_serial {
            let old = self.db.get(key).map_err(into_io);
            if let Some(old) = old.map_err(failed("read", &self.path))? {
                self.tally.remove(&key, &old);
            }
        }
        let Some(record) = record else {
            batch.remove(&key);
            return Ok(());
        };
        let value = codec::encode(record);
        assert!(value.len() <= VALUE_BYTES_MAX, "{serial:?} takes {} bytes", value.len());
        self.tally.add(&key, &value);
        self.next_serial = self.next_serial.max(Serial(serial.0 + 1));
        batch.insert(&key, value);
        Ok(())
    }

    fn stamp(&mut self, batch: &mut sled::Batch, at: &SnapshotMeta, meta: &Meta) {
        let stamp =
            Stamp { cluster: self.cluster, at: at.clone(), meta: meta.clone(), tally: self.tally };
        let body = codec::append(&stamp, FORMAT.to_le_bytes().to_vec());
        let mut bytes = crc32fast::hash(&body).to_le_bytes().to_vec();
        bytes.extend(body);
        let mut pieces = 0;
        for piece in bytes.chunks(STAMP_PIECE_BYTES) {
            batch.insert(&stamp_key(pieces), piece);
            pieces += 1;
        }
        for stale in pieces..self.stamp_pieces {
            batch.remove(&stamp_key(stale));
        }
        self.stamp_pieces = pieces;
    }
}

pub(super) fn record_key(serial: Serial) -> [u8; 9] {
    let mut key = [RECORD_PREFIX; 9];
    key[1..].copy_from_slice(&serial.0.to_be_bytes());
    key
}

fn stamp_key(piece: u16) -> [u8; 3] {
    let [high, low] = piece.to_be_bytes();
    [STAMP_PREFIX, high, low]
}

/// No timer thread: we flush, and we sync.
fn sled_config(path: &Path) -> sled::Config {
    sled::Config::new().path(path).flush_every_ms(None).cache_capacity(CACHE_BYTES)
}

fn into_io(error: sled::Error) -> io::Error {
    match error {
        sled::Error::Io(error) => error,
        error @ (sled::Error::CollectionNotFound(_)
        | sled::Error::Unsupported(_)
        | sled::Error::ReportableBug(_)
        | sled::Error::Corruption { .. }) => io::Error::other(error.to_string()),
    }
}
