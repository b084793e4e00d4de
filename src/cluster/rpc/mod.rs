//! Requests between instances, over any [`Transport`](super::transport::Transport).
//!
//! A [`Link`] is the asking side: one connection to one member, opened when there is something to
//! ask and again when it was lost. Requests go out without waiting for earlier answers. A
//! [`Service`](super::service::Service) is the answering side. [`hello`] is how a connection
//! begins. [`snapshot`] sends a snapshot.
//!
//! An answer that does not come means that the outcome is unknown: raft repeats, and proposals are
//! numbered.

pub mod hello;
pub mod snapshot;

pub(super) mod frame;
#[cfg(test)]
mod fuzz;
pub(super) mod link;
mod message;
mod question;

#[cfg(test)]
mod golden;
#[cfg(test)]
pub(super) mod tests;

pub use frame::{Frame, FrameError, FrameReader};
pub use hello::Refusal;
pub use link::{CallError, Link, Waiting};
pub use message::{Change, FoundingAnswer, Request, Response};
pub use question::{AskDigests, Introduce, Question};
