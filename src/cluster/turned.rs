//! The facts that an instance learns about itself from others: that its votes are lost and it
//! cannot go on with its data directory, or that it was removed.

use super::progress::Progress;
use crate::ids::{HistoryId, InstanceId, StoreId};

/// Why this instance cannot go on with its data directory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Turned {
    /// Its number belongs to another store, or has lived and this store is empty.
    #[error(
        "the data directory is empty or new, but instance {by} knows number {me} with another \
         store{}: the disk was lost or replaced, and with it the votes of number {me}, so the \
         number cannot be used again; give this instance an empty data directory and a number that \
         no instance had: on a member, `EMNetChain cluster add` it, `EMNetChain cluster promote` \
         it when it has caught up, and `EMNetChain cluster remove {me}`",
        .recorded.map(|store| format!(" ({store})")).unwrap_or_default(),
        by = by.0, me = me.0
    )]
    Lost {
        /// This instance.
        me: InstanceId,
        /// The instance that knows it.
        by: InstanceId,
        /// The store that bears the number.
        recorded: Option<StoreId>,
    },
    /// Its store acknowledged more than it holds.
    #[error(
        "the data directory is an older copy: it holds {held}, but instance {by} remembers that \
         this store ({store}) acknowledged {remembered}; it has forgotten votes or entries that \
         count, so refilling it is not safe; give this instance an empty data directory and a \
         number that no instance had: on a member, `EMNetChain cluster add` it, `EMNetChain \
         cluster promote` it when it has caught up, and `EMNetChain cluster remove {me}`",
        by = by.0, me = me.0
    )]
    RolledBack {
        /// This instance.
        me: InstanceId,
        /// The instance that remembers.
        by: InstanceId,
        /// The store.
        store: StoreId,
        /// The progress of the store.
        held: Progress,
        /// The progress that it acknowledged.
        remembered: Progress,
    },
    /// A member has another history.
    #[error(
        "the data directory has history {mine}, and instance {by} has history {theirs} under the \
         same cluster id: they were founded apart and must not mix; stop the one whose data is not \
         wanted, and give it an empty data directory and a number that no instance had"
    , by = by.0)]
    History {
        /// The instance that has the other one.
        by: InstanceId,
        /// This instance's.
        mine: HistoryId,
        /// The other one's.
        theirs: HistoryId,
    },
}

/// The facts that this instance has learnt about itself from others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Learnt {
    /// Why it cannot go on.
    pub turned: Option<Turned>,
    /// The entry that removed it from the cluster, and the instance that said so.
    pub removed: Option<(u64, InstanceId)>,
}
