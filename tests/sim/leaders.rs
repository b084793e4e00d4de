//! The leaders, as the entries tell them: the checks of raft's promises about leaders (S14) and of
//! what leaders say about time (B5).

use std::{collections::BTreeMap, mem::take};

use emnetchain::{
    ids::InstanceId,
    raft::{Entry, LogId, TypeConfig},
    registry::{Proposal, Registry},
};
use openraft::{EntryPayload, vote::RaftLeaderIdExt as _};

use crate::{
    now_ms,
    trace::{digest, fold},
};

/// A leader: its term and its node. openraft orders them like this, and of one term the later
/// replaces the earlier.
pub(crate) type Leader = (u64, u64);

/// An entry's place: its leader and its index. It names one entry, and with it all before it.
pub(crate) type Place = (Leader, u64);

/// A life of an instance as its disk counts it.
pub(crate) type Life = (InstanceId, u64);

/// How far log time may run ahead of the time for which its stamper ran: two looks at the clock,
/// one before and one after a pause.
const AHEAD_MAX_MS: u64 = 600;

/// The place of an entry.
pub(crate) fn place(id: LogId) -> Place {
    let leader = id.committed_leader_id();
    ((leader.term, leader.node_id), id.index)
}

/// An entry that was written somewhere.
struct Written {
    /// Of it and of all before it.
    digest: u64,
    before: Option<Place>,
}

/// The time for which an instance ran.
#[derive(Default)]
struct Running {
    ran_ms: u64,
    since_ms: Option<u64>,
}

impl Running {
    fn ms(&self) -> u64 {
        self.ran_ms + self.since_ms.map_or(0, |since| now_ms() - since)
    }
}

/// What one leader has stamped.
struct Stamper {
    /// Log time when it began.
    began_at_ms: u64,
    /// For how long it had run then.
    ran_ms: u64,
    pauses: u64,
}

/// Knows every entry that was ever written.
#[derive(Default)]
pub(crate) struct Leaders {
    written: BTreeMap<Place, Written>,
    lives: BTreeMap<Leader, Life>,
    /// The highest leader that anything was heard of.
    highest: Leader,
    /// The committed entries by index, each with the highest leader when it was first applied.
    committed: Vec<(Leader, Place)>,
    running: BTreeMap<InstanceId, Running>,
    pauses: BTreeMap<InstanceId, u64>,
    /// For how long a leader's instance had run when it first wrote.
    first_wrote: BTreeMap<Leader, u64>,
    stampers: BTreeMap<Leader, Stamper>,
}

impl Leaders {
    /// An instance runs from now on, or does not.
    pub(crate) fn runs(&mut self, who: InstanceId, runs: bool) {
        let running = self.running.entry(who).or_default();
        running.ran_ms = running.ms();
        running.since_ms = runs.then(now_ms);
        *self.pauses.entry(who).or_default() += 1;
    }

    /// Nothing is left of what was ever written.
    pub(crate) fn forget(&mut self) {
        let (running, pauses) = (take(&mut self.running), take(&mut self.pauses));
        *self = Self { running, pauses, ..Self::default() };
    }

    /// An instance has voted.
    pub(crate) fn votes(&mut self, vote: Leader) {
        self.highest = self.highest.max(vote);
    }

    /// An entry goes into an instance's log. True if it is the first of its leader.
    pub(crate) fn writes(
        &mut self,
        life: Life,
        before: Option<LogId>,
        entry: &Entry,
    ) -> Result<bool, String> {
        let (before, at) = (before.map(place), place(entry.log_id));
        let chain = before.and_then(|before| self.written.get(&before));
        let chain = fold(chain.map_or(0, |chain| chain.digest), digest(entry));
        if let Some(known) = self.written.get(&at) {
            let same = known.digest == chain;
            return if same { Ok(false) } else { Err(format!("S14: logs match: {life:?} {at:?}")) };
        }
        let (leader, _) = at;
        if before.is_some_and(|(earlier, _)| earlier > leader) {
            return Err(format!("S14: leaders go up in a log: {life:?} {before:?} {at:?}"));
        }
        self.written.insert(at, Written { digest: chain, before });
        if leader.0 == 0 {
            return Ok(false); // every founder writes the first entry
        }
        let is_new = !self.lives.contains_key(&leader);
        let known = *self.lives.entry(leader).or_insert(life);
        if known != life || life.0.0 != leader.1 {
            return Err(format!("S14: one life leads: {known:?} and {life:?} as {leader:?}"));
        }
        if is_new {
            self.is_complete(leader, before)?;
            self.highest = self.highest.max(leader);
            let ran = self.running.get(&life.0).map_or(0, Running::ms);
            self.first_wrote.insert(leader, ran);
        }
        Ok(is_new)
    }

