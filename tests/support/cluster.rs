//! Several instances as child processes that are one cluster. Their raft addresses stay the same
//! over restarts, the others are picked by the system each time.

#![allow(dead_code, unreachable_pub, reason = "each test program uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, and says why")]

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
};

use serde_json::Value;
use tempfile::TempDir;

use super::support::{
    Client, Member, Service, chain, eventually, free_address, operator::read_status, told,
};

/// The instances of a cluster, numbered from 1, running or not.
#[derive(Debug)]
pub struct Cluster {
    dir: TempDir,
    raft: Vec<SocketAddr>,
    flags: Vec<String>,
    instances: Vec<Option<Service>>,
}

/// The value of `--initial-cluster` for these.
pub fn member_list(raft: &[SocketAddr]) -> String {
    let members = (1..).zip(raft).map(|(id, address): (usize, _)| format!("{id}={address}"));
    members.collect::<Vec<_>>().join(",")
}

/// The flags with which an instance uses the certificates in a directory.
pub fn tls_flags(dir: &Path, id: usize) -> Vec<String> {
    let files = [
        ("--raft-tls-ca", "ca.pem".to_owned()),
        ("--raft-tls-cert", format!("node-{id}.pem")),
        ("--raft-tls-key", format!("node-{id}.key")),
    ];
    let flags = files.into_iter().map(|(flag, name)| [flag.to_owned(), text(&dir.join(name))]);
    flags.flatten().collect()
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

impl Cluster {
    /// Three instances, none of which runs.
    pub fn new(flags: &[&str]) -> Self {
        let raft: Vec<_> = (0..3).map(|_| free_address()).collect();
        let instances = raft.iter().map(|_| None).collect();
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        Self { dir: TempDir::new().unwrap(), raft, flags, instances }
    }

    /// Three instances that serve.
    pub fn start(flags: &[&str]) -> Self {
        let mut cluster = Self::new(flags);
        cluster.start_these(&[1, 2, 3]);
        cluster.wait_ready();
        cluster
    }

    /// Has certificates made, which instances use that are started from now on.
    pub fn make_certificates(&self) {
        let made = Command::new(env!("CARGO_BIN_EXE_EMNetChain"))
            .args(["cluster", "certs", "--initial-cluster", &member_list(&self.raft)])
            .arg(self.certificates())
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }

    /// Where its certificates are.
    pub fn certificates(&self) -> PathBuf {
        self.dir.path().join("certificates")
    }

    /// The numbers of all instances.
    pub fn ids(&self) -> std::ops::RangeInclusive<usize> {
        1..=self.raft.len()
    }

    /// Where the others reach an instance.
    pub fn raft(&self, id: usize) -> SocketAddr {
        self.raft[id - 1]
    }

    /// The data directory of an instance.
    pub fn data_dir(&self, id: usize) -> PathBuf {
        self.dir.path().join(format!("{id}"))
    }

    /// The arguments of an instance.
    pub fn arguments(&self, id: usize) -> Vec<String> {
        let (number, raft) = (id.to_string(), self.raft(id).to_string());
        let members = member_list(&self.raft);
        let own = ["--node-id", &number, "--raft-addr", &raft, "--initial-cluster", &members];
        let mut arguments: Vec<String> = own.into_iter().map(str::to_owned).collect();
        if self.certificates().exists() {
            arguments.extend(tls_flags(&self.certificates(), id));
        }
        arguments.extend(self.flags.iter().cloned());
        arguments
    }

    /// Starts instances, in this order, over what they had before.
    pub fn start_these(&mut self, ids: &[usize]) {
        for id in ids {
            let started = self.try_start(*id);
            let service = started.unwrap_or_else(|(status, log)| {
                panic!("instance {id} ended at once with {status}:\n{log}");
            });
            self.instances[id - 1] = Some(service);
        }
    }

    /// Starts an instance; its exit status and log if it ends before it listens.
    pub fn try_start(&self, id: usize) -> Result<Service, (ExitStatus, String)> {
        Service::try_start(&self.data_dir(id), self.arguments(id))
    }

    /// An instance that runs.
    pub fn at(&self, id: usize) -> &Service {
        self.instances[id - 1].as_ref().expect("it runs")
    }

    /// The numbers of those that run.
    pub fn running(&self) -> Vec<usize> {
        self.ids().filter(|id| self.instances[id - 1].is_some()).collect()
    }

    /// kill -9
    pub fn kill(&mut self, id: usize) {
        self.take(id).kill();
    }

    /// Takes an instance out, to be ended by its new owner.
    pub fn take(&mut self, id: usize) -> Service {
        self.instances[id - 1].take().expect("it runs")
    }

    /// Takes an instance back that was started elsewhere.
    pub fn put(&mut self, id: usize, service: Service) {
        self.instances[id - 1] = Some(service);
    }

    /// `/status` of an instance.
    pub fn status(&self, id: usize) -> Value {
        read_status(self.at(id), "/status")
    }

    /// Whether an instance can answer clients.
    pub fn is_ready(&self, id: usize) -> bool {
        self.at(id).get("/readyz").0 == 200
    }

    /// Waits until all that run can answer clients, and agree on their leader.
    pub fn wait_ready(&self) {
        eventually("all that run are ready", || {
            let mut leaders = self.running().into_iter().map(|id| {
                let status = self.status(id);
                self.is_ready(id).then(|| status["leader"].as_u64()).flatten()
            });
            let first = leaders.next().flatten()?;
            leaders.all(|leader| leader == Some(first)).then_some(())
        });
    }

    /// Waits until those that run agree on a leader that runs.
    pub fn leader(&self) -> usize {
        self.wait_ready();
        let id = self.status(self.running()[0])["leader"].as_u64().expect("there is one");
        usize::try_from(id).unwrap()
    }

    /// Those that run and do not lead.
    pub fn followers(&self) -> Vec<usize> {
        let leader = self.leader();
        self.running().into_iter().filter(|id| *id != leader).collect()
    }

    /// Waits until all that run have applied the same entries, and asserts that all of them made
    /// the same registry of it.
    pub fn assert_equal_registries(&self) {
        let services: Vec<&Service> = self.running().into_iter().map(|id| self.at(id)).collect();
        assert_equal_registries(&services);
    }
}

/// As [`Cluster::assert_equal_registries`], for these.
pub fn assert_equal_registries(services: &[&Service]) {
    let digests = eventually("all have applied the same entries", || {
        let look = |service: &&Service| read_status(service, "/status?digest")["registry"].clone();
        let all: Vec<Value> = services.iter().map(look).collect();
        all.iter().all(|one| one["applied"] == all[0]["applied"]).then_some(all)
    });
    assert!(digests.iter().all(|one| *one == digests[0]), "replicas differ: {digests:?}");
}

/// Waits until an instance counts this number of clients.
pub fn wait_for_clients(service: &Service, count: usize) {
    eventually(&format!("{count} clients are registered"), || {
        (service.metric("emnetchain_clients") == count as f64).then_some(())
    });
}

/// Waits until an instance counts this number of asks.
pub fn wait_for_asks(service: &Service, count: usize) {
    eventually(&format!("{count} sockets ask"), || {
        (service.metric("emnetchain_asks") == count as f64).then_some(())
    });
}

/// As [`chain`], each member through the instance that is picked for it.
pub fn chain_through<'a>(members: &[Member], mut pick: impl FnMut() -> &'a Service) -> Client {
    let mut tip = chain(pick(), &members[..1]);
    for pair in members.windows(2) {
        let mut client = Client::say(pick().chain(), pair[1].connect());
        assert_eq!(client.object(), told("tail", &pair[0].head()));
        assert_eq!(tip.rest(), told("head", &pair[1].tail()));
        tip = client;
    }
    tip
}
