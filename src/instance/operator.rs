//! What operators can have this instance do while it runs.

use std::{path::Path, sync::Arc};

use tokio::sync::watch;

use crate::{
    cluster::{
        Cluster,
        admin::{Change, ChangeError},
    },
    metrics::Metrics,
    raft::Member,
    secrets::read_token,
    server::{
        Phase,
        http::{
            admin::{Action, Actor, Denied},
            backup::{Backup, Source},
            gate::AdminToken,
        },
    },
};

/// What operators may have done, and how they are known.
pub(super) struct Powers {
    pub(super) actor: Actor,
    pub(super) backup: Source,
    pub(super) token: watch::Receiver<AdminToken>,
}

impl Powers {
    /// Powers over this instance.
    pub(super) fn new(
        cluster: &Cluster,
        phase: &watch::Sender<Phase>,
        metrics: &Metrics,
        token: watch::Receiver<AdminToken>,
    ) -> Self {
        Self { actor: actor(cluster, phase, metrics), backup: backups(cluster, metrics), token }
    }
}

/// Carries out what operators want.
fn actor(cluster: &Cluster, phase: &watch::Sender<Phase>, metrics: &Metrics) -> Actor {
    let (cluster, phase, metrics) = (cluster.clone(), phase.clone(), metrics.clone());
    Arc::new(move |action| {
        let (cluster, phase, metrics) = (cluster.clone(), phase.clone(), metrics.clone());
        Box::pin(async move {
            let change = match action {
                Action::Add { id, address } => {
                    let text = format!("{}={address}", id.0);
                    let (instance, member): (_, Member) =
                        crate::config::parse_member(&text).map_err(Denied::Refused)?;
                    Change::Add { instance, member }
                }
                Action::Drain => {
                    metrics.draining.set(1);
                    phase.send_if_modified(|phase| {
                        let is_new = *phase < Phase::Drained;
                        *phase = (*phase).max(Phase::Drained);
                        is_new
                    });
                    let still_leads = cluster.step_down().await;
                    let still_leads = still_leads.map(|why| format!("; it still leads: {why}"));
                    return Ok(format!(
                        "this instance takes no new clients; stop it when it is to go, or restart \
                         it to have it serve again{}",
                        still_leads.unwrap_or_default()
                    ));
                }
                Action::Promote(id) => Change::Promote(id),
                Action::Remove(id) => Change::Remove(id),
                Action::TransferLeader(to) => Change::TransferLeader(to),
                Action::Upgrade => Change::Upgrade,
            };
            cluster.change(change).await.map_err(|error| match error {
                ChangeError::NoLeader | ChangeError::NoMajority(_) => {
                    Denied::Unavailable(error.to_string())
                }
                ChangeError::Refused(why) => Denied::Refused(why),
                ChangeError::Unknown(_) => Denied::Unknown(error.to_string()),
            })
        })
    })
}

/// Room on the disk that a backup's snapshot leaves to the raft log, in bytes.
const ROOM_LEFT: i64 = 64 * 1024 * 1024;

/// Makes backups of the registry for operators.
fn backups(cluster: &Cluster, metrics: &Metrics) -> Source {
    let (cluster, metrics) = (cluster.clone(), metrics.clone());
    Arc::new(move || {
        let (cluster, metrics) = (cluster.clone(), metrics.clone());
        Box::pin(async move {
            if let Some(free) = too_little_room(&metrics) {
                return Err(Denied::Unavailable(format!(
                    "the disk of this instance has only {free} bytes left, which is too little for \
                     another snapshot; make room, or ask another instance"
                )));
            }
            let file = cluster.backup().await;
            let file = file.map_err(|error| Denied::Unavailable(error.to_string()))?;
            Ok(Backup {
                bytes: file.bytes(),
                entry: file.meta().last_log_id.map_or(0, |last| last.index),
                records: file.records(),
                read_at: Arc::new(move |piece, at| file.read_at(piece, at)),
            })
        })
    })
}

/// The bytes that are left on the disk, if a backup's snapshot might take the last of them: a disk
/// that is full ends the instance.
fn too_little_room(metrics: &Metrics) -> Option<i64> {
    // Until the system has told, there is no knowing.
    let free = Some(metrics.disk_free.get()).filter(|free| *free > 0)?;
    let snapshot = metrics.snapshot_bytes.get().saturating_mul(2);
    (free < snapshot.saturating_add(ROOM_LEFT)).then_some(free)
}

/// Reads the operators' secret.
///
/// # Errors
/// What is wrong with the file, and what to do.
pub(super) fn read_secret(path: Option<&Path>) -> Result<AdminToken, String> {
    let Some(path) = path else { return Ok(AdminToken::default()) };
    let token = read_token(path).map_err(|why| format!("--admin-token-file {why}"))?;
    Ok(AdminToken(Some(token.into())))
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
