//! The greeting, by which two instances make sure of each other, over any transport, before raft
//! hears a word.
//!
//! Each side holds what the other says of itself ([`Facts`]) against what it knows, and refuses a
//! peer that
//!
//! - has another history: two clusters that were founded apart must never mix, even if their lists
//!   and ids say;
//! - was removed from the cluster, by an entry that is applied here;
//! - has another store than is recorded for its number: its disk was lost or replaced, and its
//!   votes with it;
//! - vouches for less than it is remembered to have acknowledged: its data directory is an older
//!   copy (see [`progress`](super::progress)).
//!
//! Each side also learns what the other one knows of it, because the one that has forgotten
//! something cannot know by itself. An instance that learns that its votes are lost locks its
//! [`Gate`] at once and ends ([`Turned`]); refilling it is not safe. Say X was committed by 1 and
//! 3, and 3 goes back and is being refilled by 1 when 1 dies: then 2 and 3 could elect a leader
//! without X.
//!
//! An instance with an empty log opens its gate when a member of the cluster says that it may join:
//! its number is named, and no store bears it yet.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{io::AsyncWriteExt as _, sync::watch, time::timeout};

use super::{
    gate::Gate,
    peers::Peers,
    place::Place,
    progress::{Acknowledged, Progress},
    rpc::hello::{self, Facts, Hello, Known, Refusal},
    transport::{Lane, NodeName, Stream},
    turned::{Learnt, Turned},
};
use crate::{
    ids::{InstanceId, StoreId},
    raft::{Member, Membership},
    registry::{Registry, Rules},
    runtime,
    storage::RegistryView,
};

/// Longest time for the introduction of a connection, on either side.
pub(super) const GREETING_MAX: Duration = Duration::from_secs(2);

/// The members as they are in this instance's own log.
pub type Roster = BTreeMap<InstanceId, Member>;

/// Introduces this instance, and judges others; clones share it.
#[derive(Clone)]
pub struct Greeter(Arc<Inner>);

struct Inner {
    me: NodeName,
    store: StoreId,
    /// The newest rules that this instance can apply.
    rules: Rules,
    /// Tells this process from the ones before it.
    run: u64,
    view: RegistryView,
    acknowledged: Acknowledged,
    peers: Peers,
    place: Place,
    gate: Gate,
    roster: watch::Sender<Roster>,
    /// The list that this instance was started with.
    list: Mutex<Option<BTreeMap<InstanceId, String>>>,
    learnt: watch::Sender<Learnt>,
    /// Whether it serves, or has served.
    settled: AtomicBool,
}

impl std::fmt::Debug for Greeter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Greeter").field("me", &self.0.me).finish()
    }
}

/// A connection that was let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guest {
    /// The instance at the other end.
    pub peer: InstanceId,
    /// The purpose of the connection.
    pub lane: Lane,
}

/// Why a connection was not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unwelcome {
    /// It was refused here.
    Refused(Refusal),
    /// The other end refused this instance.
    Declined(Refusal),
}

impl Greeter {
    /// Greets on behalf of `me`, whose store held `held` when it was opened and whose program can
    /// apply `rules` at most.
    pub fn new(
        me: NodeName,
        store: StoreId,
        held: Progress,
        rules: Rules,
        view: RegistryView,
    ) -> Self {
        // Without chance all runs look alike, and only its own instance notices an older copy.
        let run = runtime::random().unwrap_or_default() as u64;
        Self(Arc::new(Inner {
            me,
            store,
            rules,
            run,
            view,
            acknowledged: Acknowledged::begin(held),
            peers: Peers::default(),
            place: Place::default(),
            gate: Gate::default(),
            roster: watch::Sender::default(),
            list: Mutex::default(),
            learnt: watch::Sender::default(),
            settled: AtomicBool::new(false),
        }))
    }

    /// Returns the table of the others.
    pub fn peers(&self) -> &Peers {
        &self.0.peers
    }

