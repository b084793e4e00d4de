//! The made-up version 3 between instances, in test builds only: once its rules are in force, every
//! instance has the leader write that it knows them, by a request that version 2 does not have.

use std::time::Duration;

use tokio::time::sleep;

use super::{
    Cluster,
    proposer::{WriteError, Writer as _},
};
use crate::registry::{Command, Mark, Registry, Rules};

/// Interval between marks.
const MARK_EVERY: Duration = Duration::from_millis(200);

/// Longest wait for the leader.
const ANSWER_MAX: Duration = Duration::from_secs(2);

impl Cluster {
    /// Marks from time to time, for as long as raft runs.
    pub(super) async fn mark(&self) -> Result<(), WriteError> {
        loop {
            sleep(MARK_EVERY).await;
            if self.view().read(Registry::rules) < Rules(3) {
                continue;
            }
            let mark = Mark { by: self.instance };
            let Some(leader) = self.router.find_leader(ANSWER_MAX).await else { continue };
            if leader.id == self.instance {
                // What fails is said again soon.
                drop(self.local.write(None, vec![Command::Mark(mark)]).await);
            } else {
                self.network.mark(leader.id, &leader.member, mark, ANSWER_MAX).await;
            }
        }
    }
}
