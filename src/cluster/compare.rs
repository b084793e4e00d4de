//! Replicas compare themselves with each other, because one that was damaged in memory or on disk,
//! or applied an entry otherwise than the rest, would tell its clients other partners than the
//! others do.
//!
//! Every replica keeps the digests of its registry at the same entries ([`Digests`]), asks the
//! voters for theirs at intervals, and judges itself: one whose digest at an entry is not that of a
//! majority of the voters leaves service, and tells no digests any more. Where no digest has a
//! majority and two contradict each other, it cannot be said which is right, so none of them
//! answers until there is a majority. Raft goes on in either case, because it replicates entries,
//! and the log is right.
//!
//! No verdict is false. At the same applied entry all replicas of one log have the same registry,
//! so two digests that differ are a fault of one; a replica that lags, was just started or has just
//! installed a snapshot has fewer entries in common with the others, and nothing follows from that.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use openraft::async_runtime::WatchReceiver;
use tokio::{sync::watch, time::sleep};

use super::{Cluster, proposer::WriteError, rpc::AskDigests};
use crate::{ids::InstanceId, raft::Member, storage::Digests};

/// Interval between comparisons.
const EVERY: Duration = Duration::from_secs(1);

/// Interval between comparisons when digests contradict each other and the answers of the others
/// may just have been on their way.
const AGAIN: Duration = Duration::from_millis(100);

/// Longest wait for the answer of a voter.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// The most attempts of a replica to find a majority to compare itself with before it begins a life
/// without: the others may run a program whose digests are of another kind.
const PROOFS_MAX: u32 = 5;

/// Why a life is over whose replica has left service.
pub const UNFIT: &str = "the registry of this instance differs from that of others";

/// The agreement of this instance's registry with those of the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Accord {
    /// Nothing speaks against it.
    #[default]
    Fits,
    /// Two digests contradicted each other at this entry when it was last looked; no majority was
    /// heard for either of them, which may have been chance.
    Suspect {
        /// The entry.
        entry: u64,
    },
    /// Two digests contradict each other at this entry, and no majority has either of them.
    Contested {
        /// The entry.
        entry: u64,
    },
    /// A majority of the voters has another digest at this entry. That does not mend itself, so it
    /// holds until another registry is installed.
    Differs {
        /// The entry.
        entry: u64,
    },
}

impl Accord {
    /// Returns why this replica must not answer clients, and what to do: a sentence without its
    /// full stop. `None` if it may.
    pub fn trouble(self) -> Option<String> {
        match self {
            Self::Fits | Self::Suspect { .. } => None,
            Self::Contested { entry } => Some(format!(
                "the replicas differ at entry {entry}, and no majority of the voters has the same \
                 registry: start the voters that are down, and see \"When replicas differ\" in \
                 deploy/RUNBOOK.md"
            )),
            Self::Differs { entry } => Some(format!(
                "the registry of this instance differs from that of a majority of the voters at \
                 entry {entry}: stop it and give it theirs, by \"When replicas differ\" in \
                 deploy/RUNBOOK.md"
            )),
        }
    }

    /// Returns the state after another comparison.
    fn after(self, verdict: Verdict) -> Self {
        match (self, verdict) {
            (Self::Differs { .. }, _) => self,
            (_, Verdict::Differs(entry)) => Self::Differs { entry },
            (Self::Contested { .. }, Verdict::Contested(_)) => self,
            (_, Verdict::Agrees) => Self::Fits,
            (Self::Fits, Verdict::Contested(entry)) => Self::Suspect { entry },
            (_, Verdict::Contested(entry)) => Self::Contested { entry },
            (_, Verdict::Nothing) => self,
        }
    }
}

/// Remembers how this replica stands; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Standing(Arc<watch::Sender<Accord>>);

/// The digests of one replica, by entry.
type Known = BTreeMap<u64, u64>;

/// The verdict on a replica from the digests of some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// They have too little in common.
    Nothing,
    /// A majority has its digest.
    Agrees,
    /// At this entry others have another digest, and no majority has either.
    Contested(u64),
    /// At this entry a majority has another digest.
    Differs(u64),
}

