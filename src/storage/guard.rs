//! Guards what raft takes for granted: an entry that was applied is never revoked and never another
//! one. openraft does not look at the id of an entry below the committed one, and asserts the rest
//! in debug builds only. So a disk that came back older, or two histories under one name, would go
//! unnoticed, and what clients were told would be cut away.
//!
//! The log and the state machine share one [`LogGuard`]. The first of them that sees a
//! contradiction refuses it, and the instance ends with exit code 78.

use std::sync::{Arc, Mutex, PoisonError};

use super::{
    fault::{DataFault, FaultReporter},
    identity::Identity,
    wal::Shared,
};
use crate::{
    ids::StoreId,
    raft::{Entry, LogId, SnapshotMeta, Vote},
};

/// The operator's way out of two histories.
const WAY_OUT: &str = "two histories were mixed, or a disk came back older than it was. Nothing \
                       was changed here. Keep the data directories of all instances, and compare \
                       them with `EMNetChain check` before any of them starts again";

/// Says what is wrong with an image or a snapshot that was written after entry `at`, where the log
/// holds `own` at that index.
pub(super) fn contradiction(at: LogId, own: Option<LogId>) -> Option<String> {
    let own = own.filter(|own| *own != at)?;
    Some(format!(
        "it was written after entry {at}, and the raft log has {own} there: they are of two \
         histories"
    ))
}

/// Says what is wrong with a log whose last vote is of the term `vote`, where `newest` is the last
/// entry that log, image or snapshot know of: a vote is saved before the first entry of its term.
pub(super) fn older_vote(vote: u64, newest: Option<LogId>) -> Option<String> {
    let newest = newest.filter(|newest| newest.committed_leader_id().term > vote)?;
    let term = newest.committed_leader_id().term;
    Some(format!(
        "the last vote in it is of term {vote}, and entry {newest} is here, which came after a \
         vote of term {term}: the raft log, or its file `state`, is an older copy"
    ))
}

/// Says what is wrong with a raft log that makes the directory the store `own`, where its identity,
/// or the members that image and snapshot know, say that it is another: a number has one store for
/// ever.
pub(super) fn other_store<'a>(
    identity: Identity,
    known: impl IntoIterator<Item = &'a SnapshotMeta>,
    own: Option<StoreId>,
) -> Option<String> {
    let own = own?;
    let member = |at: &SnapshotMeta| {
        at.last_membership.membership().get_node(&identity.node.0).and_then(|member| member.store)
    };
    let mut stores = identity.store.into_iter().chain(known.into_iter().filter_map(member));
    stores.find(|known| *known != own).map(|known| {
        format!(
            "the raft log is of store {own}, and this instance is store {known}: `raft` is of \
             another data directory. If its own is still somewhere, put it back"
        )
    })
}

/// Knows what was applied here, and which entries the log holds.
#[derive(Clone, Debug, Default)]
pub struct LogGuard(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    applied: Mutex<Option<LogId>>,
    /// `None` where the log is not ours, as in tests of the state machine.
    log: Option<(Arc<Shared>, FaultReporter)>,
    store: Option<StoreId>,
}

impl LogGuard {
    pub(super) fn new(log: Arc<Shared>, store: StoreId, faults: FaultReporter) -> Self {
        let (log, store) = (Some((log, faults)), Some(store));
        Self(Arc::new(Inner { applied: Mutex::default(), log, store }))
    }

    /// Returns the store that the log makes of its directory; `None` where the log is not ours.
    pub(super) fn store(&self) -> Option<StoreId> {
        self.0.store
    }

