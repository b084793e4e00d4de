//! Takes the connections of other instances: TLS first, then
//! [`Service::serve`] introduces the two ends to each other.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinError, JoinSet},
    time::{sleep, timeout},
};

use super::{HANDSHAKE_MAX, Security, set_options, tls};
use crate::{
    clock,
    cluster::rpc::{Refusal, ServeError, Service},
    limits::RPC_CONNECTIONS_MAX,
    metrics::Metrics,
};

/// Between two log lines on refused connections.
const QUIET: Duration = Duration::from_secs(10);

/// The pause when the system is out of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);

/// Listens for other instances.
#[derive(Debug)]
pub struct RpcServer {
    listener: TcpListener,
    door: Arc<Door>,
}

/// Why no more connections are taken.
#[derive(Debug, thiserror::Error)]
pub enum RpcServerError {
    /// The listener broke.
    #[error("the raft listener broke: {0}")]
    Accept(#[source] io::Error),
    /// A connection's task panicked.
    #[error("a raft connection's task failed: {0}")]
    Connection(#[source] JoinError),
}

/// What a connection must get through before it is served.
#[derive(Debug)]
struct Door {
    security: Security,
    /// When a refusal was last logged.
    told: Mutex<Option<Instant>>,
    metrics: Metrics,
}

impl RpcServer {
    /// Makes a server. Connections wait until [`RpcServer::run`].
    pub fn new(listener: TcpListener, security: Security, metrics: Metrics) -> Self {
        let door = Door { security, told: Mutex::default(), metrics };
        Self { listener, door: Arc::new(door) }
    }

    /// Where it listens, as far as the system tells.
    pub fn address(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }

    /// Takes connections and serves them; ends only by failing. Dropping the future closes all.
    ///
    /// # Errors
    /// If the listener breaks or a task panics: the instance must not live on as half a service.
    pub async fn run(self, service: Service) -> Result<Infallible, RpcServerError> {
        let service = Arc::new(service);
        let mut connections = JoinSet::new();
        let mut warned = false;
        loop {
            tokio::select! {
                biased;
                Some(ended) = connections.join_next() => ended.map_err(RpcServerError::Connection)?,
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, address)) => {
                        warned = false;
                        if connections.len() < RPC_CONNECTIONS_MAX {
                            let (door, service) = (Arc::clone(&self.door), Arc::clone(&service));
                            connections.spawn(door.welcome(stream, address, service));
                        } else {
                            self.door.refuse(address, Refusal::Crowded.as_str());
                        }
                    }
                    // That connection is gone; the next one may be fine.
                    Err(error) if is_of_one(&error) => {}
                    Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                        return Err(RpcServerError::Accept(error));
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut warned, true) {
                            tracing::warn!(%error, "cannot accept raft connections for now");
                        }
                        sleep(PAUSE).await;
                    }
                },
            }
        }
    }
}

/// Whether an error of accept(2) is about the connection, not about the listener or the system.
fn is_of_one(error: &io::Error) -> bool {
    let kinds = [
        io::ErrorKind::ConnectionAborted,
        io::ErrorKind::ConnectionReset,
        io::ErrorKind::Interrupted,
    ];
    kinds.contains(&error.kind())
}

impl Door {
    fn refuse(&self, address: SocketAddr, reason: &'static str) {
        self.metrics.raft_refused.with_label_values(&[reason]).inc();
        tracing::debug!(%address, reason, "raft connection refused");
    }

    /// Logs why another end has no TLS with us, once in a while: strangers may try all day.
    fn tell(&self, address: SocketAddr, error: &io::Error) {
        let now = clock::now();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|told| now - told >= QUIET) {
            *told = Some(now);
            tracing::warn!(%address, %error, "a raft connection is refused, for want of TLS");
        }
    }

    /// Secures a connection and has it served, to its end.
    async fn welcome(
        self: Arc<Self>,
        stream: TcpStream,
        address: SocketAddr,
        service: Arc<Service>,
    ) {
        // A connection that is broken already will fail below.
        let _ = set_options(&stream);
        let served = match &self.security {
            Security::Insecure | Security::Loopback => {
                service.serve(Box::new(stream), |_| true).await
            }
            Security::Tls(tls) => {
                // What is accepted by a CA does not outlive it.
                let changed = tls.authority_changes();
                let secured = timeout(HANDSHAKE_MAX, tls.accept(stream)).await;
                let refusal = match secured {
                    Ok(Ok((stream, certificate))) => {
                        let proven = |name| tls::is_of(&certificate, name);
                        tokio::select! {
                            served = service.serve(Box::new(stream), proven) => {
                                return self.ended(address, served);
                            }
                            () = changed => {
                                tracing::info!(%address, "the CA is another; it may connect again");
                                return;
                            }
                        }
                    }
                    Ok(Err(error)) => {
                        self.tell(address, &error);
                        Refusal::Tls
                    }
                    Err(_) => Refusal::Timeout,
                };
                return self.refuse(address, refusal.as_str());
            }
        };
        self.ended(address, served);
    }

    fn ended(&self, address: SocketAddr, served: Result<(), ServeError>) {
        if let Err(error) = served {
            tracing::debug!(%address, %error, "raft connection ended");
            if let Some(reason) = error.refusal() {
                self.refuse(address, reason);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_is_gone_already_is_no_reason_to_pause() {
        for (kind, expected) in [
            (io::ErrorKind::ConnectionAborted, true),
            (io::ErrorKind::ConnectionReset, true),
            (io::ErrorKind::Interrupted, true),
            (io::ErrorKind::InvalidInput, false),
            (io::ErrorKind::OutOfMemory, false),
        ] {
            assert_eq!(is_of_one(&kind.into()), expected, "{kind}");
        }
    }

    #[tokio::test]
    async fn it_says_where_it_listens() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = RpcServer::new(listener, Security::Loopback, Metrics::new());
        assert_eq!(server.address(), Some(address));
    }
}
