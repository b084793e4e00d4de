//! The cluster in the configuration: its first members, and whether the keys fit together.

use std::{collections::BTreeMap, fmt, net::SocketAddr};

use super::{Config, Fault, Value, given::Given};
use crate::{
    cluster::{
        found::Founding,
        tcp::{TlsFiles, Unprotected},
    },
    ids::InstanceId,
    raft::{Member, MemberError},
    storage::ClusterId,
};

/// The first members of a cluster, by their numbers, and how the others reach them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InitialCluster(pub BTreeMap<InstanceId, Member>);

impl fmt::Display for InitialCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (id, member)) in self.0.iter().enumerate() {
            let comma = if place > 0 { "," } else { "" };
            write!(f, "{comma}{}={}", id.0, member.raft_addr)?;
        }
        Ok(())
    }
}

impl Value for InitialCluster {
    const PLACEHOLDER: &'static str = "MEMBERS";

    fn parse(text: &str) -> Result<Self, String> {
        let mut members = BTreeMap::new();
        if text == "none" {
            return Ok(Self::default());
        }
        for part in text.split(',').map(str::trim) {
            let (id, member) = parse_member(part)?;
            let mut others = members.iter();
            if let Some((other, _)) = others.find(|(_, other): &(_, &Member)| **other == member) {
                let InstanceId(other) = other;
                return Err(format!(
                    "instances {other} and {} are both listed at {}; each has its own address",
                    id.0, member.raft_addr
                ));
            }
            if members.insert(id, member).is_some() {
                return Err(format!("instance {} is listed twice", id.0));
            }
        }
        Ok(Self(members))
    }
}

/// Reads `ID=HOST:PORT`.
///
/// # Errors
/// Says what is wrong with the text, and the form to write instead.
pub fn parse_member(text: &str) -> Result<(InstanceId, Member), String> {
    let wrong = || format!("{text:?} is not a member; write ID=HOST:PORT, such as 1=10.0.0.1:7000");
    let (id, address) = text.split_once('=').ok_or_else(wrong)?;
    let id: u64 = id.trim().parse().ok().filter(|id| *id > 0).ok_or_else(wrong)?;
    let member = address.parse::<Member>().map_err(|error| match error {
        MemberError::NoAddress(_) => wrong(),
        MemberError::Unspecified(at) => format!(
            "no instance can connect to {at}; write how the others reach instance {id}: \
             {id}=HOST:{}",
            at.port()
        ),
    })?;
    Ok((InstanceId(id), member))
}

impl Config {
    /// Returns the members that an instance with an empty data directory looks for. `raft_addr` is
    /// where it listens for others.
    pub fn founding(&self, raft_addr: Option<SocketAddr>) -> Founding {
        let InitialCluster(members) = &self.initial_cluster;
        if self.lists_others() || (members.is_empty() && self.cluster_id.is_some()) {
            return Founding::With(members.clone());
        }
        let listening = || raft_addr.map(|at| at.to_string()).unwrap_or_default();
        let listed = members.get(&self.node_id).cloned();
        Founding::Alone(listed.unwrap_or_else(|| Member::at(listening())))
    }

    /// Returns the cluster that an empty data directory is founded for; `None` for one of its own.
    /// A list of one names a cluster as a list of three does: `cluster certs` derives the same.
    pub fn founded_cluster(&self) -> Option<ClusterId> {
        let derived = || ClusterId::derived_from(&self.initial_cluster.to_string());
        let is_listed = !self.initial_cluster.0.is_empty();
        self.cluster_id.or_else(|| is_listed.then(derived))
    }

    /// Returns whether the first members are more than this instance.
    fn lists_others(&self) -> bool {
        self.initial_cluster.0.keys().any(|id| *id != self.node_id)
    }

    /// Returns the files for TLS between instances, if they are given.
    pub fn tls_files(&self) -> Option<TlsFiles> {
        Some(TlsFiles {
            ca: self.raft_tls_ca.clone()?,
            certificate: self.raft_tls_cert.clone()?,
            key: self.raft_tls_key.clone()?,
        })
    }

