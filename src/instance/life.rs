//! The lives of this instance, one after another: it gets into a cluster, begins a life, and
//! proposes the commands of its clients until that life is over.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use crate::{
    cluster::{
        Cluster, ClusterError,
        found::Founding,
        lives::{GIVEN_UP, Life},
        proposer::ProposerError,
    },
    queue::Queued,
    registry::Policy,
    server::{Outbox, Phase},
};

/// The parts that a life needs.
pub(super) struct Living {
    pub(super) cluster: Cluster,
    pub(super) outbox: Arc<Outbox>,
    pub(super) founding: Founding,
    pub(super) policy: Policy,
    /// Becomes [`Phase::Serving`] with the first life.
    pub(super) phase: watch::Sender<Phase>,
    /// Tells people what is waited for until then, and between two lives.
    pub(super) progress: watch::Sender<String>,
}

impl Living {
    /// Lives until the senders of the queue are gone and all that was in it is applied.
    ///
    /// # Errors
    /// If this instance cannot get into the cluster, or raft stops.
    pub(super) async fn run(self, queue: mpsc::Receiver<Queued>) -> Result<(), ClusterError> {
        let cluster = self.cluster.clone();
        tokio::select! {
            biased;
            turned = cluster.turned() => Err(turned.into()),
            lived = self.live(queue) => lived,
        }
    }

    async fn live(self, mut queue: mpsc::Receiver<Queued>) -> Result<(), ClusterError> {
        let mut phase = self.phase.subscribe();
        let entering = async {
            self.cluster.found(self.founding.clone(), &self.progress).await?;
            // From here on the cluster itself says what is missing.
            self.progress.send_replace(String::new());
            self.cluster.settle(&self.founding, self.policy).await
        };
        tokio::select! {
            biased;
            // No session was let in yet, so there is nothing that a stop would wait for.
            _ = phase.wait_for(|phase| *phase >= Phase::Stopping) => return Ok(()),
            entered = entering => entered?,
        }
        loop {
            let Some(life) = self.begin(&mut queue).await? else { return Ok(()) };
            self.outbox.begin(life.incarnation);
            self.progress.send_replace(String::new());
            tracing::info!(life = life.incarnation.0, "serving");
            self.phase.send_if_modified(|phase| {
                let is_first = *phase == Phase::Starting;
                if is_first {
                    *phase = Phase::Serving;
                }
                is_first
            });
            let why = tokio::select! {
                ended = self.cluster.proposer(life.incarnation).run(&mut queue) => match ended {
                    Ok(()) => return Ok(()),
                    Err(ProposerError::Over) => GIVEN_UP,
                    Err(ProposerError::Stopped(error)) => return Err(error.into()),
                },
                why = self.cluster.life_over(life) => why,
            };
            tracing::warn!("{why}; its clients have to reconnect");
            // Until the next life begins, a session would belong to this one and hear nothing.
            self.progress.send_replace(match self.cluster.is_removed() {
                true => String::new(), // the cluster says what is to be done
                false => format!("{why}; it serves again in a moment"),
            });
            self.outbox.stop_all();
        }
    }

    /// Begins a life. While the registry here differs from that of others, or this instance is no
    /// member, or it stops, those that ask are sent away, to ask elsewhere. `None` if the
    /// senders of the queue are gone meanwhile.
    async fn begin(
        &self,
        queue: &mut mpsc::Receiver<Queued>,
    ) -> Result<Option<Life>, ClusterError> {
        let (mut accord, mut learnt) = (self.cluster.accord(), self.cluster.learnt());
        let mut phase = self.phase.subscribe();
        let beginning = self.cluster.begin_life();
        tokio::pin!(beginning);
        loop {
            let must_wait = accord.borrow_and_update().trouble().is_some()
                || learnt.borrow_and_update().removed.is_some()
                || *phase.borrow_and_update() >= Phase::Stopping;
            tokio::select! {
                biased;
                life = &mut beginning => return life.map(Some),
                _ = accord.changed() => {}
                _ = learnt.changed() => {}
                _ = phase.changed() => {}
                asked = queue.recv(), if must_wait => match asked {
                    Some(_) => self.outbox.stop_all(),
                    None => return Ok(None),
                },
            }
        }
    }
}
