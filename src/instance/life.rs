//! The lives of this instance, one after another: it gets into a cluster, begins a life, and
//! proposes the commands of its clients until that life is over.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use crate::{
    cluster::{Cluster, ClusterError, found::Founding, lives::GIVEN_UP, proposer::ProposerError},
    registry::{Command, Policy},
    server::{Outbox, Phase},
};

/// What lives.
pub(super) struct Living {
    pub(super) cluster: Cluster,
    pub(super) outbox: Arc<Outbox>,
    pub(super) founding: Founding,
    pub(super) policy: Policy,
    /// Becomes [`Phase::Serving`] with the first life.
    pub(super) phase: watch::Sender<Phase>,
    /// Tells people what is waited for until then.
    pub(super) progress: watch::Sender<String>,
}

impl Living {
    /// Lives until the senders of the queue are gone and all that was in it is applied.
    ///
    /// # Errors
    /// If this instance cannot get into the cluster, or raft stops.
    pub(super) async fn run(self, mut queue: mpsc::Receiver<Command>) -> Result<(), ClusterError> {
        self.cluster.found(self.founding.clone(), &self.progress).await?;
        self.progress.send_replace("waiting for a leader".to_owned());
        self.cluster.settle(&self.founding, self.policy).await?;
        loop {
            if !self.fit(&mut queue).await {
                return Ok(());
            }
            let life = self.cluster.begin_life().await?;
            self.outbox.begin(life.incarnation);
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
                why = self.cluster.unfit() => {
                    self.outbox.stop_all();
                    // The others may wait for what these clients ask for; they come again elsewhere.
                    self.cluster.end_life().await;
                    why
                }
            };
            tracing::warn!("{why}; its clients are asked to come again");
            self.outbox.stop_all();
        }
    }

    /// Waits until the replica of this instance may answer clients; whoever asks before that is sent
    /// away. False if the senders of the queue are gone.
    async fn fit(&self, queue: &mut mpsc::Receiver<Command>) -> bool {
        self.cluster.prove().await;
        let mut accord = self.cluster.accord();
        while accord.borrow_and_update().trouble().is_some() {
            self.outbox.stop_all();
            tokio::select! {
                _ = accord.changed() => {}
                command = queue.recv() => if command.is_none() {
                    return false;
                },
            }
        }
        true
    }
}
