//! The configuration. Each key is declared once, on this page: its doc comment is also the text of
//! `--help` and the comment in the configuration file, and its default is written the way an
//! operator would write it.
//!
//! A key `shutdown_deadline` is the flag `--shutdown-deadline`, the environment variable
//! `EMNETCHAIN_SHUTDOWN_DEADLINE` and the TOML key `shutdown_deadline`, and the first of them that
//! is given wins. Every value is text of the same form in all three places, so one parser
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

/// The value of a key that is not set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// This value.
    Default(&'static str),
    /// Nothing: the key must be given. The text is an example.
    Required(&'static str),
}

/// A key of the configuration, as an operator sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The name in the configuration file.
    pub name: &'static str,
    /// Its heading in `--help` and in the configuration file.
    pub section: &'static str,
    /// Its meaning in whole sentences, one line per line of its declaration.
    pub help: &'static str,
    /// The form of a value, in one word.
    pub placeholder: &'static str,
    /// Whether the flag without a value means `true`.
    pub is_switch: bool,
    /// Whether the flag may be repeated, for another value.
    pub is_list: bool,
    /// Whether SIGHUP makes a running instance take a new value.
    pub is_live: bool,
    /// Its value when it is not given.
    pub preset: Preset,
}

/// The keys whose values differ in a new configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The keys that took effect.
    pub adopted: Vec<&'static str>,
    /// The keys that need a restart.
    pub postponed: Vec<&'static str>,
}

