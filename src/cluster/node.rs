//! This instance as a member of the cluster: raft and the tasks around it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures_util::future::join_all;
use openraft::{
    Config, Raft, RaftMetrics, ServerState, SnapshotPolicy, async_runtime::WatchReceiver,
    storage::RaftLogStorage,
};
use tokio::time::sleep;

use super::{
    compare::Standing,
    contact::Contact,
    election::LEASE,
    gate::{self, Gate},
    greeted::Greeted,
    greeter::{Greeter, Roster},
    keeper::LogBounds,
    network::Network,
    progress::{self, Progress},
    proposer::{Proposer, WriteError},
    service::{Service, ServiceOptions},
    transport::{NodeName, Transport},
    turned::Turned,
    upgrade::{RulesOptions, Upgrades},
    writer::{LocalWriter, Router},
};
use crate::{
    ids::{Incarnation, InstanceId, StoreId},
    metrics::Metrics,
    raft::TypeConfig,
    registry::Rules,
    runtime::VOTE_TTL,
    storage::{
        ClusterId, LogGuard, Pulse, Pulses, RegistryView, SnapshotInbox, StateMachine,
        fault::FaultReporter,
    },
};

/// Interval at which an instance tells the others what it vouches for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Longest wait for their answers.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// The parts that an instance needs to be a member.
pub struct ClusterOptions {
    /// The cluster.
    pub cluster: ClusterId,
    /// This instance; also its raft node id.
    pub instance: InstanceId,
    /// The store in its data directory.
    pub store: StoreId,
    /// The way to the others.
    pub transport: Arc<dyn Transport>,
    /// Checks what leaders send against what was applied here.
    pub guard: LogGuard,
    /// Where snapshots are received.
    pub inbox: SnapshotInbox,
    /// The bounds of the log's length.
    pub log_bounds: LogBounds,
    /// The pulses of the threads that work with the disk.
    pub pulses: Pulses,
    /// Which rules it knows.
    pub rules: RulesOptions,
    /// Whether raft may hear the others from the start: it may not, by default, until this store is
    /// known to have forgotten nothing.
    pub gate: Gate,
    /// For how long, in turns, a leader that no majority answers is silent and speaks; `None` if it
    /// always speaks.
    pub quiet_turn: Option<Duration>,
    /// Told when what others send is refused.
    pub faults: FaultReporter,
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
    /// It cannot go on with its data directory.
    #[error(transparent)]
    Turned(Box<Turned>),
    /// Its list names instances of another cluster.
    #[error(
        "--initial-cluster names instance {id} ({address}), which this history never knew: the \
         list and the data directory belong to different clusters; give the list of this one \
         (`EMNetChain cluster members`), or start that instance with an empty data directory and \
         add it (`EMNetChain cluster add`)",
        id = id.0
    )]
    Stranger {
        /// The instance.
        id: InstanceId,
        /// Its address in the list.
        address: String,
    },
    /// The cluster could not be founded.
    #[error("cannot found the cluster: {0}")]
    Found(String),
    /// Raft does not run.
    #[error("raft does not run: {0}")]
    Raft(String),
    /// The first commands of a life could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl From<Turned> for ClusterError {
    fn from(turned: Turned) -> Self {
        Self::Turned(Box::new(turned))
    }
}

impl ClusterError {
    /// Returns whether it is the data directory that is refused.
    pub fn refuses_data(&self) -> bool {
        matches!(self, Self::Turned(_) | Self::Stranger { .. })
    }
}

/// This instance's part of the cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub(super) raft: Raft<TypeConfig, StateMachine>,
    pub(super) network: Network,
    /// Writes here, if this instance leads.
    pub(super) local: LocalWriter,
    /// Writes at the leader.
    pub(super) router: Router,
    pub(super) cluster: ClusterId,
    pub(super) instance: InstanceId,
    pub(super) contact: Contact,
    pub(super) greeter: Greeter,
    pub(super) standing: Standing,
    pub(super) upgrades: Upgrades,
    view: RegistryView,
    log_bounds: LogBounds,
    pub(super) pulses: Pulses,
    /// The proposals that this instance's clients wait for.
    pub(super) proposals: Pulse,
    pub(super) metrics: Metrics,
}

/// A member that has started, and what answers the others on its behalf.
#[derive(Debug)]
pub struct Started {
    /// The member.
    pub cluster: Cluster,
    /// Answers other instances; without it the member can speak and not hear.
    pub service: Service,
}

