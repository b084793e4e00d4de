//! The disk of one instance as far as raft's log and vote are concerned: what was written is read
//! at once, and becomes durable, in order, when a sync is done. A crash keeps what is durable and
//! any beginning of what was under way; the rest is lost.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use emnetchain::raft::{Entry, LogId, TypeConfig, Vote};
use openraft::storage::IOFlushed;
use tokio::{
    sync::{Notify, oneshot},
    time::sleep,
};

use crate::{chance::Chance, planted::Planted};

/// A disk whose syncs take no longer is a good one.
const GOOD_MS: u64 = 30;

/// What raft keeps.
#[derive(Clone, Debug, Default)]
pub(crate) struct Content {
    /// The vote.
    pub(crate) vote: Option<Vote>,
    /// The last entry that was purged.
    pub(crate) purged: Option<LogId>,
    /// The entries behind it.
    pub(crate) entries: BTreeMap<u64, Arc<Entry>>,
}

/// One change of it.
#[derive(Clone, Debug)]
pub(crate) enum Write {
    Append(Vec<Arc<Entry>>),
    Purge(LogId),
    Truncate(Option<LogId>),
    Vote(Vote),
}

impl Content {
    /// The last entry, or the last purged one if there is none.
    pub(crate) fn last(&self) -> Option<LogId> {
        self.entries.last_key_value().map(|(_, entry)| entry.log_id).or(self.purged)
    }

    /// Whether the entry is here, or was until it was purged.
    pub(crate) fn has(&self, id: LogId) -> bool {
        let purged = self.purged.is_some_and(|purged| purged.index >= id.index);
        purged || self.entries.get(&id.index).is_some_and(|entry| entry.log_id == id)
    }

    fn change(&mut self, write: &Write) {
        match write {
            Write::Append(entries) => {
                for entry in entries {
                    self.entries.insert(entry.log_id.index, Arc::clone(entry));
                }
            }
            Write::Purge(id) => {
                self.entries = self.entries.split_off(&(id.index + 1));
                self.purged = self.purged.max(Some(*id));
            }
            Write::Truncate(last) => {
                self.entries.split_off(&last.map_or(0, |last| last.index + 1));
            }
            Write::Vote(vote) => self.vote = Some(*vote),
        }
    }
}

/// Who is told that a write is durable.
pub(crate) enum Done {
    Flushed(IOFlushed<TypeConfig>),
    Waiting(oneshot::Sender<io::Result<()>>),
    /// Nobody: it was told before.
    Lied,
}

impl Done {
    fn tell(self, result: io::Result<()>) {
        match self {
            Self::Flushed(callback) => callback.io_completed(result),
            // Whoever has stopped waiting need not be told.
            Self::Waiting(sender) => drop(sender.send(result)),
            Self::Lied => {}
        }
    }
}

/// The disk; it outlives the lives of its instance.
pub(crate) struct Disk {
    state: Mutex<State>,
    work: Notify,
    /// The delay of syncs is another one now.
    hurry: Notify,
    planted: Planted,
}

struct State {
    chance: Chance,
    /// Counts the crashes; only the present life may write.
    life: u64,
    durable: Content,
    memory: Content,
    under_way: VecDeque<(Write, Done)>,
    /// How many milliseconds a sync takes.
    delay: (u64, u64),
    /// The highest vote that raft was told is durable.
    acknowledged_vote: Option<Vote>,
}

/// The error of every access to a disk by a life that is over.
fn gone() -> io::Error {
    io::Error::other("the instance has crashed")
}

