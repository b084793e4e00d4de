//! A made-up version 3 of the rules, in test builds only (feature `rules-3`): a new command, a field
//! of a record and one beside them, and a rule that changes. Clusters of mixed versions are tried
//! with it; the next real version replaces it.

use serde::{Deserialize, Serialize};

use super::{Registry, Rules};
use crate::ids::InstanceId;

/// The rules.
const VERSION_3: Rules = Rules(3);

/// A new command: an instance says that it knows the new version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The instance.
    pub by: InstanceId,
}

/// New values beside the records.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// How many marks were made.
    pub marks: u64,
    /// How many ADD_PEERs came while the new rules were in force.
    pub peers: u64,
}

impl Registry {
    pub(super) fn mark(&mut self) {
        self.image.meta.marks.marks += 1;
    }

    /// The rule that changes: each ADD_PEER is counted, and its record says by which rules it was
    /// made.
    pub(super) fn mark_peer(&mut self) -> Option<Rules> {
        let rules = self.rules();
        (rules >= VERSION_3).then(|| {
            self.image.meta.marks.peers += 1;
            rules
        })
    }
}
