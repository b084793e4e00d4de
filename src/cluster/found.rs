//! How an instance with an empty log gets into a cluster: it founds one with the others, or it is
//! taken in by one that exists.
//!
//! All instances of a new cluster are started with the same list of members. Each asks the others
//! how they stand ([`Standing`]). When nobody is in a cluster yet and a majority answers, everybody
//! founds the same cluster, and raft makes one of them. An instance that is not on its own list, or
//! hears of a cluster that exists, waits to be taken in by its leader.
//!
//! An instance that has voted must never forget its votes. So one with an empty log is turned away
//! if it has lived in that cluster before: its disk was lost, and it must come back under a number
//! that nobody had. Until that is clear its [`Gate`] is closed, and raft is deaf.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{Cluster, ClusterError};
use crate::{clock, ids::InstanceId, raft::Member};

/// How often the others are asked.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// How long those that do not answer are waited for when a majority has.
const ABSENT_MAX: Duration = Duration::from_secs(3);

/// How one instance stands to the cluster, as it tells another that wants to get in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Whether it is in a cluster.
    pub founded: bool,
    /// Whether the one that asks has lived in that cluster.
    pub known: bool,
}

/// Whether raft may hear the others: not before it is known that this instance has forgotten
/// nothing. Clones share it; it begins closed, and never closes again.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<AtomicBool>);

impl Gate {
    /// Whether it is open.
    pub fn is_open(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Opens it.
    pub fn open(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Whom an instance with an empty log looks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Founding {
    /// Nobody: it is the first member of a cluster of its own, and is reached like this.
    Alone(Member),
    /// These, by their numbers.
    With(BTreeMap<InstanceId, Member>),
}

/// What the others said.
#[derive(Debug, Default)]
struct Heard {
    /// Not in a cluster yet.
    empty: BTreeSet<InstanceId>,
    /// In a cluster that does not know us.
    founded: BTreeSet<InstanceId>,
    /// In a cluster in which we have lived.
    known_by: Option<InstanceId>,
}

impl Cluster {
    /// Gets this instance into a cluster, unless it is in one. `progress` tells people what is
    /// waited for.
    ///
    /// # Errors
    /// If this instance has lived in the cluster before and lost its log, or raft stops.
    pub async fn found(
        &self,
        founding: Founding,
        progress: &watch::Sender<String>,
    ) -> Result<(), ClusterError> {
        let founded = self.is_founded().await?;
        if founded {
            self.gate.open();
        }
        match founding {
            Founding::Alone(member) => {
                if !founded {
                    self.initialise(BTreeMap::from([(self.instance.0, member)])).await?;
                }
                if self.raft.voter_ids().eq([self.instance.0]) {
                    // Nobody else can lead; there is no election timeout to wait out.
                    let elected = self.raft.trigger().elect(false).await;
                    elected.map_err(|error| ClusterError::Raft(error.to_string()))?;
                }
                Ok(())
            }
            Founding::With(members) => self.found_with(members, progress).await,
        }
    }

    /// Whether this instance's log has a beginning.
    pub(super) async fn is_founded(&self) -> Result<bool, ClusterError> {
        let known = self.raft.is_initialized().await;
        known.map_err(|error| ClusterError::Raft(error.to_string()))
    }

    async fn initialise(&self, members: BTreeMap<u64, Member>) -> Result<(), ClusterError> {
        self.gate.open();
        let founded = self.raft.initialize(members).await;
        founded.map_err(|error| ClusterError::Found(error.to_string()))
    }

    async fn found_with(
        &self,
        members: BTreeMap<InstanceId, Member>,
        progress: &watch::Sender<String>,
    ) -> Result<(), ClusterError> {
        let mut quorum_since: Option<Instant> = None;
        loop {
            if self.is_founded().await? {
                return Ok(());
            }
            let heard = self.ask_all(&members).await;
            if let Some(by) = heard.known_by {
                return Err(ClusterError::Forgetful { instance: self.instance, by });
            }
            let listed = members.contains_key(&self.instance);
            let others = members.keys().filter(|id| **id != self.instance).count();
            let is_majority = 2 * (heard.empty.len() + 1) > members.len();
            if !heard.founded.is_empty() {
                self.gate.open();
                quorum_since = None;
            } else if !listed {
                quorum_since = None;
            } else if is_majority {
                let since = *quorum_since.get_or_insert_with(clock::now);
                if heard.empty.len() == others || clock::now() - since >= ABSENT_MAX {
                    let members = members.into_iter().map(|(id, member)| (id.0, member));
                    return match self.initialise(members.collect()).await {
                        // A leader was quicker than we.
                        Err(_) if self.is_founded().await? => Ok(()),
                        result => result,
                    };
                }
            }
            progress.send_replace(self.waiting_text(&members, &heard, listed));
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    async fn ask_all(&self, members: &BTreeMap<InstanceId, Member>) -> Heard {
        let others = members.iter().filter(|(id, _)| **id != self.instance);
        let asking = others.map(|(id, member)| async move {
            (*id, self.network.introduce(*id, member, ANSWER_MAX).await)
        });
        let mut heard = Heard::default();
        for (id, answer) in join_all(asking).await {
            match answer {
                Ok(Standing { founded: false, .. }) => drop(heard.empty.insert(id)),
                Ok(Standing { known: false, .. }) => drop(heard.founded.insert(id)),
                Ok(Standing { known: true, .. }) => heard.known_by = Some(id),
                Err(error) => tracing::debug!(instance = id.0, %error, "no answer"),
            }
        }
        heard
    }

    fn waiting_text(
        &self,
        members: &BTreeMap<InstanceId, Member>,
        heard: &Heard,
        listed: bool,
    ) -> String {
        let me = self.instance.0;
        if !heard.founded.is_empty() && listed {
            return "the cluster exists; waiting for its leader".to_owned();
        }
        if !listed {
            return format!(
                "waiting to be taken in; on a member: EMNetChain cluster add {me}=HOST:PORT"
            );
        }
        let absent = members.iter().filter(|(id, _)| {
            id.0 != me && !heard.empty.contains(id) && !heard.founded.contains(id)
        });
        let absent: Vec<String> =
            absent.map(|(id, member)| format!("{} ({})", id.0, member.raft_addr)).collect();
        format!("founding the cluster: waiting for {}", absent.join(", "))
    }
}
