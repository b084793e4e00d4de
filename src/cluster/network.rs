//! openraft's requests over [`Link`]s to the other members.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{
    Stream, StreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream, FuturesOrdered},
};
use openraft::{
    RaftNetworkFactory, RaftNetworkV2,
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::RPCOption,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult,
        TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
    },
    type_config::alias::SnapshotOf,
};
use tokio::time::sleep;

use super::{
    proposer::WriteError,
    rpc::{CallError, Link, Request, Response, snapshot},
    transport::{Lane, Transport},
};
use crate::{
    ids::InstanceId,
    raft::{LogId, Member, TypeConfig, Vote},
    registry::{BatchId, Command, Verdict},
    storage::SnapshotFile,
};

/// Requests with entries that are sent without waiting for the answer to the first of them; more
/// than the other end works on at once.
const APPENDS_IN_FLIGHT_MAX: usize = 64;

/// Entries in these requests, for they are held in memory until they are answered. A request that
/// exceeds it alone goes alone.
const ENTRIES_IN_FLIGHT_MAX: usize = 512;

/// How long entries may wait for their answer. openraft's own limit is that of a heartbeat, but the
/// other end syncs its disk first.
const APPEND_WAIT_MAX: Duration = Duration::from_secs(3);

/// The ways to the other members; clones share them.
#[derive(Clone)]
pub struct Network {
    transport: Arc<dyn Transport>,
    /// One way to each member for calls. A member that moved gets a new one.
    calls: Arc<Mutex<Ways>>,
}

type Ways = BTreeMap<InstanceId, (Member, Arc<Link>)>;

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Network")
    }
}

impl Network {
    /// A network over the given transport.
    pub fn new(transport: Arc<dyn Transport>) -> Self {
        Self { transport, calls: Arc::default() }
    }

    /// Has the leader write commands, and waits until they are applied there, at most that long.
    ///
    /// # Errors
    /// [`WriteError::Again`] for every failure: the outcome is unknown, and the batch's number
    /// makes repeating it safe.
    pub async fn propose(
        &self,
        leader: InstanceId,
        member: &Member,
        batch: Option<BatchId>,
        commands: Vec<Command>,
        within: Duration,
    ) -> Result<Verdict, WriteError> {
        let request = Request::Propose { batch, commands };
        match self.calls(leader, member).call(&request, within).await {
            Ok(Response::Proposed(verdict)) => Ok(verdict),
            Ok(
                Response::AppendEntries(_)
                | Response::Failed(_)
                | Response::Snapshot(_)
                | Response::TransferLeader(_)
                | Response::Vote(_),
            ) => Err(WriteError::Again(CallError::Mismatched.to_string())),
            Err(error) => Err(WriteError::Again(format!("leader {}: {error}", leader.0))),
        }
    }

    fn calls(&self, target: InstanceId, member: &Member) -> Arc<Link> {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        match calls.get(&target) {
            Some((known, link)) if known == member => Arc::clone(link),
            Some(_) | None => {
                let link = Arc::new(self.link(target, member, Lane::Calls));
                calls.insert(target, (member.clone(), Arc::clone(&link)));
                link
            }
        }
    }

    fn link(&self, target: InstanceId, member: &Member, lane: Lane) -> Link {
        Link::new(Arc::clone(&self.transport), target, member.clone(), lane)
    }

    fn peer(&self, target: u64, member: &Member, appends: Appends) -> Peer {
        let (network, target) = (self.clone(), InstanceId(target));
        Peer { network, target, member: member.clone(), appends }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, member: &Member) -> Peer {
        self.peer(target, member, Appends::Own(None))
    }

    async fn new_heartbeat_client(&mut self, target: u64, member: &Member) -> Peer {
        self.peer(target, member, Appends::Heartbeats)
    }
}

/// The way to one other member, for one purpose of openraft's.
pub struct Peer {
    network: Network,
    target: InstanceId,
    member: Member,
    appends: Appends,
}

/// Which connection entries take.
enum Appends {
    /// None has entries: they are heartbeats, and go with the calls.
    Heartbeats,
    /// One of their own, from the first on.
    Own(Option<Arc<Link>>),
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peer").field("target", &self.target).finish()
    }
}

impl Peer {
    async fn call(
        &self,
        request: Request,
        option: &RPCOption,
    ) -> Result<Response, RPCError<TypeConfig>> {
        let link = self.network.calls(self.target, &self.member);
        link.call(&request, option.soft_ttl()).await.map_err(rpc_error)
    }

    async fn vote_call(
        &self,
        request: Request,
        option: &RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let Response::Vote(response) = self.call(request, option).await? else {
            return Err(rpc_error(CallError::Mismatched));
        };
        Ok(response)
    }

    /// The link for entries, and how long it may take to answer.
    fn append_link(&mut self, option: &RPCOption) -> (Arc<Link>, Duration) {
        match &mut self.appends {
            Appends::Heartbeats => {
                (self.network.calls(self.target, &self.member), option.soft_ttl())
            }
            Appends::Own(link) => {
                let link = link.get_or_insert_with(|| {
                    Arc::new(self.network.link(self.target, &self.member, Lane::Append))
                });
                (Arc::clone(link), APPEND_WAIT_MAX.max(option.soft_ttl()))
            }
        }
    }
}

