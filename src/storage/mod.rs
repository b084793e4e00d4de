//! The raft log and the registry's image on disk.

pub mod fault;
