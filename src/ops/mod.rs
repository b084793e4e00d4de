//! The operators' side of an instance: metrics for Prometheus, health for supervisors and load
//! balancers, a status page, changes of the cluster and backups. It stands above
//! [`crate::cluster`], and beside [`crate::server`], which is for clients.
//!
//! - [`api`] holds the requests and answers, as the HTTP server and the command line share them.
//! - [`http`] is the server.
//! - [`Backend`] is what the server shows and changes; [`Running`] is the instance behind it.
//! - [`readiness`] decides whether clients can be answered now; `gauges` and [`events`] bring the
//!   metrics up to date.

pub mod api;
pub mod events;
pub mod gauges;
pub mod http;
pub mod readiness;

mod backend;
mod running;

pub use self::{
    backend::{Backend, Backup, ReadAt},
    readiness::Readiness,
    running::{NoBackup, Running},
};
