//! The peers of this instance: for each one whether it is reached and if not why, the store that
//! answers under its number, the progress that this store acknowledged, and the rules that it
//! knows.
//!
//! All of it is in memory only. The state of a peer is told in one log line when it changes; why a
//! peer is not reached goes into the sentences of `trouble.rs`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    progress::Progress,
    rpc::hello::{Facts, Refusal},
};
use crate::{
    ids::{InstanceId, StoreId},
    registry::Rules,
};

/// Reasons that are kept of one outage.
const REASONS_MAX: usize = 8;

/// The table of all peers; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Peers(Arc<Mutex<BTreeMap<InstanceId, Peer>>>);

/// An entry of the table.
#[derive(Debug, Default)]
struct Peer {
    /// The store that introduced itself last.
    store: Option<StoreId>,
    /// The run of its process that was not refused last.
    run: Option<u64>,
    rules: Option<Rules>,
    /// The progress that each store under this number has acknowledged.
    acknowledged: BTreeMap<StoreId, Progress>,
    reach: Reach,
    /// Why it was not reached since it last was, as far as that was logged.
    reasons: BTreeSet<String>,
    /// The refusal that was logged last.
    told: Option<Refusal>,
}

/// Whether a peer is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// It was not tried yet.
    #[default]
    Untried,
    /// A connection to it is open.
    Reached,
    /// There is no connection, for this reason.
    Lost(String),
    /// One of the two refuses the other; the end of a sentence about the peer.
    Refused(String),
}

impl Peers {
    fn guard(&self) -> MutexGuard<'_, BTreeMap<InstanceId, Peer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a peer that has introduced itself and was not refused.
    pub fn met(&self, id: InstanceId, facts: &Facts) {
        let mut peers = self.guard();
        let peer = peers.entry(id).or_default();
        if peer.store.replace(facts.store).is_none() {
            tracing::info!(peer = id.0, store = %facts.store, "peer introduced itself");
        }
        peer.run = Some(facts.run);
        peer.rules = Some(facts.rules);
        peer.told = None;
        // The tail of its log may be cut off yet, so of what it says itself only the vote counts.
        peer.remember(facts.store, Progress::of_vote(facts.progress.vote));
        if let Some(acknowledged) = facts.acknowledged {
            peer.remember(facts.store, acknowledged);
        }
    }

    /// Takes note of a connection that was opened to a peer.
    pub fn reached(&self, id: InstanceId) {
        let mut peers = self.guard();
        let peer = peers.entry(id).or_default();
        peer.reasons.clear();
        let before = std::mem::replace(&mut peer.reach, Reach::Reached);
        if before != Reach::Reached {
            tracing::info!(peer = id.0, "peer found");
        }
    }

    /// Takes note that a peer cannot be reached, or not any longer. Each reason is logged once
    /// until it is reached: the last one may be a certificate, behind a lost connection.
    pub fn lost(&self, id: InstanceId, why: &str) {
        let mut peers = self.guard();
        let peer = peers.entry(id).or_default();
        let is_new = peer.reasons.len() < REASONS_MAX && peer.reasons.insert(why.to_owned());
        match std::mem::replace(&mut peer.reach, Reach::Lost(why.to_owned())) {
            Reach::Reached => tracing::info!(peer = id.0, why, "peer lost"),
            Reach::Untried | Reach::Lost(_) if is_new => {
                tracing::info!(peer = id.0, why, "peer not reached");
            }
            Reach::Untried | Reach::Lost(_) | Reach::Refused(_) => {}
        }
    }

    /// Takes note that this instance refuses a peer.
    pub fn refuses(&self, id: InstanceId, refusal: Refusal) {
        let mut peers = self.guard();
        let peer = peers.entry(id).or_default();
        peer.reach = Reach::Refused(refusal.words().to_owned());
        if peer.told != Some(refusal) {
            tracing::warn!(peer = id.0, "peer refused: {}", refusal.words());
        }
        peer.told = Some(refusal);
    }

    /// Takes note that a peer refuses this instance.
    pub fn refused_by(&self, id: InstanceId, refusal: Refusal) {
        let mut peers = self.guard();
        let peer = peers.entry(id).or_default();
        let why = format!("it refuses this instance: {}", refusal.words());
        if peer.reach != Reach::Refused(why.clone()) {
            tracing::warn!(peer = id.0, "refused by a peer: {}", refusal.words());
        }
        peer.reach = Reach::Refused(why);
    }

    /// Returns whether a peer is reached, and if not why.
    pub fn reach(&self, id: InstanceId) -> Reach {
        self.guard().get(&id).map(|peer| peer.reach.clone()).unwrap_or_default()
    }

    /// Takes note of what a peer has acknowledged: entries that are durable there, or a vote.
    pub fn acknowledged(&self, id: InstanceId, progress: Progress) {
        let mut peers = self.guard();
        let peer = peers.entry(id).or_default();
        if let Some(store) = peer.store {
            peer.remember(store, progress);
        }
    }

    /// Returns the run of a peer's process that was not refused last.
    pub fn run(&self, id: InstanceId) -> Option<u64> {
        self.guard().get(&id)?.run
    }

    /// Returns the progress that a store has acknowledged, as far as this instance knows.
    pub fn remembered(&self, id: InstanceId, store: StoreId) -> Option<Progress> {
        self.guard().get(&id)?.acknowledged.get(&store).copied()
    }

