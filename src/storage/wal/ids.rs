//! The ids of all entries of a log, in little room: the leader changes seldom, so only the entries
//! are kept at which it did.

use crate::raft::LogId;

/// The ids of entries without a gap, from some index on.
#[derive(Clone, Debug, Default)]
pub(in crate::storage) struct LogIds(Vec<LogId>);

impl LogIds {
    /// Adds the id of the next entry.
    pub(in crate::storage) fn push(&mut self, id: LogId) {
        let leader = self.0.last().map(LogId::committed_leader_id);
        if leader != Some(id.committed_leader_id()) {
            self.0.push(id);
        }
    }

    /// Adds the ids of the next entries.
    pub(super) fn append(&mut self, next: &Self) {
        next.0.iter().for_each(|id| self.push(*id));
    }

    /// Forgets the ids from an index on.
    pub(super) fn truncate(&mut self, end: u64) {
        self.0.truncate(self.0.partition_point(|id| id.index < end));
    }

    /// May forget the ids before an index.
    pub(super) fn purge(&mut self, first: u64) {
        let begun = self.0.partition_point(|id| id.index <= first);
        self.0.drain(..begun.saturating_sub(1));
    }

    /// Returns the id of the entry at an index that the log holds.
    pub(super) fn at(&self, index: u64) -> Option<LogId> {
        let begun = self.0.partition_point(|id| id.index <= index);
        let leader = self.0[..begun].last()?.committed_leader_id();
        Some(LogId::new(*leader, index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::LeaderId;

    fn id(term: u64, index: u64) -> LogId {
        LogId::new(LeaderId { term, node_id: 1 }, index)
    }

    #[test]
    fn each_id_is_known_as_it_was_added() {
        let mut ids = LogIds::default();
        assert_eq!(ids.at(0), None);
        let all = [id(1, 0), id(1, 1), id(1, 2), id(4, 3), id(5, 4), id(5, 5)];
        all.iter().for_each(|id| ids.push(*id));
        assert_eq!(ids.0.len(), 3);
        assert!(all.iter().all(|id| ids.at(id.index) == Some(*id)));
        ids.purge(2);
        assert!(all[2..].iter().all(|id| ids.at(id.index) == Some(*id)));
        ids.purge(3);
        assert_eq!((ids.at(2), ids.at(3)), (None, Some(id(4, 3))));
        ids.truncate(5);
        assert_eq!(ids.at(4), Some(id(5, 4)));
        ids.truncate(4);
        ids.push(id(7, 4));
        assert_eq!((ids.at(3), ids.at(4)), (Some(id(4, 3)), Some(id(7, 4))));
    }
}
