//! Replication by raft: the one place that runs openraft.
//!
//! A [`Cluster`] is this instance's part of it. Commands of its clients go through the
//! [`proposer`], which batches what arrives while earlier batches are on their way to the disks;
//! the [`keeper`] makes deadlines happen and keeps the log short. What commands bring about comes
//! out of the state machine, on every instance, as [`crate::registry::Applied`].
//!
//! Other instances are reached through a [`transport::Transport`], which opens connections; [`tcp`]
//! is the service's own, with TLS. [`rpc`] asks and answers over a connection, and [`network`] puts
//! openraft's requests into that form.

pub mod clock;
pub mod keeper;
pub mod network;
pub mod proposer;
pub mod rpc;
pub mod tcp;
pub mod transport;

mod node;
mod pipeline;

pub use node::{Cluster, ClusterError, ClusterMember, ClusterOptions, ClusterStatus};