impl Disk {
    pub(crate) fn new(chance: Chance, planted: Planted) -> Arc<Self> {
        let state = State {
            chance,
            life: 0,
            durable: Content::default(),
            memory: Content::default(),
            under_way: VecDeque::new(),
            delay: (0, 3),
            acknowledged_vote: None,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            work: Notify::new(),
            hurry: Notify::new(),
            planted,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// How many milliseconds a sync takes from now on.
    pub(crate) fn set_delay(&self, least: u64, most: u64) {
        self.lock().delay = (least, most);
        self.hurry.notify_one();
    }

    /// Whether it is neither slow nor hung.
    pub(crate) fn is_good(&self) -> bool {
        self.lock().delay.1 <= GOOD_MS
    }

    /// Whether an entry would survive a crash now.
    pub(crate) fn is_durable(&self, id: LogId) -> bool {
        self.lock().durable.has(id)
    }

    /// The power is cut: what was under way is lost, but for any beginning of it.
    pub(crate) fn crash(&self) {
        let lost = {
            let mut state = self.lock();
            state.life += 1;
            let end = state.under_way.len() + 1;
            let kept = state.chance.below(end);
            let mut lost: Vec<_> = state.under_way.drain(..).collect();
            for (number, (write, _)) in lost.iter_mut().enumerate() {
                if number < kept {
                    state.durable.change(write);
                } else if let (true, Write::Append(entries)) = (number == kept, write) {
                    let torn = state.chance.below(entries.len() + 1);
                    entries.truncate(torn);
                    state.durable.change(&Write::Append(std::mem::take(entries)));
                }
            }
            state.memory = state.durable.clone();
            lost
        };
        lost.into_iter().for_each(|(_, done)| done.tell(Err(gone())));
        self.work.notify_one();
    }

    /// Begins a life: its number, and what the disk holds.
    ///
    /// # Errors
    /// If the disk has forgotten a vote.
    pub(crate) fn open(self: &Arc<Self>) -> Result<(u64, Content), String> {
        let state = self.lock();
        if state.durable.vote < state.acknowledged_vote {
            let (was, is) = (state.acknowledged_vote, state.durable.vote);
            return Err(format!("S14: a vote never goes back: {was:?} was given, {is:?} is left"));
        }
        tokio::spawn(Arc::clone(self).sync(state.life));
        Ok((state.life, state.memory.clone()))
    }

    /// Reads as the present life sees it.
    pub(crate) fn read<T>(&self, life: u64, look: impl FnOnce(&Content) -> T) -> io::Result<T> {
        let state = self.lock();
        if state.life == life { Ok(look(&state.memory)) } else { Err(gone()) }
    }

    /// Writes; `done` is told when it is durable.
    pub(crate) fn write(&self, life: u64, write: Write, done: Done) {
        let mut state = self.lock();
        if state.life != life {
            drop(state);
            return done.tell(Err(gone()));
        }
        state.memory.change(&write);
        let lie = match (&write, self.planted) {
            (Write::Append(_), Planted::SyncRemoved) => true,
            (Write::Vote(vote), Planted::VoteNotStored) => {
                state.acknowledged_vote = Some(*vote);
                drop(state);
                return done.tell(Ok(()));
            }
            _ => false,
        };
        let (done, told) = if lie { (Done::Lied, Some(done)) } else { (done, None) };
        state.under_way.push_back((write, done));
        drop(state);
        self.work.notify_one();
        told.into_iter().for_each(|done| done.tell(Ok(())));
    }

    /// As [`Self::write`], and waits until it is durable.
    pub(crate) async fn write_and_wait(&self, life: u64, write: Write) -> io::Result<()> {
        let (sender, done) = oneshot::channel();
        self.write(life, write, Done::Waiting(sender));
        done.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Syncs what is written, all that there is at a time, for as long as the life lasts.
    async fn sync(self: Arc<Self>, life: u64) {
        loop {
            let (count, delay) = {
                let mut state = self.lock();
                let (least, most) = state.delay;
                let slow = if self.planted == Planted::SyncRemoved { 50 } else { 0 };
                (state.under_way.len(), slow + state.chance.between(least, most))
            };
            if count == 0 {
                self.work.notified().await;
            } else {
                tokio::select! {
                    biased;
                    () = sleep(Duration::from_millis(delay)) => {}
                    () = self.hurry.notified() => continue,
                }
            }
            let done: Vec<Done> = {
                let mut state = self.lock();
                if state.life != life {
                    return;
                }
                let synced: Vec<_> = state.under_way.drain(..count).collect();
                let durable = |(write, done): (Write, Done)| {
                    state.durable.change(&write);
                    if let Write::Vote(vote) = &write {
                        state.acknowledged_vote = Some(*vote);
                    }
                    done
                };
                synced.into_iter().map(durable).collect()
            };
            done.into_iter().for_each(|done| done.tell(Ok(())));
        }
    }
}