impl RaftNetworkV2<TypeConfig> for Peer {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let (link, within) = self.append_link(&option);
        let asked = link.call(&Request::AppendEntries(rpc), within).await;
        let Response::AppendEntries(response) = asked.map_err(rpc_error)? else {
            return Err(rpc_error(CallError::Mismatched));
        };
        Ok(response)
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<AppendResults<'s>, RPCError<TypeConfig>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        let (link, within) = self.append_link(&option);
        let pipeline = Pipeline {
            link,
            within,
            input: Some(input.boxed()),
            in_flight: FuturesOrdered::new(),
            entries_in_flight: 0,
        };
        let results = stream::unfold(Some(pipeline), |pipeline| async move {
            let mut pipeline = pipeline?;
            let result = pipeline.next().await?;
            // Nothing follows an error, of whichever kind.
            let rest = matches!(result, Ok(Ok(_))).then_some(pipeline);
            Some((result, rest))
        });
        Box::pin(std::future::ready(Ok(results.boxed())))
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.vote_call(Request::Vote(rpc), &option).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.vote_call(Request::PreVote(rpc), &option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, SnapshotFile>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let sending = async {
            let transport = &self.network.transport;
            let connected = transport.connect(self.target, &self.member, Lane::Snapshot).await;
            let stream = connected.map_err(|error| CallError::Unreachable(error.to_string()))?;
            snapshot::send(stream, vote, &snapshot.snapshot).await
        };
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = sending => sent.map_err(|error| StreamingError::from(rpc_error(error))),
        }
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let Response::TransferLeader(response) =
            self.call(Request::TransferLeader(rpc), &option).await?
        else {
            return Err(rpc_error(CallError::Mismatched));
        };
        Ok(response)
    }
}

/// How openraft wants to be told, after how long a wait it tries again.
fn rpc_error(error: CallError) -> RPCError<TypeConfig> {
    match error {
        CallError::Failed(_) | CallError::Lost | CallError::Late(_) => {
            RPCError::Network(NetworkError::new(&error))
        }
        CallError::Mismatched | CallError::Unreachable(_) | CallError::Unsendable(_) => {
            RPCError::Unreachable(Unreachable::new(&error))
        }
    }
}

type AppendResult = Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>;
type AppendResults<'s> = BoxStream<'s, AppendResult>;

/// Requests with entries on their way, answered in their order.
struct Pipeline {
    link: Arc<Link>,
    within: Duration,
    /// `None` once openraft has nothing more to send in this stream.
    input: Option<BoxStream<'static, AppendEntriesRequest<TypeConfig>>>,
    in_flight: FuturesOrdered<BoxFuture<'static, (Sent, Result<Response, CallError>)>>,
    entries_in_flight: usize,
}

/// What is kept of a request until it is answered.
struct Sent {
    entries: usize,
    previous: Option<LogId>,
    last: Option<LogId>,
}

impl Pipeline {
    /// The next answer; meanwhile, requests are sent as they come.
    async fn next(&mut self) -> Option<AppendResult> {
        let late = sleep(self.within);
        tokio::pin!(late);
        while self.input.is_some() || !self.in_flight.is_empty() {
            let room = self.in_flight.len() < APPENDS_IN_FLIGHT_MAX
                && (self.entries_in_flight < ENTRIES_IN_FLIGHT_MAX || self.in_flight.is_empty());
            tokio::select! {
                biased;
                Some((sent, answer)) = self.in_flight.next() => {
                    self.entries_in_flight -= sent.entries;
                    let result = answer.and_then(|answer| append_result(answer, &sent));
                    return Some(result.map_err(rpc_error));
                }
                request = next_of(&mut self.input), if room && self.input.is_some() => {
                    if self.in_flight.is_empty() {
                        late.set(sleep(self.within));
                    }
                    match request {
                        Some(request) => {
                            if let Err(error) = self.send(request).await {
                                return Some(Err(rpc_error(error)));
                            }
                        }
                        None => self.input = None,
                    }
                }
                () = &mut late, if !self.in_flight.is_empty() => {
                    return Some(Err(rpc_error(CallError::Late(self.within))));
                }
            }
        }
        None
    }

    async fn send(&mut self, rpc: AppendEntriesRequest<TypeConfig>) -> Result<(), CallError> {
        let previous = rpc.prev_log_id;
        let last = rpc.entries.last().map(|entry| entry.log_id).or(previous);
        let sent = Sent { entries: rpc.entries.len(), previous, last };
        self.entries_in_flight += sent.entries;
        let waiting = self.link.start(&Request::AppendEntries(rpc)).await?;
        self.in_flight.push_back(Box::pin(async move { (sent, waiting.answer().await) }));
        Ok(())
    }
}

async fn next_of<T>(input: &mut Option<BoxStream<'static, T>>) -> Option<T> {
    input.as_mut()?.next().await
}

