//! Takes the connections of other instances: TLS first, then [`Service`] introduces the two ends to
//! each other. Until then they have a stranger's place.

use std::{
    convert::Infallible,
    future::pending,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinError, JoinSet},
    time::{sleep, timeout},
};

use super::{
    HANDSHAKE_MAX, Security,
    places::{Place, Places},
    set_options, tls,
};
use crate::{
    clock,
    cluster::{
        greeter::Guest,
        rpc::Refusal,
        service::{ServeError, Service},
        transport::Stream,
    },
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

/// The checks that a connection must pass before it is served.
#[derive(Debug)]
struct Door {
    security: Security,
    places: Arc<Places>,
    /// When a refusal was last logged.
    told: Mutex<Option<Instant>>,
    metrics: Metrics,
}

impl RpcServer {
    /// Makes a server. Connections wait until [`RpcServer::run`].
    pub fn new(listener: TcpListener, security: Security, metrics: Metrics) -> Self {
        let door = Door { security, places: Places::new(), told: Mutex::default(), metrics };
        Self { listener, door: Arc::new(door) }
    }

    /// Returns where it listens, as far as the system tells.
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
                accepted = self.listener.accept(),
                    if self.door.places.has_room(connections.len()) => match accepted {
                    Ok((stream, address)) => {
                        warned = false;
                        let (door, service) = (Arc::clone(&self.door), Arc::clone(&service));
                        let place = door.places.admit(address.ip());
                        connections.spawn(door.welcome(stream, address, place, service));
                    }
                    // That connection is gone; the next one may be fine.
                    Err(error) if is_of_one(&error) => {}
                    Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                        return Err(RpcServerError::Accept(error));
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut warned, true) {
                            tracing::warn!(%error, "cannot accept raft connections at the moment");
                        }
                        sleep(PAUSE).await;
                    }
                },
            }
        }
    }
}

/// Returns whether an error of accept(2) is about the connection, not about the listener or the
/// system.
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
            tracing::warn!(%address, %error, "a raft connection was refused: TLS failed");
        }
    }

    /// Secures a connection and has it served, to its end.
    async fn welcome(
        self: Arc<Self>,
        stream: TcpStream,
        address: SocketAddr,
        mut place: Place,
        service: Arc<Service>,
    ) {
        // A connection that is broken already will fail below.
        let _ = set_options(&stream);
        // What is accepted by a CA does not outlive it.
        let changed: BoxFuture<'_, ()> = match &self.security {
            Security::Insecure | Security::Loopback => Box::pin(pending()),
            Security::Tls(tls) => Box::pin(tls.authority_changes()),
        };
        let served = async {
            let introduced = tokio::select! {
                biased;
                introduced = self.introduce(stream, address, &service) => introduced,
                () = place.needed() => Err(Some(Refusal::Crowded.as_str())),
            };
            let (stream, guest) = introduced?;
            if !place.introduce() {
                return Err(Some(Refusal::Crowded.as_str()));
            }
            let served = service.attend(stream, guest).await;
            served.map_err(|error| Self::ended(address, &error))
        };
        tokio::select! {
            served = served => {
                if let Err(Some(reason)) = served {
                    self.refuse(address, reason);
                }
            }
            () = changed => tracing::info!(%address, "the CA has changed: connection closed"),
        }
    }

    /// Secures a connection and has the two ends introduce themselves, or returns the reason under
    /// which it is counted as refused.
    async fn introduce(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        service: &Service,
    ) -> Result<(Box<dyn Stream>, Guest), Option<&'static str>> {
        let (mut stream, certificate): (Box<dyn Stream>, _) = match &self.security {
            Security::Insecure | Security::Loopback => (Box::new(stream), None),
            Security::Tls(tls) => match timeout(HANDSHAKE_MAX, tls.accept(stream)).await {
                Ok(Ok((stream, certificate))) => (Box::new(stream), Some(certificate)),
                Ok(Err(error)) => {
                    self.tell(address, &error);
                    return Err(Some(Refusal::Tls.as_str()));
                }
                Err(_) => return Err(Some(Refusal::Timeout.as_str())),
            },
        };
        let proven = |name| certificate.as_ref().is_none_or(|it| tls::is_of(it, name));
        let greeted = service.greet(&mut stream, proven).await;
        let guest = greeted.map_err(|error| Self::ended(address, &error))?;
        Ok((stream, guest))
    }

    /// Returns the reason under which the end of a connection is counted as a refusal, if it is
    /// one.
    fn ended(address: SocketAddr, error: &ServeError) -> Option<&'static str> {
        tracing::debug!(%address, %error, "raft connection ended");
        error.refusal()
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
