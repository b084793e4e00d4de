//! What watches one life of one instance from within: the raft log shows it every entry that goes
//! in and every entry that has been applied. It tells the oracle, and hands the effects of the
//! entry to the sessions of this instance, as the service's dispatcher does.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use emnetchain::{
    ids::{Incarnation, InstanceId},
    raft::{Entry, LogId, Vote},
    registry::{Applied, BatchId, Command, Effect, Proposal, Record},
    server::Outbox,
    storage::RegistryView,
};
use openraft::EntryPayload;
use tokio::sync::mpsc;

use crate::{now_ms, oracle::Oracle, planted::Planted};

/// The witness of one life.
pub(crate) struct Witness {
    instance: InstanceId,
    life: u64,
    pub(crate) planted: Planted,
    oracle: Arc<Oracle>,
    outbox: Arc<Outbox>,
    effects: Mutex<mpsc::Receiver<Applied>>,
    view: OnceLock<RegistryView>,
    /// A life has begun.
    begun: AtomicBool,
    /// The registry is to be damaged.
    damage: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The index after the last one applied.
    next: u64,
    /// The term of the last entry applied.
    term: u64,
    /// Entries whose effects a planted mistake drops.
    deaf: u32,
    /// Batches that went into the log.
    batches: BTreeSet<BatchId>,
    /// For how long the process was stopped, and since when it is now.
    paused_ms: u64,
    paused_at: Option<u64>,
    /// The life, as the registry counts it, whose sessions are open.
    open: Option<Incarnation>,
    /// The instance has crashed: all that still runs of it is no longer real.
    is_over: bool,
}

impl State {
    fn paused_ms(&self) -> u64 {
        self.paused_ms + self.paused_at.map_or(0, |at| now_ms() - at)
    }
}

impl Witness {
    pub(crate) fn new(
        (instance, life): (InstanceId, u64),
        planted: Planted,
        oracle: Arc<Oracle>,
        outbox: Arc<Outbox>,
        effects: mpsc::Receiver<Applied>,
    ) -> Arc<Self> {
        let (effects, state) = (Mutex::new(effects), Mutex::default());
        let (view, [begun, damage]) = (OnceLock::new(), [false; 2].map(AtomicBool::new));
        Arc::new(Self {
            instance,
            life,
            planted,
            oracle,
            outbox,
            effects,
            view,
            begun,
            damage,
            state,
        })
    }

    /// From now on the registry can be seen.
    pub(crate) fn sees(&self, view: RegistryView) {
        assert!(self.view.set(view).is_ok(), "a life has one registry");
    }

    /// A life, as the registry counts it, begins or is over; its sessions are open while it lasts.
    pub(crate) fn open(&self, life: Option<Incarnation>) {
        self.state.lock().unwrap().open = life;
        let forgets = self.planted == Planted::SessionsOutliveLives;
        if let Some(life) = life.filter(|_| !forgets || !self.begun.swap(true, Ordering::Relaxed)) {
            self.outbox.begin(life);
        }
    }

    /// A life is over: its clients have to reconnect, here or elsewhere.
    pub(crate) fn close(&self) {
        self.open(None);
        if self.planted != Planted::SessionsOutliveLives {
            self.outbox.stop_all();
        }
    }

    /// From now on the registry of this instance is not what it should be.
    pub(crate) fn damages(&self) {
        self.damage.store(true, Ordering::Relaxed);
    }

    /// The life whose sessions are open.
    pub(crate) fn is_open(&self) -> Option<Incarnation> {
        self.state.lock().unwrap().open
    }

    /// The instance has crashed.
    pub(crate) fn ends(&self) {
        self.open(None);
        self.state.lock().unwrap().is_over = true;
    }

    /// Whether it has crashed.
    pub(crate) fn is_over(&self) -> bool {
        self.state.lock().unwrap().is_over
    }

    /// The effects that concern sessions that are open here.
    fn mine(&self, effects: Vec<Effect>) -> Vec<Effect> {
        let life = self.is_open();
        let is_mine = |effect: &Effect| {
            let session = effect.session();
            session.instance == self.instance && Some(session.incarnation) == life
        };
        effects.into_iter().filter(is_mine).collect()
    }

    /// The instance has opened its log; it has a beginning or is empty.
    pub(crate) fn opens(&self, is_empty: bool) {
        self.oracle.opens(self.instance, is_empty);
    }

    /// The instance is about to give a vote.
    pub(crate) fn votes(&self, vote: &Vote) {
        if self.is_over() {
            return;
        }
        self.oracle.votes(self.instance, vote);
    }

    /// Entries go into the log, behind this one.
    pub(crate) fn appends(&self, before: Option<LogId>, entries: &[Entry]) {
        if self.is_over() {
            return;
        }
        self.oracle.appends((self.instance, self.life), before, entries);
        if self.planted == Planted::AnswerBeforeCommit {
            entries.iter().for_each(|entry| self.answer_early(entry));
        }
    }

