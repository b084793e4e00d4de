//! Opening an image, in distrust. sled may panic, hang, or open something older or emptier than
//! what was written; all of these come back as [`Found::Damaged`] or [`Found::Hung`].

use std::{
    any::Any,
    fs::File,
    io, iter,
    num::NonZero,
    ops::Bound,
    panic::{self, AssertUnwindSafe},
    path::Path,
    sync::{Once, mpsc},
    thread,
};

use super::{
    DiskImage, FORMAT, Found, Intact, RECORD_PREFIX, STAMP_PREFIX, SledStore, Stamp, Tally,
    into_io, record_key, sled_config,
};
use crate::{
    codec::{self, Newer},
    platform,
    registry::{Image, Record, Registry, Rules, Serial, Table},
    storage::{StorageError, disk::RealDisk, error::Unusable, files},
};

const THREAD_NAME: &str = "image-open";

/// Parts of an image that are read at once; more than these wait for each other in sled.
const SCANS_MAX: usize = 8;

/// Opens an image, reads all of it and compares it with its stamp.
pub(super) fn open(store: &SledStore) -> Result<Found, StorageError> {
    let path = &store.path;
    if !path.exists() {
        return Ok(Found::Absent);
    }
    keep_panics_quiet();
    let (sender, receiver) = mpsc::channel();
    let owned = store.clone();
    thread::Builder::new()
        .name(THREAD_NAME.into())
        .spawn(move || {
            let load = || load(&owned);
            // The receiver may have given up; then the answer is not needed.
            let _ = sender.send(panic::catch_unwind(AssertUnwindSafe(load)));
        })
        .map_err(files::failed("start a thread to open", path))?;
    Ok(match receiver.recv_timeout(store.options.open_deadline) {
        Ok(Ok(Ok(intact))) => Found::Intact(Box::new(intact)),
        Ok(Ok(Err(unusable))) => Found::Damaged(unusable.damage(path)?),
        Ok(Err(panic)) => Found::Damaged(format!("sled panicked: {}", panic_text(&*panic))),
        Err(_) => Found::Hung,
    })
}

fn load(store: &SledStore) -> Result<Intact, Unusable> {
    let (path, cluster) = (&store.path, store.cluster);
    await_release(path).map_err(Unusable::Io)?;
    let db = sled_config(path).open().map_err(unusable)?;
    let blobs =
        files::list(&RealDisk, &path.join("blobs")).map_err(|fault| Unusable::Io(fault.source))?;
    if !blobs.is_empty() {
        return Err(Unusable::Damaged("blobs/ holds files, which are never synced".into()));
    }
    let scan = scan(&db)?;
    let (stamp, stamp_pieces) = read_stamp(&scan.stamp_pieces)?;
    if stamp.cluster != cluster {
        return Err(Unusable::Foreign { found: stamp.cluster, expected: cluster });
    }
    if stamp.meta.rules > Rules::NEWEST {
        return Err(Newer { found: stamp.meta.rules.0, newest: codec::NEWEST }.into());
    }
    if stamp.tally != scan.tally {
        let (found, said) = (scan.tally.records, stamp.tally.records);
        let what = format!("{found} records, where {said} were written");
        return Err(Unusable::Damaged(what));
    }
    let image = Image { meta: stamp.meta, records: scan.records };
    let registry =
        Registry::from_image(image).map_err(|error| Unusable::Damaged(error.to_string()))?;
    let mut image = DiskImage::around(db, store).map_err(|fault| Unusable::Io(fault.source))?;
    image.tally = scan.tally;
    image.next_serial = scan.next_serial;
    image.stamp_pieces = stamp_pieces;
    Ok(Intact { image: Box::new(image), at: stamp.at, registry })
}

