//! The real raft log, watched: each entry that goes in, each that has been applied, and each write
//! that is said to be durable is shown to the life that it belongs to.

use std::{collections::VecDeque, fmt::Debug, io, ops::RangeBounds, sync::Arc};

use emnetchain::{
    raft::{Entry, LogId, TypeConfig, Vote},
    runtime,
    storage::{LogReader as RealReader, LogStore as RealLog},
};
use futures_util::stream::{self, Stream};
use openraft::{
    EntryPayload, LogState, OptionalSend, RaftLogReader,
    storage::{IOFlushed, RaftLogStorage},
    type_config::{TypeConfigExt as _, alias::OneshotReceiverOf},
};
use tokio::sync::mpsc;

use crate::{
    disk::{Disk, Durable},
    planted::Planted,
    witness::Witness,
};

/// The most entries in one reading, so that replication goes in steps.
const READ_MAX: u64 = 16;

/// A write under way: its entries, its result, and the waiter.
type Write = (Vec<LogId>, OneshotReceiverOf<TypeConfig, io::Result<()>>, IOFlushed<TypeConfig>);

/// What is the same for the log and its readers.
#[derive(Clone)]
struct Watch {
    life: u64,
    disk: Arc<Disk>,
    witness: Arc<Witness>,
}

/// The log of one life of one instance.
pub(crate) struct LogStore {
    log: RealLog,
    watch: Watch,
    writes: mpsc::UnboundedSender<Write>,
}

impl LogStore {
    /// Watches a log that was just opened.
    ///
    /// # Errors
    /// If it lacks anything that was durable.
    pub(crate) async fn new(
        mut log: RealLog,
        life: u64,
        disk: Arc<Disk>,
        witness: Arc<Witness>,
    ) -> Result<Self, String> {
        let mut reader = log.get_log_reader().await;
        let text = |error: io::Error| format!("S6: a log can be read: {error}");
        let entries = reader.try_get_log_entries(..).await.map_err(text)?;
        let found = Durable {
            vote: reader.read_vote().await.map_err(text)?,
            purged: log.purged(),
            entries: entries.iter().map(|entry| (entry.log_id.index, entry.log_id)).collect(),
        };
        disk.durable().is_in(&found)?;
        witness.opens(found.purged.is_none() && !found.entries.contains_key(&0));
        disk.note(life, |durable| *durable = found);
        let watch = Watch { life, disk, witness };
        let (writes, under_way) = mpsc::unbounded_channel();
        runtime::spawn(watch.clone().hand_on(under_way));
        Ok(Self { log, watch, writes })
    }
}

impl Watch {
    /// Hands the results of writes on, in their order.
    async fn hand_on(self, mut writes: mpsc::UnboundedReceiver<Write>) {
        while let Some((ids, result, callback)) = writes.recv().await {
            if self.witness.planted == Planted::DurableTooEarly {
                callback.io_completed(Ok(()));
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                self.disk.note(self.life, |durable| durable.append(&ids));
                continue;
            }
            let gone = || io::Error::other("the log is gone");
            let result = result.await.unwrap_or_else(|_| Err(gone()));
            if result.is_ok() {
                self.disk.note(self.life, |durable| durable.append(&ids));
            }
            callback.io_completed(result);
        }
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        self.log.get_log_state().await
    }

    async fn get_log_reader(&mut self) -> LogReader {
        LogReader { reader: self.log.get_log_reader().await, watch: self.watch.clone() }
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let Watch { life, disk, witness } = &self.watch;
        if witness.planted != Planted::VoteNotStored {
            self.log.save_vote(vote).await?;
        }
        // A vote that was not durable when the power was cut was never given.
        witness.votes(vote);
        disk.note(*life, |durable| durable.vote = Some(*vote));
        Ok(())
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
        let before = self.log.last();
        let entries = self.watch.witness.alter_appended(entries.into_iter().collect());
        self.watch.witness.appends(before, &entries);
        let ids = entries.iter().map(|entry| entry.log_id).collect();
        let (done, result) = TypeConfig::oneshot();
        self.log.append(entries, IOFlushed::signal(done)).await?;
        // The task that takes it ends with the process only.
        drop(self.writes.send((ids, result, callback)));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        // From the moment it is asked for, nothing behind it counts any more.
        self.watch.disk.note(self.watch.life, |durable| durable.truncate(last));
        self.log.truncate_after(last).await
    }

    async fn purge(&mut self, id: LogId) -> Result<(), io::Error> {
        self.watch.disk.note(self.watch.life, |durable| durable.purge(id));
        self.log.purge(id).await
    }
}

/// A planted mistake: what goes to others is not what was written here.
fn change(entry: &mut Entry) {
    if let EntryPayload::Normal(proposal) = &mut entry.payload
        && entry.log_id.index.is_multiple_of(50)
    {
        proposal.commands.pop();
    }
}

/// Reads the log.
pub(crate) struct LogReader {
    reader: RealReader,
    watch: Watch,
}

impl RaftLogReader<TypeConfig> for LogReader {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<Entry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        self.reader.try_get_log_entries(range).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        self.reader.read_vote().await
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        let end = end.min(start + READ_MAX);
        let mut entries = self.reader.limited_get_log_entries(start, end).await?;
        if self.watch.witness.planted == Planted::EntriesChanged {
            entries.iter_mut().for_each(change);
        }
        Ok(entries)
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
        let entries = self.reader.try_get_log_entries(range).await.map(VecDeque::from);
        let start = (Arc::clone(&self.watch.witness), entries, None);
        let steps = stream::unfold(start, |(witness, mut entries, applied)| async move {
            if let Some(applied) = applied {
                witness.applied(&applied);
            }
            let next = match &mut entries {
                Ok(entries) => Ok(entries.pop_front()?),
                Err(error) => Err(io::Error::other(error.to_string())),
            };
            let applied = next.as_ref().ok().cloned();
            let given = next.map(|entry| witness.alter_applied(entry));
            Some((given, (witness, entries, applied)))
        });
        Box::pin(steps)
    }
}
