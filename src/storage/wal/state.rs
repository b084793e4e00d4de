//! The file `state`: the vote, what was purged, and which segments make up the log.
//!
//! It has two slots a page apart. A new state is written to the slot that does not hold the newest
//! one, synced, and then acknowledged: one sync, because a vote must not take two. While a slot is
//! being written, the other one holds everything acknowledged and is not touched, so a torn write
//! loses nothing. A moment later the thread copies the state to the other slot as well: at rest
//! both hold everything, and either may be damaged.
//!
//! A third page holds the *watermark*: the newest state, by its generation, and how much of the
//! last segment is durable. It is rewritten after every sync of state or log without being synced
//! itself, so it never runs ahead of them and costs no time. With it a log that lost its tail, or
//! its newest state, is told from one that never had it; only after a power cut may it lag, by as
//! long as the kernel keeps a dirty page.
//!
//! ```text
//! slot, at 0 and at 4096                       watermark, at 8192
//!  0  magic "EMSTATE2"                          0  generation u64
//!  8  body length u32                           8  durable up to, offset u64
//! 12  CRC-32 of the body                       16  sealed CRC-32 of bytes 0..16
//! 16  body: [`State`] by [`crate::codec`]
//! ```

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{
    LogError,
    frame::{Id, Seal},
};
use crate::{
    clock,
    codec::{self, Undecodable},
    raft::{LogId, Vote},
    storage::{
        disk::{Access, Disk, DiskFile},
        fault::DiskFault,
    },
};

/// Its name in the log's directory.
pub(super) const STATE_NAME: &str = "state";
/// Its name until the directory is complete.
pub(super) const NEW_STATE_NAME: &str = "state.new";

const MAGIC: &[u8; 8] = b"EMSTATE2";
const SLOT_BYTES: usize = 4096;
const SLOT_HEADER_BYTES: usize = 16;
const WATERMARK_AT: u64 = 2 * SLOT_BYTES as u64;
const WATERMARK_BYTES: usize = 20;

/// The delay of the second copy after the last new state. A campaign writes several states in
/// a row, and a vote that waits behind a copy may come too late.
const COPY_AFTER: Duration = Duration::from_secs(2);

/// The longest time that the second copy may be behind.
const COPY_WITHIN: Duration = Duration::from_secs(10);

/// Everything that is not an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// Rises with every state written.
    pub(super) generation: u64,
    /// The cluster that the log belongs to.
    pub(super) cluster: Id,
    /// Random; made with the log.
    pub(super) store: Id,
    /// The vote given last.
    pub(super) vote: Option<Vote>,
    /// The last entry purged.
    pub(super) purged: Option<LogId>,
    /// First index of each segment of the log, in order.
    pub(super) segments: Vec<u64>,
    /// First index of each segment that is no longer part of the log and may still exist.
    pub(super) dropped: Vec<u64>,
    /// The durable part of the last segment when this was written, in bytes.
    pub(super) durable: u64,
}

/// The open file.
#[derive(Debug)]
pub(super) struct StateFile {
    file: Arc<dyn DiskFile>,
    /// The slot to write next: the one that does not hold the newest state, if there is one.
    next_slot: usize,
    /// Set while only one slot holds the newest state.
    one_copy: Option<OneCopy>,
    seal: Seal,
}

/// The newest state while only one slot holds it.
#[derive(Debug)]
struct OneCopy {
    slot: Vec<u8>,
    /// When it and the states before it began to be there once only.
    since: Instant,
    written: Instant,
}

/// The result of [`StateFile::open`].
#[derive(Debug)]
pub(super) struct OpenedState {
    pub(super) file: StateFile,
    pub(super) state: State,
    /// One slot is damaged, or a crash came before it was written.
    pub(super) one_slot_stale: bool,
    /// The least length of the last segment, in bytes.
    pub(super) durable: u64,
}

impl StateFile {
    /// Makes the file under its temporary name, complete and synced.
    pub(super) fn create(disk: &dyn Disk, dir: &Path, state: &State) -> Result<(), DiskFault> {
        let path = dir.join(NEW_STATE_NAME);
        disk.remove(&path)?;
        let file = disk.create(&path)?;
        let seal = Seal::new(&state.cluster, &state.store);
        let mut new = Self { file, next_slot: 0, one_copy: None, seal };
        new.write(state)?;
        new.copy()?;
        new.file.sync()
    }

    /// Reads the newest state.
    pub(super) fn open(
        disk: &dyn Disk,
        dir: &Path,
        access: Access,
    ) -> Result<OpenedState, LogError> {
        let file = disk.open(&dir.join(STATE_NAME), access)?;
        let slots = [read_slot(&*file, 0)?, read_slot(&*file, 1)?];
        let (state, next_slot, one_slot_stale) = match slots {
            [None, None] => {
                let what = "both copies of the vote and the segment list are damaged";
                return Err(LogError::damaged(file.path(), 0, what));
            }
            [Some(a), Some(b)] if a == b => (a, 0, false),
            [Some(a), Some(b)] if a.generation == b.generation => {
                let what = "the two copies of the state contradict each other";
                return Err(LogError::damaged(file.path(), 0, what));
            }
            [Some(a), Some(b)] if a.generation < b.generation => (b, 0, true),
            [Some(a), _] => (a, 1, true),
            [None, Some(b)] => (b, 0, true),
        };
        let seal = Seal::new(&state.cluster, &state.store);
        let noted = read_watermark(&*file, &seal)?;
        if noted.is_some_and(|noted| noted.generation > state.generation) {
            // Both slots held less than what was acknowledged: going on would take a vote back.
            let what = "the newest copy of the vote and the segment list is damaged";
            return Err(LogError::damaged(file.path(), 0, what));
        }
        let noted = noted.filter(|noted| noted.generation == state.generation);
        let durable = state.durable.max(noted.map_or(0, |noted| noted.durable));
        let file = Self { file, next_slot, one_copy: None, seal };
        Ok(OpenedState { file, state, one_slot_stale, durable })
    }

