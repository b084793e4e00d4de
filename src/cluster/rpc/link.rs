//! The requesting side: one connection to one member.
//!
//! A task owns the connection. It connects when there is something to say, and fails what is asked
//! while the member cannot be reached, at once and with the reason; raft does the repeating. One
//! half of the task writes what is queued and flushes when nothing more is there, the other half
//! hands out answers by their ids.

use std::{
    collections::BTreeMap,
    io,
    sync::atomic::{AtomicU64, Ordering},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use openraft::errors::{NetworkError, RPCError, Unreachable};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};

use super::{
    Request, Response,
    frame::{self, FrameError, FrameReader},
};
use crate::{
    cluster::transport::{Lane, Stream, Transport},
    ids::InstanceId,
    raft::Member,
    raft::TypeConfig,
    runtime,
};

/// Requests that wait to be written; beyond it, a caller waits.
const QUEUE_MAX: usize = 64;

/// The bytes that are gathered before they are written.
const WRITE_BYTES: usize = 256 * 1024;

/// The first and the longest pause before a member that could not be reached is tried again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(400));

/// A connection on which nothing moves for this time, though something should, is given up.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(3);

/// The number of checks until silence is believed.
const SILENCE_CHECKS: u32 = 4;

/// Why a request has no answer. Whether it was carried out is unknown unless it is said here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The other instance says that it could not carry the request out.
    #[error("{0}")]
    Failed(String),
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Late(Duration),
    /// The connection was lost before the answer.
    #[error("the connection was lost")]
    Lost,
    /// The answer is to another kind of request.
    #[error("the answer is not one to the request")]
    Mismatched,
    /// The request is too long to be sent; it was not carried out.
    #[error("the request cannot be sent: {0}")]
    Unsendable(String),
    /// There is no connection, for this reason; the request was not carried out.
    #[error("cannot be reached: {0}")]
    Unreachable(String),
}

/// The way to one member. Dropping it closes the connection.
#[derive(Debug)]
pub struct Link {
    target: InstanceId,
    queue: mpsc::Sender<Outgoing>,
    last_id: AtomicU64,
}

/// A request on its way.
#[derive(Debug)]
struct Outgoing {
    id: u64,
    frame: Vec<u8>,
    answer: Answer,
}

type Answer = oneshot::Sender<Result<Response, CallError>>;

/// An answer that has not come yet.
#[derive(Debug)]
pub struct Waiting {
    answer: oneshot::Receiver<Result<Response, CallError>>,
    target: InstanceId,
}

impl Waiting {
    /// Waits for it, without a deadline.
    ///
    /// # Errors
    /// If there will be none.
    pub async fn answer(self) -> Result<Response, CallError> {
        match self.answer.await {
            Ok(Ok(Response::Failed(why))) => Err(CallError::Failed(why)),
            Ok(Ok(Response::Contradicted(why))) => {
                let instance = self.target.0;
                tracing::warn!(instance, %why, "an instance refuses the entries of this leader");
                Err(CallError::Failed(why))
            }
            Ok(answer) => answer,
            Err(_) => Err(CallError::Lost),
        }
    }
}

impl Link {
    /// Creates a way to the member; it connects when there is something to ask.
    pub fn new(
        transport: Arc<dyn Transport>,
        target: InstanceId,
        member: Member,
        lane: Lane,
    ) -> Self {
        let (queue, outgoing) = mpsc::channel(QUEUE_MAX);
        let way = Way { transport, target, member, lane };
        runtime::spawn(way.keep(outgoing));
        Self { target, queue, last_id: AtomicU64::new(0) }
    }

    /// Puts a request on its way, behind those that were put there before. Waits only for a place
    /// in the queue.
    ///
    /// # Errors
    /// If it is too long.
    pub async fn start(&self, request: &Request) -> Result<Waiting, CallError> {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let frame =
            frame::encode(id, request).map_err(|error| CallError::Unsendable(error.to_string()))?;
        let (answer, waiting) = oneshot::channel();
        let sent = self.queue.send(Outgoing { id, frame, answer }).await;
        sent.map_err(|_| CallError::Lost)?;
        Ok(Waiting { answer: waiting, target: self.target })
    }

    /// Asks, and waits for the answer at most that long.
    ///
    /// # Errors
    /// If there is no answer.
    pub async fn call(&self, request: &Request, within: Duration) -> Result<Response, CallError> {
        let asking = async { self.start(request).await?.answer().await };
        timeout(within, asking).await.unwrap_or(Err(CallError::Late(within)))
    }
}

/// Where a link goes.
struct Way {
    transport: Arc<dyn Transport>,
    target: InstanceId,
    member: Member,
    lane: Lane,
}

