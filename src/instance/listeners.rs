//! The listeners of an instance: all are bound before any serves, and standard output says where.

use std::net::SocketAddr;

use tokio::net::TcpListener;

use super::error_chain;
use crate::{
    cli::{self, Exit},
    config::Config,
    server::{
        Addresses, LiveOptions, ServerError, ServerOptions, Servers,
        http::{HttpOptions, HttpServer},
    },
};

/// Every listener of an instance, bound and not yet serving.
pub(super) struct Listeners {
    pub(super) servers: Servers,
    pub(super) http: Option<HttpServer>,
    pub(super) raft: Option<TcpListener>,
}

/// Binds every listener, or none.
pub(super) async fn bind(config: &Config, options: LiveOptions) -> Result<Listeners, Exit> {
    let wanted = Addresses {
        chain: config.chain_addr,
        repair: config.dis_addr,
        emnet: config.emnet_addr,
        reflector: config.udp_addr,
    };
    let servers = Servers::bind(&wanted, options).map_err(|error| {
        let flag = match &error {
            ServerError::Bind { server, .. } => flag_of(server),
            ServerError::Accept { .. } | ServerError::Session { .. } => "",
        };
        tracing::error!("{flag}: {}; choose another address", error_chain(&error));
        Exit::Usage
    })?;
    let http_options = HttpOptions { open: config.http_open, ..HttpOptions::default() };
    let http = HttpServer::bind(config.http_addr, http_options).await.map_err(|error| {
        tracing::error!("--http-addr cannot be bound: {error}; choose another address or `off`");
        Exit::Usage
    })?;
    let raft = match config.raft_addr {
        Some(address) => Some(TcpListener::bind(address).await.map_err(|error| {
            tracing::error!("--raft-addr cannot be bound: {error}; choose another address");
            Exit::Usage
        })?),
        None => None,
    };
    Ok(Listeners { servers, http, raft })
}

impl Listeners {
    /// Where other instances reach this one, if they can.
    pub(super) fn raft_address(&self) -> Option<SocketAddr> {
        self.raft.as_ref()?.local_addr().ok()
    }

    /// Where clients, operators and other instances find this one.
    pub(super) fn banner(&self) -> Banner {
        let addresses = self.servers.addresses();
        let lines = [
            ("EMNetChain", Some(addresses.chain)),
            ("EMDisi", Some(addresses.repair)),
            ("EMUDP", addresses.reflector),
            ("EMNet", addresses.emnet),
            ("Raft", self.raft_address()),
            ("HTTP", self.http.as_ref().map(HttpServer::address)),
        ];
        let bound = lines.into_iter().filter_map(|(server, address)| Some((server, address?)));
        Banner(bound.collect())
    }
}

/// The lines that tell where the servers of an instance listen.
pub(super) struct Banner(Vec<(&'static str, SocketAddr)>);

impl Banner {
    /// Writes them to standard output.
    pub(super) fn announce(&self) {
        for (server, address) in &self.0 {
            cli::announce(server, *address);
        }
    }
}

/// The flag that says where a server listens.
fn flag_of(server: &str) -> &'static str {
    match server {
        "chain" => "--chain-addr",
        "repair" => "--dis-addr",
        "emnet" => "--emnet-addr",
        _ => "--udp-addr",
    }
}

/// The limits of the edge that a configuration sets.
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
