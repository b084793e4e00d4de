//! The reason why an instance with an empty log waits, in a sentence for operators.

use std::collections::BTreeMap;

use super::{rpc::FoundingAnswer, turned::Learnt};
use crate::{ids::InstanceId, raft::Member};

/// Returns the addresses of a list.
pub(super) fn addresses(members: &BTreeMap<InstanceId, Member>) -> BTreeMap<InstanceId, String> {
    members.iter().map(|(id, member)| (*id, member.raft_addr.clone())).collect()
}

/// The answers of the others.
pub(super) type Answers = BTreeMap<InstanceId, Result<FoundingAnswer, String>>;

/// The reason for which an instance with an empty log waits.
pub(super) struct Waiting<'a> {
    pub(super) me: InstanceId,
    pub(super) members: &'a BTreeMap<InstanceId, Member>,
    pub(super) answers: &'a Answers,
}

impl Waiting<'_> {
    fn named(&self, id: InstanceId) -> String {
        let address = self.members.get(&id).map(|member| member.raft_addr.as_str());
        format!("{} ({})", id.0, address.unwrap_or("?"))
    }

    /// Returns a sentence that says what is waited for and what an operator can do.
    pub(super) fn text(&self, learnt: &Learnt, is_known: bool) -> String {
        let me = self.me.0;
        if let Some((entry, by)) = learnt.removed {
            return removed_text(self.me, entry, by);
        }
        if is_known {
            return "the cluster knows this instance; waiting for its leader".to_owned();
        }
        let founded =
            self.answers.values().any(|it| matches!(it, Ok(FoundingAnswer::Founded { .. })));
        if founded || !self.members.contains_key(&self.me) {
            let absent = self.absent();
            let unheard = if founded || absent.is_empty() {
                String::new()
            } else {
                format!("; no answer from {}", absent.join(", "))
            };
            return format!(
                "waiting to be added to the cluster; on a member: EMNetChain cluster add \
                 {me}=HOST:PORT{unheard}"
            );
        }
        let differing: Vec<String> = self
            .answers
            .iter()
            .filter(|(_, it)| {
                let own = addresses(self.members);
                matches!(it, Ok(FoundingAnswer::Empty { list, .. }) if *list != own)
            })
            .map(|(id, _)| self.named(*id))
            .collect();
        if !differing.is_empty() {
            return format!(
                "founding the cluster: {} was started with another --initial-cluster than this \
                 instance; start all with the same list",
                differing.join(", ")
            );
        }
        let absent = self.absent();
        if absent.is_empty() {
            let first = self.members.keys().next().copied().unwrap_or(self.me);
            return format!("founding the cluster: instance {} begins", first.0);
        }
        format!(
            "founding the cluster: waiting for {}; all listed members must be there: start what is \
             missing. If none of them ever served, you may instead start the others with a shorter \
             --initial-cluster and add it later (EMNetChain cluster add)",
            absent.join(", ")
        )
    }

    /// Returns the listed ones that do not answer, each with its address and why.
    fn absent(&self) -> Vec<String> {
        let silent =
            self.answers.iter().filter_map(|(id, answer)| Some((id, answer.as_ref().err()?)));
        silent.map(|(id, why)| format!("{}: {why}", self.named(*id))).collect()
    }
}

/// Says that this instance was removed.
pub(super) fn removed_text(me: InstanceId, entry: u64, by: InstanceId) -> String {
    format!(
        "this instance was removed from the cluster by entry {entry}, as instance {} says; stop \
         it: number {} is never used again, and a new one begins with an empty data directory",
        by.0, me.0
    )
}

#[cfg(test)]
mod tests {
    use super::{
        super::found::tests::{answers, empty, list},
        *,
    };

    #[test]
    fn what_is_waited_for_is_named_with_the_way_out() {
        let members = list(&[1, 2, 3]);
        let text = |me: u64, answers: &Answers, learnt: &Learnt, is_known: bool| {
            let me = InstanceId(me);
            Waiting { me, members: &members, answers }.text(learnt, is_known)
        };
        let nothing = Learnt::default();
        let ids = [1, 2, 3];
        let missing = answers(&[(2, empty(20, &ids)), (3, Err("nothing listens".to_owned()))]);
        let told = text(1, &missing, &nothing, false);
        assert!(told.contains("3 (host-3:7000): nothing listens") && told.contains("cluster add"));
        assert!(!told.contains("2 (host-2"), "{told}");
        let differing = answers(&[(2, empty(20, &[1, 2])), (3, empty(30, &ids))]);
        let told = text(1, &differing, &nothing, false);
        assert!(told.contains("2 (host-2:7000) was started with another"), "{told}");
        let told =
            text(2, &answers(&[(1, empty(10, &ids)), (3, empty(30, &ids))]), &nothing, false);
        assert!(told.contains("instance 1 begins"), "{told}");
        let told = text(4, &missing, &nothing, false);
        assert!(told.contains("cluster add 4=HOST:PORT") && told.contains("no answer from 3"));
        let told = text(4, &missing, &nothing, true);
        assert!(told.contains("waiting for its leader"), "{told}");
        let removed = Learnt { removed: Some((7, InstanceId(2))), ..nothing };
        let told = text(3, &missing, &removed, false);
        assert!(told.contains("by entry 7, as instance 2 says"), "{told}");
    }
}
