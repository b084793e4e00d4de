//! The instance that an operator's HTTP server shows and changes.

use std::sync::Arc;

use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::sync::watch;

use super::{
    Backend, Backup,
    api::{Chains, Digest, Member, Status},
    gauges,
};
use crate::{
    cluster::{
        self, Cluster,
        admin::{Change, ChangeError},
    },
    metrics::Metrics,
    registry::{Look, Registry},
    server::Phase,
    storage::{ImageProgress, Point},
};

/// The listeners whose connections `/status` tells.
const LISTENERS: [&str; 4] = ["chain", "repair", "emnet", "http"];

/// Room on the disk that a backup's snapshot leaves to the raft log, in bytes.
const ROOM_LEFT: i64 = 64 * 1024 * 1024;

/// This instance.
#[derive(Clone, Debug)]
pub struct Running {
    cluster: Cluster,
    image: ImageProgress,
    metrics: Metrics,
    phase: watch::Sender<Phase>,
}

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum NoBackup {
    /// A disk that is full ends the instance.
    #[error(
        "the disk of this instance has only {free} bytes left, which is too little for another \
         snapshot; make room, or ask another instance"
    )]
    NoRoom {
        /// The bytes that are left.
        free: i64,
    },
    /// The cluster has none.
    #[error(transparent)]
    Cluster(#[from] cluster::backup::BackupError),
}

impl Backend for Running {
    fn refresh(&self) {
        gauges::refresh(&self.cluster, &self.image, &self.metrics);
    }

    fn status(&self) -> Status {
        status(&self.cluster, &self.metrics)
    }

    fn digest(&self) -> Digest {
        let Point { entry: applied, digest } = self.cluster.view().digest();
        Digest { applied, digest: format!("{digest:016x}") }
    }

    fn look(&self, show: &mut dyn FnMut(Look<'_>)) {
        self.cluster.view().look(show);
    }

    fn change(&self, change: Change) -> BoxFuture<'_, Result<String, ChangeError>> {
        self.cluster.change(change).boxed()
    }

    fn drain(&self) -> BoxFuture<'_, String> {
        self.leave_service().boxed()
    }

    fn backup(&self) -> BoxFuture<'_, Result<Backup, NoBackup>> {
        self.make_backup().boxed()
    }
}

impl Running {
    /// Shows and changes this cluster's member, whose image, metrics and phase these are.
    pub fn new(
        cluster: &Cluster,
        image: &ImageProgress,
        metrics: &Metrics,
        phase: &watch::Sender<Phase>,
    ) -> Self {
        Self {
            cluster: cluster.clone(),
            image: image.clone(),
            metrics: metrics.clone(),
            phase: phase.clone(),
        }
    }

    async fn leave_service(&self) -> String {
        self.metrics.draining.set(1);
        self.phase.send_if_modified(|phase| {
            let is_new = *phase < Phase::Drained;
            *phase = (*phase).max(Phase::Drained);
            is_new
        });
        let still_leads = self.cluster.step_down().await;
        let still_leads = still_leads.map(|why| format!("; it still leads: {why}"));
        format!(
            "this instance takes no new clients; stop it when it is to go, or restart it to have \
             it serve again{}",
            still_leads.unwrap_or_default()
        )
    }

    async fn make_backup(&self) -> Result<Backup, NoBackup> {
        if let Some(free) = too_little_room(&self.metrics) {
            return Err(NoBackup::NoRoom { free });
        }
        let file = self.cluster.backup().await?;
        Ok(Backup {
            bytes: file.bytes(),
            entry: file.meta().last_log_id.map_or(0, |last| last.index),
            records: file.records(),
            read_at: Arc::new(move |piece, at| file.read_at(piece, at)),
        })
    }
}

/// Returns the bytes that are left on the disk, if a backup's snapshot might take the last of them:
/// a disk that is full ends the instance.
fn too_little_room(metrics: &Metrics) -> Option<i64> {
    // Until the system has told, there is no knowing.
    let free = Some(metrics.disk_free.get()).filter(|free| *free > 0)?;
    let snapshot = metrics.snapshot_bytes.get().saturating_mul(2);
    (free < snapshot.saturating_add(ROOM_LEFT)).then_some(free)
}

fn status(cluster: &Cluster, metrics: &Metrics) -> Status {
    let now = cluster.status();
    let totals = cluster.view().read(Registry::totals);
    let connections = LISTENERS.map(|listener| {
        let open = metrics.connections.with_label_values(&[listener]).get();
        (listener.into(), u64::try_from(open).unwrap_or(0))
    });
    let members = now.members.into_iter().map(|(node, known)| Member {
        node,
        address: known.member.raft_addr,
        voter: known.voter,
        lag: known.lag,
        silent_ms: known.silence.map(|silence| silence.as_millis() as u64),
        newest_rules: known.newest_rules.map(|rules| rules.0),
    });
    Status {
        version: env!("CARGO_PKG_VERSION").into(),
        cluster: now.cluster.to_string(),
        node: now.node,
        role: now.role.into(),
        leader: now.leader,
        term: now.term,
        last_log_index: now.last_log_index,
        applied_index: now.applied_index,
        trouble: None,
        rules: now.rules.0,
        newest_rules: now.newest_rules.0,
        members: members.collect(),
        chains: Chains {
            count: totals.chains,
            clients: totals.clients,
            asks: totals.asks,
            links: totals.links,
            broken_links: totals.broken_links,
            cut_off: totals.cut_off,
            repairs_pending: totals.repairs_pending,
        },
        connections: connections.into(),
        registry: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_leaves_room_for_the_log() {
        let metrics = Metrics::new();
        let mebibyte = 1024 * 1024;
        metrics.snapshot_bytes.set(100 * mebibyte);
        assert_eq!(too_little_room(&metrics), None, "no figures yet");
        metrics.disk_free.set(265 * mebibyte);
        assert_eq!(too_little_room(&metrics), None);
        metrics.disk_free.set(263 * mebibyte);
        assert_eq!(too_little_room(&metrics), Some(263 * mebibyte));
    }
}