fn append_result(
    answer: Response,
    sent: &Sent,
) -> Result<StreamAppendResult<TypeConfig>, CallError> {
    match (answer, sent.previous) {
        // Nothing can be in conflict with the beginning of the log.
        (Response::AppendEntries(AppendEntriesResponse::Conflict), None) => {
            Err(CallError::Mismatched)
        }
        (Response::AppendEntries(response), previous) => {
            Ok(response.into_stream_result(previous, sent.last))
        }
        (
            Response::Failed(_)
            | Response::Proposed(_)
            | Response::Snapshot(_)
            | Response::TransferLeader(_)
            | Response::Vote(_),
            _,
        ) => Err(CallError::Mismatched),
    }
}

#[cfg(test)]
mod tests {
    use openraft::{entry::RaftEntry as _, vote::RaftLeaderIdExt as _};
    use tokio::io::AsyncWriteExt as _;

    use super::*;
    use crate::{
        cluster::rpc::{FrameReader, frame, tests::Prepared},
        raft::Entry,
    };

    type LeaderId = openraft::type_config::alias::LeaderIdOf<TypeConfig>;

    fn at(index: u64) -> LogId {
        LogId::new(LeaderId::new_committed(1, 1), index)
    }

    fn request(index: u64) -> AppendEntriesRequest<TypeConfig> {
        AppendEntriesRequest {
            vote: Vote::new_committed(1, 1),
            prev_log_id: (index > 0).then(|| at(index - 1)),
            entries: vec![Entry::new_blank(at(index))],
            leader_commit: None,
        }
    }

    /// Streams a hundred requests. The far end answers nothing until as many have come as may be
    /// in flight; then it answers, the one numbered `special` by `answer`.
    async fn stream(special: u64, answer: Response) -> Vec<AppendResult> {
        let transport = Arc::new(Prepared::default());
        let (input, mut output) = tokio::io::split(transport.next());
        let far = async move {
            let mut answer = Some(answer);
            let mut frames = FrameReader::new(input);
            let mut unanswered = Vec::new();
            for index in 0..100 {
                let Ok(Some(frame)) = frames.next().await else { return };
                let Request::AppendEntries(rpc) = frame::decode(&frame.body).unwrap() else {
                    unreachable!()
                };
                assert_eq!(rpc.entries[0].log_id, at(index), "in order");
                unanswered.push(frame.id);
                if unanswered.len() < APPENDS_IN_FLIGHT_MAX && index < 99 {
                    continue;
                }
                for id in unanswered.drain(..) {
                    let success = Response::AppendEntries(AppendEntriesResponse::Success);
                    let special = (id == special + 1).then(|| answer.take().unwrap());
                    let bytes = frame::encode(id, &special.unwrap_or(success)).unwrap();
                    let _ = output.write_all(&bytes).await;
                }
            }
        };
        let near = async {
            let mut network = Network::new(transport.clone());
            let mut peer = network.new_client(2, &Member::default()).await;
            let option = RPCOption::new(Duration::from_millis(100));
            let input = stream::iter((0..100).map(request));
            let results = peer.stream_append(input, option).await.unwrap();
            results.collect().await
        };
        let far = tokio::spawn(far);
        let results: Vec<_> = near.await;
        far.await.unwrap();
        results
    }

    #[tokio::test(start_paused = true)]
    async fn entries_stream_without_waiting_and_end_at_the_first_that_does_not_fit() {
        let success = || Response::AppendEntries(AppendEntriesResponse::Success);
        let results = stream(0, success()).await;
        assert_eq!(results.len(), 100);
        for (index, result) in (0..).zip(&results) {
            assert_eq!(result.as_ref().unwrap(), &Ok(Some(at(index))));
        }

        let conflict = || Response::AppendEntries(AppendEntriesResponse::Conflict);
        let results = stream(70, conflict()).await;
        assert_eq!(results.len(), 71);
        assert!(matches!(&results[70], Ok(Err(openraft::raft::StreamAppendError::Conflict(_)))));
        assert!(results[..70].iter().all(|result| matches!(result, Ok(Ok(_)))));

        // Answers that make no sense, or are none, are errors of the connection.
        let results = stream(0, conflict()).await;
        assert!(matches!(results.as_slice(), [Err(RPCError::Unreachable(_))]));
        let results = stream(3, Response::Failed("no".to_owned())).await;
        assert!(results.len() == 4 && matches!(&results[3], Err(RPCError::Network(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn entries_that_are_never_answered_are_given_up() {
        let transport = Arc::new(Prepared::default());
        let _silent = transport.next();
        let mut network = Network::new(transport.clone());
        let mut peer = network.new_client(2, &Member::default()).await;
        let option = RPCOption::new(Duration::from_millis(100));
        let input = stream::iter([request(0)]).chain(stream::pending()).boxed();
        let mut results = peer.stream_append(input, option).await.unwrap();
        assert!(matches!(results.next().await, Some(Err(RPCError::Network(_)))));
        assert!(results.next().await.is_none());
    }
}
