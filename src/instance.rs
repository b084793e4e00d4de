//! One running process.

use std::{collections::BTreeMap, net::SocketAddr, path::Path, sync::Arc};

use tokio::{net::TcpListener, sync::watch};
use tracing::error;

use crate::{
    cli::{self, Exit},
    config::{Config, Sources},
    logging::LogHandle,
    metrics::Metrics,
    server::http::{Chains, HttpOptions, HttpServer, HttpSources, Readiness, Role, Status},
};

/// Runs an instance until it stops.
pub async fn run(config: Config, _sources: Sources, _logs: LogHandle) -> Exit {
    let Some(chain) = bind("--chain-addr", config.chain_addr).await else { return Exit::Usage };
    let Some(dis) = bind("--dis-addr", config.dis_addr).await else { return Exit::Usage };
    let http = match HttpServer::bind(config.http_addr, HttpOptions::default()).await {
        Ok(http) => http,
        Err(error) => {
            error!(%error, "--http-addr cannot be bound");
            return Exit::Usage;
        }
    };
    let (_ready, readiness) = watch::channel(Readiness::Ready);
    let status = Status {
        version: env!("CARGO_PKG_VERSION"),
        node: config.node_id,
        role: Role::Leader,
        leader: Some(config.node_id),
        term: 1,
        members: Vec::new(),
        chains: Chains::default(),
        connections: BTreeMap::new(),
    };
    let sources = HttpSources {
        metrics: Metrics::new(),
        readiness,
        status: Arc::new(move || status.clone()),
    };
    for (server, listener) in [("EMNetChain", &chain), ("EMDisi", &dis)] {
        cli::announce(server, listener.local_addr().expect("a bound socket has an address"));
    }
    match http {
        Some(http) => {
            cli::announce("HTTP", http.address());
            http.serve(sources).await;
        }
        None => std::future::pending::<()>().await,
    }
    Exit::Clean
}

async fn bind(flag: &str, address: SocketAddr) -> Option<TcpListener> {
    TcpListener::bind(address)
        .await
        .inspect_err(|error| error!(%error, %address, "{flag} cannot be bound"))
        .ok()
}

/// Checks the data directory of a stopped instance.
pub fn check(data_dir: &Path) -> Exit {
    if data_dir.is_dir() { Exit::Clean } else { Exit::Data }
}
