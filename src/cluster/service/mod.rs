//! The answering side of a connection: openraft's requests go to raft, proposals to the writer of
//! entries, snapshots to their file.
//!
//! The instance at the other end speaks for itself only: a vote, an entry or a batch in another's
//! name ends the connection.

mod door;
mod snapshot;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures_util::{
    StreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream, FuturesUnordered},
};
use openraft::{
    Raft,
    async_runtime::WatchReceiver as _,
    errors::Fatal,
    raft::{AppendEntriesRequest, StreamAppendResult},
    vote::RaftLeaderId as _,
};
use prometheus::IntGauge;
use tokio::{sync::mpsc, time::timeout};

use self::door::Door;
use super::{
    admin::Leading,
    contact::Contact,
    gate,
    greeter::{Greeter, Guest, Unwelcome},
    network::Network,
    progress::Progress,
    proposer::Writer,
    rpc::{
        Change, FoundingAnswer, FrameError, FrameReader, Request, Response, frame, link::write_out,
    },
    transport::{Lane, NodeName, Stream},
    upgrade::Upgrades,
};
use crate::{
    ids::InstanceId,
    metrics::Metrics,
    raft::{TypeConfig, Vote},
    storage::{
        ClusterId, LogGuard, RegistryView, SnapshotInbox, StateMachine, fault::FaultReporter,
    },
};

/// Requests of one connection that are worked on; beyond it, no more are read.
const IN_WORK_MAX: usize = 64;

/// The bytes that are gathered before they are written.
const WRITE_BYTES: usize = 64 * 1024;

/// Longest time for a proposal. Without a majority none would ever end, and at last no vote would
/// be read behind them.
const PROPOSE_WAIT_MAX: Duration = Duration::from_secs(5);

/// The parts that a service works with.
pub struct ServiceOptions {
    /// Answers openraft's requests.
    pub raft: Raft<TypeConfig, StateMachine>,
    /// Writes what other instances propose, if this one leads; it must not pass them on.
    pub proposals: Arc<dyn Writer>,
    /// The cluster that this instance belongs to.
    pub cluster: ClusterId,
    /// Checks what leaders send against what was applied here.
    pub guard: LogGuard,
    /// Where snapshots are received.
    pub inbox: SnapshotInbox,
    /// The registry as it is applied here.
    pub view: RegistryView,
    /// Told whenever the leader is heard.
    pub contact: Contact,
    /// Introduces this instance, and judges those that connect.
    pub greeter: Greeter,
    /// The ways to the others.
    pub network: Network,
    /// Raises the rules, if this instance leads.
    pub upgrades: Upgrades,
    /// Told when the leader sends what this binary is too old for.
    pub faults: FaultReporter,
    /// The service's metrics.
    pub metrics: Metrics,
}

impl std::fmt::Debug for ServiceOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServiceOptions").field("cluster", &self.cluster).finish()
    }
}

/// Answers other instances.
#[derive(Debug)]
pub struct Service(pub(super) ServiceOptions, Door);

/// Why a connection is not served any longer.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It failed, or carried what is no frame of ours.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// It did not get past its introduction.
    #[error("one of the two refuses the other: {0:?}")]
    Unwelcome(Unwelcome),
    /// It carried a request in the name of another instance.
    #[error("a request in the name of another instance")]
    Forged,
    /// Raft does not answer any more.
    #[error("raft has stopped")]
    Stopped,
    /// It carried a request that has no place on this kind of connection.
    #[error("a request that does not belong on this connection")]
    WrongLane,
}

impl ServeError {
    /// Returns the reason under which it is counted as a refusal; `None` for what just happens to
    /// connections.
    pub fn refusal(&self) -> Option<&'static str> {
        match self {
            Self::Frame(FrameError::Io(_)) | Self::Stopped => None,
            Self::Unwelcome(Unwelcome::Declined(_)) => None,
            Self::Unwelcome(Unwelcome::Refused(refusal)) => Some(refusal.as_str()),
            Self::Frame(
                FrameError::Checksum
                | FrameError::Length(_)
                | FrameError::Malformed
                | FrameError::Newer(_),
            )
            | Self::WrongLane => Some("frame"),
            Self::Forged => Some("forged"),
        }
    }
}

impl Service {
    /// Creates a service.
    pub fn new(options: ServiceOptions) -> Self {
        Self(options, Door::default())
    }

