//! The queue between the sessions of an instance and its proposer. A request waits
//! only for as long as its client does: while no leader is heard that can be seconds, and carried
//! out then, it could undo what another instance has told the client meanwhile.

use std::sync::{Arc, Weak};

use crate::registry::Command;

/// A command in the queue, or on its way into the log.
#[derive(Clone, Debug)]
pub struct Queued {
    /// The command.
    pub command: Command,
    /// `None` if it counts even when the client goes.
    claim: Option<Weak<()>>,
}

/// The handle of a session while its client waits for the result of a request. Dropping it takes
/// the request back, unless it has gone to a leader by then.
#[derive(Debug, Default)]
pub struct Claim(Arc<()>);

impl Claim {
    /// Returns a request for the queue that counts until this is dropped.
    pub fn on(&self, command: Command) -> Queued {
        Queued { command, claim: Some(Arc::downgrade(&self.0)) }
    }
}

impl Queued {
    /// Returns whether the command still counts.
    pub fn is_wanted(&self) -> bool {
        self.claim.as_ref().is_none_or(|claim| claim.strong_count() > 0)
    }
}

/// A command that counts even when the client goes.
impl From<Command> for Queued {
    fn from(command: Command) -> Self {
        Self { command, claim: None }
    }
}