impl Cluster {
    /// Starts raft over the given stores. The effects of what is left of the log are sent to the
    /// state machine's channel already now, so a task must receive from it.
    ///
    /// # Errors
    /// If raft cannot start: the stores contradict each other, or the disk fails.
    pub async fn start(
        options: ClusterOptions,
        mut log: impl RaftLogStorage<TypeConfig>,
        machine: StateMachine,
        view: RegistryView,
    ) -> Result<Started, ClusterError> {
        let ClusterOptions { cluster, instance, store, transport, guard, inbox, .. } = options;
        let ClusterOptions { log_bounds, pulses, rules, gate, quiet_turn, .. } = options;
        let ClusterOptions { faults, metrics, .. } = options;
        let held = progress::held(&mut log)
            .await
            .map_err(|error| ClusterError::Raft(error.to_string()))?;
        let me = NodeName { cluster, node: instance };
        let greeter = Greeter::new(me, store, held, rules.newest, view.clone());
        if gate.is_open() {
            greeter.gate().open();
        }
        let greeted = Greeted::new(transport, greeter.clone());
        let network = Network::new(
            Arc::new(greeted),
            greeter.peers().clone(),
            greeter.acknowledged().clone(),
        );
        let config = Arc::new(config(log_bounds, quiet_turn)?);
        let raft = Raft::new(instance.0, config, network.clone(), log, machine)
            .await
            .map_err(|error| ClusterError::Raft(error.to_string()))?;
        let local = LocalWriter::new(raft.clone(), view.clone());
        greeter.set_roster(&raft.metrics().borrow_watched().membership_config);
        let contact = Contact::default();
        let writer = Arc::new(local.clone());
        let upgrades = Upgrades::new(
            raft.clone(),
            network.clone(),
            greeter.clone(),
            writer.clone(),
            view.clone(),
            rules.raise_after,
        );
        let service = Service::new(ServiceOptions {
            raft: raft.clone(),
            proposals: writer,
            cluster,
            guard,
            inbox,
            view: view.clone(),
            contact: contact.clone(),
            greeter: greeter.clone(),
            network: network.clone(),
            upgrades: upgrades.clone(),
            faults,
            metrics: metrics.clone(),
        });
        let router = Router::new(local.clone(), network.clone(), contact.clone());
        let cluster = Self {
            raft,
            network,
            local,
            router,
            cluster,
            instance,
            contact,
            greeter,
            standing: Standing::default(),
            upgrades,
            view,
            log_bounds,
            pulses,
            proposals: Pulse::default(),
            metrics,
        };
        Ok(Started { cluster, service })
    }

    /// Returns a proposer for the commands of this instance's clients in the given life.
    pub fn proposer(&self, incarnation: Incarnation) -> Proposer<Router> {
        let (router, metrics) = (self.router.clone(), self.metrics.clone());
        Proposer::new(router, self.instance, incarnation, metrics, self.proposals.clone())
    }

