//! The life of one client connection.
//!
//! It *hears* a request: bytes are read and decoded until one is complete, within a deadline. Then
//! its buffers are freed, the command is on its way to the registry, and it *waits*, which may be
//! for days: what else the client sends is read and discarded, as the seed ignores it, so that
//! closing is a FIN and never an RST that destroys the answer. Orders come by way of the
//! [`Line`]. At the end it sends its FIN, and waits a moment for the client's.
//!
//! EMNet's connections differ: request and answer take turns, so nothing is discarded.

use std::{future::poll_fn, io, net::SocketAddr, sync::Arc, time::Duration};

use prometheus::IntGauge;
use socket2::SockRef;
use tokio::{
    io::Interest,
    net::TcpStream,
    select,
    sync::mpsc,
    task::coop::consume_budget,
    time::{sleep, timeout},
};

use super::{
    Protocol, Rejection, Request, Sender, ServerOptions,
    admission::Permit,
    chain, emnet, encode,
    line::{Line, Order},
    outbox::Seat,
    outq, repair,
};
use crate::{
    ids::SessionId,
    metrics::Metrics,
    registry::{Command, Then},
    wire::{Decoder, Object, WireError},
};

/// What a client may send without a request in it before it is cut off.
const JUNK_BYTES_MAX: usize = 64 * 1024;

/// What is read and discarded behind a request; beyond it the client's kernel has to keep it.
const DISCARD_BYTES_MAX: usize = 1024 * 1024;

/// The first and the longest wait between two looks at unacknowledged bytes.
const CONFIRM_WAIT: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(100));

/// What all sessions share.
#[derive(Debug)]
pub(super) struct Edge {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) options: ServerOptions,
    pub(super) metrics: Metrics,
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

/// What is still read of a client that waits.
#[derive(Clone, Copy, Debug)]
enum Reading {
    /// Everything, to be discarded; so much it was.
    On { discarded: usize },
    /// Nothing more: it sent too much. It goes on waiting, but its FIN will not be seen.
    Off,
    /// Nothing more: it closed its sending side.
    Ended,
}

/// What a waiting client did.
enum Act {
    /// It closed its sending side.
    HalfClosed,
    /// Its connection is broken.
    Gone,
}

/// How a wait ended.
enum Waited {
    /// The request changed nothing, and the client may send another one.
    Refused,
    /// The session is over.
    Over,
}

