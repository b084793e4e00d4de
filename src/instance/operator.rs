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
    secrets::exposure,
    server::{
        Phase,
        http::admin::{Action, Actor, AdminToken, Denied},
    },
};

/// The longest secret, in bytes.
const TOKEN_BYTES_MAX: usize = 4096;

/// Carries out what operators want.
pub(super) fn actor(cluster: &Cluster, phase: &watch::Sender<Phase>, metrics: &Metrics) -> Actor {
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
                        let is_new = *phase < Phase::Draining;
                        *phase = (*phase).max(Phase::Draining);
                        is_new
                    });
                    cluster.step_down().await;
                    return Ok("this instance takes no new clients; stop it when it is to go, or \
                               start it again"
                        .to_owned());
                }
                Action::Promote(id) => Change::Promote(id),
                Action::Remove(id) => Change::Remove(id),
                Action::TransferLeader(to) => Change::TransferLeader(to),
            };
            cluster.change(change).await.map_err(|error| match error {
                ChangeError::NoLeader => Denied::Unavailable(error.to_string()),
                ChangeError::Refused(why) => Denied::Refused(why),
                ChangeError::Unknown(_) => Denied::Unknown(error.to_string()),
            })
        })
    })
}

/// Reads the operators' secret.
///
/// # Errors
/// What is wrong with the file, and what to do.
pub(super) fn read_secret(path: Option<&Path>) -> Result<AdminToken, String> {
    let Some(path) = path else { return Ok(AdminToken::default()) };
    let named = |why: String| format!("--admin-token-file {}: {why}", path.display());
    let unreadable = |error: std::io::Error| named(error.to_string());
    if let Some(mode) = exposure(&std::fs::metadata(path).map_err(unreadable)?) {
        return Err(named(format!("other users can read it (mode {mode:03o}); `chmod 600` it")));
    }
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    let token = text.trim();
    if token.is_empty() || token.len() > TOKEN_BYTES_MAX || !token.is_ascii() {
        return Err(named("it must hold one secret of ASCII characters".to_owned()));
    }
    Ok(AdminToken(Some(token.into())))
}