    /// Adds a fault for each key of the cluster that another one needs or forbids.
    pub(super) fn check_cluster(&self, given: &mut Given) {
        let mut fault = |key: &str, why: String| {
            let place = given.place(key);
            given.faults.push(Fault::BadValue { place, why });
        };
        let tls = [
            ("raft_tls_cert", self.raft_tls_cert.is_some()),
            ("raft_tls_key", self.raft_tls_key.is_some()),
            ("raft_tls_ca", self.raft_tls_ca.is_some()),
        ];
        if let Some((given, _)) = tls.iter().find(|(_, is_given)| *is_given) {
            for (missing, _) in tls.iter().filter(|(_, is_given)| !is_given) {
                fault(
                    missing,
                    format!("it is missing, though {given} is given; TLS needs all three"),
                );
            }
        }
        let founding = self.founding(self.raft_addr);
        match (self.raft_addr, founding) {
            (None, Founding::With(_)) => fault(
                "raft_addr",
                "it is missing, and without it no other instance reaches this one; give where to \
                 listen, such as 127.0.0.1:7000"
                    .to_owned(),
            ),
            (Some(address), Founding::Alone(member))
                if address.ip().is_unspecified() && member.raft_addr == address.to_string() =>
            {
                let (id, port) = (self.node_id.0, address.port());
                fault(
                    "initial_cluster",
                    format!(
                        "no instance can connect to {address}; say how others reach this instance: \
                         {id}=HOST:{port}"
                    ),
                );
            }
            (None | Some(_), Founding::Alone(_) | Founding::With(_)) => {}
        }
        if let Some(address) = self.raft_addr
            && !address.ip().to_canonical().is_loopback()
            && !self.insecure_cluster
            && tls.iter().all(|(_, is_given)| !is_given)
        {
            fault("raft_addr", Unprotected(address).to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Faults, Sources};

    fn read(flags: &[(&str, &str)]) -> Result<Config, Faults> {
        let mut sources = Sources::default();
        let addrs = [("chain_addr", "127.0.0.1:1"), ("dis_addr", "127.0.0.1:2")];
        for (name, text) in addrs.iter().chain(flags) {
            sources.give_flag(Config::key(name).unwrap(), (*text).into());
        }
        sources.read()
    }

    #[test]
    fn members_are_read_and_written() {
        let text = "1=a.example:7000,2=10.0.0.2:7000,30=[::1]:7001";
        let members = InitialCluster::parse(text).unwrap();
        assert_eq!((members.0.len(), members.to_string().as_str()), (3, text));
        let mixed = InitialCluster::parse("2=b:2, 1=a:1").unwrap();
        assert_eq!(mixed.to_string(), "1=a:1,2=b:2");
        for (spelled, kept) in [
            ("1=LocalHost:07000", "1=localhost:7000"),
            ("1=[0:0::0001]:7", "1=[::1]:7"),
            ("1=127.0.0.1:0080", "1=127.0.0.1:80"),
            ("01=a_b.c-d.:7", "1=a_b.c-d.:7"),
        ] {
            assert_eq!(InitialCluster::parse(spelled).unwrap().to_string(), kept);
        }
        for text in [
            "1=127.0.0.01:7",
            "1=127.1:7",
            "1=10.0.0.256:7",
            "1=.:7",
            "1=LOCALHOST:7,2=localhost:07",
            "",
            "1",
            "1=a",
            "1=:7",
            "0=a:7",
            "1=a:0",
            "1=a:70000",
            "1=a b:7",
            "1=a:1,1=b:1",
            "1=a:1,2=a:1",
            "1=0.0.0.0:7",
            "1=[::]:7",
        ] {
            assert!(InitialCluster::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_same_list_founds_the_same_cluster_and_one_alone_its_own() {
        let list = ("initial_cluster", "1=a:1,2=b:1,3=c:1");
        let raft = ("raft_addr", "127.0.0.1:3");
        let first = read(&[list, raft]).unwrap();
        let second = read(&[list, raft, ("node_id", "2")]).unwrap();
        assert!(first.founded_cluster().is_some());
        assert_eq!(first.founded_cluster(), second.founded_cluster());
        assert!(matches!(second.founding(second.raft_addr), Founding::With(_)));
        let joining = read(&[list, raft, ("node_id", "4")]).unwrap();
        assert_eq!(joining.founded_cluster(), first.founded_cluster());
        let alone = read(&[raft]).unwrap();
        assert_eq!(alone.founded_cluster(), None);
        let one = read(&[("initial_cluster", "1=a:1"), raft]).unwrap();
        assert_eq!(one.founded_cluster(), Some(ClusterId::derived_from("1=a:1")));
        let reached = Member::at("127.0.0.1:3");
        assert_eq!(alone.founding(alone.raft_addr), Founding::Alone(reached));
    }

    #[test]
    fn what_does_not_fit_together_is_told_with_the_way_out() {
        let cases: [(&[(&str, &str)], &str); 5] = [
            (&[("initial_cluster", "1=a:1,2=b:1")], "--raft-addr: it is missing"),
            (&[("raft_addr", "10.0.0.1:7000")], "--insecure-cluster"),
            (
                &[("raft_addr", "127.0.0.1:7"), ("raft_tls_ca", "x")],
                "--raft-tls-key: it is missing",
            ),
            (&[("raft_addr", "0.0.0.0:7000"), ("insecure_cluster", "true")], "1=HOST:7000"),
            (&[("cluster_id", "12")], "32 digits"),
        ];
        for (flags, expected) in cases {
            let told = read(flags).unwrap_err().to_string();
            assert!(told.contains(expected), "{flags:?}: {told}");
        }
    }
}