/// Whether the session goes on after an order.
#[derive(PartialEq, Eq)]
enum Course {
    On,
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
            if !self.permit.heard() || !self.submit(command).await {
                return;
            }
            match self.wait().await {
                Waited::Refused => self.permit.silent_again(&self.line),
                Waited::Over => return,
            }
        }
    }

    /// EMNet: request and answer take turns, until the client has had enough or says no more.
    async fn run_by_turns(&mut self) {
        let mut ear = Ear::new(self.protocol);
        let mut deadline = self.edge.options.first_message_deadline;
        while let Some(request) = self.hear(&mut ear, deadline).await {
            consume_budget().await; // requests in one packet take turns with other clients'
            if !self.permit.heard() {
                return;
            }
            deadline = self.edge.options.idle_deadline;
            match request {
                Request::Command(command) => {
                    if !self.submit(command).await {
                        return;
                    }
                }
                Request::Answer(message) => {
                    let told = self.line.tell(&encode(&message), Then::Stay);
                    told.expect("the answer before it was taken by the socket");
                }
            }
            match timeout(deadline, self.answered()).await {
                Ok(Course::On) => {}
                Ok(Course::Over) => return,
                Err(_) => break,
            }
        }
        self.finish().await;
    }

    /// Hears the one request; the buffers live only here.
    async fn hear_first(&self) -> Option<Command> {
        let mut ear = Ear::new(self.protocol);
        let deadline = self.edge.options.first_message_deadline;
        match self.hear(&mut ear, deadline).await? {
            Request::Command(command) => Some(command),
            Request::Answer(_) => unreachable!("only EMNet answers on the spot"),
        }
    }

    /// Reads until a request is complete. `None` if none will come: the client is gone, its
    /// deadline is over, or its place is needed.
    async fn hear(&self, ear: &mut Ear, deadline: Duration) -> Option<Request> {
        let listen = async {
            let mut junk_bytes = 0;
            loop {
                if let Some(request) = self.next_request(ear) {
                    return Some(request);
                }
                if junk_bytes > JUNK_BYTES_MAX {
                    self.reject(Rejection::Flood);
                    return None;
                }
                readable(self.line.stream()).await.ok()?;
                match receive(&self.line, |bytes| ear.unread.extend_from_slice(bytes)) {
                    Ok(Received::Bytes(count)) => junk_bytes += count,
                    Ok(Received::Nothing) => {}
                    Ok(Received::End) | Err(_) => return None,
                }
            }
        };
        select! {
            biased;
            _ = self.line.next_order() => None,
            request = timeout(deadline, listen) => request.unwrap_or_else(|_| {
                self.reject(Rejection::Overdue);
                None
            }),
        }
    }

    /// The next request among the bytes received so far; faults before it are counted, and met
    /// with silence.
    fn next_request(&self, ear: &mut Ear) -> Option<Request> {
        let sender = Sender { session: self.session(), source: self.peer.ip() };
        let policy = self.edge.options.address_policy;
        while let Some(decoded) = ear.next_object() {
            let request = decoded.map_err(Rejection::Wire).and_then(|object| match self.protocol {
                Protocol::Chain => chain::request(&object, sender, policy),
                Protocol::Repair => repair::request(&object, sender, policy),
                Protocol::Emnet => Ok(emnet::request(&object, sender)),
            });
            match request {
                Ok(request) => return Some(request),
                Err(rejection) => self.reject(rejection),
            }
        }
        None
    }

    /// Chain and repair: carries orders out and watches the client, until the session is over.
    async fn wait(&self) -> Waited {
        let mut reading = Reading::On { discarded: 0 };
        loop {
            let act = select! {
                biased;
                order = self.line.next_order() => match (order, reading) {
                    (Order::Refused, Reading::On { .. }) => return Waited::Refused,
                    (order, _) => match Box::pin(self.obey(order)).await {
                        Course::On => continue,
                        Course::Over => return Waited::Over,
                    },
                },
                act = self.watch(&mut reading) => act,
            };
            match act {
                Act::HalfClosed => {
                    self.submit(Command::HalfClose { session: self.session() }).await;
                }
                Act::Gone => {
                    self.submit(Command::Disconnect { session: self.session() }).await;
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
                    if *discarded > DISCARD_BYTES_MAX {
                        self.reject(Rejection::Flood);
                        *reading = Reading::Off;
                    }
                }
                Reading::Off | Reading::Ended => {
                    let _ = Box::pin(stream.ready(Interest::ERROR)).await;
                    return Act::Gone;
                }
            }
        }
    }

    /// EMNet: waits until the request in flight is answered.
    async fn answered(&self) -> Course {
        select! {
            biased;
            order = self.line.next_order() => match order {
                Order::Refused => Course::On,
                Order::Told(_) | Order::Release | Order::Broken | Order::Stop => {
                    self.obey(order).await
                }
            },
            _ = self.line.stream().ready(Interest::ERROR) => Course::Over,
        }
    }

    /// Carries one order out.
    async fn obey(&self, order: Order) -> Course {
        match order {
            Order::Told(then) => {
                if !self.flushed().await {
                    self.submit(Command::Disconnect { session: self.session() }).await;
                    return Course::Over;
                }
                match then {
                    Then::Stay => Course::On,
                    Then::Confirm => self.confirm().await,
                    Then::Close => {
                        self.finish().await;
                        Course::Over
                    }
                }
            }
            Order::Broken => {
                self.submit(Command::Disconnect { session: self.session() }).await;
                Course::Over
            }
            // A client that was refused after its FIN has nothing more to say.
            Order::Release | Order::Stop | Order::Refused => {
                self.finish().await;
                Course::Over
            }
        }
    }

    /// Whether the socket has taken all that was told, in time.
    async fn flushed(&self) -> bool {
        match timeout(self.edge.options.write_deadline, self.line.flush()).await {
            Ok(result) => result.is_ok(),
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
            while !acknowledged(&self.line)? {
                if self.line.is_stopping() {
                    return Ok(false);
                }
                sleep(pause).await;
                pause = (pause * 2).min(CONFIRM_WAIT.1);
            }
            Ok::<_, io::Error>(true)
        };
        let session = self.session();
        match timeout(self.edge.options.user_timeout, look).await {
            Ok(Ok(true)) => {
                self.submit(Command::Delivered { session }).await;
                Course::On
            }
            Ok(Ok(false)) => Course::On, // the order to stop comes next
            Ok(Err(_)) | Err(_) => {
                self.submit(Command::Disconnect { session }).await;
                Course::Over
            }
        }
    }

    /// Says goodbye: our FIN, then a moment for the client's. Bytes that arrived and were not read
    /// would turn the close into a reset.
    async fn finish(&self) {
        if !self.flushed().await
            || SockRef::from(self.line.stream()).shutdown(std::net::Shutdown::Write).is_err()
        {
            return;
        }
        let drain = async {
            let mut discarded = 0;
            while discarded <= DISCARD_BYTES_MAX && readable(self.line.stream()).await.is_ok() {
                match receive(&self.line, |_| {}) {
                    Ok(Received::Bytes(count)) => discarded += count,
                    Ok(Received::Nothing) => {}
                    Ok(Received::End) | Err(_) => return,
                }
            }
        };
        let _ = timeout(self.edge.options.linger_deadline, drain).await;
    }

    /// Hands a command to the proposer, and waits while its queue is full. False if it is gone.
    fn submit(&self, command: Command) -> impl Future<Output = bool> {
        let sending = Box::pin(self.edge.commands.send(command)); // a waiting session has no room
        async { sending.await.is_ok() }
    }

    fn session(&self) -> SessionId {
        self.seat.session()
    }

    fn reject(&self, rejection: Rejection) {
        tracing::debug!(peer = %self.peer, server = self.protocol.as_str(), reason = rejection.as_str(), "rejected");
        rejection.count(&self.edge.metrics);
    }
}