    /// Stands for election, carries out deadlines, ends the lives of lost instances, compares this
    /// replica with the others and keeps the log short, for as long as raft runs.
    ///
    /// # Errors
    /// When raft stops.
    pub async fn keep(self) -> Result<(), WriteError> {
        let marking = async {
            #[cfg(feature = "rules-3")]
            self.mark().await?;
            Ok(())
        };
        tokio::try_join!(
            super::keeper::count_time(self.local.clone()),
            super::keeper::keep_time(self.local.clone(), self.view.next_deadline()),
            super::keeper::keep_log_short(self.raft.clone(), self.log_bounds, self.metrics.clone()),
            self.end_lost_lives(),
            self.stand(),
            self.look_around(),
            self.keep_comparing(),
            self.watch_pulses(),
            self.upgrades.keep(),
            self.watch(),
            marking,
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
                self.follow_membership(&now);
                let gauge =
                    |index: Option<u64>| i64::try_from(index.unwrap_or(0)).unwrap_or(i64::MAX);
                self.metrics.raft_is_leader.set(i64::from(now.state == ServerState::Leader));
                self.metrics.raft_term.set(gauge(Some(now.current_term)));
                self.metrics.raft_last_index.set(gauge(now.last_log_index));
                let committed = now.cluster_committed.as_ref().map(|id| id.index);
                self.metrics.raft_committed_index.set(gauge(committed));
                if now.current_leader != leader && now.current_leader.is_some() {
                    self.metrics.raft_leader_changes.inc();
                    if now.current_leader == Some(self.instance.0) {
                        self.contact.heard_now();
                    }
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

    /// Has everything that depends on the members know them as they are in this instance's log.
    fn follow_membership(&self, now: &RaftMetrics<TypeConfig>) {
        let membership = &now.membership_config;
        self.greeter.set_roster(membership);
        let reached = now.replication.as_ref().and_then(|known| *known.get(&self.instance.0)?);
        if now.state == ServerState::Leader
            && let Some(last) = reached
        {
            // A leader counts on its own disk as on any other.
            let progress = Progress { vote: now.vote, last: Some(last) };
            self.greeter.acknowledged().note(progress);
        }
    }

    /// Returns whether this instance may give votes, and stand for election: its gate is open, and
    /// the membership in its own log names its own store. See [`gate`].
    pub fn may_vote(&self) -> bool {
        let may_hear = self.greeter.gate().is_open() && !self.is_removed();
        let states = self.raft.metrics();
        let membership = &states.borrow_watched().membership_config;
        may_hear && gate::names(membership, self.instance.0, self.greeter.store())
    }

    /// Takes note of where this instance listens for others.
    pub fn listens_at(&self, address: SocketAddr) {
        self.greeter.place().listens_at(address);
    }

    /// Returns where the members look for this instance, and where it was started, if it is none of
    /// the addresses at which they reach it. The only voter's address follows its flags.
    pub(super) fn misplaced(&self) -> Option<(String, String)> {
        let known = self.members().remove(&self.instance)?.raft_addr;
        let list = self.greeter.list().unwrap_or_default();
        let listed = list.get(&self.instance).map(String::as_str);
        let started = self.greeter.place().differing(listed, &known)?;
        (!self.raft.voter_ids().eq([self.instance.0])).then_some((known, started))
    }

    /// Returns the members as they are in this instance's own log.
    pub(super) fn members(&self) -> Roster {
        self.greeter.roster().borrow().clone()
    }

    /// Returns the newest rules that a member can apply, as it said last; `None` if it has not
    /// introduced itself yet.
    pub fn newest_rules(&self, id: InstanceId) -> Option<Rules> {
        if id == self.instance {
            Some(self.greeter.newest_rules())
        } else {
            self.greeter.peers().newest_rules(id)
        }
    }

    /// Has the others remember what this instance vouches for, so that they notice if its disk ever
    /// goes back; and finds out which of them are reached.
    async fn look_around(&self) -> Result<(), WriteError> {
        loop {
            sleep(LOOK_EVERY).await;
            if !self.greeter.gate().is_open() {
                continue;
            }
            let mut others = self.members();
            others.remove(&self.instance);
            let telling = others.iter().map(|(id, member)| self.announce(*id, member, ANSWER_MAX));
            join_all(telling).await;
        }
    }

    /// Returns the registry as it is applied here.
    pub fn view(&self) -> &RegistryView {
        &self.view
    }

    /// Stops raft; what was acknowledged is on disk already.
    ///
    /// # Errors
    /// If one of raft's tasks had panicked.
    pub async fn shutdown(&self) -> Result<(), ClusterError> {
        self.raft.shutdown().await.map_err(|error| ClusterError::Raft(error.to_string()))
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).expect("a short time")
}

fn config(bounds: LogBounds, quiet_turn: Option<Duration>) -> Result<Config, ClusterError> {
    Config {
        cluster_name: "emnetchain".to_owned(),
        // Heartbeats wait for no disk, so a lease may be short of what a busy disk's sync takes.
        // openraft's own timer is off, and `election` decides when this instance stands; to
        // openraft the timeouts mean how long a vote may take and how long a lease holds.
        heartbeat_interval: 100,
        enable_elect: false,
        election_timeout_min: ms(VOTE_TTL),
        election_timeout_max: ms(LEASE),
        // Or a leader that reaches a minority would keep that from voting for another one.
        quorum_loss_probe_interval: quiet_turn.map(ms),
        enable_pre_vote: Some(true),
        // A leader that comes back must be elected again. A power cut may have taken entries from
        // its log that others have, and in its old term it would write others in their places.
        enable_leader_restore: Some(false),
        max_payload_entries: 64,
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: bounds.entries_kept,
        purge_batch_size: bounds.entries_kept.clamp(1, 1024),
        replication_lag_threshold: 50_000,
        ..Config::default()
    }
    .validate()
    .map_err(|error| ClusterError::Raft(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks what the service relies on, beyond what openraft does by itself.
    #[test]
    fn raft_is_set_up_as_the_rest_of_the_service_expects_it() {
        let bounds = |entries_kept| LogBounds { snapshot_after_entries: 99, entries_kept };
        let set = config(bounds(300), Some(Duration::from_millis(1300))).unwrap();
        assert_eq!(set.cluster_name, "emnetchain");
        // Five heartbeats may be lost before a lease is over.
        assert_eq!((set.heartbeat_interval, set.election_timeout_max), (100, 650));
        assert_eq!(set.election_timeout_min, 601);
        assert!(!set.enable_elect, "`election` decides when this instance stands");
        assert_eq!((set.enable_pre_vote, set.enable_leader_restore), (Some(true), Some(false)));
        assert_eq!(set.quorum_loss_probe_interval, Some(1300));
        assert_eq!(set.snapshot_policy, SnapshotPolicy::Never, "`keeper` decides");
        assert_eq!((set.max_in_snapshot_log_to_keep, set.purge_batch_size), (300, 300));
        assert_eq!((set.max_payload_entries, set.replication_lag_threshold), (64, 50_000));
        for (kept, batch) in [(0, 1), (1, 1), (1024, 1024), (5000, 1024)] {
            assert_eq!(config(bounds(kept), None).unwrap().purge_batch_size, batch);
        }
        assert_eq!(config(bounds(0), None).unwrap().quorum_loss_probe_interval, None);
    }

    #[test]
    fn only_a_directory_that_cannot_be_gone_on_with_is_refused() {
        let (id, address) = (InstanceId(9), String::new());
        let turned = Turned::Lost { me: id, by: id, recorded: None };
        for (error, expected) in [
            (turned.into(), true),
            (ClusterError::Stranger { id, address }, true),
            (ClusterError::Found(String::new()), false),
            (ClusterError::Raft(String::new()), false),
        ] {
            assert_eq!(error.refuses_data(), expected, "{error}");
        }
    }
}