/// Judges replica `me`. The electorate is one set of voters, or two while the members change: then
/// a majority is one of each.
fn judge(
    me: InstanceId,
    known: &BTreeMap<InstanceId, Known>,
    electorate: &[BTreeSet<InstanceId>],
) -> Verdict {
    let mut holders: BTreeMap<u64, BTreeMap<u64, BTreeSet<InstanceId>>> = BTreeMap::new();
    let votes = |id: &InstanceId| electorate.iter().any(|voters| voters.contains(id));
    for (id, digests) in known.iter().filter(|(id, _)| votes(id)) {
        for (entry, digest) in digests {
            holders.entry(*entry).or_default().entry(*digest).or_default().insert(*id);
        }
    }
    let is_majority = |some: &BTreeSet<InstanceId>| {
        let of = |voters: &BTreeSet<_>| 2 * voters.intersection(some).count() > voters.len();
        !electorate.is_empty() && electorate.iter().all(of)
    };
    let decided = |digests: &BTreeMap<u64, BTreeSet<InstanceId>>| {
        digests.iter().find(|(_, some)| is_majority(some)).map(|(digest, _)| *digest)
    };
    let right: Known =
        holders.iter().filter_map(|(entry, digests)| Some((*entry, decided(digests)?))).collect();
    let differs = |digests: &Known| {
        let mut differing = digests
            .iter()
            .filter(|(entry, digest)| right.get(entry).is_some_and(|majority| majority != *digest));
        differing.next().map(|(entry, _)| *entry)
    };
    let Some(mine) = known.get(&me) else { return Verdict::Nothing };
    if let Some(entry) = differs(mine) {
        return Verdict::Differs(entry);
    }
    let agreed = mine.keys().rev().find(|entry| right.contains_key(entry));
    // What a voter says that a majority contradicts elsewhere raises no doubt in the others.
    let sound = |id: &InstanceId| known.get(id).is_some_and(|digests| differs(digests).is_none());
    let contested = mine.iter().rev().find(|(entry, digest)| {
        let others = holders.get(entry).into_iter().flatten().filter(|(other, _)| other != digest);
        !right.contains_key(entry) && others.flat_map(|(_, some)| some).any(sound)
    });
    match (agreed, contested) {
        (None, None) => Verdict::Nothing,
        (agreed, Some((entry, _))) if agreed < Some(entry) => Verdict::Contested(*entry),
        (_, _) => Verdict::Agrees,
    }
}

impl Cluster {
    /// Returns the agreement of this instance's registry with those of the others; it can be
    /// watched.
    pub fn accord(&self) -> watch::Receiver<Accord> {
        self.standing.0.subscribe()
    }

    /// Compares this replica with the others before it answers clients, as far as they are there,
    /// because what was wrong when an instance stopped is wrong when it starts. If it must not
    /// answer, ends its life, so that no partner waits for its clients, and waits until it may;
    /// then it returns false.
    pub(super) async fn prove(&self) -> bool {
        for _ in 0..PROOFS_MAX {
            let verdict = self.compare().await;
            let suspect = matches!(*self.standing.0.borrow(), Accord::Suspect { .. });
            if verdict != Verdict::Nothing && !suspect {
                break;
            }
            sleep(AGAIN).await;
        }
        let mut accord = self.accord();
        if accord.borrow_and_update().trouble().is_none() {
            return true;
        }
        self.end_life().await;
        // The sender is as old as this instance.
        let _ = accord.wait_for(|accord| accord.trouble().is_none()).await;
        false
    }

    /// Compares this replica with the others for as long as the instance runs, and gives the
    /// leadership away while it differs from them.
    ///
    /// # Errors
    /// Never; the type is that of the tasks beside it.
    pub(super) async fn keep_comparing(&self) -> Result<(), WriteError> {
        loop {
            self.compare().await;
            let accord = *self.standing.0.borrow();
            match accord {
                Accord::Fits | Accord::Contested { .. } => sleep(EVERY).await,
                Accord::Suspect { .. } => sleep(AGAIN).await,
                Accord::Differs { .. } => {
                    self.step_down().await;
                    sleep(EVERY).await;
                }
            }
        }
    }

    /// Compares once, and takes note of what follows.
    async fn compare(&self) -> Verdict {
        let installed = self.view().installed();
        let verdict = self.confer().await;
        let replaced = self.view().installed() != installed;
        self.standing.0.send_if_modified(|accord| {
            // What was found out about a registry says nothing about the one in its place.
            let next = if replaced { Accord::default() } else { accord.after(verdict) };
            let is_new = *accord != next;
            if is_new {
                self.note_accord(*accord, next);
                if matches!(next, Accord::Differs { .. }) {
                    // Otherwise it would raise doubts in those that are right, once some are away.
                    self.view().disown();
                }
            }
            *accord = next;
            is_new
        });
        if replaced { Verdict::Nothing } else { verdict }
    }

