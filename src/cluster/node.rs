//! This instance as a member of the cluster: raft, and what it needs around it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use openraft::{
    Config, Raft, ServerState, SnapshotPolicy, async_runtime::WatchReceiver, errors::RaftError,
};

use super::{
    clock::LogClock,
    network::Network,
    proposer::{Proposer, WriteError, Writer},
    transport::Transport,
};
use crate::{
    ids::{Incarnation, InstanceId, Timestamp},
    limits::LOG_ENTRIES_KEPT,
    metrics::Metrics,
    raft::{Member, TypeConfig},
    registry::{BatchId, Command, Policy, Proposal, Verdict},
    storage::{LogStore, RegistryView, StateMachine},
};

/// How long to wait before a write is tried again during the start.
const START_RETRY: Duration = Duration::from_millis(20);

/// What an instance needs to be a member.
pub struct ClusterOptions {
    /// This instance; also its raft node id.
    pub instance: InstanceId,
    /// How the others reach it.
    pub member: Member,
    /// The settings that hold for the registry from the start of this instance on.
    pub policy: Policy,
    /// How it reaches the others.
    pub transport: Arc<dyn Transport>,
    /// The service's metrics.
    pub metrics: Metrics,
}

impl std::fmt::Debug for ClusterOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterOptions").field("instance", &self.instance).finish()
    }
}

/// Why this instance cannot be a member.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The cluster could not be founded.
    #[error("cannot found the cluster: {0}")]
    Found(String),
    /// Raft does not run.
    #[error("raft does not run: {0}")]
    Raft(String),
    /// The first commands of this life could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// This instance's part of the cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    raft: Raft<TypeConfig, StateMachine>,
    writer: Arc<RaftWriter>,
    instance: InstanceId,
    metrics: Metrics,
}

/// What can be said of the cluster at a glance.
#[derive(Clone, Debug)]
pub struct ClusterStatus {
    /// This instance.
    pub node: u64,
    /// "leader", "follower", "candidate", "learner" or "shutdown".
    pub role: &'static str,
    /// Who leads, as far as is known.
    pub leader: Option<u64>,
    /// The raft term.
    pub term: u64,
    /// The last entry in this instance's log.
    pub last_log_index: u64,
    /// The last entry applied to this instance's registry.
    pub applied_index: u64,
    /// The members by node id.
    pub members: BTreeMap<u64, ClusterMember>,
}

/// A member as this instance knows it.
#[derive(Clone, Debug)]
pub struct ClusterMember {
    /// How the others reach it.
    pub member: Member,
    /// Whether it votes.
    pub voter: bool,
    /// How many entries it lags behind the leader; only the leader knows.
    pub lag: Option<u64>,
}

impl Cluster {
    /// Starts raft over the given stores. The effects of what is left of the log are sent to the
    /// state machine's channel already now, so somebody must receive from it.
    ///
    /// # Errors
    /// If raft cannot start: the stores contradict each other, or the disk fails.
    pub async fn start(
        options: ClusterOptions,
        log: LogStore,
        machine: StateMachine,
        view: RegistryView,
    ) -> Result<Self, ClusterError> {
        let ClusterOptions { instance, member, policy, transport, metrics } = options;
        let config = Arc::new(config()?);
        let raft = Raft::new(instance.0, config, Network::new(transport), log, machine)
            .await
            .map_err(|error| ClusterError::Raft(error.to_string()))?;
        let writer = RaftWriter { raft: raft.clone(), clock: LogClock::default(), view };
        let cluster = Self { raft, writer: Arc::new(writer), instance, metrics };
        cluster.found(member).await?;
        cluster.settle_policy(policy).await?;
        Ok(cluster)
    }

    /// Makes this instance the first member of a new cluster, unless it is in one already.
    async fn found(&self, member: Member) -> Result<(), ClusterError> {
        let known = self.raft.is_initialized().await;
        if !known.map_err(|error| ClusterError::Raft(error.to_string()))? {
            self.raft
                .initialize(BTreeMap::from([(self.instance.0, member)]))
                .await
                .map_err(|error| ClusterError::Found(error.to_string()))?;
        }
        let alone = self.raft.voter_ids().eq([self.instance.0]);
        if alone {
            // Nobody else can lead; there is no election timeout to wait out.
            let elected = self.raft.trigger().elect(false).await;
            elected.map_err(|error| ClusterError::Raft(error.to_string()))?;
        }
        Ok(())
    }

    async fn settle_policy(&self, policy: Policy) -> Result<(), ClusterError> {
        // A first write makes sure that everything before it is applied, and the comparison true.
        self.write_at_start(Command::Tick).await?;
        if self.view().read(|registry| *registry.policy() != policy) {
            self.write_at_start(Command::SetPolicy(policy)).await?;
        }
        Ok(())
    }

    /// Begins a new life of this instance: the sessions of its earlier ones are gone.
    ///
    /// # Errors
    /// If raft has stopped.
    pub async fn begin_life(&self) -> Result<Incarnation, ClusterError> {
        let instance = self.instance;
        let incarnation =
            Incarnation(self.view().read(|registry| registry.incarnation(instance)).0 + 1);
        self.write_at_start(Command::Start { instance, incarnation }).await?;
        Ok(incarnation)
    }

    async fn write_at_start(&self, command: Command) -> Result<(), ClusterError> {
        loop {
            match self.writer.write(None, vec![command.clone()]).await {
                Ok(_) => return Ok(()),
                Err(WriteError::Again(_)) => tokio::time::sleep(START_RETRY).await,
                Err(error @ WriteError::Stopped(_)) => return Err(error.into()),
            }
        }
    }