impl Way {
    async fn keep(self, mut queue: mpsc::Receiver<Outgoing>) {
        let mut pause = PAUSE.0;
        while let Some(first) = queue.recv().await {
            if first.answer.is_closed() {
                continue; // its caller waits no longer
            }
            // Asked before the address is looked up, so that no change is missed.
            let moved = self.transport.moved(self.target, &self.member);
            match self.transport.connect(self.target, &self.member, self.lane).await {
                Ok(stream) => {
                    pause = PAUSE.0;
                    tokio::select! {
                        biased;
                        ended = converse(stream, first, &mut queue) => {
                            if let Err(error) = ended {
                                self.tell("connection lost", &error);
                            }
                        }
                        // What is at the old address may be another instance by now.
                        () = moved => {}
                    }
                    if self.lane == Lane::Calls && !queue.is_closed() {
                        self.transport.lost(self.target);
                    }
                }
                Err(error) => {
                    self.tell("cannot connect", &error);
                    refuse(first, &error);
                    refuse_all(&mut queue, &error, pause).await;
                    pause = (pause * 2).min(PAUSE.1);
                }
            }
        }
    }

    fn tell(&self, what: &str, error: &dyn std::error::Error) {
        let (target, address, lane) =
            (self.target.0, self.member.raft_addr.as_str(), self.lane.as_str());
        tracing::debug!(target, address, lane, %error, "{what}");
    }
}

fn refuse(outgoing: Outgoing, why: &io::Error) {
    // A caller that has stopped waiting need not be told.
    let _ = outgoing.answer.send(Err(CallError::Unreachable(why.to_string())));
}

/// Fails what is asked until the pause is over.
async fn refuse_all(queue: &mut mpsc::Receiver<Outgoing>, why: &io::Error, pause: Duration) {
    let refusing = async {
        while let Some(outgoing) = queue.recv().await {
            refuse(outgoing, why);
        }
    };
    tokio::select! {
        biased;
        () = refusing => {}
        () = sleep(pause) => {}
    }
}

/// Answers that are waited for, by id.
#[derive(Default)]
struct Asked(Mutex<BTreeMap<u64, Answer>>);

impl Asked {
    fn guard(&self) -> MutexGuard<'_, BTreeMap<u64, Answer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn oldest(&self) -> Option<u64> {
        self.guard().first_key_value().map(|(id, _)| *id)
    }
}

/// Speaks over one connection until it is lost, or no caller has a use for it. A caller that still
/// waits for an answer then learns that there will be none.
async fn converse(
    stream: Box<dyn Stream>,
    first: Outgoing,
    queue: &mut mpsc::Receiver<Outgoing>,
) -> Result<(), FrameError> {
    let (input, output) = tokio::io::split(stream);
    let asked = Asked::default();
    tokio::select! {
        biased;
        ended = hand_out(input, &asked) => ended,
        ended = write(output, first, queue, &asked) => ended.map_err(FrameError::Io),
    }
}

async fn write(
    mut output: impl AsyncWrite + Unpin,
    first: Outgoing,
    queue: &mut mpsc::Receiver<Outgoing>,
    asked: &Asked,
) -> io::Result<()> {
    let mut next = Some(first);
    let mut out = Vec::new();
    while let Some(outgoing) = next {
        if !outgoing.answer.is_closed() {
            out.extend(outgoing.frame);
            asked.guard().insert(outgoing.id, outgoing.answer);
        }
        next = match queue.try_recv() {
            Ok(more) if out.len() < WRITE_BYTES => Some(more),
            more => {
                write_out(&mut output, &mut out).await?;
                match more {
                    Ok(more) => Some(more),
                    Err(_) => queue.recv().await,
                }
            }
        };
    }
    Ok(())
}

/// Writes what has gathered; gives up when the other end takes nothing for too long.
pub(in crate::cluster) async fn write_out(
    output: &mut (impl AsyncWrite + Unpin),
    out: &mut Vec<u8>,
) -> io::Result<()> {
    let writing = async {
        output.write_all(out).await?;
        output.flush().await
    };
    timeout(SILENCE_MAX, writing).await.map_err(|_| io::ErrorKind::TimedOut)??;
    out.clear();
    out.shrink_to(WRITE_BYTES);
    Ok(())
}

async fn hand_out(input: impl AsyncRead + Unpin, asked: &Asked) -> Result<(), FrameError> {
    let mut frames = FrameReader::new(input);
    let mut silent = (0, None);
    loop {
        match timeout(SILENCE_MAX / SILENCE_CHECKS, frames.next()).await {
            Ok(Ok(Some(frame))) => {
                silent = (0, None);
                let response = frame::decode(&frame.body)?;
                if let Some(answer) = asked.guard().remove(&frame.id) {
                    // A caller that has stopped waiting need not be told.
                    let _ = answer.send(Ok(response));
                }
            }
            Ok(Ok(None)) => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Err(_) => {
                // Nothing came; was anything waited for, and is it still the same?
                let oldest = asked.oldest();
                let same = oldest.is_some() && oldest == silent.1;
                silent = (if same { silent.0 + 1 } else { 0 }, oldest);
                if silent.0 >= SILENCE_CHECKS {
                    return Err(io::Error::from(io::ErrorKind::TimedOut).into());
                }
            }
        }
    }
}
/// Converts an error to openraft's form, which decides after how long it tries again.
pub(in crate::cluster) fn rpc_error(error: CallError) -> RPCError<TypeConfig> {
    match error {
        CallError::Failed(_) | CallError::Lost | CallError::Late(_) => {
            RPCError::Network(NetworkError::new(&error))
        }
        CallError::Mismatched | CallError::Unreachable(_) | CallError::Unsendable(_) => {
            RPCError::Unreachable(Unreachable::new(&error))
        }
    }
}
