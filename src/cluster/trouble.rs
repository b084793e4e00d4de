//! The reason why clients cannot be answered now, one sentence for each cause: which members are
//! not reached, why, and what an operator can do. The sentence is in `/readyz`, in `cluster
//! status`, and in the log when it changes, so nothing in it changes by itself.

use std::{fmt::Write as _, time::Duration};

use openraft::{Instant as _, ServerState, async_runtime::WatchReceiver};

use super::{Cluster, greeter::Roster, peers::Reach, status::CUT_OFF_AFTER, waiting::removed_text};
use crate::ids::InstanceId;

/// Writes at the start of an instance take less than that, unless something is wrong.
const UNWRITTEN_AFTER: Duration = Duration::from_secs(3);

impl Cluster {
    /// Returns why clients cannot be answered now: a sentence; `None` if they can.
    pub fn trouble(&self) -> Option<String> {
        let learnt = self.learnt().borrow().clone();
        if let Some(turned) = learnt.turned {
            return Some(turned.to_string());
        }
        if let Some((entry, by)) = learnt.removed {
            return Some(removed_text(self.instance, entry, by));
        }
        let (voters, trouble) = self.leaderless();
        let trouble = trouble?;
        // That the others are reached, and do not call, is what tells it from an outage.
        let is_heard = self.members().keys().any(|id| self.is_reached(*id));
        let misplaced = self.misplaced().filter(|_| is_heard);
        let Some((known, started)) = misplaced else { return Some(trouble) };
        let me = self.instance.0;
        let text = if self.greeter.place().is_old() {
            format!(
                "the members look for this instance at {known}, but it is started for {started}: \
                 run `EMNetChain cluster add {me}={started}` at another member, or start it at \
                 {known} again"
            )
        } else {
            format!(
                "no member has called this instance yet: they look for it at {known}, and it is \
                 started for {started}"
            )
        };
        let also = if self.has_majority(&voters) { String::new() } else { format!("; {trouble}") };
        Some(text + &also)
    }

    /// Returns why no leader is reached that could write; `None` if one is. A leader elsewhere that
    /// is reached and not heard may well do what it is asked.
    pub(super) fn without_majority(&self) -> Option<String> {
        let leader = self.raft.metrics().borrow_watched().current_leader.map(InstanceId);
        let is_there = leader.is_some_and(|id| id != self.instance && self.is_reached(id));
        if is_there { None } else { self.trouble() }
    }

    /// Returns the voters, and why no leader is there for this instance; `None` if one is.
    fn leaderless(&self) -> (Vec<InstanceId>, Option<String>) {
        let states = self.raft.metrics();
        let now = states.borrow_watched();
        let voters: Vec<InstanceId> =
            now.membership_config.membership().voter_ids().map(InstanceId).collect();
        let alone = voters == [self.instance];
        let leads = now.state == ServerState::Leader;
        let is_cut_off = |silence: Option<Duration>| silence.is_none_or(|it| it > CUT_OFF_AFTER);
        let leader = now.current_leader.map(InstanceId);
        let heard = if leads {
            now.last_quorum_acked.map(|at| at.elapsed())
        } else {
            self.contact.silence()
        };
        drop(now);
        let trouble = match leader {
            None => Some(self.without_a_leader(&voters)),
            Some(_) if leads && (alone || !is_cut_off(heard)) => None,
            Some(_) if leads => {
                Some(format!("no majority of the voters is reached{}", self.unreached(&voters)))
            }
            Some(_) if !is_cut_off(heard) => None,
            Some(leader) if self.is_reached(leader) => {
                Some(format!("the leader, instance {}, is reached and sends nothing", leader.0))
            }
            // A restarted instance knows which one led before it stopped.
            Some(_) => Some(self.without_a_leader(&voters)),
        };
        (voters, trouble)
    }

    /// Returns why this instance does not serve yet though a leader is heard; `None` if nothing is
    /// in the way that it knows of. What it writes at its start goes to the leader.
    pub fn unwritten(&self, waited: Duration) -> Option<String> {
        let leader = InstanceId(self.raft.metrics().borrow_watched().current_leader?);
        let address = self.members().remove(&leader).unwrap_or_default().raft_addr;
        match self.greeter.peers().reach(leader) {
            _ if leader == self.instance => (waited > UNWRITTEN_AFTER).then(|| {
                "this instance leads, and what it writes is not on the disks of a majority yet"
                    .to_owned()
            }),
            Reach::Lost(why) => Some(unreached_leader(leader, &address, &plain(&why))),
            Reach::Refused(why) => Some(unreached_leader(leader, &address, &why)),
            Reach::Untried | Reach::Reached => (waited > UNWRITTEN_AFTER).then(|| {
                format!(
                    "the leader, instance {} ({address}), is reached and has not written what this \
                     instance needs to serve",
                    leader.0
                )
            }),
        }
    }

