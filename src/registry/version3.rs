//! A made-up version 3 of the rules, in test builds only (feature `rules-3`): a new command, a
//! field of a record and one beside them, and a rule that changes. Clusters of mixed versions are
//! tried with it; the next real version replaces it.

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
    /// The number of marks made.
    pub marks: u64,
    /// The number of ADD_PEERs applied under the new rules.
    pub peers: u64,
}

impl Registry {
    pub(super) fn mark(&mut self) {
        self.image.meta.marks.marks += 1;
    }

    /// Carries out the rule that changes: each ADD_PEER is counted, and its record says by which
    /// rules it was made.
    pub(super) fn mark_peer(&mut self) -> Option<Rules> {
        let rules = self.rules();
        (rules >= VERSION_3).then(|| {
            self.image.meta.marks.peers += 1;
            rules
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        codec,
        ids::{Incarnation, PeerId, SessionId, Source, Timestamp},
        registry::{Command, Proposal, Record},
    };

    fn apply(registry: &mut Registry, command: Command) {
        registry.apply(&Proposal { at: Timestamp(1), batch: None, commands: vec![command] });
    }

    fn add_peer(registry: &mut Registry, candidate: u32) {
        let (instance, incarnation) = (InstanceId(1), Incarnation(1));
        let session = SessionId { instance, incarnation, connection: 1 };
        let address = "any text".to_owned();
        let (source, candidate) = (Source::of([10, 0, 0, 1].into()), PeerId(candidate));
        apply(registry, Command::AddPeer { session, source, address, candidate });
    }

    fn versions(registry: &Registry) -> Vec<u8> {
        let records = registry.image().records.iter();
        records.map(|(_, record)| codec::encode(record)[0]).collect()
    }

    #[test]
    fn nothing_of_new_rules_happens_or_is_written_before_they_are_in_force() {
        let mut registry = Registry::default();
        let mark = || Command::Mark(Mark { by: InstanceId(1) });
        apply(&mut registry, mark());
        add_peer(&mut registry, 1);
        assert_eq!(registry.image().meta.marks, Marks::default());
        assert_eq!(codec::encode(&registry.image().meta)[0], 2);
        assert_eq!(versions(&registry), [2]);

        apply(&mut registry, Command::Raise { rules: VERSION_3 });
        apply(&mut registry, mark());
        add_peer(&mut registry, 2);
        assert_eq!(registry.image().meta.marks, Marks { marks: 1, peers: 1 });
        assert_eq!(codec::encode(&registry.image().meta)[0], 3);
        assert_eq!(versions(&registry), [2, 3], "what was there keeps its bytes");
        for (_, record) in registry.image().records.iter() {
            assert_eq!(codec::decode::<Record>(&codec::encode(record)).as_ref(), Ok(record));
        }
        // They are never lowered.
        apply(&mut registry, Command::Raise { rules: Rules::FIRST });
        assert_eq!(registry.rules(), VERSION_3);
    }
}
