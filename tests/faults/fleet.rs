//! The instances of a cluster, each on a machine of its own.

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Command, ExitStatus},
    thread,
    time::Duration,
};

use emnetchain::{clock, limits::DISK_WAIT_MAX};
use tempfile::TempDir;

use super::{
    disk::{Disk, Disks},
    net::Net,
    replicas::{assert_equal_registries, tls_flags},
    slow::make_library,
    support::{PATIENCE, Service, eventually, operator::read_status},
};

/// Where CONNECT is answered.
pub(crate) const CHAIN_PORT: u16 = 8081;

/// Where RECONNECT is answered.
pub(crate) const REPAIR_PORT: u16 = 8080;

const HTTP_PORT: u16 = 9180;

/// Where the others reach an instance.
pub(crate) const RAFT_PORT: u16 = 7000;

/// How long an instance that cannot serve may take to find that out.
const REFUSING: Duration = Duration::from_secs(20);

/// What protects the connections between instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protection {
    /// Certificates that the program made.
    Certificates,
    /// Nothing.
    None,
}

/// One instance.
#[derive(Debug)]
struct Instance {
    /// What it is always started with.
    arguments: Vec<String>,
    disk: Disk,
    service: Option<Service>,
}

/// The members of a cluster, numbered from 1, running or not.
#[derive(Debug)]
pub(crate) struct Fleet {
    instances: BTreeMap<u8, Instance>,
    /// The highest number that was ever used.
    newest: u8,
    flags: Vec<String>,
    disks: Disks,
    dir: TempDir,
    pub(crate) net: Net,
}

impl Fleet {
    /// This number of instances, all serving.
    pub(crate) fn start(count: u8, protection: Protection, disks: Disks, flags: &[&str]) -> Self {
        let dir = TempDir::new().unwrap();
        let net = Net::new(dir.path());
        let mut fleet =
            Self { instances: BTreeMap::new(), newest: 0, flags: Vec::new(), disks, dir, net };
        fs::write(fleet.path("token"), "a word that operators know").unwrap();
        fs::set_permissions(fleet.path("token"), Permissions::from_mode(0o600)).unwrap();
        fleet.flags.extend(["--admin-token-file".to_owned(), fleet.token()]);
        // The test looks at the instances from another network than theirs.
        let open = ["--http-open", "livez,readyz,metrics,views"];
        fleet.flags.extend(open.map(str::to_owned));
        fleet.flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
        if disks == Disks::Slowed {
            make_library(fleet.dir.path());
        }
        let members = (1..=count).map(|id| format!("{id}={}:{RAFT_PORT}", fleet.net.ip(id)));
        let members = members.collect::<Vec<_>>().join(",");
        if protection == Protection::Certificates {
            let made = Command::new(env!("CARGO_BIN_EXE_EMNetChain"))
                .args(["cluster", "certs", "--initial-cluster", &members])
                .arg(fleet.path("certs"))
                .output()
                .unwrap();
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        }
        for id in 1..=count {
            let raft = format!("{}:{RAFT_PORT}", fleet.net.ip(id));
            let mut arguments = vec!["--node-id".to_owned(), id.to_string()];
            arguments.extend(["--raft-addr".to_owned(), raft]);
            arguments.extend(["--initial-cluster".to_owned(), members.clone()]);
            match protection {
                Protection::None => arguments.push("--insecure-cluster".to_owned()),
                Protection::Certificates => {
                    arguments.extend(tls_flags(&fleet.path("certs"), id.into()));
                }
            }
            fleet.put(id, arguments);
            fleet.start_one(id);
        }
        fleet.wait_ready();
        fleet.name_all();
        fleet
    }

    /// A machine for a new instance, which is not started.
    pub(crate) fn put(&mut self, id: u8, arguments: Vec<String>) {
        self.net.add(id);
        let disk = Disk::new(self.disks, &self.path("slow.so"));
        self.instances.insert(id, Instance { arguments, disk, service: None });
        self.newest = self.newest.max(id);
    }

    /// Forgets an instance for good; its process ends with what is returned.
    pub(crate) fn drop_one(&mut self, id: u8) -> Option<Service> {
        let gone = self.instances.remove(&id).expect("it is one of them");
        self.name_all();
        gone.service
    }

    /// A number that no instance ever had.
    pub(crate) fn new_id(&self) -> u8 {
        self.newest + 1
    }

    /// Has the service's name stand for all of the present instances.
    pub(crate) fn name_all(&mut self) {
        let ids = self.ids();
        self.net.name(&ids);
    }

    /// The numbers of all.
    pub(crate) fn ids(&self) -> Vec<u8> {
        self.instances.keys().copied().collect()
    }

    /// Those of all but one.
    pub(crate) fn others(&self, than: u8) -> Vec<u8> {
        self.ids().into_iter().filter(|id| *id != than).collect()
    }

    /// An instance that runs.
    pub(crate) fn at(&self, id: u8) -> &Service {
        self.instances[&id].service.as_ref().expect("it runs")
    }

