//! The raft log and the registry's image on disk.

pub mod fault;
mod log_store;
mod wal;

pub use log_store::{LogError, LogOptions, LogReader, LogStore, LogSummary};