    /// An entry has been applied, and nothing behind it.
    pub(crate) fn applied(&self, entry: &Entry) {
        if self.is_over() {
            return;
        }
        let index = entry.log_id.index;
        let said: Vec<Effect> = {
            let mut effects = self.effects.lock().unwrap();
            std::iter::from_fn(|| effects.try_recv().ok()).flat_map(|a| a.effects).collect()
        };
        let view = self.view.get().expect("it sees the registry before it applies");
        self.oracle.applied(self.instance, entry, view);
        if !self.is_deaf(entry) && self.planted != Planted::AnswerBeforeCommit {
            self.tell(index, self.mine(said));
        }
        if let Some(life) = self.is_open() {
            self.oracle.has_told(self.instance, life, index);
        }
    }

    fn tell(&self, index: u64, effects: Vec<Effect>) {
        for effect in effects {
            self.oracle.tells(self.instance, index, &effect);
            self.outbox.dispatch(&[effect]);
        }
    }

    /// A planted mistake: a new leader makes the dispatcher forget.
    fn is_deaf(&self, entry: &Entry) -> bool {
        let mut state = self.state.lock().unwrap();
        let term = entry.log_id.committed_leader_id().term;
        let is_new = std::mem::replace(&mut state.term, term) != term;
        if is_new && self.planted == Planted::WaiterNotTold {
            state.deaf = 20;
        }
        state.deaf = state.deaf.saturating_sub(1);
        state.deaf > 0
    }

    /// A planted mistake: the leader answers when it has written, and not when it has applied.
    fn answer_early(&self, entry: &Entry) {
        let EntryPayload::Normal(proposal) = &entry.payload else { return };
        let Some(view) = self.view.get() else { return };
        let mut registry = view.read(Clone::clone);
        let effects = registry.apply(proposal).effects;
        self.tell(entry.log_id.index, self.mine(effects));
    }

    /// What a planted mistake makes of entries on their way into the log.
    pub(crate) fn alter_appended(&self, entries: Vec<Entry>) -> Vec<Entry> {
        let mut state = self.state.lock().unwrap();
        let alter = |mut entry: Entry| {
            let leader = *entry.log_id.committed_leader_id();
            let EntryPayload::Normal(proposal) = &mut entry.payload else { return entry };
            if leader.node_id != self.instance.0 {
                return entry; // another instance has made it
            }
            match (self.planted, proposal.batch) {
                (Planted::AppliedTwice, Some(batch)) if !state.batches.insert(batch) => {
                    proposal.batch = None;
                }
                (Planted::ClockRunsInPauses, _) => {
                    proposal.at = proposal.at.plus_ms(state.paused_ms());
                }
                (Planted::TermKeepsTimeBase, _) => {
                    proposal.at = proposal.at.plus_ms(3_000 * (leader.term - 1));
                }
                _ => {}
            }
            entry
        };
        entries.into_iter().map(alter).collect()
    }

    /// The process is stopped where it stands, or goes on.
    pub(crate) fn pauses(&self, paused: bool) {
        let mut state = self.state.lock().unwrap();
        state.paused_ms = state.paused_ms();
        state.paused_at = paused.then(now_ms);
    }

    /// What a planted mistake makes of an entry on its way to the registry.
    pub(crate) fn alter_applied(&self, mut entry: Entry) -> Entry {
        let follows = {
            let mut state = self.state.lock().unwrap();
            let next = entry.log_id.index + 1;
            let is_normal = matches!(entry.payload, EntryPayload::Normal(_));
            let follows = state.next == entry.log_id.index || entry.log_id.index == 0;
            if !follows && state.next > 0 {
                self.oracle.count(|figures| figures.snapshots += 1);
            }
            if is_normal || follows {
                state.next = next;
            }
            follows
        };
        if let EntryPayload::Normal(proposal) = &mut entry.payload {
            let is_add = |command: &Command| matches!(command, Command::AddPeer { .. });
            if proposal.commands.iter().any(is_add) && self.damage.swap(false, Ordering::Relaxed) {
                proposal.commands.retain(|command| !is_add(command));
                if self.planted == Planted::DiffersAndServes {
                    self.view.get().expect("it sees the registry before it applies").disown();
                }
            }
            match self.planted {
                Planted::ClockInApply => proposal.at = proposal.at.plus_ms(self.instance.0),
                Planted::MapOrderInApply if self.instance.0.is_multiple_of(2) => {
                    proposal.commands.reverse();
                }
                Planted::SnapshotWithoutCallers if !follows => self.forget_callers(proposal),
                _ => {}
            }
        }
        entry
    }

    /// A planted mistake: the registry came from a snapshot, and a caller that waits without being
    /// a client is not in it.
    fn forget_callers(&self, proposal: &mut Proposal) {
        let view = self.view.get().expect("it sees the registry before it applies");
        let forget =
            |record: &Record| Some(Command::Disconnect { session: record.caller()?.ask.session });
        let forgotten: Vec<Command> = view.read(|registry| {
            registry.image().records.iter().filter_map(|(_, record)| forget(record)).collect()
        });
        proposal.commands.splice(0..0, forgotten);
    }
}