    fn note_accord(&self, before: Accord, now: Accord) {
        self.metrics.replicas_differ.set(i64::from(now.trouble().is_some()));
        match (before.trouble(), now.trouble()) {
            (_, Some(why)) => tracing::error!("leaving service: {why}"),
            (Some(_), None) => tracing::info!("the registry agrees with the others: in service"),
            (None, None) => {}
        }
    }

    /// Asks the voters, until a majority is found to agree or all have answered.
    async fn confer(&self) -> Verdict {
        let (electorate, others) = self.electorate();
        let asks = others.into_iter().map(|(id, member)| async move {
            let answer = self.network.ask(id, &member, AskDigests, ANSWER_MAX).await;
            (id, answer)
        });
        let mut asks: FuturesUnordered<_> = asks.collect();
        let mut known = BTreeMap::new();
        loop {
            // Entries come meanwhile, so ours are looked at again with every answer.
            let mine = self.view().digests();
            let kind = mine.kind;
            known.entry(self.instance).or_insert_with(Known::new).extend(by_entry(mine));
            let verdict = judge(self.instance, &known, &electorate);
            if verdict == Verdict::Agrees {
                return verdict;
            }
            match asks.next().await {
                Some((id, Ok(theirs))) if theirs.kind == kind => {
                    known.insert(id, by_entry(theirs).collect());
                }
                Some((_, Ok(_))) => {}
                Some((id, Err(error))) => tracing::debug!(id = id.0, %error, "not compared"),
                None => return verdict,
            }
        }
    }

    /// Returns the voters, in two sets while they change, and how the others of them are reached.
    fn electorate(&self) -> (Vec<BTreeSet<InstanceId>>, BTreeMap<InstanceId, Member>) {
        let states = self.raft.metrics();
        let now = states.borrow_watched();
        let membership = now.membership_config.membership();
        let sets = membership.get_joint_config().iter();
        let sets = sets.map(|voters| voters.iter().copied().map(InstanceId).collect()).collect();
        let others = membership.voter_ids().filter(|id| *id != self.instance.0);
        let others =
            others.filter_map(|id| Some((InstanceId(id), membership.get_node(&id)?.clone())));
        (sets, others.collect())
    }
}