    /// Any instance that runs.
    pub(crate) fn any(&self) -> &Service {
        let mut running = self.instances.values().filter_map(|one| one.service.as_ref());
        running.next().expect("one of them runs")
    }

    /// The disk of an instance.
    pub(crate) fn disk(&self, id: u8) -> &Disk {
        &self.instances[&id].disk
    }

    /// The disks of all.
    pub(crate) fn disks(&self) -> impl Iterator<Item = &Disk> {
        self.instances.values().map(|instance| &instance.disk)
    }

    /// Starts an instance over what it had before.
    pub(crate) fn start_one(&mut self, id: u8) {
        let service = self.try_start(id).unwrap_or_else(|(status, log)| {
            panic!("instance {id} ended at once with {status}:\n{log}");
        });
        self.instances.get_mut(&id).expect("it is one of them").service = Some(service);
    }

    fn try_start(&self, id: u8) -> Result<Service, (ExitStatus, String)> {
        let Instance { arguments, disk, .. } = &self.instances[&id];
        let address = |port: u16| format!("{}:{port}", self.net.ip(id));
        let [chain, repair, http] = [CHAIN_PORT, REPAIR_PORT, HTTP_PORT].map(address);
        let wrapper: Vec<String> = self.net.enter(id).into_iter().chain(disk.wrapper()).collect();
        Service::try_start_at(
            [&chain, &repair, &http],
            &wrapper.iter().map(String::as_str).collect::<Vec<_>>(),
            &disk.data(),
            arguments.iter().chain(&self.flags).cloned().collect(),
        )
    }

    /// Starts an instance that finds out that it cannot serve with what its disk has. Returns what
    /// it said.
    pub(crate) fn start_refused(&self, id: u8) -> String {
        let (status, log) = match self.try_start(id) {
            Err(ended) => ended,
            Ok(mut service) => match service.wait_within(REFUSING) {
                Some(status) => (status, service.log()),
                None => panic!("instance {id} takes a disk that is not its own"),
            },
        };
        assert_eq!(status.code(), Some(78), "instance {id}: {log}");
        log
    }

    /// Starts an instance again if it has ended because its disk failed. It may do so within a few
    /// seconds after the disk works again.
    pub(crate) fn start_if_it_gave_up(&mut self, id: u8) {
        let mut service = self.take(id);
        let ready = |service: &Service| {
            std::net::TcpStream::connect(service.address("HTTP")).is_ok()
                && service.get("/readyz").0 == 200
        };
        let ended =
            eventually("it has ended or is ready", || match service.wait_within(Duration::ZERO) {
                Some(status) => Some(Some(status)),
                None => ready(&service).then_some(None),
            });
        match ended {
            Some(status) => {
                assert_eq!(status.code(), Some(74), "{}", service.log());
                self.start_one(id);
            }
            None => self.instances.get_mut(&id).expect("one of them").service = Some(service),
        }
    }

    /// Waits until an instance says that its disk hangs.
    pub(crate) fn wait_for_hang(&self, id: u8) {
        eventually("it says that its disk hangs", || {
            let (code, why) = self.at(id).get("/readyz");
            (code == 503 && why.contains("a write of the raft log has been pending")).then_some(())
        });
    }

    /// Waits until an instance has logged this.
    pub(crate) fn wait_for_log(&self, id: u8, text: &str) {
        let deadline = clock::now() + DISK_WAIT_MAX + PATIENCE;
        while !self.at(id).log().contains(text) {
            assert!(clock::now() < deadline, "{}", self.at(id).log());
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until an instance has applied some more entries.
    pub(crate) fn wait_for_progress(&self, id: u8) {
        let applied = || read_status(self.at(id), "/status")["applied_index"].as_u64();
        let enough = applied().expect("the status has it") + 20;
        eventually("more is applied", || (applied()? >= enough).then_some(()));
    }

    /// Takes an instance out, to be ended by the caller.
    pub(crate) fn take(&mut self, id: u8) -> Service {
        let instance = self.instances.get_mut(&id).expect("it is one of them");
        instance.service.take().expect("it runs")
    }

    /// Waits until all can answer clients.
    pub(crate) fn wait_ready(&self) {
        for (id, instance) in &self.instances {
            let Some(service) = &instance.service else { continue };
            eventually(&format!("instance {id} is ready"), || {
                (service.get("/readyz").0 == 200).then_some(())
            });
        }
    }

    /// The leader, in the opinion of an instance.
    pub(crate) fn leader(&self) -> Option<u8> {
        let leader = read_status(self.any(), "/status")["leader"].as_u64()?;
        u8::try_from(leader).ok()
    }

    /// Asserts that all instances have the same registry.
    pub(crate) fn assert_equal_registries(&self) {
        let ids = self.ids();
        assert_equal_registries(&ids.iter().map(|id| self.at(*id)).collect::<Vec<_>>());
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The file with the operators' token.
    pub(crate) fn token(&self) -> String {
        self.path("token").display().to_string()
    }
}
