//! openraft's requests over [`Link`]s to the other members.

use std::{
    collections::BTreeMap,
    future::Future,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{
    Stream, StreamExt as _,
    future::{BoxFuture, join, join_all},
};
use openraft::{
    RaftNetworkFactory, RaftNetworkV2,
    errors::{RPCError, ReplicationClosed, StreamingError},
    network::RPCOption,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
        TransferLeaderResponse, VoteRequest, VoteResponse,
    },
    type_config::alias::SnapshotOf,
};
use tokio::time::timeout;

use super::{
    peers::Peers,
    pipeline::{AppendResults, Pipeline},
    progress::{Acknowledged, Progress},
    proposer::{WriteError, Written},
    rpc::{CallError, Link, Question, Request, Response, link::rpc_error, snapshot},
    transport::{Lane, Transport},
};
use crate::{
    ids::{InstanceId, StoreId},
    raft::{Member, TypeConfig, Vote},
    registry::{BatchId, Command},
    runtime::VOTE_MAX,
    storage::SnapshotFile,
};

/// Longest wait of entries for their answer. openraft's own limit is that of a heartbeat, but the
/// other end syncs its disk first.
const APPEND_WAIT_MAX: Duration = Duration::from_secs(3);

/// The ways to the other members; clones share them. Where a member is, the transport knows better
/// than openraft, which keeps the address that a member had when it first spoke to it.
#[derive(Clone)]
pub struct Network {
    transport: Arc<dyn Transport>,
    /// One way to each member for calls.
    calls: Arc<Mutex<Ways>>,
    /// Told what the others acknowledge.
    peers: Peers,
    /// Told the vote of this instance before others hear of it, because they remember it.
    acknowledged: Acknowledged,
}

type Ways = BTreeMap<InstanceId, (Member, Arc<Link>)>;

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Network")
    }
}

impl Network {
    /// Creates a network over the given transport.
    pub fn new(transport: Arc<dyn Transport>, peers: Peers, acknowledged: Acknowledged) -> Self {
        Self { transport, calls: Arc::default(), peers, acknowledged }
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
    ) -> Result<Written, WriteError> {
        let request = Request::Propose { batch, commands };
        let again = |error| WriteError::Again(format!("leader {}: {error}", leader.0));
        let answer = self.calls(leader, member).call(&request, within).await.map_err(again)?;
        let Response::Proposed(written) = answer else { return Err(again(CallError::Mismatched)) };
        Ok(written)
    }

    /// Asks an instance one of the [`Question`]s.
    ///
    /// # Errors
    /// [`CallError::Failed`] if it refuses, with the reason; else it is unknown whether it has done
    /// what was asked.
    pub async fn ask<Q: Question>(
        &self,
        target: InstanceId,
        member: &Member,
        question: Q,
        within: Duration,
    ) -> Result<Q::Answer, CallError> {
        question.over(&self.calls(target, member), within).await
    }