    /// Leader completeness (raft, figure 3): all that was committed before this leader was heard
    /// of is in its log, which ends in `last`.
    fn is_complete(&self, leader: Leader, last: Option<Place>) -> Result<(), String> {
        let before = self.committed.partition_point(|(highest, _)| *highest < leader);
        let Some((_, wanted)) = before.checked_sub(1).map(|last| self.committed[last]) else {
            return Ok(());
        };
        let mut at = last;
        while at.is_some_and(|(_, index)| index > wanted.1) {
            at = at.and_then(|at| self.written.get(&at)).and_then(|written| written.before);
        }
        if at == Some(wanted) {
            return Ok(());
        }
        Err(format!("S14: a leader holds what was committed: {leader:?} {last:?} lacks {wanted:?}"))
    }

    /// An entry is applied for the first time.
    pub(crate) fn commits(&mut self, id: LogId) {
        self.committed.push((self.highest, place(id)));
    }

    /// The proposal of an entry is about to be applied to the registry.
    pub(crate) fn stamps(
        &mut self,
        id: LogId,
        proposal: &Proposal,
        registry: &Registry,
    ) -> Result<(), String> {
        let (leader, index) = place(id);
        let who = InstanceId(leader.1);
        let pauses = self.pauses.get(&who).copied().unwrap_or_default();
        let ran = self.running.get(&who).map_or(0, Running::ms);
        let first = self.first_wrote.get(&leader).copied().unwrap_or_default();
        let stamper = self.stampers.entry(leader).or_insert_with(|| Stamper {
            began_at_ms: registry.now().0,
            ran_ms: first,
            pauses,
        });
        let most = stamper.began_at_ms + ran.saturating_sub(stamper.ran_ms);
        let most = most + AHEAD_MAX_MS * (1 + pauses - stamper.pauses);
        if proposal.at.0 <= most.min(now_ms()) {
            return Ok(());
        }
        Err(format!(
            "B5: log time passes while its stamper runs: entry {index} of {leader:?} at {} and \
             not {most}, at {}",
            proposal.at.0,
            now_ms()
        ))
    }
}

/// The check that one life leads under one leader id can fail: when an instance goes on in its old
/// term after a crash, and when another one writes in its name.
#[test]
fn two_lives_that_lead_under_one_id_are_found() {
    type LeaderId = openraft::type_config::alias::LeaderIdOf<TypeConfig>;
    let id = |term, index| LogId::new(LeaderId::new_committed(term, 1), index);
    let entry = |term, index| Entry { log_id: id(term, index), payload: EntryPayload::Blank };
    let [first, again, other] =
        [(1, 1), (1, 2), (2, 1)].map(|(instance, life)| (InstanceId(instance), life));
    for wrong in [again, other] {
        let mut leaders = Leaders::default();
        assert_eq!(leaders.writes(first, None, &entry(1, 1)), Ok(true), "it begins to lead");
        assert_eq!(leaders.writes(first, Some(id(1, 1)), &entry(1, 2)), Ok(false));
        assert_eq!(leaders.writes(other, None, &entry(1, 1)), Ok(false), "a copy");
        let found = leaders.writes(wrong, Some(id(1, 2)), &entry(1, 3)).unwrap_err();
        assert!(found.starts_with("S14: one life leads"), "{found}");
        let mut leaders = Leaders::default();
        assert_eq!(leaders.writes(first, None, &entry(1, 1)), Ok(true));
        assert_eq!(leaders.writes(again, Some(id(1, 1)), &entry(2, 2)), Ok(true), "a new term");
    }
}
