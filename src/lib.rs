//! EMNetChain: a persistent, clustered coordination service for peer-to-peer chains.
//!
//! Programs across the internet form a *chain*: every client owns two UDP sockets, a head and a
//! tail, and the service tells neighbours each other's sockets. When a client leaves, its two
//! neighbours are joined across the gap. Every answer is on disk before it is sent.
//!
//! The layers, from the bottom up; each knows only those above it in this list:
//!
//! - `platform`: everything that is the operating system's.
//! - [`ids`], [`limits`], [`clock`], [`codec`], [`metrics`], [`runtime`], [`sockets`]: words,
//!   bounds, time, encoding, figures, chance and listeners.
//! - [`registry`]: the chains and repairs as a pure state machine.
//! - [`queue`]: what waits between the sessions and the proposer.
//! - [`wire`]: the clients' bytes and messages, pure as well.
//! - [`storage`]: the raft log and the registry's image on disk.
//! - [`cluster`]: replication by raft.
//! - [`server`]: the listeners that clients talk to.
//! - [`ops`]: the listener that operators talk to, and what it shows.
//! - [`instance`]: one running process, made of all of these from a [`config`] that [`cli`]
//!   reads; it speaks to its operator by [`logging`].

#[cfg(test)]
// A file that unit tests share with the simulator names this crate as the simulator does.
extern crate self as emnetchain;

#[cfg(all(feature = "rules-3", not(debug_assertions)))]
compile_error!("the feature `rules-3` is a made-up version of the rules, for tests only");

pub mod cli;
pub mod clock;
pub mod cluster;
pub mod codec;
pub mod config;
pub mod console;
mod crowd;
mod descriptors;
#[cfg(test)]
mod fuzz;
pub mod ids;
pub mod instance;
pub mod limits;
pub mod logging;
pub mod metrics;
pub mod ops;
mod platform;
pub mod queue;
pub mod raft;
mod ratelimit;
pub mod registry;
pub mod runtime;
pub mod secrets;
pub mod server;
pub mod sockets;
pub mod storage;
pub mod wire;
