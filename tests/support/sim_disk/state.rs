//! What is on a simulated disk, and what a power cut leaves of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::Weak,
};

use emnetchain::storage::fault::DiskFault;

use super::{Faults, Pace, Rng, Survives, image::Images};

/// What survives of one write that was not synced is decided for this number of bytes at a time:
/// far fewer than a sector, so that the smallest writes are torn as well.
const SECTOR_BYTES: usize = 16;

#[derive(Clone, Debug)]
pub(super) struct Sim {
    pub(super) rng: Rng,
    pub(super) dirs: BTreeSet<PathBuf>,
    pub(super) names: BTreeMap<PathBuf, usize>,
    pub(super) durable_names: BTreeMap<PathBuf, usize>,
    pub(super) pending_names: Vec<Renaming>,
    pub(super) files: Vec<SimBytes>,
    pub(super) images: Images,
    pub(super) locks: BTreeMap<PathBuf, Weak<()>>,
    pub(super) faults: Faults,
    /// By the last name of a directory: `raft`, `snapshot`, `registry`.
    pub(super) paces: BTreeMap<String, Pace>,
    pub(super) operations: u64,
    pub(super) file_syncs: u64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct SimBytes {
    pub(super) now: Vec<u8>,
    pub(super) durable: Vec<u8>,
    pub(super) pending: Vec<Change>,
}

#[derive(Clone, Debug)]
pub(super) enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    SetSize(usize),
}

impl Change {
    pub(super) fn apply(&self, to: &mut Vec<u8>) {
        match self {
            Self::Write { offset, bytes } => {
                to.resize(to.len().max(self.end()), 0);
                to[*offset..self.end()].copy_from_slice(bytes);
            }
            Self::SetSize(size) => to.resize(*size, 0),
        }
    }

    /// The least length of the file afterwards.
    pub(super) fn end(&self) -> usize {
        match self {
            Self::Write { offset, bytes } => offset + bytes.len(),
            Self::SetSize(size) => *size,
        }
    }

    /// What a write leaves that fails half way.
    pub(super) fn half(mut self) -> Self {
        if let Self::Write { bytes, .. } = &mut self {
            bytes.truncate(bytes.len() / 2);
        }
        self
    }

    /// What a power cut leaves of it.
    fn apply_some(&self, to: &mut Vec<u8>, rng: &mut Rng) {
        match self {
            Self::Write { offset, bytes } => {
                for (number, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
                    if rng.coin() {
                        let offset = offset + number * SECTOR_BYTES;
                        Self::Write { offset, bytes: sector.to_vec() }.apply(to);
                    }
                }
            }
            Self::SetSize(_) if rng.coin() => self.apply(to),
            Self::SetSize(_) => {}
        }
    }
}

/// A change in a directory: a file loses one name and gets another.
#[derive(Clone, Debug)]
pub(super) struct Renaming {
    pub(super) from: Option<PathBuf>,
    pub(super) to: Option<(PathBuf, usize)>,
}

impl Renaming {
    pub(super) fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        if let Some(from) = &self.from {
            names.remove(from);
        }
        if let Some((to, file)) = &self.to {
            names.insert(to.clone(), *file);
        }
    }

    pub(super) fn is_in(&self, dir: &Path) -> bool {
        let path = self.from.as_ref().or(self.to.as_ref().map(|(to, _)| to));
        path.and_then(|path| path.parent()) == Some(dir)
    }
}

/// Kinds of operations, for the faults that strike only some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    NeedsRoom,
    Remove,
    Other,
}

impl Sim {
    /// Takes what the power cut takes.
    pub(super) fn cut_power(&mut self, survives: Survives, rng: &mut Rng) {
        let mut names = self.durable_names.clone();
        for renaming in &self.pending_names {
            match survives {
                Survives::Nothing => {}
                Survives::Sectors if rng.coin() => {}
                Survives::Everything | Survives::Sectors => renaming.apply(&mut names),
            }
        }
        (self.names, self.durable_names) = (names.clone(), names);
        self.pending_names.clear();
        let named: BTreeSet<usize> = self.names.values().copied().collect();
        for (number, file) in self.files.iter_mut().enumerate() {
            if !named.contains(&number) {
                *file = SimBytes::default();
            }
            let mut bytes = std::mem::take(&mut file.durable);
            for change in file.pending.drain(..) {
                match survives {
                    Survives::Nothing => {}
                    Survives::Everything => change.apply(&mut bytes),
                    Survives::Sectors => change.apply_some(&mut bytes, rng),
                }
            }
            (file.now, file.durable) = (bytes.clone(), bytes);
        }
        self.images.cut_power(survives, rng);
    }

    /// Puts files in the place of those whose paths begin like this.
    pub(super) fn replace_files(
        &mut self,
        begin: &str,
        files: impl IntoIterator<Item = (PathBuf, Vec<u8>)>,
    ) {
        self.names.retain(|path, _| !path.starts_with(begin));
        for (path, bytes) in files {
            self.names.insert(path, self.files.len());
            let durable = bytes.clone();
            self.files.push(SimBytes { now: bytes, durable, pending: Vec::new() });
        }
        self.durable_names = self.names.clone();
        self.pending_names.clear();
    }

    pub(super) fn rename(&mut self, renaming: Renaming) {
        renaming.apply(&mut self.names);
        self.pending_names.push(renaming);
    }

    pub(super) fn machine_is_on(&self) -> bool {
        self.faults.dead_from.is_none_or(|from| self.operations < from)
    }

    /// Counts an operation; an error if it is to fail.
    pub(super) fn begin(
        &mut self,
        kind: Kind,
        operation: &'static str,
        path: &Path,
    ) -> Result<(), DiskFault> {
        self.operations += 1;
        let now = self.operations;
        let errno = if !self.machine_is_on()
            || self.faults.fail_at == Some(now)
            || self.faults.fail_from.is_some_and(|from| now >= from)
        {
            libc::EIO
        } else if self.faults.full && kind == Kind::NeedsRoom {
            libc::ENOSPC
        } else if self.faults.removes_fail && kind == Kind::Remove {
            libc::EACCES
        } else {
            return Ok(());
        };
        Err(fault(operation, path, errno))
    }
}

pub(super) fn fault(operation: &'static str, path: &Path, errno: i32) -> DiskFault {
    let source = io::Error::from_raw_os_error(errno);
    DiskFault { operation, path: path.to_owned(), source }
}
