//! The entrance for connections: each gets a place and a session, or is turned away.

use std::{future::Future, net::SocketAddr, sync::Arc};

use tokio::sync::mpsc;
use tracing::Instrument as _;

use super::{
    LiveOptions, Outbox, Protocol,
    admission::Admission,
    emnet::Guesses,
    line::Line,
    session::{Counted, Edge, Session},
    stream::ClientStream,
};
use crate::{metrics::Metrics, queue::Queued};

/// The parts that the servers of one instance share.
#[derive(Debug)]
pub struct Doors {
    pub(super) edge: Arc<Edge>,
    pub(super) outbox: Arc<Outbox>,
    pub(super) admission: Arc<Admission>,
}

impl Doors {
    /// Doors to an instance whose proposer takes `commands`, and whose effects come through the
    /// outbox.
    pub fn new(
        commands: mpsc::Sender<Queued>,
        outbox: Arc<Outbox>,
        options: LiveOptions,
        metrics: Metrics,
    ) -> Self {
        let admission = Arc::new(Admission::new(options.clone(), metrics.clone()));
        let guesses = Guesses::new(metrics.clone());
        Self { edge: Arc::new(Edge { commands, options, metrics, guesses }), outbox, admission }
    }

    /// Lets a connection in, and returns its life, which its caller must poll. Another one may have
    /// to make room for it.
    pub fn enter(
        &self,
        protocol: Protocol,
        stream: Box<dyn ClientStream>,
        peer: SocketAddr,
    ) -> impl Future<Output = ()> + Send + use<> {
        let metrics = &self.edge.metrics;
        let name = protocol.as_str();
        metrics.accepted.with_label_values(&[name]).inc();
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let line = Arc::new(Line::new(stream));
        let permit = self.admission.admit(peer.ip(), &line);
        let seat = self.outbox.enter(&line);
        let edge = Arc::clone(&self.edge);
        // The id is the one that `explain` tells; addresses are for debugging.
        let span = tracing::debug_span!("request", id = %seat.session(), server = name, %peer);
        let _counted = Counted::new(metrics.connections.with_label_values(&[name]));
        let mut session = Session { edge, protocol, peer, line, seat, permit, _counted };
        async move { session.run().await }.instrument(span)
    }
}
