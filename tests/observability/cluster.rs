//! Three instances that are one cluster, on loopback.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use tempfile::TempDir;

use super::support::{Service, eventually};

/// The instances of a cluster, numbered from 1, running or not.
pub(crate) struct Cluster {
    dir: TempDir,
    raft: Vec<SocketAddr>,
    instances: Vec<Option<Service>>,
}

/// Raft addresses that nobody else takes while an instance is down: each process has a loopback
/// address of its own for them.
fn raft_addresses() -> Vec<SocketAddr> {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let host = Ipv4Addr::new(127, 64 + high % 64, middle, low);
    let held: Vec<_> = (0..3).map(|_| TcpListener::bind((host, 0)).unwrap()).collect();
    held.iter().map(|listener| listener.local_addr().unwrap()).collect()
}

impl Cluster {
    /// Three instances that serve.
    pub(crate) fn start() -> Self {
        let raft = raft_addresses();
        let instances = raft.iter().map(|_| None).collect();
        let mut cluster = Self { dir: TempDir::new().unwrap(), raft, instances };
        for id in 1..=3 {
            cluster.start_one(id);
        }
        cluster.wait_ready();
        cluster
    }

    /// Starts an instance, over what it had before.
    pub(crate) fn start_one(&mut self, id: usize) {
        let members = (1..).zip(&self.raft).map(|(id, at): (usize, _)| format!("{id}={at}"));
        let members = members.collect::<Vec<_>>().join(",");
        let (number, raft) = (id.to_string(), self.raft[id - 1].to_string());
        let arguments = [
            ["--udp-addr", "127.0.0.1:0"],
            ["--node-id", &number],
            ["--raft-addr", &raft],
            ["--initial-cluster", &members],
        ];
        let arguments = arguments.as_flattened().iter().map(|text| (*text).to_owned()).collect();
        let started = Service::try_start(&self.dir.path().join(&number), arguments);
        let service = started.unwrap_or_else(|(status, log)| {
            panic!("instance {id} ended at once with {status}:\n{log}");
        });
        self.instances[id - 1] = Some(service);
    }

    /// An instance that runs.
    pub(crate) fn at(&self, id: usize) -> &Service {
        self.instances[id - 1].as_ref().expect("it runs")
    }

    /// The numbers of those that run.
    pub(crate) fn running(&self) -> Vec<usize> {
        (1..=3).filter(|id| self.instances[id - 1].is_some()).collect()
    }

    /// Where an instance listens for the others.
    pub(crate) fn raft(&self, id: usize) -> SocketAddr {
        self.raft[id - 1]
    }

    /// kill -9
    pub(crate) fn kill(&mut self, id: usize) {
        self.instances[id - 1].take().expect("it runs").kill();
    }

    /// Waits until all that run can answer clients.
    pub(crate) fn wait_ready(&self) {
        eventually("all that run are ready", || {
            self.running().iter().all(|id| self.at(*id).get("/readyz").0 == 200).then_some(())
        });
    }

    /// The number of the instance that leads.
    pub(crate) fn leader(&self) -> usize {
        eventually("one leads", || {
            let leads = |id: &usize| self.at(*id).metric("emnetchain_raft_is_leader") == 1.0;
            self.running().into_iter().find(leads)
        })
    }
}
