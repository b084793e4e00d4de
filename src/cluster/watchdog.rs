//! Watches for hangs. A disk that does not answer gives no error: everything that waits for it
//! waits without end, and the instance looks well. So operations on the disk and proposals are
//! timed from outside ([`crate::storage::Pulse`]). An instance whose log hangs is not ready, and a
//! leader whose log hangs gives the leadership away, for which it needs no disk of its own: the
//! others can commit without it. After [`DISK_WAIT_MAX`] the instance ends.
//!
//! Image and snapshot are different. Nothing that clients wait for waits for them, so they are
//! logged and measured, and end the instance after the same time.

use std::time::Duration;

use openraft::{ServerState, async_runtime::WatchReceiver};
use tokio::time::{sleep, timeout};

use super::{Cluster, proposer::WriteError};
use crate::{
    limits::DISK_WAIT_MAX,
    storage::{Pulse, Pulses},
};

/// Interval between looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Longest time for handing the leadership over before it is tried again.
const STEP_DOWN_MAX: Duration = Duration::from_secs(1);

impl Cluster {
    /// Says that the disk of the raft log does not answer: half a sentence; `None` if it does.
    pub fn hang(&self) -> Option<String> {
        let stuck = self.pulses.log.stuck()?;
        Some(format!("a write of the raft log has been pending for {} s", stuck.as_secs()))
    }

    /// Says that requests of clients are not written, for any reason: half a sentence; `None`
    /// if they are.
    pub fn stall(&self) -> Option<String> {
        let stuck = self.proposals.stuck()?;
        Some(format!("the oldest request has waited for {} s to be written", stuck.as_secs()))
    }

    /// Waits until an operation on the disk has been pending for [`DISK_WAIT_MAX`]; returns for
    /// how long.
    pub async fn hung(&self) -> Duration {
        loop {
            let Pulses { log, image, snapshot } = &self.pulses;
            let pending = [log, image, snapshot].map(Pulse::pending).into_iter().flatten().max();
            if let Some(pending) = pending.filter(|pending| *pending >= DISK_WAIT_MAX) {
                return pending;
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Shows what is pending in the metrics and in the log, and gives the leadership away while
    /// the disk of the raft log does not answer, for as long as raft runs.
    ///
    /// # Errors
    /// Never; it runs until it is dropped.
    pub(super) async fn watch_pulses(&self) -> Result<(), WriteError> {
        let Pulses { log, image, snapshot } = &self.pulses;
        let watched = [("log", log), ("image", image), ("snapshot", snapshot)];
        let mut was_stuck = [false; 3];
        loop {
            for ((what, pulse), was_stuck) in watched.into_iter().zip(&mut was_stuck) {
                let pending = pulse.pending().unwrap_or_default().as_secs_f64();
                self.metrics.disk_pending.with_label_values(&[what]).set(pending);
                let stuck = pulse.stuck();
                match stuck {
                    Some(pending) if !*was_stuck => {
                        tracing::warn!(what, ?pending, "a write to the disk is pending");
                    }
                    None if *was_stuck => tracing::info!(what, "the disk answers again"),
                    Some(_) | None => {}
                }
                *was_stuck = stuck.is_some();
            }
            let oldest = self.proposals.pending().unwrap_or_default().as_secs_f64();
            self.metrics.oldest_proposal.set(oldest);
            if log.stuck().is_some() && self.leads() {
                // If it does not come about, the next look finds the log stuck as before.
                drop(timeout(STEP_DOWN_MAX, self.step_down()).await);
            }
            sleep(LOOK_EVERY).await;
        }
    }

    pub(super) fn leads(&self) -> bool {
        self.raft.metrics().borrow_watched().state == ServerState::Leader
    }
}
