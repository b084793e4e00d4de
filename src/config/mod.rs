//! What an operator may decide. Each key is declared once, on this page: its doc comment is also
//! the text of `--help` and the comment in the configuration file, and its default is written the
//! way an operator would write it.
//!
//! A key `shutdown_deadline` is the flag `--shutdown-deadline`, the environment variable
//! `EMNETCHAIN_SHUTDOWN_DEADLINE` and the TOML key `shutdown_deadline`, and the first of them that
//! is given decides. Every value is text of the same form in all three places, so one parser
//! serves them all, and every fault is found before anything starts ([`Faults`]).

mod cluster;
mod fault;
#[cfg(test)]
mod fuzz;
mod given;
mod page;
mod sources;
mod value;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

pub use cluster::{InitialCluster, parse_member};
pub use fault::{Fault, Faults, near};
pub use given::Place;
pub use sources::Sources;
pub use value::{Addrs, UdpAddrs, Value};

use crate::{
    ids::InstanceId,
    logging::{LogFormat, LogLevel, OtlpEndpoint},
    ops::http::{HttpAddr, gate::Open},
    registry::Policy,
    storage::ClusterId,
    wire::AddressPolicy,
};
use given::Given;
use value::{days, hours, seconds, within};

/// What holds when nothing is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// This value.
    Default(&'static str),
    /// Nothing: the key must be given. The text is an example.
    Required(&'static str),
}

/// One key of the configuration, as a person sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The name in the configuration file.
    pub name: &'static str,
    /// The heading under which it stands.
    pub section: &'static str,
    /// What it means: whole sentences, one per line of its declaration.
    pub help: &'static str,
    /// What a value looks like, in one word.
    pub placeholder: &'static str,
    /// Whether the flag alone, without a value, says `true`.
    pub is_switch: bool,
    /// Whether the flag may be given again, for one value more.
    pub is_list: bool,
    /// Whether a running instance takes a new value when it gets SIGHUP.
    pub is_live: bool,
    /// What holds when it is not given.
    pub preset: Preset,
}

/// The keys whose values a new configuration changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Those that hold from now on.
    pub adopted: Vec<&'static str>,
    /// Those that need a restart.
    pub postponed: Vec<&'static str>,
}

impl Key {
    /// Its meaning, line by line, for people.
    pub fn meaning(&self) -> impl Iterator<Item = &'static str> {
        let live = self.is_live.then_some("SIGHUP reads it again.");
        self.help.lines().map(str::trim).chain(live)
    }

    /// The long flag, without its dashes.
    pub fn flag(&self) -> String {
        self.name.replace('_', "-")
    }

    /// The environment variable.
    pub fn env(&self) -> String {
        format!("EMNETCHAIN_{}", self.name.to_uppercase())
    }
}

/// Declares the configuration, the table of its keys and how it is read, from one list:
/// `name: type = preset, the values allowed;`, with `@live` before it if a running instance can
/// take a new value.
macro_rules! settings {
    ($($section:literal {
        $($(#[doc = $help:literal])+
        $(@$live:ident)? $name:ident: $type:ty = $preset:expr $(, $range:expr)?;)+
    })+) => {
        /// The whole configuration of one instance, valid.
        #[derive(Clone, Debug)]
        pub struct Config {
            $($($(#[doc = $help])+ pub $name: $type,)+)+
        }

        impl Config {
            /// Every key, in the order of the configuration file.
            pub const KEYS: &'static [Key] = &[$($(Key {
                name: stringify!($name),
                section: $section,
                help: concat!($($help, "\n"),+),
                placeholder: <$type as Value>::PLACEHOLDER,
                is_switch: <$type as Value>::IS_SWITCH,
                is_list: <$type as Value>::IS_LIST,
                is_live: !stringify!($($live)?).is_empty(),
                preset: $preset,
            },)+)+];

            /// Reads every key, so that all faults are found at once; they are left in `given`.
            fn read(given: &mut Given) -> Option<Self> {
                $($(let $name: Option<$type> = given.read(stringify!($name), |text| {
                    let value = <$type>::parse(text)?;
                    $(within(&value, &$range)?;)?
                    Ok(value)
                });)+)+
                Some(Self { $($($name: $name?,)+)+ })
            }

            /// Takes over what a running instance can, and tells what differs.
            pub fn adopt(&mut self, new: Self) -> Changes {
                let mut changes = Changes::default();
                $($(if self.$name != new.$name {
                    let key = Self::key(stringify!($name)).expect("it is a key");
                    if key.is_live {
                        self.$name = new.$name;
                        changes.adopted.push(key.name);
                    } else {
                        changes.postponed.push(key.name);
                    }
                })+)+
                changes
            }
        }
    };
}