/// What a session keeps while it hears: the message so far, and bytes behind it.
struct Ear {
    decoder: Decoder,
    unread: Vec<u8>,
}

impl Ear {
    fn new(protocol: Protocol) -> Self {
        Self { decoder: Decoder::new(protocol.dialect()), unread: Vec::new() }
    }

    fn next_object(&mut self) -> Option<Result<Object, WireError>> {
        let mut rest = self.unread.as_slice();
        let decoded = self.decoder.next(&mut rest);
        let read = self.unread.len() - rest.len();
        self.unread.drain(..read);
        if self.unread.is_empty() {
            self.unread = Vec::new(); // a silent client holds no buffer
        }
        decoded
    }
}

/// What one read brought.
enum Received {
    Bytes(usize),
    /// Nothing yet.
    Nothing,
    /// The client closed its sending side.
    End,
}

/// Waits for something to read. Unlike [`TcpStream::readable`] it costs the waiting task no room,
/// for a stream keeps a place for the one task that reads it.
async fn readable(stream: &TcpStream) -> io::Result<()> {
    poll_fn(|cx| stream.poll_read_ready(cx)).await
}

/// Reads once, and shows the bytes to `take`. The buffer lives on the stack and only here, so a
/// waiting session costs none.
fn receive(line: &Line, take: impl FnOnce(&[u8])) -> io::Result<Received> {
    let mut buffer = [0; 4096];
    match line.stream().try_read(&mut buffer) {
        Ok(0) => Ok(Received::End),
        Ok(count) => {
            take(&buffer[..count]);
            Ok(Received::Bytes(count))
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Received::Nothing),
        Err(error) => Err(error),
    }
}

/// Whether the far kernel has acknowledged everything; an error if it reset the connection. A
/// reset empties the queue as well, so the error is looked at last.
fn acknowledged(line: &Line) -> io::Result<bool> {
    let bytes = outq::unacknowledged(line.stream())?;
    match line.stream().take_error()? {
        Some(error) => Err(error),
        None => Ok(bytes == 0),
    }
}