fn by_entry(digests: Digests) -> impl Iterator<Item = (u64, u64)> {
    digests.points.into_iter().map(|point| (point.entry, point.digest))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Digests by entry, from `64:a 128:b`.
    fn points(text: &str) -> Known {
        let point = |text: &str| {
            let (entry, digest) = text.split_once(':').unwrap();
            (entry.parse().unwrap(), u64::from(digest.as_bytes()[0]))
        };
        text.split_whitespace().map(point).collect()
    }

    fn verdict(me: u64, electorate: &[&[u64]], known: &[(u64, &str)]) -> Verdict {
        let set = |ids: &&[u64]| ids.iter().copied().map(InstanceId).collect();
        let electorate: Vec<BTreeSet<InstanceId>> = electorate.iter().map(set).collect();
        let known = known.iter().map(|(id, text)| (InstanceId(*id), points(text))).collect();
        judge(InstanceId(me), &known, &electorate)
    }

    const THREE: &[&[u64]] = &[&[1, 2, 3]];
    const FIVE: &[&[u64]] = &[&[1, 2, 3, 4, 5]];

    #[test]
    fn a_majority_decides() {
        let all = [(1, "64:a"), (2, "64:a"), (3, "64:x")];
        assert_eq!(verdict(1, THREE, &all), Verdict::Agrees);
        assert_eq!(verdict(2, THREE, &all), Verdict::Agrees);
        assert_eq!(verdict(3, THREE, &all), Verdict::Differs(64));
        assert_eq!(verdict(1, THREE, &all[..2]), Verdict::Agrees, "two of three are a majority");
        assert_eq!(verdict(1, &[&[1]], &[(1, "64:a")]), Verdict::Agrees, "one of one is");
        let split = [(1, "64:a"), (2, "64:a"), (3, "64:x"), (4, "64:y"), (5, "64:a")];
        assert_eq!(verdict(4, FIVE, &split), Verdict::Differs(64));
    }

    #[test]
    fn without_a_majority_all_that_contradict_each_other_are_in_doubt() {
        for me in [1, 3] {
            let two = [(1, "64:a"), (3, "64:x")];
            assert_eq!(verdict(me, THREE, &two), Verdict::Contested(64));
            assert_eq!(verdict(me, &[&[1, 3]], &two), Verdict::Contested(64), "an even number");
        }
        let halves = [(1, "64:a"), (2, "64:a"), (3, "64:x"), (4, "64:x")];
        for me in 1..=4 {
            assert_eq!(verdict(me, FIVE, &halves), Verdict::Contested(64));
        }
        let three = [(1, "64:a"), (2, "64:b"), (3, "64:c")];
        assert_eq!(verdict(2, THREE, &three), Verdict::Contested(64));
    }

    #[test]
    fn nothing_follows_from_entries_that_are_not_shared() {
        assert_eq!(verdict(1, THREE, &[(1, "64:a")]), Verdict::Nothing);
        let apart = [(1, "64:a 70:b"), (2, "128:x 130:y"), (3, "128:x 131:z")];
        assert_eq!(verdict(1, THREE, &apart), Verdict::Nothing, "one that lags");
        let fresh = [(1, "131:z"), (2, "64:a 128:x 131:z"), (3, "64:a 128:x 130:y")];
        assert_eq!(verdict(1, THREE, &fresh), Verdict::Agrees, "one that was just started");
        assert_eq!(verdict(1, &[], &[(1, "0:a"), (2, "0:b")]), Verdict::Nothing, "not founded");
    }

    #[test]
    fn a_voter_that_was_found_wrong_raises_no_doubt_later() {
        let all = [(1, "64:a 70:b"), (2, "64:a 71:c"), (3, "64:x 70:y")];
        assert_eq!(verdict(1, THREE, &all), Verdict::Agrees);
        assert_eq!(verdict(3, THREE, &all), Verdict::Differs(64));
        let since = [(1, "64:a 70:b"), (2, "64:a 71:c"), (3, "64:a 70:y")];
        assert_eq!(verdict(1, THREE, &since), Verdict::Contested(70), "it is not found out yet");
        let later = [(1, "64:a 70:b 72:d"), (2, "64:a 72:d"), (3, "64:a 70:y")];
        assert_eq!(verdict(1, THREE, &later), Verdict::Agrees, "it was settled since");
    }

    #[test]
    fn learners_are_judged_and_do_not_count() {
        let all = [(1, "64:a"), (2, "64:a"), (4, "64:x")];
        assert_eq!(verdict(4, THREE, &all), Verdict::Differs(64));
        let alone = [(1, "64:a"), (4, "64:x"), (5, "64:x")];
        assert_eq!(verdict(1, THREE, &alone), Verdict::Nothing);
        assert_eq!(verdict(4, THREE, &alone), Verdict::Contested(64));
        assert_eq!(verdict(4, &[&[1]], &alone), Verdict::Differs(64));
    }

    #[test]
    fn while_voters_change_both_sets_must_agree() {
        let joint: &[&[u64]] = &[&[1, 2, 3], &[3, 4, 5]];
        let some = [(1, "64:a"), (2, "64:a"), (3, "64:x")];
        assert_eq!(verdict(3, joint, &some), Verdict::Contested(64));
        let more = [(1, "64:a"), (2, "64:a"), (3, "64:x"), (4, "64:a"), (5, "64:a")];
        assert_eq!(verdict(3, joint, &more), Verdict::Differs(64));
    }

    #[test]
    fn a_doubt_must_last_and_a_difference_stays() {
        let doubt = Accord::Fits.after(Verdict::Contested(64));
        assert_eq!((doubt, doubt.trouble()), (Accord::Suspect { entry: 64 }, None));
        assert_eq!(doubt.after(Verdict::Agrees), Accord::Fits);
        let contested = doubt.after(Verdict::Contested(70));
        assert!(contested.trouble().unwrap().contains("at entry 70"));
        assert_eq!(contested.after(Verdict::Nothing), contested, "silence settles nothing");
        assert_eq!(contested.after(Verdict::Contested(99)), contested, "it is said once");
        assert_eq!(contested.after(Verdict::Agrees), Accord::Fits);
        let differs = contested.after(Verdict::Differs(64));
        assert!(differs.trouble().unwrap().contains("at entry 64"));
        assert_eq!(differs.after(Verdict::Agrees), differs);
    }
}
