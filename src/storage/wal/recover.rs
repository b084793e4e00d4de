//! Reading a log back, without writing a byte: what is intact, what must be repaired before the
//! next write, and what must not be opened at all.

use std::path::{Path, PathBuf};

use super::{
    LogError, LogIds, Sizes,
    frame::{Id, SEGMENT_HEADER_BYTES, Seal, SegmentHeader, entries_of, vouched_for},
    log::{Encoded, Log, Written},
    segment::{Frame, FrameError, FrameReader, Mark, Segment, parse_segment_name, segment_name},
    state::{NEW_STATE_NAME, OpenedState, STATE_NAME, State, StateFile},
};
use crate::{
    codec,
    raft::{Entry, LogId},
    storage::disk::{Access, Disk},
};

/// A log that may be used.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) state: State,
    pub(super) state_file: StateFile,
    pub(super) seal: Seal,
    pub(super) log: Log,
    pub(super) repairs: Repairs,
}

/// The remains of a crash; put right before the first write.
#[derive(Debug, Default)]
pub(super) struct Repairs {
    /// Bytes behind the last intact frame, of a write that was never acknowledged.
    pub(super) torn_bytes: u64,
    /// One copy of the state is damaged or older than the other.
    pub(super) one_slot_stale: bool,
}

/// Returns whether the directory has a log; `false` also for one whose creation was interrupted.
///
/// # Errors
/// If there are segments and no state that names them.
pub(super) fn log_exists(disk: &dyn Disk, dir: &Path) -> Result<bool, LogError> {
    let names = disk.names(dir)?;
    if names.iter().any(|name| name == STATE_NAME) {
        return Ok(true);
    }
    let interrupted = names.iter().any(|name| name == NEW_STATE_NAME);
    for name in names.iter().filter(|name| parse_segment_name(name).is_some()) {
        let path = dir.join(name);
        if !interrupted || !is_empty_segment(disk, &path)? {
            let what = format!("segments are here and the file `{STATE_NAME}` is missing");
            return Err(LogError::damaged(&dir.join(STATE_NAME), 0, what));
        }
    }
    Ok(false)
}

/// Reads the log.
///
/// # Errors
/// If anything that was acknowledged may be missing, or if the disk does not answer.
pub(super) fn recover(
    disk: &dyn Disk,
    dir: &Path,
    cluster: &Id,
    access: Access,
    sizes: Sizes,
) -> Result<Recovered, LogError> {
    let opened = StateFile::open(disk, dir, access)?;
    let OpenedState { file: state_file, mut state, one_slot_stale, durable } = opened;
    if state.cluster != *cluster {
        let what = "the log belongs to another cluster";
        return Err(LogError::damaged(&dir.join(STATE_NAME), 0, what));
    }
    state.dropped.extend(find_leftovers(disk, dir, &state)?);
    let seal = Seal::new(&state.cluster, &state.store);
    let mut replay = Replay { disk, dir, access, seal: &seal, state: &state, durable, sizes };
    let (log, torn_bytes) = replay.run()?;
    let repairs = Repairs { torn_bytes, one_slot_stale };
    Ok(Recovered { state, state_file, seal, log, repairs })
}

/// Returns whether the log's state has a vote, or says that entries were purged; the entries are
/// not read.
///
/// # Errors
/// If there is no intact state, or the disk does not answer.
pub(in crate::storage) fn has_begun(disk: &dyn Disk, dir: &Path) -> Result<bool, LogError> {
    let state = StateFile::open(disk, dir, Access::Read)?.state;
    Ok(state.vote.is_some() || state.purged.is_some())
}

/// Segments that are no part of the log and hold nothing: their creation was interrupted.
fn find_leftovers(disk: &dyn Disk, dir: &Path, state: &State) -> Result<Vec<u64>, LogError> {
    let mut leftovers = Vec::new();
    for name in disk.names(dir)? {
        let Some(first) = parse_segment_name(&name) else { continue };
        let path = dir.join(&name);
        let Some(first) = first else {
            return Err(LogError::damaged(&path, 0, "no segment of ours has such a name"));
        };
        if state.segments.contains(&first) || state.dropped.contains(&first) {
            continue;
        }
        if !is_empty_segment(disk, &path)? {
            return Err(LogError::damaged(&path, 0, "the segment is no part of this log"));
        }
        leftovers.push(first);
    }
    Ok(leftovers)
}

fn is_empty_segment(disk: &dyn Disk, path: &Path) -> Result<bool, LogError> {
    Ok(disk.open(path, Access::Read)?.size()? <= SEGMENT_HEADER_BYTES as u64)
}

/// One pass over all segments.
struct Replay<'a> {
    disk: &'a dyn Disk,
    dir: &'a Path,
    access: Access,
    seal: &'a Seal,
    state: &'a State,
    /// The least length of the last segment.
    durable: u64,
    sizes: Sizes,
}