    /// Serves one connection: the two ends introduce themselves, and what is asked is answered
    /// until the connection ends or a newer one takes its place. `proven` says whether the
    /// transport has proven that a name is that of the other end.
    ///
    /// # Errors
    /// If the connection fails, or one of the two refuses the other or what it carries.
    pub async fn serve(
        &self,
        mut stream: Box<dyn Stream>,
        proven: impl Fn(NodeName) -> bool,
    ) -> Result<(), ServeError> {
        let guest = self.greet(&mut stream, proven).await?;
        self.attend(stream, guest).await
    }

    /// Does the first half of [`Self::serve`]: the two ends introduce themselves.
    ///
    /// # Errors
    /// If the connection fails, or one of the two refuses the other.
    pub async fn greet(
        &self,
        stream: &mut Box<dyn Stream>,
        proven: impl Fn(NodeName) -> bool,
    ) -> Result<Guest, ServeError> {
        self.0.greeter.hear(stream, proven).await.map_err(ServeError::Unwelcome)
    }

    /// Does the second half of [`Self::serve`]: answers what the other end asks.
    ///
    /// # Errors
    /// If the connection fails, or what it carries is refused.
    pub async fn attend(&self, stream: Box<dyn Stream>, guest: Guest) -> Result<(), ServeError> {
        let Guest { peer, lane } = guest;
        if lane == Lane::Probe {
            return Ok(()); // all was said
        }
        let superseded = self.1.enter(peer, lane);
        let connections = self.0.metrics.raft_connections.with_label_values(&[lane.as_str()]);
        let _open = Counted::new(connections);
        let served = tokio::select! {
            biased;
            served = self.converse(stream, peer, lane) => served,
            _ = superseded => Ok(()),
        };
        self.1.forget_ended();
        served
    }

    /// Answers on a connection that was introduced.
    async fn converse(
        &self,
        stream: Box<dyn Stream>,
        peer: InstanceId,
        lane: Lane,
    ) -> Result<(), ServeError> {
        let served = match lane {
            Lane::Append | Lane::Snapshot if !self.0.greeter.gate().is_open() => Ok(()),
            Lane::Append => answer(stream, peer, Appends::new(self)).await,
            Lane::Calls => return answer(stream, peer, Calls::new(self, peer)).await,
            Lane::Probe => Ok(()),
            Lane::Snapshot => snapshot::receive(&self.0, stream, peer).await,
        };
        // These lanes carry the cluster's log, so its rules were raised; only a newer binary can
        // go on.
        if let Err(ServeError::Frame(FrameError::Newer(newer))) = &served {
            self.0.faults.refuse(format!("what instance {} sends: {newer}", peer.0));
        }
        served
    }

    /// Tells an instance that wants to get in how this one stands.
    async fn introduce(&self, peer: InstanceId) -> Response {
        let standing = FoundingAnswer::of(&self.0.raft, &self.0.greeter, peer).await;
        standing.map_or_else(failed, Response::Introduced)
    }

    /// Returns whether this instance may give a vote: see [`gate`].
    fn may_vote(&self) -> bool {
        let greeter = &self.0.greeter;
        let membership = self.0.raft.metrics().borrow_watched().membership_config.clone();
        gate::names(&membership, greeter.me().0, greeter.store())
    }

    /// Has raft take what came with the calls: heartbeats. Entries have a lane of their own, and
    /// only there are acknowledgements noted.
    async fn append(&self, rpc: AppendEntriesRequest<TypeConfig>) -> Response {
        if let Err(fault) = self.check(&rpc) {
            return Response::Contradicted(fault);
        }
        self.hear_leader(&rpc);
        self.0.raft.append_entries(rpc).await.map_or_else(failed, Response::AppendEntries)
    }

    /// Refuses entries that contradict what was applied. openraft takes every entry below the
    /// committed one for the same, with any id.
    fn check(&self, rpc: &AppendEntriesRequest<TypeConfig>) -> Result<(), String> {
        let checked = self.0.guard.check_leader(&rpc.vote, rpc.prev_log_id, &rpc.entries);
        checked.map_err(|fault| fault.to_string())
    }

    /// Notes that a leader was heard, if the request is of the leader of the newest term. Raft
    /// may answer it much later, when the disk has caught up.
    fn hear_leader(&self, rpc: &AppendEntriesRequest<TypeConfig>) {
        self.remember_vote(&rpc.vote);
        if rpc.vote >= self.0.raft.metrics().borrow_watched().vote {
            self.0.contact.heard_now();
        }
    }

    /// Remembers the vote of a candidate or leader against its own store: it wrote that vote to its
    /// disk before it named it to others, and from then on counts on its own disk.
    fn remember_vote(&self, vote: &Vote) {
        let author = InstanceId(*vote.leader_id.node_id());
        self.0.greeter.peers().acknowledged(author, Progress::of_vote(*vote));
    }