    /// Returns whether a majority of the voters is reached, this instance included.
    fn has_majority(&self, voters: &[InstanceId]) -> bool {
        let is_there = |id: &&InstanceId| **id == self.instance || self.is_reached(**id);
        2 * voters.iter().filter(is_there).count() > voters.len()
    }

    /// Returns why there is no leader.
    fn without_a_leader(&self, voters: &[InstanceId]) -> String {
        if voters.is_empty() {
            return "the cluster has no leader that speaks to this instance".to_owned();
        }
        if !self.has_majority(voters) {
            return format!(
                "the cluster has no leader, because no majority of its {} voters is reached{}",
                voters.len(),
                self.unreached(voters)
            );
        }
        if !voters.contains(&self.instance) {
            return format!(
                "the cluster has no leader that speaks to this instance{}",
                self.unreached(voters)
            );
        }
        format!("the cluster has no leader; its voters elect one{}", self.unreached(voters))
    }

    fn is_reached(&self, id: InstanceId) -> bool {
        self.greeter.peers().reach(id) == Reach::Reached
    }

    /// Returns those that are not reached, each with its address and the reason, and what can be
    /// done; empty if there are none.
    fn unreached(&self, ids: &[InstanceId]) -> String {
        let members: Roster = self.members();
        let (mut text, mut is_lost) = (String::new(), false);
        for id in ids.iter().filter(|id| **id != self.instance) {
            let why = match self.greeter.peers().reach(*id) {
                Reach::Reached => continue,
                Reach::Untried => "not tried yet".to_owned(),
                Reach::Lost(why) => {
                    is_lost = true;
                    plain(&why)
                }
                Reach::Refused(why) => why,
            };
            let address = members.get(id).map_or("?", |member| member.raft_addr.as_str());
            let before = if text.is_empty() { ": " } else { ", " };
            let _ = write!(text, "{before}{} ({address}): {why}", id.0);
        }
        if is_lost {
            text.push_str(
                "; start what is missing, or replace one whose disk is lost (runbook: Replace a \
                 lost instance; When a majority is lost)",
            );
        }
        text
    }
}

/// Says that a leader which speaks to this instance is not reached by it.
fn unreached_leader(leader: InstanceId, address: &str, why: &str) -> String {
    let id = leader.0;
    format!(
        "the leader, instance {id}, is heard, but it is not reached at {address}: {why}; if it \
         runs elsewhere, start it at {address} again, or stop it and run `EMNetChain cluster add \
         {id}=HOST:PORT` at another member"
    )
}

/// Returns a system's or TLS's reason in an operator's words.
fn plain(why: &str) -> String {
    let known = [
        ("Connection refused", "nothing listens there (connection refused)"),
        ("certificate expired", "its certificate has expired"),
        ("CertificateExpired", "it does not accept this instance's certificate: it has expired"),
        ("certificate not valid yet", "its certificate is not valid yet (check the clocks)"),
        ("UnknownIssuer", "its certificate is of another CA"),
        // The CAs of two clusters may have one name, and then it is the signature that is wrong.
        ("BadSignature", "its certificate is of another CA"),
        ("UnknownCA", "it does not accept this instance's certificate: another CA"),
        ("DecryptError", "it does not accept this instance's certificate: another CA"),
        ("NotValidForName", "its certificate is that of another instance or cluster"),
        ("No route to host", "no route leads there"),
        ("Network is unreachable", "no route leads there"),
        ("failed to lookup address", "its name cannot be resolved"),
        ("unexpected end of file", "what listens there closes the connection"),
        ("early eof", "what listens there closes the connection"),
        ("Connection reset", "what listens there closes the connection"),
        ("in time", "no answer from there"),
    ];
    let plain = known.iter().find(|(part, _)| why.contains(part)).map(|(_, plain)| *plain);
    plain.map_or_else(|| why.to_owned(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::{InstanceId, plain, unreached_leader};

    #[test]
    fn a_leader_that_is_heard_and_not_reached_is_named_with_its_address() {
        let told = unreached_leader(InstanceId(3), "old:7000", "no answer from there");
        for part in ["instance 3, is heard", "not reached at old:7000: no answer", "add 3=HOST"] {
            assert!(told.contains(part), "{told}");
        }
    }

    #[test]
    fn the_systems_reasons_are_put_in_an_operators_words() {
        for (why, expected) in [
            ("Connection refused (os error 111)", "nothing listens there"),
            ("invalid peer certificate: certificate expired: verification", "has expired"),
            ("received fatal alert: CertificateExpired", "this instance's certificate"),
            ("invalid peer certificate: BadSignature", "of another CA"),
            ("received fatal alert: DecryptError", "another CA"),
            ("no connection in time", "no answer from there"),
            ("something else", "something else"),
        ] {
            assert!(plain(why).contains(expected), "{why}: {}", plain(why));
        }
    }
}
