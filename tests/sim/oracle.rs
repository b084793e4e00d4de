//! Sees everything that happens in the cluster, and knows what must never happen. The names are
//! those of `proto-docs/chains.md` (I) and of the checker for whole histories (S, L).
//!
//! The first instance that applies an entry shows what is committed; the oracle applies it to a
//! registry of its own, and from then on all must agree. What sessions are told is compared
//! with what that registry says, and that is held to the invariants of `tests/registry_model/told`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
};

use emnetchain::{
    ids::{Endpoint, Incarnation, InstanceId, SessionId, Source},
    raft::{Entry, LogId, Vote},
    registry::{Applied, Command, Effect, Note, Proposal, Record, Registry, Rules, Verdict, What},
    storage::{self, RegistryView, RunningDigest},
};
use openraft::{EntryPayload, vote::RaftLeaderId as _};

use crate::{
    disk::Disk,
    founding::{Founding, Loss},
    leaders::{Leaders, Life},
    members::Members,
    post::{Letter, Post},
    told::{Seen, Told},
    trace::{Trace, digest},
};

/// The registry of an instance checks itself after each of this number of entries.
const CHECK_EVERY: u64 = 8;

/// What is committed at one index.
struct Known {
    id: LogId,
    /// Of the entry.
    digest: u64,
    /// Of the registry after it.
    image: u64,
    effects: Vec<Effect>,
}

/// How much has happened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) entries: u64,
    pub(crate) links: u64,
    pub(crate) elections: u64,
    pub(crate) told: u64,
    pub(crate) crashes: u64,
    /// Registries that were replaced by a snapshot from another instance.
    pub(crate) snapshots: u64,
    /// Changes of the members that were made.
    pub(crate) changes: u64,
    pub(crate) pauses: u64,
    /// Looks at a connected majority that was well while something else was not.
    pub(crate) healthy_looks: u64,
    /// The longest wait of a client of such a majority, and its longest time without a leader.
    pub(crate) longest_wait_ms: u64,
    pub(crate) longest_leaderless_ms: u64,
    pub(crate) virtual_ms: u64,
}

/// Sees everything.
pub(crate) struct Oracle {
    disks: Mutex<BTreeMap<InstanceId, Arc<Disk>>>,
    post: Post,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    log: BTreeMap<u64, Known>,
    /// Applies whole entries.
    registry: Registry,
    /// The digest of it.
    running: RunningDigest,
    /// Applies their commands one by one.
    single: Registry,
    /// The sockets of its clients, with their owners.
    sockets: Vec<(Endpoint, Source)>,
    told: Told,
    leaders: Leaders,
    members: Members,
    votes: BTreeMap<InstanceId, (u64, u64, bool)>,
    founding: Founding,
    /// The newest rules that the program of each instance knows.
    programs: BTreeMap<InstanceId, Rules>,
    /// Its registry was damaged, and what it applies and tells is not held against it.
    excused: Option<InstanceId>,
    /// Requests that took effect.
    done: BTreeSet<(SessionId, String)>,
    /// Effects that were carried out: the index of the entry and the number of the effect.
    carried_out: BTreeSet<(u64, usize)>,
    failure: Option<String>,
    figures: Figures,
    trace: Trace,
}

fn require(holds: bool, promise: &str, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("{promise}: {}", what())) }
}

impl Oracle {
    pub(crate) fn new(post: Post) -> Arc<Self> {
        Arc::new(Self { disks: Mutex::default(), post, state: Mutex::default() })
    }

    /// There is another instance, with this disk.
    pub(crate) fn knows(&self, instance: InstanceId, disk: &Arc<Disk>) {
        self.disks.lock().unwrap().insert(instance, Arc::clone(disk));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Notes what happens, for the comparison of two runs and for the reader of a failure.
    pub(crate) fn note(&self, line: String) {
        self.lock().trace.note(line);
    }

    /// Something that must not happen has happened; the first such thing counts.
    pub(crate) fn fail(&self, what: String) {
        let mut state = self.lock();
        state.trace.note(what.clone());
        state.failure.get_or_insert(what);
        self.post.send(Letter::Failure);
    }

    /// What went wrong.
    pub(crate) fn failure(&self) -> Option<String> {
        self.lock().failure.clone()
    }

    /// The last things that happened, and a digest of all.
    pub(crate) fn trace(&self) -> (String, u64) {
        let state = self.lock();
        (state.trace.tail(), state.trace.digest())
    }

    /// Counts something.
    pub(crate) fn count(&self, change: impl FnOnce(&mut Figures)) -> Figures {
        let mut state = self.lock();
        change(&mut state.figures);
        state.figures
    }

    /// An instance runs from now on, or is stopped.
    pub(crate) fn runs(&self, who: InstanceId, runs: bool) {
        self.lock().leaders.runs(who, runs);
    }

    /// The members as they were committed last.
    pub(crate) fn members(&self) -> Members {
        self.lock().members.clone()
    }

    /// Looks at what is committed, as a registry.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&Registry) -> T) -> T {
        look(&self.lock().registry)
    }