    async fn carry_out(&self, request: Request, peer: InstanceId) -> Response {
        let raft = &self.0.raft;
        let is_before = matches!(request, Request::Introduce | Request::Announce(_));
        if !self.0.greeter.gate().is_open() && !is_before {
            return failed("this instance is not in the cluster yet");
        }
        let is_of_voters =
            matches!(request, Request::PreVote(_) | Request::Vote(_) | Request::TransferLeader(_));
        if is_of_voters && !self.may_vote() {
            return failed("this store is not recorded as a member, so it does not vote");
        }
        match request {
            Request::Introduce => self.introduce(peer).await,
            Request::Announce(facts) => {
                if let Err(refusal) = self.0.greeter.meet_again(peer, &facts) {
                    self.0.metrics.raft_refused.with_label_values(&[refusal.as_str()]).inc();
                    // The next connection is refused with the reason.
                    self.1.shut(peer);
                }
                Response::Announced(self.0.greeter.facts_for(peer))
            }
            #[cfg(feature = "rules-3")]
            Request::Mark(mark) => {
                let marks = vec![crate::registry::Command::Mark(mark)];
                let written = self.0.proposals.write(None, marks).await;
                written.map_or_else(failed, Response::Proposed)
            }
            Request::AppendEntries(rpc) => self.append(rpc).await,
            Request::PreVote(rpc) => raft.pre_vote(rpc).await.map_or_else(failed, Response::Vote),
            Request::Propose { batch, commands } => {
                let writing = timeout(PROPOSE_WAIT_MAX, self.0.proposals.write(batch, commands));
                match writing.await {
                    Ok(written) => written.map_or_else(failed, Response::Proposed),
                    Err(_) => failed("it was not written in time"),
                }
            }
            Request::Snapshot { .. } => failed("snapshots have a connection of their own"),
            Request::TransferLeader(rpc) => {
                let handled = raft.handle_transfer_leader(rpc).await;
                handled.map_or_else(failed, Response::TransferLeader)
            }
            Request::Vote(rpc) => {
                let vote = rpc.vote;
                self.remember_vote(&vote);
                if vote >= raft.metrics().borrow_watched().vote {
                    self.0.contact.candidate_now();
                }
                match raft.vote(rpc).await {
                    Ok(answer) => {
                        if answer.vote_granted {
                            self.0.greeter.acknowledged().note(Progress::of_vote(vote));
                            self.0.contact.candidate_now();
                        }
                        Response::Vote(answer)
                    }
                    Err(error) => failed(error),
                }
            }
            Request::Change(Change::Upgrade) => {
                self.0.upgrades.raise().await.map_or_else(failed, Response::Changed)
            }
            Request::Change(change) => {
                let Self(ServiceOptions { view, greeter, network, .. }, _) = self;
                let changed = Leading { raft, view, peers: greeter.peers(), network };
                changed.carry_out(change).await.map_or_else(failed, Response::Changed)
            }
            Request::Digests => Response::Digests(self.0.view.digests()),
        }
    }
}

/// Counts a connection while it is open.
struct Counted(IntGauge);

impl Counted {
    fn new(gauge: IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn failed(why: impl ToString) -> Response {
    Response::Failed(why.to_string())
}

/// Refuses what `peer` says in the name of another.
pub(super) fn check_author(request: &Request, peer: InstanceId) -> Result<(), ServeError> {
    match request.author() {
        Some(author) if author != peer => Err(ServeError::Forged),
        Some(_) | None => Ok(()),
    }
}

/// Requests of one connection that are worked on.
trait Work: Send {
    /// Takes a request into work.
    fn begin(&mut self, id: u64, request: Request) -> Result<(), ServeError>;

    /// Returns the number of requests in work.
    fn len(&self) -> usize;

    /// Returns the next answer, or answers. May be dropped and called again at any time.
    fn next(&mut self) -> impl Future<Output = Result<Vec<(u64, Response)>, ServeError>> + Send;
}

/// Reads requests and writes their answers, and flushes when there is nothing else to do.
async fn answer(
    stream: Box<dyn Stream>,
    peer: InstanceId,
    mut work: impl Work,
) -> Result<(), ServeError> {
    let (input, mut output) = tokio::io::split(stream);
    let mut frames = FrameReader::new(input);
    let mut out = Vec::new();
    loop {
        tokio::select! {
            biased;
            () = std::future::ready(()), if out.len() >= WRITE_BYTES => {
                write_out(&mut output, &mut out).await.map_err(FrameError::Io)?;
            }
            done = work.next(), if work.len() > 0 => {
                for (id, response) in done? {
                    out.extend(frame::encode(id, &response)?);
                }
            }
            frame = frames.next(), if work.len() < IN_WORK_MAX => {
                let Some(frame) = frame? else { return Ok(()) };
                let request = frame::decode(&frame.body)?;
                check_author(&request, peer)?;
                work.begin(frame.id, request)?;
            }
            () = std::future::ready(()), if !out.is_empty() => {
                write_out(&mut output, &mut out).await.map_err(FrameError::Io)?;
            }
        }
    }
}

/// Calls are worked on side by side.
struct Calls<'a> {
    service: &'a Service,
    peer: InstanceId,
    running: FuturesUnordered<BoxFuture<'a, (u64, Response)>>,
}

impl<'a> Calls<'a> {
    fn new(service: &'a Service, peer: InstanceId) -> Self {
        Self { service, peer, running: FuturesUnordered::new() }
    }
}

impl Work for Calls<'_> {
    fn begin(&mut self, id: u64, request: Request) -> Result<(), ServeError> {
        let (service, peer) = (self.service, self.peer);
        self.running.push(Box::pin(async move { (id, service.carry_out(request, peer).await) }));
        Ok(())
    }