/// sled's threads may hold its data file a moment longer than its owner did, and sled takes a held
/// file for an error. The directory is ours, so no other process can hold it.
fn await_release(path: &Path) -> io::Result<()> {
    match File::open(path.join("db")) {
        Ok(data) => data.lock(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// All that the tree holds.
#[derive(Default)]
struct Scan {
    records: Table<Record>,
    tally: Tally,
    next_serial: Serial,
    stamp_pieces: Vec<sled::IVec>,
}

/// A range of keys.
type Range = (Bound<[u8; 9]>, Bound<[u8; 9]>);

/// Reads the whole tree, in as many parts at once as there are processors.
fn scan(db: &sled::Db) -> Result<Scan, Unusable> {
    let parts = thread::available_parallelism().map_or(1, NonZero::get).min(SCANS_MAX);
    let ranges = ranges(db, parts as u64)?;
    thread::scope(|scope| {
        let start = |range| {
            let thread = thread::Builder::new().name(THREAD_NAME.into());
            thread.spawn_scoped(scope, move || scan_range(db, range)).map_err(Unusable::Io)
        };
        let threads = ranges.into_iter().map(start).collect::<Result<Vec<_>, _>>()?;
        let mut whole = Scan::default();
        for thread in threads {
            let part = thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic))?;
            whole.records.append(part.records);
            whole.tally.append(part.tally);
            whole.next_serial = whole.next_serial.max(part.next_serial);
            whole.stamp_pieces.extend(part.stamp_pieces);
        }
        Ok(whole)
    })
}

/// Cuts the keys into ranges with about as many records each. The stamp sorts behind all records,
/// so all of it is in the last.
fn ranges(db: &sled::Db, parts: u64) -> Result<Vec<Range>, Unusable> {
    let number = |pair: sled::Result<Option<(sled::IVec, sled::IVec)>>| -> Result<u64, Unusable> {
        let pair = pair.map_err(unusable)?;
        let serial = pair.and_then(|(key, _)| key.get(1..)?.try_into().ok());
        Ok::<_, Unusable>(serial.map_or(0, u64::from_be_bytes))
    };
    let (first, last) = (number(db.first())?, number(db.get_lt([STAMP_PREFIX]))?);
    let step = last.saturating_sub(first) / parts + 1;
    let cuts = (1..parts).map(|part| record_key(Serial(first.saturating_add(step * part))));
    let cuts: Vec<_> = cuts.collect();
    let starts = iter::once(Bound::Unbounded).chain(cuts.iter().copied().map(Bound::Included));
    let ends = cuts.iter().copied().map(Bound::Excluded).chain([Bound::Unbounded]);
    Ok(starts.zip(ends).collect())
}

fn scan_range(db: &sled::Db, range: Range) -> Result<Scan, Unusable> {
    let mut scan = Scan::default();
    let records = db.range(range).filter_map(|pair| scan.take(pair).transpose());
    scan.records = records.collect::<Result<_, _>>()?;
    Ok(scan)
}

impl Scan {
    /// Counts a pair, and gives back the record that it is, unless it is of the stamp.
    fn take(
        &mut self,
        pair: sled::Result<(sled::IVec, sled::IVec)>,
    ) -> Result<Option<(Serial, Record)>, Unusable> {
        let (key, value) = pair.map_err(unusable)?;
        let damaged = |what: &str| Unusable::Damaged(format!("key {:02x?}: {what}", &*key));
        match key.split_first() {
            Some((&RECORD_PREFIX, number)) => {
                let number = number.try_into().map_err(|_| damaged("not a serial"))?;
                let serial = Serial(u64::from_be_bytes(number));
                let record = codec::decode(&value)?;
                self.tally.add(&key, &value);
                self.next_serial = Serial(serial.0.saturating_add(1));
                Ok(Some((serial, record)))
            }
            Some((&STAMP_PREFIX, number)) => {
                let expected = u16::try_from(self.stamp_pieces.len()).unwrap_or(u16::MAX);
                if number != expected.to_be_bytes() {
                    return Err(damaged("a piece of the stamp is missing"));
                }
                self.stamp_pieces.push(value);
                Ok(None)
            }
            Some(_) | None => Err(damaged("of no known kind")),
        }
    }
}

fn read_stamp(pieces: &[sled::IVec]) -> Result<(Stamp, u16), Unusable> {
    let damaged = |what: &str| Unusable::Damaged(what.into());
    let bytes = pieces.concat();
    let Some((check, body)) = bytes.split_first_chunk() else {
        return Err(damaged("it holds no stamp: never finished, or lost"));
    };
    if crc32fast::hash(body) != u32::from_le_bytes(*check) {
        return Err(damaged("the checksum of its stamp does not match"));
    }
    let (format, body) = body.split_first_chunk().ok_or_else(|| damaged("its stamp is cut"))?;
    let format = u32::from_le_bytes(*format);
    if format != FORMAT {
        let what = format!("format {format}, where this version knows {FORMAT}");
        return Err(Unusable::Damaged(what));
    }
    let stamp = codec::decode(body)?;
    Ok((stamp, u16::try_from(pieces.len()).expect("scan() counts pieces in 16 bits")))
}

/// Parts a disk that fails or is full from bytes that are wrong.
fn unusable(error: sled::Error) -> Unusable {
    use io::ErrorKind::{
        FileTooLarge, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull,
    };
    let error = into_io(error);
    let full = matches!(error.kind(), FileTooLarge | QuotaExceeded | StorageFull);
    let refused_by_system = full
        || matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem)
        || platform::files::is_of_the_system(&error);
    if refused_by_system {
        Unusable::Io(error)
    } else {
        Unusable::Damaged(format!("sled cannot open it: {error}"))
    }
}

/// Returns the text of a panic.
pub(super) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (None, Some(text)) => text,
        (None, None) => "no reason given",
    }
}

/// A panic while opening is an answer like any other; the operator reads of it in the log line
/// that says what was done about it, not as a stack trace.
fn keep_panics_quiet() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let print = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if thread::current().name() == Some(THREAD_NAME) {
                tracing::debug!(%info, "caught while opening the image");
            } else {
                print(info);
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_disk_is_not_taken_for_a_damaged_image() {
        use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem, StorageFull};
        let kinds = [PermissionDenied, ReadOnlyFilesystem, StorageFull].map(io::Error::from);
        for error in kinds.into_iter().chain([platform::files::a_failure()]) {
            let error = unusable(sled::Error::Io(error));
            assert!(matches!(error, Unusable::Io(_)), "{error:?}");
        }
        let error = unusable(sled::Error::Io(io::ErrorKind::UnexpectedEof.into()));
        assert!(matches!(error, Unusable::Damaged(_)), "{error:?}");
        let error = unusable(sled::Error::Corruption { at: None, bt: () });
        assert!(matches!(error, Unusable::Damaged(_)), "{error:?}");
    }
}