    /// Writes a new state to the slot that holds an older one; it is durable on return.
    pub(super) fn write(&mut self, state: &State) -> Result<(), DiskFault> {
        let slot = encode_slot(state);
        self.write_slot(&slot)?;
        let written = clock::now();
        let since = self.one_copy.as_ref().map_or(written, |one| one.since);
        self.one_copy = Some(OneCopy { slot, since, written });
        // Never before the sync: the watermark must not vouch for a state that a power cut takes.
        self.note_durable(state.generation, state.durable)
    }

    /// Writes the newest state to the other slot as well, if that does not hold it.
    pub(super) fn copy(&mut self) -> Result<(), DiskFault> {
        let Some(one) = self.one_copy.take() else { return Ok(()) };
        self.write_slot(&one.slot)
    }

    /// Returns when the second copy of the newest state is to be made; `None` if it is there.
    pub(super) fn copy_due(&self) -> Option<Instant> {
        let one = self.one_copy.as_ref()?;
        Some((one.written + COPY_AFTER).min(one.since + COPY_WITHIN))
    }

    fn write_slot(&mut self, slot: &[u8]) -> Result<(), DiskFault> {
        self.file.write_at(slot, (self.next_slot * SLOT_BYTES) as u64)?;
        self.file.sync()?;
        self.next_slot = 1 - self.next_slot;
        Ok(())
    }

    /// Notes how much of the last segment is durable, without a sync.
    pub(super) fn note_durable(&self, generation: u64, durable: u64) -> Result<(), DiskFault> {
        let mut bytes = [0; WATERMARK_BYTES];
        bytes[0..8].copy_from_slice(&generation.to_le_bytes());
        bytes[8..16].copy_from_slice(&durable.to_le_bytes());
        let sum = self.seal.sum(&bytes[..16]);
        bytes[16..20].copy_from_slice(&sum.to_le_bytes());
        self.file.write_at(&bytes, WATERMARK_AT)
    }

    /// Makes durable what was read from a file that a killed process may have left unsynced.
    pub(super) fn sync(&self) -> Result<(), DiskFault> {
        self.file.sync()
    }

    /// Makes sure that the next start will find this file.
    pub(super) fn in_place(&self) -> Result<(), DiskFault> {
        self.file.in_place()
    }
}

pub(super) fn encode_slot(state: &State) -> Vec<u8> {
    let body = codec::encode(state);
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
    bytes.extend_from_slice(&body);
    assert!(bytes.len() <= SLOT_BYTES, "256 segments at 10 bytes each fit into a slot");
    bytes
}

/// Returns the state in a slot; `None` if it is not intact.
fn read_slot(file: &dyn DiskFile, slot: usize) -> Result<Option<State>, LogError> {
    let bytes = read_page(file, (slot * SLOT_BYTES) as u64)?;
    let Some((header, rest)) = bytes.split_first_chunk::<SLOT_HEADER_BYTES>() else {
        return Ok(None);
    };
    let number = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
    let body = usize::try_from(number(8)).ok().and_then(|length| rest.get(..length));
    let intact = |body: &&[u8]| &header[..8] == MAGIC && crc32fast::hash(body) == number(12);
    match body.filter(intact).map(codec::decode) {
        Some(Err(Undecodable::Newer(newer))) => {
            Err(LogError::damaged(file.path(), (slot * SLOT_BYTES) as u64, newer.to_string()))
        }
        decoded => Ok(decoded.and_then(Result::ok)),
    }
}

/// The contents of the watermark.
#[derive(Clone, Copy, Debug)]
struct Noted {
    generation: u64,
    durable: u64,
}

/// Returns the watermark, if it is intact.
fn read_watermark(file: &dyn DiskFile, seal: &Seal) -> Result<Option<Noted>, DiskFault> {
    let page = read_page(file, WATERMARK_AT)?;
    let Some(bytes) = page.first_chunk::<WATERMARK_BYTES>() else { return Ok(None) };
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    let intact = bytes[16..20] == seal.sum(&bytes[..16]).to_le_bytes();
    Ok(intact.then(|| Noted { generation: number(0), durable: number(8) }))
}

/// Up to one page from an offset; less where the file ends.
fn read_page(file: &dyn DiskFile, offset: u64) -> Result<Vec<u8>, DiskFault> {
    let there = file.size()?.saturating_sub(offset).min(SLOT_BYTES as u64);
    let mut bytes = vec![0; usize::try_from(there).expect("a page is small")];
    file.read_at(&mut bytes, offset)?;
    Ok(bytes)
}