impl Replay<'_> {
    /// Returns the log, and how many torn bytes stand behind it.
    fn run(&mut self) -> Result<(Log, u64), LogError> {
        let state_path = self.dir.join(STATE_NAME);
        let next = self.state.purged.as_ref().map_or(0, |purged| purged.index + 1);
        let Some(&first) = self.state.segments.first().filter(|first| **first <= next) else {
            let what = format!("no segment has the entries from {next} on");
            return Err(LogError::damaged(&state_path, 0, what));
        };
        let mut log = Log::new(first, self.sizes);
        let mut torn_bytes = 0;
        for (number, &first) in self.state.segments.iter().enumerate() {
            let is_last = number + 1 == self.state.segments.len();
            torn_bytes = self.read_segment(&mut log, first, is_last)?;
        }
        if let Some(purged) = &self.state.purged {
            if log.end() < next {
                let what = format!("the log ends at {}, before what was purged", log.end());
                return Err(LogError::damaged(&state_path, 0, what));
            }
            log.purge(*purged, 0);
        }
        log.vote.clone_from(&self.state.vote);
        Ok((log, torn_bytes))
    }

    /// Adds one segment to the log; returns the torn bytes at its end.
    fn read_segment(&self, log: &mut Log, first: u64, is_last: bool) -> Result<u64, LogError> {
        let path = self.dir.join(segment_name(first));
        let chain = log.segments.last().map(|segment| segment.chain);
        let (cluster, store) = (self.state.cluster, self.state.store);
        let expected = SegmentHeader { cluster, store, first, chain: 0 };
        if !self.disk.names(self.dir)?.contains(&segment_name(first)) {
            return Err(LogError::damaged(&path, 0, "the segment is missing"));
        }
        let segment = Segment::open(self.disk, &path, self.access, &expected, chain)?;
        if log.end() != first {
            let what = format!("the segment starts at {first}, but the log is at {}", log.end());
            return Err(LogError::damaged(&path, 0, what));
        }
        let size = segment.file.size()?;
        let file = std::sync::Arc::clone(&segment.file);
        let offset = segment.bytes;
        log.segments.push(segment);
        let mut frames = FrameReader { file: &*file, seal: self.seal, offset, end: size };
        loop {
            let offset = frames.offset;
            match frames.next() {
                Ok(Some(frame)) => replay_frame(log, offset, &frame)
                    .map_err(|what| LogError::damaged(&path, offset, what))?,
                Ok(None) if is_last && size < self.durable => {
                    let what = format!("the end is missing: {} bytes were durable", self.durable);
                    return Err(LogError::damaged(&path, offset, what));
                }
                Ok(None) => return Ok(0),
                Err(FrameError::Disk(fault)) => return Err(fault.into()),
                Err(FrameError::Bad(what)) => {
                    let mut rest = vec![0; usize::try_from(size - offset).expect("64-bit machine")];
                    file.read_at(&mut rest, offset)?;
                    let torn =
                        is_last && offset >= self.durable && !vouched_for(&rest, self.seal, offset);
                    let torn_bytes = torn.then_some(size - offset);
                    return torn_bytes.ok_or_else(|| LogError::damaged(&path, offset, what));
                }
            }
        }
    }
}

/// Adds an intact frame to the log, or says why it does not belong there.
fn replay_frame(log: &mut Log, offset: u64, frame: &Frame) -> Result<(), String> {
    let header = &frame.header;
    if header.chain != log.current().chain {
        return Err("the frame does not follow the one before it".to_owned());
    }
    if header.count == 0 {
        let first = header.first;
        if first > log.end() && !log.may_begin_anywhere() {
            return Err(format!("the log restarts at {first} and ends at {}", log.end()));
        }
        let last = codec::decode(&frame.body).map_err(|error| error.to_string())?;
        log.wrote_restart(first, last, header.frame_bytes(), frame.sum);
        return Ok(());
    }
    if header.first != log.end() {
        return Err(format!(
            "the frame starts at {}, but the log is at {}",
            header.first,
            log.end()
        ));
    }
    let entries = entries_of(&frame.body, header.count).ok_or("the frame's entries do not fit")?;
    let (mut last, mut ids) = (None, LogIds::default());
    for (index, entry) in (header.first..).zip(&entries) {
        let id = log_id_of(entry, index)?;
        ids.push(id);
        last = Some(id);
    }
    let encoded: Vec<Encoded> = entries.iter().map(|entry| Encoded::from(*entry)).collect();
    log.append(&encoded, &ids, last.ok_or("the frame has no entries")?);
    log.wrote(&Written {
        marks: vec![Mark { first: header.first, offset }],
        bytes: header.frame_bytes(),
        entry_bytes: entries.iter().map(|entry| entry.len()).sum(),
        chain: frame.sum,
        end: header.end(),
    });
    Ok(())
}

fn log_id_of(encoded: &[u8], index: u64) -> Result<LogId, String> {
    let entry: Entry = codec::decode(encoded).map_err(|error| format!("entry {index}: {error}"))?;
    if entry.log_id.index != index {
        return Err(format!("entry {} stands where {index} belongs", entry.log_id.index));
    }
    Ok(entry.log_id)
}

/// Returns the path of a segment.
pub(super) fn segment_path(dir: &Path, first: u64) -> PathBuf {
    dir.join(segment_name(first))
}
