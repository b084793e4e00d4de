//! The raft log as openraft sees it, over a simulated [`Disk`]. It also watches: each entry that
//! goes in, and each that has been applied, is shown to the life that it belongs to.

use std::{
    collections::VecDeque,
    fmt::Debug,
    io,
    ops::{Bound, RangeBounds},
    sync::Arc,
};

use emnetchain::raft::{Entry, LogId, TypeConfig, Vote};
use futures_util::stream::{self, Stream};
use openraft::{
    LogState, OptionalSend, RaftLogReader,
    storage::{IOFlushed, RaftLogStorage},
};

use crate::{
    disk::{Disk, Done, Write},
    witness::Witness,
};

/// The most entries in one reading, so that replication goes in steps.
const READ_MAX: usize = 16;

/// The log of one life of one instance.
#[derive(Clone)]
pub(crate) struct LogStore {
    disk: Arc<Disk>,
    life: u64,
    witness: Arc<Witness>,
}

impl LogStore {
    pub(crate) fn new(disk: Arc<Disk>, life: u64, witness: Arc<Witness>) -> Self {
        Self { disk, life, witness }
    }

    fn range(&self, range: &impl RangeBounds<u64>, most: usize) -> io::Result<Vec<Entry>> {
        let from = match range.start_bound() {
            Bound::Included(from) => *from,
            Bound::Excluded(before) => before + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(last) => *last + 1,
            Bound::Excluded(to) => *to,
            Bound::Unbounded => u64::MAX,
        };
        let read = |content: &crate::disk::Content| {
            let entries = content.entries.range(from..to.max(from)).take(most);
            entries.map(|(_, entry)| Entry::clone(entry)).collect()
        };
        self.disk.read(self.life, read)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        self.disk.read(self.life, |content| LogState {
            last_purged_log_id: content.purged,
            last_log_id: content.last(),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.witness.votes(vote);
        self.disk.write_and_wait(self.life, Write::Vote(*vote)).await
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let before = self.disk.read(self.life, |content| content.last())?;
        let entries: Vec<Entry> = entries.into_iter().collect();
        let entries =
            self.disk.read(self.life, |content| self.witness.alter_appended(entries, content))?;
        self.witness.appends(before, &entries);
        let entries = entries.into_iter().map(Arc::new).collect();
        self.disk.write(self.life, Write::Append(entries), Done::Flushed(callback));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        self.disk.write_and_wait(self.life, Write::Truncate(last)).await
    }

    async fn purge(&mut self, id: LogId) -> Result<(), io::Error> {
        self.disk.write_and_wait(self.life, Write::Purge(id)).await
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<Entry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        self.range(&range, usize::MAX)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        self.disk.read(self.life, |content| content.vote)
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        self.range(&(start..end), READ_MAX)
    }

    /// What openraft reads in order to apply it. By the time that it asks for the next entry, the
    /// one before has been applied.
    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let entries = self.range(&range, usize::MAX).map(VecDeque::from);
        let start = (self.clone(), entries, None);
        let steps = stream::unfold(start, |(reader, mut entries, applied)| async move {
            if let Some(applied) = applied {
                reader.witness.applied(&applied);
            }
            let next = match &mut entries {
                Ok(entries) => Ok(entries.pop_front()?),
                Err(error) => Err(io::Error::other(error.to_string())),
            };
            let applied = next.as_ref().ok().cloned();
            let given = next.map(|entry| reader.witness.alter_applied(entry));
            Some((given, (reader, entries, applied)))
        });
        Box::pin(steps)
    }
}