    /// The disk of an instance is lost, or an older copy is in its place.
    pub(crate) fn loses(&self, who: InstanceId, loss: Loss) {
        let mut state = self.lock();
        state.founding.loses(who, loss);
        state.votes.remove(&who);
    }

    /// The registry of an instance is damaged.
    pub(crate) fn excuse(&self, who: InstanceId) {
        self.lock().excused = Some(who);
    }

    /// Whether the registry of an instance was damaged.
    pub(crate) fn excuses_any(&self) -> bool {
        self.lock().excused.is_some()
    }

    /// Those whose disks hold the entry that founds the cluster, for all that is known.
    pub(crate) fn holders(&self) -> BTreeSet<InstanceId> {
        self.lock().founding.holders()
    }

    /// Whether the log of an instance was empty when it was last opened.
    pub(crate) fn was_empty(&self, who: InstanceId) -> bool {
        self.lock().founding.was_empty(who)
    }

    /// An instance is started, with a program that knows these rules.
    pub(crate) fn starts(&self, who: InstanceId, newest: Rules) {
        self.lock().programs.insert(who, newest);
    }

    /// An instance has opened its log; it has a beginning or is empty.
    pub(crate) fn opens(&self, who: InstanceId, is_empty: bool) {
        self.lock().founding.opens(who, is_empty);
    }

    fn judge(&self, judgement: impl FnOnce(&mut State) -> Result<(), String>) {
        let judged = judgement(&mut self.lock());
        judged.unwrap_or_else(|failure| self.fail(failure));
    }

    /// An instance gives a vote.
    pub(crate) fn votes(&self, who: InstanceId, vote: &Vote) {
        let is = (vote.leader_id.term(), *vote.leader_id.node_id(), vote.committed);
        self.judge(|state| {
            state.founding.votes(who)?;
            let was = state.votes.insert(who, is).unwrap_or_default();
            state.leaders.votes((is.0, is.1));
            require(is >= was, "S14: a vote never goes back", || format!("{who:?} {was:?} {is:?}"))
        });
    }

    /// Entries go into an instance's log.
    pub(crate) fn appends(&self, life: Life, mut before: Option<LogId>, entries: &[Entry]) {
        self.judge(|state| {
            for entry in entries {
                if entry.log_id.index == 0
                    && state.founding.writes(life.0, digest(&entry.payload))?
                {
                    state.begin_again();
                }
                if let EntryPayload::Normal(proposal) = &entry.payload {
                    state.may_raise(proposal)?;
                }
                if let EntryPayload::Membership(members) = &entry.payload {
                    state.members.proposes(entry.log_id, members);
                }
                if state.leaders.writes(life, before, entry)? {
                    state.figures.elections += 1;
                    let leader = entry.log_id.committed_leader_id();
                    state.trace.note(format!("{life:?} leads as {leader}"));
                }
                before = Some(entry.log_id);
            }
            Ok(())
        });
    }

