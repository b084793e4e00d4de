//! Replication by raft: the one place that runs openraft.
//!
//! A [`Cluster`] is this instance's part of it. Commands of its clients go through the
//! [`proposer`], which batches what arrives while earlier batches are on their way to the disks,
//! and the [`writer`], which finds the leader; the [`keeper`] makes deadlines happen and keeps the
//! log short. What commands bring about comes out of the state machine, on every instance, as
//! [`crate::registry::Applied`].
//!
//! [`found`] is how an instance gets into a cluster; [`greeter`] makes sure of every peer before
//! raft hears it, and [`gate`] decides whether this instance may take part. [`admin`] is how the
//! cluster is changed, [`lives`] how the clients of an instance that died are set free, [`backup`]
//! how the registry is taken out of it while it serves, and [`compare`] how a replica finds out
//! that it is not one. [`election`] decides when an instance stands for leader, [`watchdog`]
//! sees that nothing hangs, and [`upgrade`] raises the rules.
//!
//! Other instances are reached through a [`transport::Transport`], which opens connections; [`tcp`]
//! is the service's own, with TLS. [`rpc`] asks and answers over a connection, and [`network`] puts
//! openraft's requests into that form.

pub mod admin;
pub mod backup;
pub mod clock;
pub mod compare;
pub mod contact;
pub mod election;
pub mod found;
pub mod gate;
pub mod greeted;
pub mod greeter;
pub mod keeper;
pub mod lives;
pub mod network;
pub mod peers;
pub mod progress;
pub mod proposer;
pub mod rpc;
pub mod service;
pub mod tcp;
pub mod transport;
pub mod turned;
pub mod upgrade;
pub mod watchdog;
pub mod writer;

mod admit;
mod node;
mod pipeline;
mod place;
mod status;
#[cfg(test)]
mod tests;
mod trouble;
#[cfg(feature = "rules-3")]
mod version3;
mod waiting;

pub use keeper::LogBounds;
pub use node::{Cluster, ClusterError, ClusterOptions, Started};
pub use status::{ClusterMember, ClusterStatus};
pub use upgrade::RulesOptions;
