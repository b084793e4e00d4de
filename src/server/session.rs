//! The life of one client connection.
//!
//! It *hears* a request: bytes are read and decoded until one is complete, within a deadline. Then
//! its buffers are freed, the command is on its way to the registry, and it *waits*, which may be
//! for days: what else the client sends is read and discarded, as the seed ignores it, so that
//! closing is a FIN and never an RST that destroys the answer. Orders come by way of the
//! [`Line`]. At the end it sends its FIN, and waits a moment for the client's.
//!
//! The reading is in `ear`; EMNet's conversations, which differ, are in `emnet`.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use prometheus::IntGauge;
use tokio::{
    select,
    sync::mpsc,
    time::{sleep, timeout},
};

use super::{
    LiveOptions, Protocol, Rejection, Request,
    admission::Permit,
    ear::{Ear, Received, readable, receive},
    emnet::Guesses,
    line::{Line, Order},
    outbox::Seat,
};
use crate::{
    ids::SessionId,
    limits::DISCARDED_BYTES_MAX,
    metrics::Metrics,
    queue::{Claim, Queued},
    registry::{Command, Then},
};

/// The first and the longest wait between two looks at unacknowledged bytes.
const CONFIRM_WAIT: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(100));

/// The parts that all sessions share.
#[derive(Debug)]
pub(super) struct Edge {
    pub(super) commands: mpsc::Sender<Queued>,
    pub(super) options: LiveOptions,
    pub(super) metrics: Metrics,
    pub(super) guesses: Guesses,
}

/// One client connection, with its places in the outbox and among the connections.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) edge: Arc<Edge>,
    pub(super) protocol: Protocol,
    pub(super) peer: SocketAddr,
    pub(super) line: Arc<Line>,
    pub(super) seat: Seat,
    pub(super) permit: Permit,
    pub(super) _counted: Counted,
}

/// A connection in its listener's gauge; it leaves when dropped.
#[derive(Debug)]
pub(super) struct Counted(IntGauge);

