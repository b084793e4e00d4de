//! Reading entries back, from memory and from segments, without the log's lock.

use std::{io, sync::Arc};

use super::{
    frame::{Seal, entries_of},
    log::Encoded,
    segment::{FrameError, FrameReader, Mark},
};
use crate::{
    codec,
    raft::Entry,
    storage::{disk::DiskFile, fault::DiskFault},
};

/// A place to read from.
#[derive(Debug)]
pub(in crate::storage) struct Plan {
    pub(super) extents: Vec<Extent>,
    pub(super) tail: Vec<Encoded>,
}

/// Entries `from..to` in the frames from a mark on.
#[derive(Debug)]
pub(super) struct Extent {
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) mark: Mark,
    /// Length of the file's intact part.
    pub(super) end: u64,
    pub(super) from: u64,
    pub(super) to: u64,
}

impl Plan {
    /// Returns whether reading asks the disk.
    pub(in crate::storage) fn needs_disk(&self) -> bool {
        !self.extents.is_empty()
    }

    /// Reads the entries; at least one, and no more once `bytes_max` bytes are reached.
    pub(in crate::storage) fn read(
        &self,
        seal: &Seal,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, DiskFault> {
        let mut reader = EntryReader { entries: Vec::new(), bytes_left: bytes_max };
        for extent in &self.extents {
            extent.read(seal, &mut reader)?;
        }
        for encoded in &self.tail {
            if !reader.take(encoded) {
                break;
            }
        }
        Ok(reader.entries)
    }
}

impl Extent {
    fn read(&self, seal: &Seal, reader: &mut EntryReader) -> Result<(), DiskFault> {
        let mut index = self.mark.first;
        let file = &*self.file;
        let mut frames = FrameReader { file, seal, offset: self.mark.offset, end: self.end };
        while index < self.to && reader.bytes_left > 0 {
            let frame = frames.next().map_err(|error| match error {
                FrameError::Bad(what) => self.damaged(what),
                FrameError::Disk(fault) => fault,
            })?;
            let frame = frame.filter(|frame| frame.header.first == index && frame.header.count > 0);
            let frame = frame.ok_or_else(|| self.damaged("a frame is not where it was"))?;
            let entries = entries_of(&frame.body, frame.header.count);
            let entries = entries.ok_or_else(|| self.damaged("a frame's entries do not fit"))?;
            for (number, entry) in (index..).zip(entries) {
                if number >= self.from && number < self.to && !reader.take(entry) {
                    return Ok(());
                }
            }
            index = frame.header.end();
        }
        Ok(())
    }

    fn damaged(&self, what: &'static str) -> DiskFault {
        let source = io::Error::new(io::ErrorKind::InvalidData, what);
        DiskFault { operation: "read", path: self.file.path().to_owned(), source }
    }
}

/// Gathers entries up to a number of bytes.
struct EntryReader {
    entries: Vec<Entry>,
    bytes_left: usize,
}

impl EntryReader {
    /// Returns whether there was room for the entry.
    fn take(&mut self, encoded: &[u8]) -> bool {
        if self.bytes_left == 0 {
            return false;
        }
        self.bytes_left = self.bytes_left.saturating_sub(encoded.len());
        let entry = codec::decode(encoded);
        self.entries.push(entry.expect("intact entries were encoded by this log"));
        true
    }
}