    /// A proposer for the commands of this instance's clients in the given life.
    pub fn proposer(&self, incarnation: Incarnation) -> Proposer<Arc<RaftWriter>> {
        let writer = Arc::clone(&self.writer);
        Proposer::new(writer, self.instance, incarnation, self.metrics.clone())
    }

    /// Carries out deadlines and keeps the log short, for as long as raft runs.
    ///
    /// # Errors
    /// When raft stops.
    pub async fn keep(self) -> Result<(), WriteError> {
        let deadlines = self.view().next_deadline();
        tokio::try_join!(
            super::keeper::keep_time(Arc::clone(&self.writer), deadlines),
            super::keeper::keep_log_short(self.raft.clone(), self.metrics.clone()),
            self.watch(),
        )?;
        Ok(())
    }

    /// Shows raft's state in the metrics, and ends when raft does.
    async fn watch(&self) -> Result<(), WriteError> {
        let mut states = self.raft.metrics();
        let mut leader = None;
        loop {
            {
                let now = states.borrow_and_update();
                let gauge =
                    |index: Option<u64>| i64::try_from(index.unwrap_or(0)).unwrap_or(i64::MAX);
                self.metrics.raft_has_leader.set(i64::from(now.current_leader.is_some()));
                self.metrics.raft_is_leader.set(i64::from(now.state == ServerState::Leader));
                self.metrics.raft_term.set(gauge(Some(now.current_term)));
                self.metrics.raft_last_index.set(gauge(now.last_log_index));
                if now.current_leader != leader && now.current_leader.is_some() {
                    self.metrics.raft_leader_changes.inc();
                    tracing::info!(leader = now.current_leader, term = now.current_term, "leader");
                }
                leader = now.current_leader.or(leader);
                if let Err(fatal) = &now.running_state {
                    return Err(WriteError::Stopped(fatal.to_string()));
                }
            }
            if states.changed().await.is_err() {
                return Err(WriteError::Stopped("raft is gone".to_owned()));
            }
        }
    }

    /// The registry as it is applied here.
    pub fn view(&self) -> &RegistryView {
        &self.writer.view
    }

    /// What can be said at a glance.
    pub fn status(&self) -> ClusterStatus {
        let states = self.raft.metrics();
        let now = states.borrow_watched();
        let last_log_index = now.last_log_index.unwrap_or(0);
        let lag = |id: u64| {
            let reached = now.replication.as_ref()?.get(&id)?.as_ref().map_or(0, |at| at.index);
            Some(last_log_index.saturating_sub(reached))
        };
        let membership = now.membership_config.membership();
        let members = membership.nodes().map(|(id, member)| {
            let voter = membership.voter_ids().any(|voter| voter == *id);
            (*id, ClusterMember { member: member.clone(), voter, lag: lag(*id) })
        });
        ClusterStatus {
            node: self.instance.0,
            role: role(now.state),
            leader: now.current_leader,
            term: now.current_term,
            last_log_index,
            applied_index: now.last_applied.as_ref().map_or(0, |id| id.index),
            members: members.collect(),
        }
    }

    /// Whether a leader is known, so that clients can be answered.
    pub fn has_leader(&self) -> bool {
        self.raft.metrics().borrow_watched().current_leader.is_some()
    }

    /// Stops raft; what was acknowledged is on disk already.
    ///
    /// # Errors
    /// If one of raft's tasks had panicked.
    pub async fn shutdown(&self) -> Result<(), ClusterError> {
        self.raft.shutdown().await.map_err(|error| ClusterError::Raft(error.to_string()))
    }
}

/// Writes entries to raft, stamped with log time.
pub struct RaftWriter {
    raft: Raft<TypeConfig, StateMachine>,
    clock: LogClock,
    view: RegistryView,
}

impl std::fmt::Debug for RaftWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RaftWriter")
    }
}

impl RaftWriter {
    /// Log time now, if this instance leads.
    pub fn log_time(&self) -> Option<Timestamp> {
        let term = {
            let states = self.raft.metrics();
            let now = states.borrow_watched();
            (now.state == ServerState::Leader).then_some(now.current_term)?
        };
        Some(self.clock.now(term, || self.view.read(|registry| registry.now())))
    }
}

impl Writer for Arc<RaftWriter> {
    fn write(
        &self,
        batch: Option<BatchId>,
        commands: Vec<Command>,
    ) -> BoxFuture<'static, Result<Verdict, WriteError>> {
        let this = Self::clone(self);
        async move {
            let Some(at) = this.log_time() else {
                return Err(WriteError::Again("this instance does not lead".to_owned()));
            };
            match this.raft.client_write(Proposal { at, batch, commands }).await {
                Ok(response) => Ok(response.data),
                Err(RaftError::APIError(error)) => Err(WriteError::Again(error.to_string())),
                Err(RaftError::Fatal(error)) => Err(WriteError::Stopped(error.to_string())),
            }
        }
        .boxed()
    }
}

fn config() -> Result<Config, ClusterError> {
    Config {
        cluster_name: "emnetchain".to_owned(),
        // Heartbeats wait for no disk, so these may be short of what a busy disk's sync takes.
        heartbeat_interval: 100,
        election_timeout_min: 500,
        election_timeout_max: 1000,
        enable_pre_vote: Some(true),
        max_payload_entries: 64,
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: LOG_ENTRIES_KEPT,
        purge_batch_size: 1024,
        replication_lag_threshold: 50_000,
        ..Config::default()
    }
    .validate()
    .map_err(|error| ClusterError::Raft(error.to_string()))
}

fn role(state: ServerState) -> &'static str {
    match state {
        ServerState::Candidate => "candidate",
        ServerState::Follower => "follower",
        ServerState::Leader => "leader",
        ServerState::Learner => "learner",
        ServerState::Shutdown => "shutdown",
    }
}