    /// Returns where this instance was started.
    pub fn place(&self) -> &Place {
        &self.0.place
    }

    /// Returns whether raft may hear the others.
    pub fn gate(&self) -> &Gate {
        &self.0.gate
    }

    /// Returns the progress that this instance vouches for.
    pub fn acknowledged(&self) -> &Acknowledged {
        &self.0.acknowledged
    }

    /// Returns this instance's store.
    pub fn store(&self) -> StoreId {
        self.0.store
    }

    /// Returns the newest rules that this instance can apply.
    pub fn newest_rules(&self) -> Rules {
        self.0.rules
    }

    /// Returns this instance.
    pub fn me(&self) -> InstanceId {
        self.0.me.node
    }

    /// Returns the members in this instance's own log.
    pub fn roster(&self) -> watch::Receiver<Roster> {
        self.0.roster.subscribe()
    }

    /// Takes note of the members in this instance's own log.
    pub fn set_roster(&self, membership: &Membership) {
        let nodes = membership.membership().nodes();
        let roster: Roster = nodes.map(|(id, member)| (InstanceId(*id), member.clone())).collect();
        self.0.roster.send_if_modified(|known| {
            let is_new = *known != roster;
            *known = roster;
            is_new
        });
    }

    /// Returns the list that this instance was started with; `None` until that is known.
    pub fn list(&self) -> Option<BTreeMap<InstanceId, String>> {
        self.0.list.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes note of the list that this instance was started with.
    pub fn set_list(&self, list: BTreeMap<InstanceId, String>) {
        *self.0.list.lock().unwrap_or_else(PoisonError::into_inner) = Some(list);
    }

    /// Returns the facts that this instance has learnt about itself from others.
    pub fn learnt(&self) -> watch::Receiver<Learnt> {
        self.0.learnt.subscribe()
    }

    /// Returns whether this instance's log is empty.
    fn is_empty(&self) -> bool {
        self.0.acknowledged.now().last.is_none() && self.0.roster.borrow().is_empty()
    }

    /// Returns this instance's knowledge of a number.
    pub fn known(&self, peer: InstanceId) -> Known {
        let named = self.0.roster.borrow().get(&peer).cloned();
        self.0.view.read(|registry| {
            let instance = registry.instance(peer);
            match (named, instance) {
                (None, None) => Known::Unknown,
                (None, Some(instance)) if instance.removed_by.is_some() => {
                    Known::Removed(instance.removed_by.unwrap_or_default())
                }
                (named, instance) => {
                    let recorded = instance.and_then(|instance| instance.store);
                    let store = named.and_then(|member| member.store).or(recorded);
                    let lived = registry.incarnation(peer).0 > 0;
                    Known::Named { store, lived }
                }
            }
        })
    }

    /// Returns the facts for a peer, whose store may be known.
    fn facts(&self, peer: InstanceId, store: Option<StoreId>) -> Facts {
        Facts {
            history: self.0.view.read(Registry::history),
            store: self.0.store,
            run: self.0.run,
            progress: self.0.acknowledged.now(),
            acknowledged: self.0.acknowledged.since_start(),
            rules: self.0.rules,
            known: self.known(peer),
            remembered: store.and_then(|store| self.0.peers.remembered(peer, store)),
        }
    }

    /// Returns whether a peer may speak with this instance, by what it says of itself.
    fn judge(&self, peer: InstanceId, facts: &Facts) -> Result<(), Refusal> {
        let mine = self.0.view.read(Registry::history);
        if mine.zip(facts.history).is_some_and(|(mine, theirs)| mine != theirs) {
            return Err(Refusal::History);
        }
        match self.known(peer) {
            Known::Removed(_) => return Err(Refusal::Removed),
            Known::Named { store: Some(recorded), .. } if recorded != facts.store => {
                return Err(Refusal::Store);
            }
            Known::Named { .. } | Known::Unknown => {}
        }
        // A learner's store is not recorded yet; but the leader counts on what it has acknowledged.
        if self.0.peers.knows_another_store(peer, facts.store) {
            return Err(Refusal::Store);
        }
        // Facts may have been overtaken by what the same process has acknowledged meanwhile, on
        // another connection. A store goes back between two runs; one that goes back under a
        // running process, with its memory, notices it by what others remember.
        let is_another_run = self.0.peers.run(peer) != Some(facts.run);
        let remembered = self.0.peers.remembered(peer, facts.store).filter(|_| is_another_run);
        if remembered.is_some_and(|remembered| facts.progress.is_behind(&remembered)) {
            return Err(Refusal::RolledBack);
        }
        Ok(())
    }

    /// Learns what a peer knows of this instance.
    fn learn(&self, by: InstanceId, facts: &Facts) {
        let me = self.0.me.node;
        let mine = self.0.view.read(Registry::history);
        if let Some((mine, theirs)) = mine.zip(facts.history)
            && mine != theirs
        {
            // One that serves already goes on, and refuses the other one.
            if !self.0.settled.load(Ordering::Acquire) {
                self.turn(Turned::History { by, mine, theirs });
            }
            return;
        }
        match facts.known {
            Known::Named { store: Some(recorded), .. } if recorded != self.0.store => {
                self.turn(Turned::Lost { me, by, recorded: Some(recorded) });
            }
            Known::Named { lived: true, .. } if self.is_empty() => {
                self.turn(Turned::Lost { me, by, recorded: None });
            }
            // One that the founding entry names writes that first; see `found`.
            Known::Named { store: None, .. } if self.is_empty() => {
                if !self.0.gate.is_open() {
                    tracing::info!(peer = by.0, "the cluster knows this instance; joining");
                }
                self.0.gate.open();
            }
            Known::Named { .. } | Known::Unknown => {}
            Known::Removed(entry) => {
                self.0.learnt.send_if_modified(|learnt| {
                    let is_new = learnt.removed.is_none();
                    learnt.removed.get_or_insert((entry, by));
                    is_new
                });
                // Its store may have forgotten more, but it is no longer a member, and that is
                // what helps its operator. It must not vote all the same.
                self.0.gate.lock();
                return;
            }
        }
        let held = self.0.acknowledged.now();
        if let Some(remembered) = facts.remembered
            && held.is_behind(&remembered)
        {
            self.turn(Turned::RolledBack { me, by, store: self.0.store, held, remembered });
        }
    }

    fn turn(&self, turned: Turned) {
        self.0.gate.lock();
        self.0.learnt.send_if_modified(|learnt| {
            let is_new = learnt.turned.is_none();
            learnt.turned.get_or_insert(turned);
            is_new
        });
    }

    /// Returns the facts for a peer that it has met.
    pub fn facts_for(&self, peer: InstanceId) -> Facts {
        self.facts(peer, self.0.peers.store(peer))
    }

    /// Judges a peer again by what it says now, and learns from it.
    ///
    /// # Errors
    /// If it is refused from now on.
    pub fn meet_again(&self, peer: InstanceId, facts: &Facts) -> Result<(), Refusal> {
        self.learn(peer, facts);
        let judged = self.judge(peer, facts);
        match judged {
            Ok(()) => self.0.peers.met(peer, facts),
            Err(refusal) => self.0.peers.refuses(peer, refusal),
        }
        judged
    }

    /// This instance serves from now on: a peer with another history is refused, and no reason to
    /// end any more.
    pub fn settled(&self) {
        self.0.settled.store(true, Ordering::Release);
    }

    /// Introduces this instance on a connection that it has opened to `to`.
    ///
    /// # Errors
    /// If the connection fails, or one of the two refuses the other.
    pub async fn greet(
        &self,
        stream: &mut Box<dyn Stream>,
        to: InstanceId,
        lane: Lane,
    ) -> io::Result<()> {
        let refused = |why: String| io::Error::new(io::ErrorKind::ConnectionAborted, why);
        let hello = Hello { lane, from: self.0.me, to, facts: self.facts(to, None) };
        stream.write_all(&hello.encode()).await?;
        stream.flush().await?;
        let (refusal, facts) = hello::receive(stream).await?;
        if let Some(facts) = &facts {
            self.learn(to, facts);
        }
        // A probe goes where the peer may not be, and says nothing of the way to it that is open.
        let is_probe = lane == Lane::Probe;
        if let Some(refusal) = refusal {
            if !is_probe {
                self.0.peers.refused_by(to, refusal);
            }
            return Err(refused(format!("it refuses this instance: {}", refusal.words())));
        }
        let facts = facts.ok_or(io::ErrorKind::InvalidData)?;
        let judged = self.judge(to, &facts);
        let said = self.facts(to, Some(facts.store));
        hello::send(stream, hello::VERSION, judged.err(), Some(&said)).await?;
        match judged {
            Ok(()) => {
                self.0.peers.met(to, &facts);
                if !is_probe {
                    self.0.peers.reached(to);
                }
                Ok(())
            }
            Err(refusal) => {
                if !is_probe {
                    self.0.peers.refuses(to, refusal);
                }
                Err(refused(refusal.words().to_owned()))
            }
        }
    }

    /// Hears which instance has opened a connection, and answers. `proven` says whether the
    /// transport has proven a name.
    ///
    /// # Errors
    /// If one of the two refuses the other, or it takes too long.
    pub async fn hear(
        &self,
        stream: &mut Box<dyn Stream>,
        proven: impl Fn(NodeName) -> bool,
    ) -> Result<Guest, Unwelcome> {
        let hearing = timeout(GREETING_MAX, self.hear_out(stream, proven));
        hearing.await.unwrap_or(Err(Unwelcome::Refused(Refusal::Timeout)))
    }

    async fn hear_out(
        &self,
        stream: &mut Box<dyn Stream>,
        proven: impl Fn(NodeName) -> bool,
    ) -> Result<Guest, Unwelcome> {
        let refuse = Unwelcome::Refused;
        let broken = |_: io::Error| Unwelcome::Refused(Refusal::Preamble);
        let (version, hello) = match Hello::read(stream).await {
            Ok(read) => read,
            Err(refusal) => {
                if refusal == Refusal::Version {
                    hello::send(stream, 1, Some(refusal), None).await.map_err(broken)?;
                }
                return Err(refuse(refusal));
            }
        };
        let peer = hello.from.node;
        let is_its = || if proven(hello.from) { Ok(()) } else { Err(Refusal::Identity) };
        if let Err(refusal) = hello.check(self.0.me).and_then(|()| is_its()) {
            // A stranger is told nothing of this instance.
            hello::send(stream, version, Some(refusal), None).await.map_err(broken)?;
            return Err(refuse(refusal));
        }
        let judged = self.judge(peer, &hello.facts);
        let said = self.facts(peer, Some(hello.facts.store));
        self.learn(peer, &hello.facts);
        hello::send(stream, version, judged.err(), Some(&said)).await.map_err(broken)?;
        if let Err(refusal) = judged {
            self.0.peers.refuses(peer, refusal);
            return Err(refuse(refusal));
        }
        let (verdict, facts) = hello::receive(stream).await.map_err(broken)?;
        if let Some(facts) = facts {
            self.learn(peer, &facts);
        }
        if let Some(refusal) = verdict {
            self.0.peers.refused_by(peer, refusal);
            return Err(Unwelcome::Declined(refusal));
        }
        self.0.peers.met(peer, &hello.facts);
        if self.0.roster.borrow().contains_key(&peer) {
            self.0.place.called();
        }
        Ok(Guest { peer, lane: hello.lane })
    }
}