    /// An instance has applied an entry; this is its registry now.
    pub(crate) fn applied(&self, who: InstanceId, entry: &Entry, view: &RegistryView) {
        let (index, entry_digest) = (entry.log_id.index, digest(entry));
        let image = view.digest().digest;
        self.judge(|state| {
            if state.log.contains_key(&index) {
                let known = &state.log[&index];
                let same = known.id == entry.log_id && known.digest == entry_digest;
                require(same, "S14: what is committed stays", || format!("{who:?} at {index}"))?;
            } else {
                let disks = self.disks.lock().unwrap();
                let durable = disks.iter().filter(|(_, disk)| disk.is_durable(entry.log_id));
                let durable: BTreeSet<u64> = durable.map(|(id, _)| id.0).collect();
                require(
                    state.members.is_majority(&durable),
                    "S12: what is applied is on the disks of a majority",
                    || format!("{who:?} at {index}: {durable:?}"),
                )?;
                state.commit(entry)?;
            }
            if state.excused == Some(who) {
                return Ok(());
            }
            let known = &state.log[&index];
            require(known.image == image, "S10: replicas agree", || {
                format!("{who:?} at {index}: {image:x} and not {:x}", known.image)
            })?;
            let (who_short, short) = (who.0, image >> 48);
            state.trace.note(format!("{who_short} applied {}: {short:x}", entry.log_id));
            if index % CHECK_EVERY == who.0 {
                let whole = view
                    .read(|registry| registry.check().map(|()| storage::digest(registry.image())));
                let whole = whole.map_err(|violation| format!("check: {violation}"))?;
                require(whole == image, "S10: a digest is one of the whole registry", || {
                    format!("{who:?} at {index}")
                })?;
            }
            Ok(())
        });
    }

    /// An instance carries an effect of an entry out.
    pub(crate) fn tells(&self, who: InstanceId, index: u64, effect: &Effect) {
        self.judge(|state| {
            if state.excused == Some(who) {
                return Ok(());
            }
            let known = state.log.get(&index).ok_or_else(|| {
                format!(
                    "S12: nothing is told before it is committed: {who:?} at {index}: {effect:?}"
                )
            })?;
            let same = known.effects.iter().enumerate().filter(|(_, known)| *known == effect);
            let fresh = same.map(|(n, _)| (index, n)).find(|at| !state.carried_out.contains(at));
            let at = fresh.ok_or_else(|| {
                format!("S1: what the log says is told, and once: {who:?} at {index}: {effect:?}")
            })?;
            state.carried_out.insert(at);
            state.figures.told += 1;
            Ok(())
        });
    }

    /// An instance has carried out what it will of an entry's effects, for the sessions of a life.
    pub(crate) fn has_told(&self, who: InstanceId, life: Incarnation, index: u64) {
        self.judge(|state| {
            let Some(known) = state.log.get(&index) else { return Ok(()) };
            if state.excused == Some(who) {
                return Ok(());
            }
            let missing = known.effects.iter().enumerate().find(|(n, effect)| {
                let session = effect.session();
                let is_its = session.instance == who && session.incarnation == life;
                is_its && !state.carried_out.contains(&(index, *n))
            });
            require(missing.is_none(), "L2: every caller that waits is told", || {
                format!("{who:?} at {index}: {missing:?}")
            })
        });
    }
}

impl State {
    /// All disks that held anything are lost, and a cluster is founded as if for the first time.
    fn begin_again(&mut self) {
        self.leaders.forget();
        *self = Self {
            founding: std::mem::take(&mut self.founding),
            leaders: std::mem::take(&mut self.leaders),
            figures: self.figures,
            trace: std::mem::take(&mut self.trace),
            failure: self.failure.take(),
            programs: std::mem::take(&mut self.programs),
            ..Self::default()
        };
    }

    /// A raise of the rules needs every member to know them.
    fn may_raise(&self, proposal: &Proposal) -> Result<(), String> {
        let raised = proposal.commands.iter().find_map(|command| match command {
            Command::Raise { rules } if *rules > self.registry.rules() => Some(*rules),
            _ => None,
        });
        let Some(rules) = raised else { return Ok(()) };
        let members = self.members.all();
        let older = members.iter().find(|id| self.programs.get(id).is_none_or(|it| *it < rules));
        require(older.is_none(), "U: rules are raised when every member knows them", || {
            format!("{older:?} does not know {rules:?}")
        })
    }

    /// Nothing that newer rules brought is written before they are in force.
    fn is_in_force(&self, proposal: &Proposal) -> Result<(), String> {
        #[cfg(feature = "rules-3")]
        if self.registry.rules() < Rules(3) {
            let early = proposal.commands.iter().find(|it| matches!(it, Command::Mark(_)));
            let promise = "U: nothing of newer rules is written before they are in force";
            return require(early.is_none(), promise, || format!("{early:?}"));
        }
        let _ = proposal;
        Ok(())
    }

