//! The instances of a cluster, each on a machine of its own.

use std::{path::PathBuf, process::Command};

use tempfile::TempDir;

use super::{
    net::Net,
    replicas::{assert_equal_registries, read_status, tls_flags},
    support::{Service, eventually},
};

/// Where CONNECT is answered.
pub(crate) const CHAIN_PORT: u16 = 8081;

/// Where RECONNECT is answered.
pub(crate) const REPAIR_PORT: u16 = 8080;

const HTTP_PORT: u16 = 9180;
const RAFT_PORT: u16 = 7000;

/// What protects the connections between instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protection {
    /// Certificates that the program made.
    Certificates,
    /// Nothing.
    None,
}

/// Instances, numbered from 1, running or not.
#[derive(Debug)]
pub(crate) struct Fleet {
    instances: Vec<Option<Service>>,
    flags: Vec<String>,
    protection: Protection,
    dir: TempDir,
    pub(crate) net: Net,
}

impl Fleet {
    /// So many instances that serve.
    pub(crate) fn start(instances: u8, protection: Protection, flags: &[&str]) -> Self {
        let mut fleet = Self {
            instances: (0..instances).map(|_| None).collect(),
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            protection,
            dir: TempDir::new().unwrap(),
            net: Net::new(instances),
        };
        if protection == Protection::Certificates {
            let made = Command::new(env!("CARGO_BIN_EXE_EMNetChain"))
                .args(["cluster", "certs", "--initial-cluster", &fleet.member_list()])
                .arg(fleet.dir.path().join("certs"))
                .output()
                .unwrap();
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        }
        fleet.ids().for_each(|id| fleet.start_one(id));
        fleet.wait_ready();
        fleet
    }

    /// The numbers of all.
    pub(crate) fn ids(&self) -> std::ops::RangeInclusive<u8> {
        1..=self.instances.len() as u8
    }

    /// An instance that runs.
    pub(crate) fn at(&self, id: u8) -> &Service {
        self.instances[usize::from(id) - 1].as_ref().expect("it runs")
    }

    /// Starts an instance over what it had before.
    pub(crate) fn start_one(&mut self, id: u8) {
        let address = |port: u16| format!("{}:{port}", self.net.ip(id));
        let [chain, repair, http] = [CHAIN_PORT, REPAIR_PORT, HTTP_PORT].map(address);
        let wrapper = self.net.enter(id);
        let started = Service::try_start_at(
            [&chain, &repair, &http],
            &wrapper.each_ref().map(String::as_str),
            &self.path(&id.to_string()),
            self.arguments(id),
        );
        let service = started.unwrap_or_else(|(status, log)| {
            panic!("instance {id} ended at once with {status}:\n{log}");
        });
        self.instances[usize::from(id) - 1] = Some(service);
    }

    /// Takes an instance out, to be ended by whoever has it.
    pub(crate) fn take(&mut self, id: u8) -> Service {
        self.instances[usize::from(id) - 1].take().expect("it runs")
    }

    /// Waits until all can answer clients.
    pub(crate) fn wait_ready(&self) {
        for id in self.ids() {
            eventually(&format!("instance {id} is ready"), || {
                (self.at(id).get("/readyz").0 == 200).then_some(())
            });
        }
    }

    /// Who leads, in the opinion of an instance.
    pub(crate) fn leader(&self) -> Option<u8> {
        let leader = read_status(self.at(1), "/status")["leader"].as_u64()?;
        u8::try_from(leader).ok()
    }

    /// Asserts that all instances have the same registry.
    pub(crate) fn assert_equal_registries(&self) {
        assert_equal_registries(&self.ids().map(|id| self.at(id)).collect::<Vec<_>>());
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn member_list(&self) -> String {
        let members = self.ids().map(|id| format!("{id}={}:{RAFT_PORT}", self.net.ip(id)));
        members.collect::<Vec<_>>().join(",")
    }

    fn arguments(&self, id: u8) -> Vec<String> {
        let raft = format!("{}:{RAFT_PORT}", self.net.ip(id));
        let mut arguments = vec!["--node-id".to_owned(), id.to_string()];
        arguments.extend(["--raft-addr".to_owned(), raft]);
        arguments.extend(["--initial-cluster".to_owned(), self.member_list()]);
        match self.protection {
            Protection::None => arguments.push("--insecure-cluster".to_owned()),
            Protection::Certificates => {
                arguments.extend(tls_flags(&self.path("certs"), id.into()));
            }
        }
        arguments.extend(self.flags.iter().cloned());
        arguments
    }
}
