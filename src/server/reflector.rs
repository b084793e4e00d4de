//! EMUDP: tells a client the address that its UDP socket has on the internet.

use std::{io, net::SocketAddr, time::Duration};

use socket2::{Domain, Protocol as Transport, Socket, Type};
use tokio::{net::UdpSocket, select, sync::watch, time::sleep};

use super::{LiveOptions, Phase, listener::reached, ratelimit::RateLimit};
use crate::{clock, ids::Endpoint, metrics::Metrics, wire::reflector::answer};

/// Bytes of a datagram that are looked at; a longer one is no STUN message and no address.
const DATAGRAM_BYTES: usize = 2048;

/// How long to leave the socket alone after it failed to receive.
const PAUSE: Duration = Duration::from_millis(50);

/// Binds the reflector's socket.
///
/// # Errors
/// If the address is taken, not ours or forbidden.
pub(super) fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Transport::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?; // `[::]` serves IPv4 as well
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

/// The reflector and its limits.
#[derive(Debug)]
pub(super) struct Reflector {
    socket: UdpSocket,
    address: SocketAddr,
    options: LiveOptions,
    limit: RateLimit,
    metrics: Metrics,
}

impl Reflector {
    pub(super) fn new(
        socket: UdpSocket,
        address: SocketAddr,
        options: LiveOptions,
        metrics: Metrics,
    ) -> Self {
        let limit = RateLimit::new(&options.borrow(), clock::now());
        Self { socket, address, options, limit, metrics }
    }

    /// Answers until the instance stops.
    pub(super) async fn run(mut self, mut phase: watch::Receiver<Phase>) {
        let mut buffer = vec![0; DATAGRAM_BYTES];
        loop {
            select! {
                biased;
                () = reached(&mut phase, Phase::Stopping) => return,
                Ok(()) = self.options.changed() => {
                    let now = self.options.borrow_and_update();
                    self.limit = RateLimit::new(&now, clock::now());
                }
                received = self.socket.recv_from(&mut buffer) => match received {
                    Ok((length, from)) => self.reflect(&buffer[..length], from),
                    Err(error) => {
                        self.dropped("receive_error");
                        tracing::debug!(%error, "cannot receive datagrams");
                        sleep(PAUSE).await;
                    }
                },
            }
        }
    }

    fn reflect(&mut self, datagram: &[u8], from: SocketAddr) {
        let sender = Endpoint { ip: from.ip().to_canonical(), port: from.port() };
        if self.is_own(sender) {
            return self.dropped("own_address");
        }
        let answer = match answer(datagram, sender) {
            Ok(answer) => answer,
            Err(silence) => return self.dropped(silence.reason()),
        };
        if !self.limit.allow(sender.ip, clock::now()) {
            return self.dropped("rate");
        }
        // A client without an answer asks again; nothing waits for room in the send buffer.
        match self.socket.try_send_to(answer.as_bytes(), from) {
            Ok(_) => self.metrics.udp_answered.with_label_values(&[answer.kind()]).inc(),
            Err(_) => self.dropped("send_error"),
        }
    }

    /// Whether the sender claims to be this very socket.
    fn is_own(&self, sender: Endpoint) -> bool {
        sender.port == self.address.port()
            && (sender.ip == self.address.ip()
                || self.address.ip().is_unspecified() && sender.ip.is_loopback())
    }

    fn dropped(&self, reason: &str) {
        self.metrics.udp_dropped.with_label_values(&[reason]).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::ServerOptions;

    #[tokio::test]
    async fn a_datagram_from_its_own_address_gets_no_answer() {
        let (_sender, options) = watch::channel(ServerOptions::default());
        for (bound, forged) in [("127.0.0.1:0", "127.0.0.1"), ("0.0.0.0:0", "127.0.0.1")] {
            let socket = bind(bound.parse().unwrap()).unwrap();
            let address = socket.local_addr().unwrap();
            let mut reflector = Reflector::new(socket, address, options.clone(), Metrics::new());
            reflector.reflect(b"x", SocketAddr::new(forged.parse().unwrap(), address.port()));
            let dropped = &reflector.metrics.udp_dropped;
            assert_eq!(dropped.with_label_values(&["own_address"]).get(), 1);
        }
    }
}