    /// Gives up the connection for calls to an instance; the next call opens another one.
    pub fn forget(&self, target: InstanceId) {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).remove(&target);
    }

    /// Finds out which store answers as `target` at an address, if it is there. Its
    /// connections go on meanwhile.
    ///
    /// # Errors
    /// If none answers as `target` there: [`io::ErrorKind::ConnectionAborted`] if another instance
    /// or another store does.
    pub async fn look_for(
        &self,
        target: InstanceId,
        member: &Member,
        within: Duration,
    ) -> io::Result<Option<StoreId>> {
        let transport = self.transport.exactly().unwrap_or_else(|| Arc::clone(&self.transport));
        let looking = transport.connect(target, member, Lane::Probe);
        let late = |_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer from there"));
        timeout(within, looking).await.unwrap_or_else(late)?;
        Ok(self.peers.store(target))
    }

    /// Returns the addresses among `others` that stand for the same socket as this one, however
    /// they are spelled.
    pub async fn same_as(&self, address: &str, others: Vec<String>) -> Vec<String> {
        let sockets = async |address: String| {
            let found = self.transport.resolve(&address).await;
            let canonical = |it: SocketAddr| SocketAddr::new(it.ip().to_canonical(), it.port());
            (found.into_iter().map(canonical).collect::<Vec<_>>(), address)
        };
        let looking = others.into_iter().map(sockets);
        let ((mine, _), others) = join(sockets(address.to_owned()), join_all(looking)).await;
        let is_same = |(theirs, other): &(Vec<SocketAddr>, String)| {
            spelled_alike(address, other) || theirs.iter().any(|it| mine.contains(it))
        };
        others.into_iter().filter(is_same).map(|(_, other)| other).collect()
    }

    /// Has the leader write a mark.
    #[cfg(feature = "rules-3")]
    pub(super) async fn mark(
        &self,
        leader: InstanceId,
        member: &Member,
        mark: crate::registry::Mark,
        within: Duration,
    ) {
        let answer = self.calls(leader, member).call(&Request::Mark(mark), within).await;
        tracing::trace!(?answer, "marked");
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
        within: Duration,
    ) -> Result<Response, RPCError<TypeConfig>> {
        let link = self.network.calls(self.target, &self.member);
        link.call(&request, within).await.map_err(rpc_error)
    }

    /// Asks for a vote, or whether there would be one. openraft's limit is less than a slow disk
    /// takes for the one sync of a vote, so it does not count.
    async fn vote_call(
        &self,
        request: Request,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        // A pre-vote promises nothing.
        let vote = if let Request::Vote(rpc) = &request { Some(rpc.vote) } else { None };
        if let Some(vote) = vote {
            self.network.acknowledged.note(Progress::of_vote(vote));
        }
        let Response::Vote(response) = self.call(request, VOTE_MAX).await? else {
            return Err(rpc_error(CallError::Mismatched));
        };
        if let Some(vote) = vote.filter(|_| response.vote_granted) {
            self.network.peers.acknowledged(self.target, Progress::of_vote(vote));
        }
        Ok(response)
    }

    /// Returns the link for entries, and how long it may take to answer.
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
        self.network.acknowledged.note(Progress::of_vote(rpc.vote));
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
        let (peers, target) = (self.network.peers.clone(), self.target);
        let note = move |progress| peers.acknowledged(target, progress);
        let mine = self.network.acknowledged.clone();
        let input = input.inspect(move |rpc| mine.note(Progress::of_vote(rpc.vote)));
        let results = Pipeline::new(link, within, input.boxed(), note).into_results();
        Box::pin(std::future::ready(Ok(results)))
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        _: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.vote_call(Request::Vote(rpc)).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        _: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.vote_call(Request::PreVote(rpc)).await
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
            biased;
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
            self.call(Request::TransferLeader(rpc), option.soft_ttl()).await?
        else {
            return Err(rpc_error(CallError::Mismatched));
        };
        Ok(response)
    }
}

/// Returns whether two addresses differ by case or by the dot behind a name at most.
fn spelled_alike(one: &str, other: &str) -> bool {
    let bare = |address: &str| address.replace(".:", ":").to_ascii_lowercase();
    bare(one) == bare(other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::rpc::tests::Prepared;

    #[tokio::test]
    async fn calls_to_a_member_share_a_way_until_it_is_elsewhere_or_given_up() {
        let (peers, acknowledged) = (Peers::default(), Acknowledged::default());
        let network = Network::new(Arc::new(Prepared::default()), peers, acknowledged);
        let (one, two, at) = (InstanceId(1), InstanceId(2), Member::at("host:1"));
        let first = network.calls(one, &at);
        assert!(Arc::ptr_eq(&first, &network.calls(one, &at)));
        assert!(!Arc::ptr_eq(&first, &network.calls(two, &at)));
        let moved = network.calls(one, &Member::at("host:2"));
        assert!(!Arc::ptr_eq(&first, &moved));
        assert!(Arc::ptr_eq(&moved, &network.calls(one, &Member::at("host:2"))));
        network.forget(one);
        assert!(!Arc::ptr_eq(&moved, &network.calls(one, &Member::at("host:2"))));
    }
}