impl Counted {
    pub(super) fn new(gauge: IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The part of a waiting client's bytes that is still read.
#[derive(Clone, Copy, Debug)]
enum Reading {
    /// Everything, to be discarded; so much it was.
    On { discarded: usize },
    /// Nothing more: it sent too much. It goes on waiting, but its FIN will not be seen.
    Off,
    /// Nothing more: it closed its sending side.
    Ended,
}

/// An act of a waiting client.
enum Act {
    /// It closed its sending side.
    HalfClosed,
    /// Its connection is broken.
    Gone,
}

/// The end of a wait.
enum Waited {
    /// The request changed nothing, and the client may send another one.
    Refused,
    /// The session is over.
    Over,
}

/// The course of the session after an order.
pub(super) enum Course {
    /// As before.
    On,
    /// Not at all: the client cannot be reached.
    Lost,
    /// Not at all: all is said.
    Over,
}

impl Session {
    /// Lives until the connection is closed.
    pub(super) async fn run(&mut self) {
        match self.protocol {
            Protocol::Chain | Protocol::Repair => self.run_once().await,
            Protocol::Emnet => Box::pin(self.run_by_turns()).await,
        }
    }

    /// Chain and repair: one request, and what comes of it.
    async fn run_once(&mut self) {
        loop {
            let Some(command) = Box::pin(self.hear_first()).await else { return };
            let claim = Claim::default();
            if !self.permit.heard() || !self.submit(claim.on(command)).await {
                return;
            }
            match self.wait(claim).await {
                Waited::Refused => self.permit.silent_again(),
                Waited::Over => return,
            }
        }
    }

    /// Hears the one request; the buffers live only here.
    async fn hear_first(&self) -> Option<Command> {
        let mut ear = Ear::new(self.protocol);
        let deadline = self.edge.options.borrow().first_message_deadline;
        match self.hear(&mut ear, deadline).await? {
            Request::Command(command) => Some(command),
            Request::Answer(_) => None, // only EMNet answers on the spot
        }
    }

    /// Chain and repair: carries orders out and watches the client, until the session is over. Its
    /// client's request counts until then, or until the client is gone.
    async fn wait(&self, claim: Claim) -> Waited {
        let mut reading = Reading::On { discarded: 0 };
        loop {
            let act = select! {
                biased;
                order = self.line.next_order() => match (order, reading) {
                    (Order::Refused, Reading::On { .. }) => return Waited::Refused,
                    (order, _) => match Box::pin(self.obey(order)).await {
                        Course::On => continue,
                        Course::Lost => Act::Gone,
                        Course::Over => return Waited::Over,
                    },
                },
                act = self.watch(&mut reading) => act,
            };
            let session = self.session();
            match act {
                Act::HalfClosed => {
                    self.submit(Command::HalfClose { session }.into()).await;
                    let half_closed = &self.edge.metrics.half_closed;
                    half_closed.with_label_values(&[self.protocol.as_str()]).inc();
                }
                Act::Gone => {
                    drop(claim); // while the queue is full, too
                    self.submit(Command::Disconnect { session }.into()).await;
                    return Waited::Over;
                }
            }
        }
    }

    /// Waits for the client to do something. After its FIN a stream counts as readable for ever,
    /// so from then on only errors are waited for: a reset, or keepalive giving up.
    async fn watch(&self, reading: &mut Reading) -> Act {
        let stream = self.line.stream();
        loop {
            match reading {
                Reading::On { discarded } => {
                    if readable(stream).await.is_err() {
                        return Act::Gone;
                    }
                    match receive(&self.line, |_| {}) {
                        Ok(Received::Bytes(count)) => *discarded += count,
                        Ok(Received::Nothing) => {}
                        Ok(Received::End) => {
                            *reading = Reading::Ended;
                            return Act::HalfClosed;
                        }
                        Err(_) => return Act::Gone,
                    }
                    if *discarded > DISCARDED_BYTES_MAX {
                        self.reject(Rejection::Flood);
                        *reading = Reading::Off;
                    }
                }
                Reading::Off | Reading::Ended => {
                    stream.broken().await;
                    return Act::Gone;
                }
            }
        }
    }

    /// Carries one order out.
    pub(super) async fn obey(&self, order: Order) -> Course {
        tracing::trace!(?order, "obeys");
        match order {
            Order::Told(then) => {
                if !self.flushed().await {
                    return Course::Lost;
                }
                match then {
                    Then::Stay => Course::On,
                    Then::Confirm => self.confirm().await,
                    Then::Close => self.finish().await,
                }
            }
            // A goodbye would take as long as the client likes, and others need the descriptor.
            Order::Broken | Order::Yield => Course::Lost,
            // A client that was refused after its FIN has nothing more to say.
            Order::Release | Order::Stop | Order::Refused => self.finish().await,
        }
    }

    /// Returns whether the socket has taken all that was told, in time. A client whose place is
    /// needed has no more time.
    async fn flushed(&self) -> bool {
        let deadline = self.edge.options.borrow().write_deadline;
        let flushing = async {
            select! {
                biased;
                result = self.line.flush() => result.is_ok(),
                () = self.line.needed() => false,
            }
        };
        match timeout(deadline, flushing).await {
            Ok(flushed) => flushed,
            Err(_) => {
                self.reject(Rejection::SlowReader);
                false
            }
        }
    }

    /// Finds out whether the half-closed client's kernel has a reader for what was told, and
    /// reports it.
    async fn confirm(&self) -> Course {
        let look = async {
            let mut pause = CONFIRM_WAIT.0;
            while !self.line.stream().is_acknowledged()? {
                if self.line.is_stopping() {
                    return Ok(false);
                }
                sleep(pause).await;
                pause = (pause * 2).min(CONFIRM_WAIT.1);
            }
            Ok::<_, io::Error>(true)
        };
        let deadline = self.edge.options.borrow().user_timeout;
        match timeout(deadline, look).await {
            Ok(Ok(true)) => {
                self.submit(Command::Delivered { session: self.session() }.into()).await;
                Course::On
            }
            Ok(Ok(false)) => Course::On, // the order to stop comes next
            Ok(Err(_)) | Err(_) => Course::Lost,
        }
    }

    /// Says goodbye: our FIN, then a moment for the client's. Bytes that arrived and were not read
    /// would turn the close into a reset.
    pub(super) async fn finish(&self) -> Course {
        if !self.flushed().await || self.line.stream().finish().is_err() {
            return Course::Lost;
        }
        let drain = async {
            let mut discarded = 0;
            while discarded <= DISCARDED_BYTES_MAX && readable(self.line.stream()).await.is_ok() {
                match receive(&self.line, |_| {}) {
                    Ok(Received::Bytes(count)) => discarded += count,
                    Ok(Received::Nothing) => {}
                    Ok(Received::End) | Err(_) => return,
                }
            }
        };
        let deadline = self.edge.options.borrow().linger_deadline;
        select! {
            biased;
            _ = timeout(deadline, drain) => {}
            () = self.line.needed() => {}
        }
        Course::Over
    }

    /// Says goodbye without waiting, because the place is needed: our FIN behind what was told, and
    /// what has arrived is discarded, so that the close is no reset that destroys an answer.
    pub(super) fn part(&self) {
        let _ = self.line.stream().finish();
        let mut discarded = 0;
        while discarded <= DISCARDED_BYTES_MAX
            && let Ok(Received::Bytes(count)) = receive(&self.line, |_| {})
        {
            discarded += count;
        }
    }

    /// Hands a command to the proposer, and waits while its queue is full. False if it is gone.
    pub(super) fn submit(&self, queued: Queued) -> impl Future<Output = bool> {
        tracing::trace!(command = ?queued.command, "asks");
        let sending = Box::pin(self.edge.commands.send(queued)); // a waiting session has no room
        async { sending.await.is_ok() }
    }

    pub(super) fn session(&self) -> SessionId {
        self.seat.session()
    }

    pub(super) fn reject(&self, rejection: Rejection) {
        let reason = rejection.as_str();
        tracing::debug!(reason, "rejected");
        rejection.count(&self.edge.metrics);
    }
}