use Preset::{Default, Required};

settings! {
    "Listeners" {
        /// Where the chain server listens: clients come here with CONNECT.
        /// An address is `ip:port` or `[ip]:port`; port 0 picks a free one.
        /// Several addresses are separated by commas, or given by one flag each.
        chain_addr: Addrs = Required("127.0.0.1:8081");
        /// Where the repair server (EMDisi) listens: clients come here with RECONNECT.
        dis_addr: SocketAddr = Required("127.0.0.1:8080");
        /// Where EMUDP and STUN answer datagrams with their sender's address; `off` for nowhere.
        /// Several addresses are separated by commas, or given by one flag each.
        udp_addr: UdpAddrs = Default("off");
        /// Where EMNet listens (ADD_PEER, ASK_IP); `off` for nowhere.
        emnet_addr: Option<SocketAddr> = Default("off");
        /// Where /metrics, /livez, /readyz and /status are served; `off` for nowhere.
        /// `auto` is 127.0.0.1:9180, or a free port beside it if another program has that one.
        http_addr: HttpAddr = Default("auto");
        /// What every reader may have by HTTP: some of livez, readyz, metrics and views (the status
        /// page and what it shows), or `none`.
        http_open: Open = Default("livez,readyz,metrics");
        /// A file with the operators' secret, readable by its owner only. It is needed to change
        /// the cluster or take a backup by HTTP, and from other machines and through proxies to
        /// look at what http_open does not name. `none`: this machine alone may do these things.
        @live admin_token_file: Option<PathBuf> = Default("none");
    }
    "Data" {
        /// The directory that holds everything the instance must not forget.
        /// It is made if it does not exist, and belongs to one running instance at a time.
        data_dir: PathBuf = Default("./emnetchain-data");
        /// The number of this instance in its cluster. The data directory remembers it.
        node_id: InstanceId = Default("1");
    }
    "Cluster" {
        /// Where other instances reach this one; `off` for an instance that stays alone.
        /// An address that is not loopback needs the three raft_tls keys, or insecure_cluster.
        raft_addr: Option<SocketAddr> = Default("off");
        /// The first members of the cluster, as the others reach them: `1=HOST:PORT,2=HOST:PORT`.
        /// The same on all of them. Only an empty data directory is founded by it; an instance
        /// that is not on the list looks for a cluster there, and waits to be taken in.
        initial_cluster: InitialCluster = Default("none");
        /// The cluster to get into, as `EMNetChain cluster status` tells it. `auto` is the one that
        /// follows from initial_cluster. The data directory remembers it.
        cluster_id: Option<ClusterId> = Default("auto");
        /// The certificate of this instance (PEM); `EMNetChain cluster certs` makes all of them.
        raft_tls_cert: Option<PathBuf> = Default("none");
        /// The key of that certificate (PEM), readable by its owner only.
        raft_tls_key: Option<PathBuf> = Default("none");
        /// The certificate authority of the cluster (PEM): an instance with a certificate of it is
        /// let in.
        raft_tls_ca: Option<PathBuf> = Default("none");
        /// Whether other machines may be reached without TLS, because the network is safe.
        insecure_cluster: bool = Default("false");
    }
    "Running" {
        /// What is logged: error, warn, info, debug or trace, for the service itself.
        /// Parts can be told apart: `info,emnetchain::cluster=debug`.
        @live log_level: LogLevel = Default("info");
        /// How it is logged, on standard error: `text` for people, `json` for machines.
        log_format: LogFormat = Default("text");
        /// Where the spans of requests are sent, by OTLP over HTTP: `http://HOST:PORT`.
        /// It takes a build with the feature `otlp`, and work for each request.
        otlp_endpoint: Option<OtlpEndpoint> = Default("none");
        /// How long a stop may take (SIGTERM, SIGINT); what is not finished then is cut off.
        /// A second signal stops at once.
        shutdown_deadline: Duration = Default("10s"), Duration::ZERO..=hours(1);
    }
    "Clients" {
        /// Which addresses a client may announce. `auto`: a public client its own only, clients
        /// on loopback and private networks any. `source-ip`: everybody their own only.
        /// `any`: everybody any, so that one client can point others at a stranger.
        @live address_policy: AddressPolicy = Default("auto");
        /// Client connections at one time, over all listeners. `auto` is 100,000, or four fifths
        /// of the files that the process may open, or what the disk, raft and operators leave of
        /// them (264 are theirs at the most), whichever is least. Beyond it, the oldest of the
        /// address (of the /48) that has the most is closed: one that has no request in hand, or,
        /// for a new request, one that has.
        @live connections_max: Option<usize> = Default("auto");
        /// Client connections at one time from one public address (IPv6: from one /64; a /48 has
        /// sixteen times as many, and at most a quarter of all). Beyond it, its oldest is closed:
        /// one that has no request in hand, or, for a new request, one that has.
        @live connections_per_address_max: usize = Default("256"), 1..=10_000_000;
        /// Connections that have no request in hand; beyond it, the oldest of the source (of the
        /// /48) that has the most is closed.
        @live silent_connections_max: usize = Default("4096"), 1..=10_000_000;
        /// How long a new connection may take until its first request is complete.
        @live first_message_deadline: Duration =
            Default("60s"), Duration::from_millis(100)..=hours(1);
        /// How long an EMNet connection may be idle between two requests.
        @live idle_deadline: Duration = Default("10min"), seconds(1)..=days(1);
        /// How long a client may take to accept an answer before its connection is closed.
        /// The answer is kept: a client that comes back is told again.
        @live write_deadline: Duration = Default("5s"), Duration::from_millis(100)..=hours(1);
    }
    "Datagrams" {
        /// Datagrams answered in a second, over all senders; more are dropped in silence.
        @live udp_answers_max: u32 = Default("20000"), 1..=10_000_000;
        /// Datagrams answered in a second to one sender (IPv6: to one /64; a /48 gets sixteen times
        /// as many). Loopback and private senders get twenty times as many, at once as well.
        @live udp_answers_per_address_max: u32 = Default("10"), 1..=10_000_000;
        /// Datagrams that a sender which kept quiet may send at once.
        @live udp_burst_per_address_max: u32 = Default("50"), 1..=10_000_000;
    }
    "Registry" {
        /// How long the places of clients are kept open for them when their instance died.
        @live resume_grace: Duration = Default("10s"), Duration::ZERO..=hours(24);
        /// How long silent clients between two that ask for each other have to speak up.
        @live gather: Duration = Default("5s"), Duration::ZERO..=hours(24);
        /// The longest that a client may wait for a neighbour.
        @live ask_max: Duration = Default("24h"), seconds(1)..=days(3650);
        /// How long finished repair ids and EMNet entries are remembered. Lost clients, which
        /// were reported and have no partner, are for the longer of this and ask_max, but no
        /// longer than client_retention.
        @live retention: Duration = Default("10min"), seconds(1)..=days(3650);
        /// How long a client that is not refreshed is remembered; 0 for ever.
        @live client_retention: Duration = Default("30d"), Duration::ZERO..=days(3650);
        /// Clients remembered, over all chains. When there are as many, one makes room for the
        /// next.
        @live clients_max: u64 = Default("2000000"), 1..=1_000_000_000;
        /// Clients remembered of one public source address (IPv6: of one /64; four times as many
        /// of one /48) while there are more than half of clients_max; its newest makes room. No
        /// more than an eighth of clients_max.
        @live clients_per_source_max: u64 = Default("4096"), 1..=1_000_000_000;
        /// Repair ids of sockets that no chain knows that wait; as many are remembered as finished.
        @live repairs_max: u64 = Default("200000"), 1..=1_000_000_000;
        /// Repair ids that one public source address may have waiting while there are more than
        /// half of repairs_max; its oldest makes room. No more than an eighth of repairs_max.
        @live repairs_per_source_max: u64 = Default("256"), 1..=1_000_000_000;
        /// EMNet entries kept; there are a million ids, and a free one must be found quickly.
        @live peers_max: u64 = Default("200000"), 1..=900_000;
        /// EMNet entries of one public source address while there are more than half of peers_max;
        /// its oldest makes room. No more than an eighth of peers_max.
        @live peers_per_source_max: u64 = Default("2048"), 1..=900_000;
    }
}

