//! The listeners of an instance: all are bound before any serves, and standard output says where.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{net::TcpListener, time::sleep};

use super::error_chain;
use crate::{
    clock,
    config::Config,
    console::Exit,
    logging::LogHandle,
    ops::http::{HttpOptions, HttpServer},
    server::{Addresses, LiveOptions, ServerError, ServerOptions, Servers},
    sockets,
};

/// Every listener of an instance, bound and not yet serving.
pub(super) struct Listeners {
    pub(super) servers: Servers,
    pub(super) http: Option<HttpServer>,
    pub(super) raft: Option<TcpListener>,
}

/// Longest wait for an address: at boot the network may be late, and the last process may
/// still hold a port. A supervisor that starts the instance again waits longer.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// Between two attempts.
const RETRY: Duration = Duration::from_millis(200);

/// Why a listener cannot be bound.
struct Unbound {
    flag: &'static str,
    why: String,
    kind: io::ErrorKind,
}

impl Unbound {
    fn new(flag: &'static str, error: &io::Error) -> Self {
        Self { flag, why: format!("cannot be bound: {error}"), kind: error.kind() }
    }

    /// Returns whether the same address may be fine a moment later.
    fn may_pass(&self) -> bool {
        matches!(self.kind, io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse)
    }

    /// Returns the exit code: every fault that is not the system's is the operator's.
    fn exit(&self) -> Exit {
        if self.may_pass() { Exit::Lacking } else { Exit::Usage }
    }
}

/// Binds every listener, or none; waits a while for addresses that the system does not have yet.
pub(super) async fn bind(config: &Config, options: LiveOptions) -> Result<Listeners, Exit> {
    let deadline = clock::now() + WAIT_MAX;
    let mut is_told = false;
    loop {
        let unbound = match bind_now(config, &options) {
            Ok(listeners) => return Ok(listeners),
            Err(unbound) => unbound,
        };
        let Unbound { flag, why, .. } = &unbound;
        if !unbound.may_pass() || clock::now() >= deadline {
            tracing::error!("{flag} {why}; choose another address");
            return Err(unbound.exit());
        }
        if !is_told {
            tracing::warn!("{flag} {why}; waiting for it, {} s at most", WAIT_MAX.as_secs());
            is_told = true;
        }
        sleep(RETRY).await;
    }
}

fn bind_now(config: &Config, options: &LiveOptions) -> Result<Listeners, Unbound> {
    let wanted = Addresses {
        chains: config.chain_addr.0.clone(),
        repair: config.dis_addr,
        emnet: config.emnet_addr,
        reflectors: config.udp_addr.0.clone(),
    };
    let servers = Servers::bind(&wanted, options.clone()).map_err(|error| match &error {
        ServerError::Bind { server, source, .. } => {
            Unbound { flag: flag_of(server), why: error_chain(&error), kind: source.kind() }
        }
        ServerError::Accept { source, .. } => Unbound::new("", source),
        ServerError::Session { .. } => Unbound::new("", &io::Error::other(error_chain(&error))),
    })?;
    let raft = |address| sockets::listen(address, |_| Ok(()));
    let raft = config.raft_addr.map(raft).transpose();
    let raft = raft.map_err(|error| Unbound::new("--raft-addr", &error))?;
    let http_options = HttpOptions { open: config.http_open, ..HttpOptions::default() };
    let http = HttpServer::bind(config.http_addr, http_options)
        .map_err(|error| Unbound::new("--http-addr", &error))?;
    Ok(Listeners { servers, http, raft })
}

impl Listeners {
    /// Returns where other instances reach this one, if they can.
    pub(super) fn raft_address(&self) -> Option<SocketAddr> {
        self.raft.as_ref()?.local_addr().ok()
    }

    /// Returns where clients, operators and other instances find this one.
    pub(super) fn banner(&self) -> Banner {
        let addresses = self.servers.addresses();
        let chains = addresses.chains.iter().map(|address| ("EMNetChain", *address));
        let mut lines: Vec<_> = chains.chain([("EMDisi", addresses.repair)]).collect();
        lines.extend(addresses.reflectors.iter().map(|address| ("EMUDP", *address)));
        lines.extend(addresses.emnet.map(|address| ("EMNet", address)));
        lines.extend(self.raft_address().map(|address| ("Raft", address)));
        lines.extend(self.http.as_ref().map(|http| ("HTTP", http.address())));
        Banner(lines)
    }
}

/// The lines that tell where the servers of an instance listen.
pub(super) struct Banner(Vec<(&'static str, SocketAddr)>);

impl Banner {
    /// Has them written to standard output.
    pub(super) fn announce(&self, logs: &LogHandle) {
        for (server, address) in &self.0 {
            logs.say(&format!("{server} Server listening on {address}"));
        }
    }
}

/// Returns the flag that says where a server listens.
fn flag_of(server: &str) -> &'static str {
    match server {
        "chain" => "--chain-addr",
        "repair" => "--dis-addr",
        "emnet" => "--emnet-addr",
        _ => "--udp-addr",
    }
}

/// Returns the limits of the edge that a configuration sets.
pub(super) fn server_options(config: &Config) -> ServerOptions {
    let defaults = ServerOptions::default();
    ServerOptions {
        connections_max: config.connections_max.unwrap_or(defaults.connections_max),
        connections_per_address_max: config.connections_per_address_max,
        silent_max: config.silent_connections_max,
        first_message_deadline: config.first_message_deadline,
        idle_deadline: config.idle_deadline,
        write_deadline: config.write_deadline,
        address_policy: config.address_policy,
        datagrams_per_source: config.udp_answers_per_address_max,
        datagrams_per_source_burst: config.udp_burst_per_address_max,
        datagrams_in_all: config.udp_answers_max,
        ..defaults
    }
}