    /// Returns whether another store has acknowledged entries under this number.
    pub fn knows_another_store(&self, id: InstanceId, store: StoreId) -> bool {
        let peers = self.guard();
        let stores = peers.get(&id).into_iter().flat_map(|peer| &peer.acknowledged);
        stores.into_iter().any(|(other, known)| *other != store && known.last.is_some())
    }

    /// Returns the store that answers under a number, if it has introduced itself.
    pub fn store(&self, id: InstanceId) -> Option<StoreId> {
        self.guard().get(&id)?.store
    }

    /// Returns the newest rules that a peer can apply; `None` if it has not introduced itself yet.
    pub fn newest_rules(&self, id: InstanceId) -> Option<Rules> {
        self.guard().get(&id)?.rules
    }
}

impl Peer {
    fn remember(&mut self, store: StoreId, progress: Progress) {
        let known = self.acknowledged.entry(store).or_default();
        *known = known.further(progress);
    }
}

#[cfg(test)]
mod tests {
    use openraft::vote::RaftLeaderIdExt as _;

    use super::*;
    use crate::{
        cluster::rpc::hello::Known,
        raft::{LogId, TypeConfig, Vote},
    };

    type LeaderId = openraft::type_config::alias::LeaderIdOf<TypeConfig>;

    const ID: InstanceId = InstanceId(2);

    fn at(term: u64, entry: u64) -> Progress {
        let last = Some(LogId::new(LeaderId::new_committed(term, 1), entry));
        Progress { vote: Vote::new(term, 1), last }
    }

    fn facts(store: u128, run: u64, progress: Progress, acknowledged: Option<Progress>) -> Facts {
        Facts {
            history: None,
            store: StoreId(store),
            run,
            progress,
            acknowledged,
            rules: Rules(5),
            known: Known::Unknown,
            remembered: None,
        }
    }

    #[test]
    fn how_a_peer_is_reached_is_what_was_found_out_last() {
        let peers = Peers::default();
        assert_eq!(peers.reach(ID), Reach::Untried);
        peers.lost(ID, "nothing listens");
        assert_eq!(peers.reach(ID), Reach::Lost("nothing listens".to_owned()));
        peers.reached(ID);
        assert_eq!(peers.reach(ID), Reach::Reached);
        peers.refuses(ID, Refusal::Store);
        assert_eq!(peers.reach(ID), Reach::Refused(Refusal::Store.words().to_owned()));
        peers.refused_by(ID, Refusal::Removed);
        let why = format!("it refuses this instance: {}", Refusal::Removed.words());
        assert_eq!(peers.reach(ID), Reach::Refused(why));
        peers.lost(ID, "the connection was lost");
        assert_eq!(peers.reach(ID), Reach::Lost("the connection was lost".to_owned()));
        assert_eq!(peers.reach(InstanceId(3)), Reach::Untried);
    }

    #[test]
    fn what_a_store_has_acknowledged_is_remembered_for_it_alone() {
        let (peers, first, second) = (Peers::default(), StoreId(10), StoreId(20));
        assert_eq!((peers.store(ID), peers.run(ID), peers.newest_rules(ID)), (None, None, None));
        peers.acknowledged(ID, at(9, 9));
        assert_eq!(peers.remembered(ID, first), None, "no store has introduced itself");

        // Of what it says of its log, only the vote counts; of what it has acknowledged, all.
        peers.met(ID, &facts(10, 4, at(3, 7), None));
        let (store, run, rules) = (peers.store(ID), peers.run(ID), peers.newest_rules(ID));
        assert_eq!((store, run, rules), (Some(first), Some(4), Some(Rules(5))));
        assert_eq!(peers.remembered(ID, first), Some(Progress::of_vote(Vote::new(3, 1))));
        assert!(!peers.knows_another_store(ID, second), "a vote can be given up");
        peers.met(ID, &facts(10, 5, at(3, 7), Some(at(3, 6))));
        assert_eq!((peers.remembered(ID, first), peers.run(ID)), (Some(at(3, 6)), Some(5)));
        peers.acknowledged(ID, at(3, 8));
        peers.acknowledged(ID, at(3, 7));
        assert_eq!(peers.remembered(ID, first), Some(at(3, 8)), "it never goes back");
        assert!(peers.knows_another_store(ID, second));
        assert!(!peers.knows_another_store(ID, first));
        assert!(!peers.knows_another_store(InstanceId(3), second));

        peers.met(ID, &facts(20, 6, at(2, 1), None));
        assert_eq!((peers.store(ID), peers.remembered(ID, first)), (Some(second), Some(at(3, 8))));
        peers.acknowledged(ID, at(2, 2));
        assert_eq!(peers.remembered(ID, second), Some(at(2, 2)));
    }

    #[test]
    fn each_reason_of_an_outage_is_told_once_and_no_more_than_some() {
        let peers = Peers::default();
        let told = || peers.guard()[&ID].reasons.len();
        for why in ["one", "two", "one"] {
            peers.lost(ID, why);
        }
        assert_eq!(told(), 2);
        (0..20).for_each(|number| peers.lost(ID, &format!("reason {number}")));
        assert_eq!(told(), REASONS_MAX);
        peers.reached(ID);
        assert_eq!(told(), 0, "the next outage is another one");
    }
}