    /// Returns the last entry that was applied.
    pub(super) fn applied(&self) -> Option<LogId> {
        *self.0.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the last entry that was applied, or that a snapshot stands for.
    pub(super) fn set_applied(&self, id: Option<LogId>) {
        *self.0.applied.lock().unwrap_or_else(PoisonError::into_inner) = id;
    }

    /// Returns the id of our own entry at an index, if it is known.
    fn own(&self, index: u64) -> Option<LogId> {
        let applied = self.applied().filter(|applied| applied.index == index);
        applied.or_else(|| self.in_log(index))
    }

    /// Returns the id of the entry that the log holds at an index.
    pub(super) fn in_log(&self, index: u64) -> Option<LogId> {
        self.0.log.as_ref()?.0.lock().id_at(index)
    }

    /// Returns the term of the last vote, 0 before the first; `None` where the log is not ours.
    pub(super) fn vote_term(&self) -> Option<u64> {
        let log = self.0.log.as_ref()?.0.lock();
        Some(log.vote.map_or(0, |vote| vote.leader_id.term))
    }

    /// Checks what a leader sends before raft sees it. A contradiction is reported, and ends the
    /// instance.
    ///
    /// # Errors
    /// If an entry of it, or the one before them, is another one than was applied at its index.
    pub fn check_leader(
        &self,
        vote: &Vote,
        previous: Option<LogId>,
        entries: &[Entry],
    ) -> Result<(), DataFault> {
        let (Some((log, faults)), Some(applied)) = (&self.0.log, self.applied()) else {
            return Ok(());
        };
        // A leader that was replaced may still send entries that were revoked. Raft refuses it by
        // its vote. An applied entry of a later leader came after that leader's vote was saved.
        if log.lock().vote.is_some_and(|own| *vote < own) {
            return Ok(());
        }
        let ids = previous.into_iter().chain(entries.iter().map(|entry| entry.log_id));
        for id in ids.take_while(|id| id.index <= applied.index) {
            if let Some(own) = self.own(id.index).filter(|own| *own != id) {
                let index = id.index;
                let fault = DataFault::new(format!(
                    "the leader (vote {vote}) sends {id} as entry {index}, and {own} was applied \
                     here: {WAY_OUT}"
                ));
                faults.report(fault.clone());
                return Err(fault);
            }
        }
        Ok(())
    }

    /// Checks that entries from an index on may be written.
    pub(super) fn check_append(&self, first: LogId) -> Result<(), DataFault> {
        let index = first.index;
        self.check_end(index, format_args!("writes {first} as entry {index}"))
    }

    /// Checks that the entries behind one may be revoked.
    pub(super) fn check_truncation(&self, after: Option<LogId>) -> Result<(), DataFault> {
        let first = after.map_or(0, |after| after.index + 1);
        self.check_end(first, format_args!("revokes the entries from {first} on"))
    }

    fn check_end(&self, first: u64, what: std::fmt::Arguments<'_>) -> Result<(), DataFault> {
        match self.applied() {
            Some(applied) if first <= applied.index => {
                let own = self.own(first).unwrap_or(applied);
                Err(DataFault::new(format!(
                    "raft {what}, where the log has {own} and {applied} was applied: {WAY_OUT}"
                )))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Checks that the entries up to one may be forgotten: all of them were applied, and it is
    /// ours.
    pub(super) fn check_purge(&self, upto: LogId) -> Result<(), DataFault> {
        let Some(applied) = self.applied() else { return Ok(()) };
        let own = self.own(upto.index);
        if upto.index > applied.index || own.is_some_and(|own| own != upto) {
            let own = own.unwrap_or(applied);
            return Err(DataFault::new(format!(
                "raft forgets the entries up to {upto}, where the log has {own} and {applied} was \
                 applied: {WAY_OUT}"
            )));
        }
        Ok(())
    }

    /// Checks that an entry is the next to be applied; false if that very entry was applied
    /// before.
    pub(super) fn check_apply(&self, id: LogId) -> Result<bool, DataFault> {
        let applied = self.applied();
        let next = applied.map_or(0, |applied| applied.index + 1);
        let leader = applied.as_ref().map(LogId::committed_leader_id);
        if id.index == next && Some(id.committed_leader_id()) >= leader {
            return Ok(true);
        }
        let own = self.own(id.index);
        if id.index < next && own == Some(id) {
            return Ok(false);
        }
        let name = |id: Option<LogId>| id.map_or("nothing".to_owned(), |id| id.to_string());
        let (own, applied) = (name(own), name(applied));
        Err(DataFault::new(format!(
            "{id} is to be applied, where the log has {own} and {applied} was applied last: \
             {WAY_OUT}"
        )))
    }
}