    fn len(&self) -> usize {
        self.running.len()
    }

    async fn next(&mut self) -> Result<Vec<(u64, Response)>, ServeError> {
        Ok(self.running.next().await.into_iter().collect())
    }
}

/// Entries go to raft in their order, without waiting for each other.
struct Appends<'a> {
    service: &'a Service,
    session: Session,
    /// The requests that this session has taken, by their ids and votes, the oldest first.
    taken: VecDeque<(u64, Vote)>,
    /// A request that contradicts what was applied, and the answer to it. Nothing is taken after
    /// it.
    contradicted: Option<(u64, Response)>,
}

/// openraft's side of a stream of entries. It ends at the first that does not fit.
struct Session {
    requests: mpsc::Sender<AppendEntriesRequest<TypeConfig>>,
    answers: BoxStream<'static, Result<StreamAppendResult<TypeConfig>, Fatal<TypeConfig>>>,
}

impl Session {
    fn new(service: &Service) -> Self {
        let (requests, receiver) = mpsc::channel(IN_WORK_MAX);
        let requested = stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|request| (request, receiver))
        });
        Self { requests, answers: service.0.raft.stream_append(requested).boxed() }
    }
}

impl<'a> Appends<'a> {
    fn new(service: &'a Service) -> Self {
        Self { service, session: Session::new(service), taken: VecDeque::new(), contradicted: None }
    }
}

impl Work for Appends<'_> {
    fn begin(&mut self, id: u64, request: Request) -> Result<(), ServeError> {
        let Request::AppendEntries(rpc) = request else { return Err(ServeError::WrongLane) };
        if self.contradicted.is_some() {
            return Err(ServeError::Stopped);
        }
        if let Err(fault) = self.service.check(&rpc) {
            self.contradicted = Some((id, Response::Contradicted(fault)));
            return Ok(());
        }
        self.service.hear_leader(&rpc);
        // The queue is as long as there are requests in work. It is closed only when raft has
        // stopped, which the next answer will say.
        self.taken.push_back((id, rpc.vote));
        let _ = self.session.requests.try_send(rpc);
        Ok(())
    }

    fn len(&self) -> usize {
        self.taken.len() + usize::from(self.contradicted.is_some())
    }

    async fn next(&mut self) -> Result<Vec<(u64, Response)>, ServeError> {
        if let Some(answer) = self.contradicted.take_if(|_| self.taken.is_empty()) {
            return Ok(vec![answer]);
        }
        let Some(Ok(result)) = self.session.answers.next().await else {
            return Err(ServeError::Stopped);
        };
        let (id, vote) = self.taken.pop_front().ok_or(ServeError::Stopped)?;
        let refused = result.is_err();
        if let Ok(last @ Some(_)) = result {
            // It is durable, and from now on others may count on it.
            self.service.0.greeter.acknowledged().note(Progress { vote, last });
        }
        let mut answers = vec![(id, Response::AppendEntries(result.into()))];
        if refused {
            // What was sent behind it cannot fit either. Its sender starts again, and so do we.
            let behind = self.taken.drain(..);
            answers.extend(behind.map(|(id, _)| (id, failed("an earlier request was refused"))));
            self.session = Session::new(self.service);
        }
        Ok(answers)
    }
}