impl Key {
    /// Returns its meaning, line by line.
    pub fn meaning(&self) -> impl Iterator<Item = &'static str> {
        let live = self.is_live.then_some("SIGHUP reloads it.");
        self.help.lines().map(str::trim).chain(live)
    }

    /// Returns its flag, without the dashes.
    pub fn flag(&self) -> String {
        self.name.replace('_', "-")
    }

    /// Returns its environment variable.
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

            /// Reads every key, so that all faults are found at once; `given` keeps the faults.
            fn read(given: &mut Given) -> Option<Self> {
                $($(let $name: Option<$type> = given.read(stringify!($name), |text| {
                    let value = <$type>::parse(text)?;
                    $(within(&value, &$range)?;)?
                    Ok(value)
                });)+)+
                Some(Self { $($($name: $name?,)+)+ })
            }

            /// Takes over the keys that may change while running; returns the keys that differ.
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
        /// Address of the chain server. Clients connect to it and send CONNECT.
        /// An address is `ip:port` or `[ip]:port`; port 0 picks a free port.
        /// For several addresses, separate them by commas or repeat the flag.
        chain_addr: Addrs = Required("127.0.0.1:8081");
        /// Address of the repair server (EMDisi). Clients connect to it and send RECONNECT.
        dis_addr: SocketAddr = Required("127.0.0.1:8080");
        /// UDP address of EMUDP and STUN, which tell a client its public address; `off` for none.
        /// For several addresses, separate them by commas or repeat the flag.
        udp_addr: UdpAddrs = Default("off");
        /// Address of EMNet (ADD_PEER, ASK_IP); `off` for none.
        emnet_addr: Option<SocketAddr> = Default("off");
        /// HTTP address for operators: the status page, /metrics, /livez, /readyz, /status and
        /// /api; `off` for none. `auto` is 127.0.0.1:9180, or another free port if that is taken.
        http_addr: HttpAddr = Default("auto");
        /// HTTP pages that any machine may read without a token: a list of livez, readyz, metrics
        /// and views (the status page, /status and /api), or `none`.
        http_open: Open = Default("livez,readyz,metrics");
        /// File with the admin token, readable by its owner only. HTTP requests that change the
        /// cluster or download a backup must present it, and so must requests from other machines
        /// or through proxies for pages that http_open does not name. `none`: only direct requests
        /// from this machine may do these things.
        @live admin_token_file: Option<PathBuf> = Default("none");
    }
    "Data" {
        /// Directory for the raft log, the registry and the identity of this instance. It is
        /// created if it does not exist. One running instance uses it at a time.
        data_dir: PathBuf = Default("./emnetchain-data");
        /// Number of this instance in its cluster. The data directory records it.
        node_id: InstanceId = Default("1");
    }
    "Cluster" {
        /// Raft address, on which other instances connect to this one; `off` for a cluster of one.
        /// An address other than loopback needs the three raft_tls keys, or insecure_cluster.
        raft_addr: Option<SocketAddr> = Default("off");
        /// Numbers and raft addresses of the first members: `1=HOST:PORT,2=HOST:PORT`. All members
        /// need the same list. It matters only while the data directory is empty: the members on
        /// the list found the cluster, and any other instance asks them to join and waits for
        /// `cluster add`.
        initial_cluster: InitialCluster = Default("none");
        /// Id of the cluster to join, as `EMNetChain cluster status` shows it. `auto` derives it
        /// from initial_cluster. The data directory records it.
        cluster_id: Option<ClusterId> = Default("auto");
        /// Certificate of this instance (PEM). `EMNetChain cluster certs` creates the three files.
        raft_tls_cert: Option<PathBuf> = Default("none");
        /// Private key of that certificate (PEM), readable by its owner only.
        raft_tls_key: Option<PathBuf> = Default("none");
        /// Certificate authority of the cluster (PEM). Instances need a certificate from it.
        raft_tls_ca: Option<PathBuf> = Default("none");
        /// Allows raft connections to other machines without TLS, on a network that is safe.
        insecure_cluster: bool = Default("false");
    }
    "Running" {
        /// Log level of the service: error, warn, info, debug or trace.
        /// Modules can have their own: `info,emnetchain::cluster=debug`.
        @live log_level: LogLevel = Default("info");
        /// Format of the log on standard error: `text` for people, `json` for machines.
        log_format: LogFormat = Default("text");
        /// Collector for traces, by OTLP over HTTP: `http://HOST:PORT`. Needs a build with the
        /// feature `otlp`, and costs some work per request.
        otlp_endpoint: Option<OtlpEndpoint> = Default("none");
        /// Longest time for a stop after SIGTERM or SIGINT. Connections that are still open then
        /// are closed. A second signal stops at once.
        shutdown_deadline: Duration = Default("10s"), Duration::ZERO..=hours(1);
    }
    "Clients" {
        /// IP addresses that a client may announce. `auto`: a public client only its own, a client
        /// on loopback or a private network any. `source-ip`: each client only its own.
        /// `any`: each client any, so that one client can point others at a stranger.
        @live address_policy: AddressPolicy = Default("auto");
        /// Most client connections at one time, over all listeners. `auto` is the least of
        /// 100,000, four fifths of the files that the process may open, and what the disk, raft
        /// and operators leave of them (they have at most 264). Beyond it, the address (or /48)
        /// with the most connections loses its oldest one: one without a request in hand, or, for
        /// a new request, one with a request.
        @live connections_max: Option<usize> = Default("auto");
        /// Most client connections at one time from one public address (IPv6: from one /64; a /48
        /// may have sixteen times as many, and at most a quarter of all). Beyond it, the address
        /// loses its oldest one: one without a request in hand, or, for a new request, one with a
        /// request.
        @live connections_per_address_max: usize = Default("256"), 1..=10_000_000;
        /// Most connections at one time without a request in hand. Beyond it, the source (or /48)
        /// with the most of them loses its oldest one.
        @live silent_connections_max: usize = Default("4096"), 1..=10_000_000;
        /// Longest time until the first request of a new connection is complete.
        @live first_message_deadline: Duration =
            Default("60s"), Duration::from_millis(100)..=hours(1);
        /// Longest time that an EMNet connection may be idle between two requests.
        @live idle_deadline: Duration = Default("10min"), seconds(1)..=days(1);
        /// Longest time that a client may take to read an answer; then its connection is closed.
        /// The answer is kept: a client that comes back gets it again.
        @live write_deadline: Duration = Default("5s"), Duration::from_millis(100)..=hours(1);
    }
    "Datagrams" {
        /// Most datagrams answered per second, over all senders; the rest are dropped.
        @live udp_answers_max: u32 = Default("20000"), 1..=10_000_000;
        /// Most datagrams answered per second to one sender (IPv6: to one /64; a /48 gets sixteen
        /// times as many). Loopback and private senders get twenty times this rate and burst.
        @live udp_answers_per_address_max: u32 = Default("10"), 1..=10_000_000;
        /// Most datagrams answered at once to a sender that was quiet before.
        @live udp_burst_per_address_max: u32 = Default("50"), 1..=10_000_000;
    }
    "Registry" {
        /// Time that clients of a dead instance have to return to their places in the chain.
        @live resume_grace: Duration = Default("10s"), Duration::ZERO..=hours(24);
        /// Time that silent clients between two that ask for each other have to ask too.
        @live gather: Duration = Default("5s"), Duration::ZERO..=hours(24);
        /// Longest time that a client may wait for a neighbour.
        @live ask_max: Duration = Default("24h"), seconds(1)..=days(3650);
        /// Time that finished repair ids and EMNet entries are kept. A lost client, one that was
        /// reported and has no partner, is kept for the longer of this and ask_max, but no longer
        /// than client_retention.
        @live retention: Duration = Default("10min"), seconds(1)..=days(3650);
        /// Time that a client is kept after its last request; 0 keeps it for ever.
        @live client_retention: Duration = Default("30d"), Duration::ZERO..=days(3650);
        /// Most clients kept, over all chains. At this number, each new client replaces one.
        @live clients_max: u64 = Default("2000000"), 1..=1_000_000_000;
        /// Most clients kept of one public source address (IPv6: of one /64; four times as many of
        /// one /48), while the table is more than half full. Its newest client makes room. At
        /// most an eighth of clients_max.
        @live clients_per_source_max: u64 = Default("4096"), 1..=1_000_000_000;
        /// Most repair ids that wait, of sockets that no chain knows; as many finished are kept.
        @live repairs_max: u64 = Default("200000"), 1..=1_000_000_000;
        /// Most repair ids that wait of one public source address, while the table is more than
        /// half full. Its oldest makes room. At most an eighth of repairs_max.
        @live repairs_per_source_max: u64 = Default("256"), 1..=1_000_000_000;
        /// Most EMNet entries kept. There are a million ids, and a free one must be found quickly.
        @live peers_max: u64 = Default("200000"), 1..=900_000;
        /// Most EMNet entries of one public source address, while the table is more than half
        /// full. Its oldest makes room. At most an eighth of peers_max.
        @live peers_per_source_max: u64 = Default("2048"), 1..=900_000;
    }
}

impl Config {
    /// Returns the key with that name, if there is one.
    pub fn key(name: &str) -> Option<&'static Key> {
        Self::KEYS.iter().find(|key| key.name == name)
    }

    /// Returns the settings that replicas must agree on; they go through the log.
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

    /// Returns a configuration from these flags alone.
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