    /// The first instance has applied this entry.
    fn commit(&mut self, entry: &Entry) -> Result<(), String> {
        let index = entry.log_id.index;
        let next = self.log.last_key_value().map_or(0, |(last, _)| last + 1);
        require(index == next, "S14: what is committed stays", || {
            format!("{index} is applied where {next} is next")
        })?;
        let mut effects = Vec::new();
        match &entry.payload {
            EntryPayload::Blank => {}
            EntryPayload::Normal(proposal) => {
                self.is_in_force(proposal)?;
                self.leaders.stamps(entry.log_id, proposal, &self.registry)?;
                let applied = self.registry.apply(proposal);
                self.running.follow(&self.registry.take_changed(), self.registry.image());
                self.count_links(&applied);
                self.take_in(proposal, &applied)?;
                effects = applied.effects;
            }
            EntryPayload::Membership(members) => {
                for registry in [&mut self.registry, &mut self.single] {
                    let named = members.nodes().map(|(id, node)| (InstanceId(*id), node.store));
                    registry.members_changed(index, named);
                }
                self.members.commits(entry.log_id);
                self.figures.changes += 1;
            }
        }
        let image = self.running.digest(&self.registry.image().meta);
        let digest = digest(entry);
        self.log.insert(index, Known { id: entry.log_id, digest, image, effects });
        self.leaders.commits(entry.log_id);
        self.figures.entries += 1;
        Ok(())
    }

    fn count_links(&mut self, applied: &Applied) {
        let is_link = |note: &&Note| matches!(note.what, What::Linked { .. } | What::Paired { .. });
        self.figures.links += applied.notes.iter().filter(is_link).count() as u64;
    }

    /// Holds an entry to the invariants over what clients are told, command by command.
    fn take_in(&mut self, proposal: &Proposal, applied: &Applied) -> Result<(), String> {
        let takes_effect = applied.verdict == Verdict::Applied && !proposal.commands.is_empty();
        let commands = if takes_effect { &proposal.commands[..] } else { &[Command::Tick] };
        let mut effects = Vec::new();
        for command in commands {
            if let Some(request) = request_of(command) {
                require(self.done.insert(request), "S1: a command takes effect once", || {
                    format!("{command:?}")
                })?;
            }
            let (since, clients) = (self.single.now(), self.single.totals().clients);
            let commands = vec![command.clone()];
            let applied = self.single.apply(&Proposal { at: proposal.at, batch: None, commands });
            self.note_sockets();
            let known = std::mem::take(&mut self.sockets);
            let (now, policy) = (self.single.now(), self.single.policy());
            let clients = (clients, self.single.totals().clients);
            let seen =
                Seen { command, applied: &applied, since, now, policy, known: &known, clients };
            if *command != Command::Tick || !applied.effects.is_empty() {
                self.trace.note(format!("  {command:?} -> {:?}", applied.effects));
            }
            self.told.see(seen).map_err(|failure| format!("{failure}: {command:?}"))?;
            self.sockets = known;
            effects.extend(applied.effects);
        }
        require(effects == applied.effects, "S11: a batch does what its commands do", || {
            format!("{:?} and not {effects:?}", applied.effects)
        })
    }
}

impl State {
    /// Takes note of the clients' sockets, if clients have changed.
    fn note_sockets(&mut self) {
        let changed = self.single.take_changed();
        let records = &self.single.image().records;
        let is_client = |record: Option<&Record>| matches!(record, Some(Record::Client(_)));
        let mut both = changed.iter().map(|(serial, old)| (old.as_ref(), records.get(*serial)));
        if !both.any(|(old, new)| is_client(old) || is_client(new)) {
            return;
        }
        let sockets = records.iter().filter_map(|(_, record)| {
            let client = record.client()?;
            let sockets = [&client.tail.0, &client.head.0];
            Some(sockets.map(|socket| (socket.endpoint(), client.source)))
        });
        self.sockets = sockets.flatten().collect();
    }
}

/// A request that a session makes once.
fn request_of(command: &Command) -> Option<(SessionId, String)> {
    match command {
        Command::AddPeer { session, address, .. } => Some((*session, format!("add {address}"))),
        Command::AskIp { session, id } => Some((*session, format!("ask for {}", id.0))),
        Command::Connect { session, .. } => Some((*session, "connect".to_owned())),
        Command::HalfClose { session } => Some((*session, "half-close".to_owned())),
        Command::Reconnect { session, .. } => Some((*session, "reconnect".to_owned())),
        Command::Delivered { .. }
        | Command::Disconnect { .. }
        | Command::Found { .. }
        | Command::Raise { .. }
        | Command::SetPolicy(_)
        | Command::Start { .. }
        | Command::Tick => None,
        #[cfg(feature = "rules-3")]
        Command::Mark(_) => None,
    }
}
