//! Ways into the raft log: [`LocalWriter`] writes on this instance, if it leads;
//! [`Router`] finds the leader, here or elsewhere.
//!
//! Neither repeats anything. A write that fails has an unknown outcome; one that was numbered may
//! be repeated. But no write waits for a leader that has been replaced.

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use openraft::{Raft, ServerState, async_runtime::WatchReceiver, errors::RaftError};
use tokio::time::timeout;

use super::{
    clock::LogClock,
    contact::Contact,
    network::Network,
    proposer::{WriteError, Writer, Written},
};
use crate::{
    ids::{InstanceId, Timestamp},
    raft::{Member, TypeConfig},
    registry::{BatchId, Command, Proposal, Registry, Rules},
    storage::{RegistryView, StateMachine},
};

/// A leader that is silent for this time, three heartbeats, is waited for.
const HEARD_WITHIN: Duration = Duration::from_millis(300);

/// Longest wait of a write for a leader.
const LEADER_WAIT_MAX: Duration = Duration::from_secs(1);

/// Longest wait of a write that failed at the leader for another leader, before it says so.
const FAILED_PAUSE: Duration = Duration::from_millis(100);

/// Longest wait for the leader with a write that was passed on to it; it gives up before that.
const PASSED_ON_MAX: Duration = Duration::from_secs(6);

/// Writes entries to raft, stamped with log time, if this instance leads.
#[derive(Clone)]
pub struct LocalWriter(Arc<Local>);

struct Local {
    raft: Raft<TypeConfig, StateMachine>,
    clock: LogClock,
    view: RegistryView,
}

impl std::fmt::Debug for LocalWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LocalWriter")
    }
}

impl LocalWriter {
    /// Creates a writer to this instance's raft.
    pub fn new(raft: Raft<TypeConfig, StateMachine>, view: RegistryView) -> Self {
        Self(Arc::new(Local { raft, clock: LogClock::default(), view }))
    }

    /// Counts the time since this was called last, as far as it counts; see [`LogClock::look`].
    pub(super) fn count_time(&self) {
        self.0.clock.look();
    }

    /// Log time now, if this instance leads.
    pub fn log_time(&self) -> Option<Timestamp> {
        let term = {
            let states = self.0.raft.metrics();
            let now = states.borrow_watched();
            (now.state == ServerState::Leader).then_some(now.current_term)?
        };
        let view = &self.0.view;
        Some(self.0.clock.now(term, || view.read(|registry| registry.now())))
    }
}

impl Writer for LocalWriter {
    fn write(
        &self,
        batch: Option<BatchId>,
        commands: Vec<Command>,
    ) -> BoxFuture<'static, Result<Written, WriteError>> {
        let this = self.clone();
        async move {
            // Older members could not even read such an entry.
            let needed = commands.iter().map(Command::rules).max().unwrap_or(Rules::FIRST);
            if needed > this.0.view.read(Registry::rules) {
                let why = format!("rules version {} is not in force yet", needed.0);
                return Err(WriteError::Again(why));
            }
            let Some(at) = this.log_time() else {
                return Err(WriteError::Again("this instance does not lead".to_owned()));
            };
            match this.0.raft.client_write(Proposal { at, batch, commands }).await {
                Ok(written) => Ok(Written { index: written.log_id.index, verdict: written.data }),
                Err(RaftError::APIError(error)) => Err(WriteError::Again(error.to_string())),
                Err(RaftError::Fatal(error)) => Err(WriteError::Stopped(error.to_string())),
            }
        }
        .boxed()
    }
}

/// Writes at the leader.
#[derive(Clone, Debug)]
pub struct Router {
    local: LocalWriter,
    network: Network,
    contact: Contact,
}

/// The leader of a term.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Leader {
    term: u64,
    pub(super) id: InstanceId,
    pub(super) member: Member,
}

impl Router {
    /// Creates a router that writes with `local` while this instance leads. `contact` knows when
    /// another leader was heard.
    pub fn new(local: LocalWriter, network: Network, contact: Contact) -> Self {
        Self { local, network, contact }
    }

    /// Returns the leader, as far as this instance knows.
    fn leader(&self) -> Option<Leader> {
        let states = self.local.0.raft.metrics();
        let now = states.borrow_watched();
        let id = now.current_leader?;
        let member = now.membership_config.membership().get_node(&id)?.clone();
        Some(Leader { term: now.current_term, id: InstanceId(id), member })
    }

    /// Waits for a leader, at most that long.
    pub(super) async fn find_leader(&self, within: Duration) -> Option<Leader> {
        timeout(within, self.any_leader()).await.ok().flatten()
    }

    /// Waits for a leader; `None` if raft has stopped.
    async fn any_leader(&self) -> Option<Leader> {
        let mut states = self.local.0.raft.metrics();
        loop {
            if let Some(leader) = self.leader() {
                return Some(leader);
            }
            states.changed().await.ok()?;
        }
    }

    /// Waits until another instance leads, or the same in another term.
    pub(super) async fn replaced(&self, leader: &Leader) {
        let mut states = self.local.0.raft.metrics();
        while self.leader().as_ref() == Some(leader) && states.changed().await.is_ok() {}
    }

    async fn write_at_leader(
        self,
        batch: Option<BatchId>,
        commands: Vec<Command>,
    ) -> Result<Written, WriteError> {
        let Some(leader) = self.find_leader(LEADER_WAIT_MAX).await else {
            return Err(WriteError::Again("no instance leads".to_owned()));
        };
        let writing = async {
            if leader.id.0 == *self.local.0.raft.node_id() {
                return self.local.write(batch, commands).await;
            }
            let Leader { id, member, .. } = &leader;
            self.network.propose(*id, member, batch, commands, PASSED_ON_MAX).await
        };
        let replaced = self.replaced(&leader);
        tokio::pin!(replaced);
        tokio::select! {
            biased;
            written = writing => {
                if matches!(written, Err(WriteError::Again(_))) {
                    // To a leader that is gone, nothing can be written until there is another.
                    let _ = timeout(FAILED_PAUSE, replaced).await;
                }
                written
            }
            () = &mut replaced => {
                Err(WriteError::Again("the leader was replaced".to_owned()))
            }
        }
    }
}

impl Writer for Router {
    fn write(
        &self,
        batch: Option<BatchId>,
        commands: Vec<Command>,
    ) -> BoxFuture<'static, Result<Written, WriteError>> {
        self.clone().write_at_leader(batch, commands).boxed()
    }

    fn led(&self) -> BoxFuture<'static, ()> {
        let this = self.clone();
        async move {
            // A leader that went silent is still known, and what is sent to it may arrive much
            // later, when its clients have asked elsewhere.
            let known = this.any_leader().await;
            if known.is_some_and(|leader| leader.id.0 != *this.local.0.raft.node_id()) {
                this.contact.heard_within(HEARD_WITHIN).await;
            }
        }
        .boxed()
    }
}