impl Config {
    /// The key of that name, if there is one.
    pub fn key(name: &str) -> Option<&'static Key> {
        Self::KEYS.iter().find(|key| key.name == name)
    }

    /// What replicas must agree on; it goes through the log.
    pub fn policy(&self) -> Policy {
        let ms = |time: Duration| {
            u64::try_from(time.as_millis()).expect("no key allows more than ten years")
        };
        // A small table is shared as well: the four sources' worth of one /48 is half of it.
        let share = |each: u64, whole: u64| each.min((whole / 8).max(1));
        Policy {
            resume_grace_ms: ms(self.resume_grace),
            gather_ms: ms(self.gather),
            ask_ms_max: ms(self.ask_max),
            retention_ms: ms(self.retention),
            client_retention_ms: ms(self.client_retention),
            clients_max: self.clients_max,
            clients_per_source_max: share(self.clients_per_source_max, self.clients_max),
            repairs_max: self.repairs_max,
            repairs_per_source_max: share(self.repairs_per_source_max, self.repairs_max),
            peers_max: self.peers_max,
            peers_per_source_max: share(self.peers_per_source_max, self.peers_max),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A configuration from these flags alone.
    fn from_flags(flags: &[(&str, &str)]) -> Result<Config, Faults> {
        let mut sources = Sources::default();
        for (name, text) in flags {
            sources.give_flag(Config::key(name).unwrap(), text.into());
        }
        sources.read()
    }

    const ADDRS: [(&str, &str); 2] =
        [("chain_addr", "127.0.0.1:8081"), ("dis_addr", "127.0.0.1:8080")];

    #[test]
    fn two_addresses_are_enough_and_the_policy_is_the_default_one() {
        let config = from_flags(&ADDRS).unwrap();
        assert_eq!(config.policy(), Policy::default());
        assert_eq!(config.node_id, InstanceId(1));
        assert_eq!(config.http_addr, HttpAddr::Auto);
    }

    #[test]
    fn one_source_has_no_more_than_an_eighth_of_a_small_table() {
        let mut flags = vec![("clients_max", "100"), ("repairs_max", "4")];
        flags.extend(ADDRS);
        let policy = from_flags(&flags).unwrap().policy();
        assert_eq!((policy.clients_per_source_max, policy.repairs_per_source_max), (12, 1));
        assert_eq!(policy.peers_per_source_max, Policy::default().peers_per_source_max);
    }

    #[test]
    fn every_fault_is_told_at_once() {
        let Faults(faults) = from_flags(&[
            ("chain_addr", "localhost:8081"),
            ("silent_connections_max", "0"),
            ("peers_max", "900001"),
            ("gather", "5 weeks"),
        ])
        .unwrap_err();
        let told: Vec<String> = faults.iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 5, "{told:#?}");
        for name in
            ["--chain-addr", "--dis-addr", "--silent-connections-max", "--peers-max", "--gather"]
        {
            assert!(told.iter().any(|line| line.starts_with(name)), "{name} in {told:#?}");
        }
    }

    #[test]
    fn a_running_instance_takes_over_what_it_can() {
        let with = |more: &[(&str, &str)]| from_flags(&[&ADDRS, more].concat()).unwrap();
        let mut config = with(&[]);
        let new = with(&[("gather", "9s"), ("connections_max", "77"), ("node_id", "3")]);
        let changes = config.adopt(new.clone());
        assert_eq!(changes.adopted, ["connections_max", "gather"]);
        assert_eq!(changes.postponed, ["node_id"]);
        assert_eq!((config.gather, config.node_id), (Duration::from_secs(9), InstanceId(1)));
        let again = Changes { postponed: vec!["node_id"], ..Changes::default() };
        assert_eq!(config.adopt(new), again, "it still needs a restart");
    }

    #[test]
    fn two_listeners_cannot_share_an_address() {
        let mut flags = vec![("emnet_addr", "127.0.0.1:8081")];
        flags.extend(ADDRS);
        let fault = from_flags(&flags).unwrap_err().to_string();
        assert!(fault.contains("--emnet-addr") && fault.contains("--chain-addr"), "{fault}");
        // Port 0 is another one each time, and datagrams do not meet connections.
        let apart = [
            ("chain_addr", "127.0.0.1:0"),
            ("dis_addr", "127.0.0.1:0"),
            ("udp_addr", "127.0.0.1:9"),
            ("emnet_addr", "127.0.0.1:9"),
        ];
        assert!(from_flags(&apart).is_ok());
    }

    #[test]
    fn every_key_says_what_it_means() {
        for key in Config::KEYS {
            assert!(key.help.trim().ends_with('.'), "{}", key.name);
            if let Default(text) = key.preset {
                let mut flags = vec![(key.name, text)];
                flags.extend(ADDRS);
                from_flags(&flags).unwrap_or_else(|fault| panic!("{}: {fault}", key.name));
            }
        }
    }
}
