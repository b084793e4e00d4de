//! EMUDP: tells a client the address that its UDP socket has on the internet.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{select, sync::watch, time::sleep};

use super::{LiveOptions, Phase, listener::reached};
use crate::{
    clock,
    ids::Endpoint,
    metrics::Metrics,
    ratelimit::RateLimit,
    sockets::{Datagrams, Ends, Received},
    wire::reflector::answer,
};

/// Bytes of a datagram that are looked at; a longer one is no STUN message and no address.
const DATAGRAM_BYTES: usize = 2048;

/// Pause of the socket after it failed to receive.
const PAUSE: Duration = Duration::from_millis(50);

/// The rate of answers, over all sockets of the instance: a sender gets no more by asking at two.
#[derive(Clone, Debug)]
pub(super) struct Limit(Arc<Mutex<RateLimit>>);

impl Limit {
    pub(super) fn new(options: &LiveOptions) -> Self {
        Self(Arc::new(Mutex::new(options.borrow().datagram_limit())))
    }

    fn with<T>(&self, act: impl FnOnce(&mut RateLimit) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// One socket of the reflector.
#[derive(Debug)]
pub(super) struct Reflector {
    datagrams: Datagrams,
    options: LiveOptions,
    limit: Limit,
    metrics: Metrics,
}

impl Reflector {
    pub(super) fn new(
        datagrams: Datagrams,
        options: LiveOptions,
        limit: Limit,
        metrics: Metrics,
    ) -> Self {
        Self { datagrams, options, limit, metrics }
    }

    /// Answers until the instance stops.
    pub(super) async fn run(mut self, mut phase: watch::Receiver<Phase>) {
        let mut received = Received::new();
        loop {
            select! {
                biased;
                () = reached(&mut phase, Phase::Stopping) => return,
                Ok(()) = self.options.changed() => {
                    // Each socket does so, and the last one is right as well.
                    let now = self.options.borrow_and_update();
                    self.limit.with(|limit| *limit = now.datagram_limit());
                }
                ends = self.datagrams.receive(&mut received) => match ends {
                    Ok(ends) => received.payloads().for_each(|it| self.reflect(it, ends)),
                    Err(error) => {
                        self.dropped("receive_error");
                        tracing::debug!(%error, "cannot receive datagrams");
                        sleep(PAUSE).await;
                    }
                },
            }
        }
    }

    fn reflect(&self, datagram: &[u8], ends: Ends) {
        let from = ends.from;
        let sender = Endpoint { ip: from.ip().to_canonical(), port: from.port() };
        if self.is_own(sender, ends) {
            return self.dropped("own_address");
        }
        let datagram = &datagram[..datagram.len().min(DATAGRAM_BYTES)];
        let answer = match answer(datagram, sender) {
            Ok(answer) => answer,
            Err(silence) => return self.dropped(silence.reason()),
        };
        if !self.limit.with(|limit| limit.allow(sender.ip, clock::now())) {
            return self.dropped("rate");
        }
        // A client without an answer asks again; nothing waits for room in the send buffer.
        match self.datagrams.answer(ends, answer.as_bytes()) {
            Ok(()) => self.metrics.udp_answered.with_label_values(&[answer.kind()]).inc(),
            Err(_) => self.dropped("send_error"),
        }
    }

    /// Returns whether the sender claims to be this very socket.
    fn is_own(&self, sender: Endpoint, ends: Ends) -> bool {
        let address = self.datagrams.address();
        let is_asked = ends.to.is_some_and(|to| to.to_canonical() == sender.ip);
        sender.port == address.port()
            && (is_asked
                || sender.ip == address.ip()
                || address.ip().is_unspecified() && sender.ip.is_loopback())
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
        for (bound, forged, to) in [
            ("127.0.0.1:0", "127.0.0.1", None),
            ("0.0.0.0:0", "127.0.0.1", None),
            ("0.0.0.0:0", "203.0.113.7", Some("203.0.113.7")),
        ] {
            let datagrams = Datagrams::bind(bound.parse().unwrap()).unwrap();
            let port = datagrams.address().port();
            let (limit, metrics) = (Limit::new(&options), Metrics::new());
            let reflector = Reflector::new(datagrams, options.clone(), limit, metrics);
            let to = to.map(|to| to.parse().unwrap());
            reflector.reflect(
                b"x",
                Ends { from: (forged.parse::<std::net::IpAddr>().unwrap(), port).into(), to },
            );
            let dropped = &reflector.metrics.udp_dropped;
            assert_eq!(dropped.with_label_values(&["own_address"]).get(), 1);
        }
    }
}
