//! openraft's requests over our [`Transport`].

use std::{future::Future, io, sync::Arc};

use openraft::{
    RaftNetworkFactory, RaftNetworkV2,
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::RPCOption,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
        TransferLeaderResponse, VoteRequest, VoteResponse,
    },
    type_config::alias::SnapshotOf,
};

use super::transport::{Request, Response, Transport, TransportError};
use crate::{
    raft::{Member, TypeConfig, Vote},
    storage::SnapshotFile,
};

/// Makes connections to the other members.
pub struct Network(Arc<dyn Transport>);

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Network")
    }
}

impl Network {
    /// A network over the given transport.
    pub fn new(transport: Arc<dyn Transport>) -> Self {
        Self(transport)
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, member: &Member) -> Peer {
        Peer { target, member: member.clone(), transport: Arc::clone(&self.0) }
    }
}

/// The way to one other member.
pub struct Peer {
    target: u64,
    member: Member,
    transport: Arc<dyn Transport>,
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peer").field("target", &self.target).finish()
    }
}

impl Peer {
    async fn call(&self, request: Request) -> Result<Response, RPCError<TypeConfig>> {
        let answer = self.transport.call(self.target, &self.member, request).await;
        answer.map_err(|error| match error {
            TransportError::Unreachable(_) => RPCError::Unreachable(Unreachable::new(&error)),
            TransportError::Frame(_) => RPCError::Network(NetworkError::new(&error)),
        })
    }

    async fn vote_call(
        &self,
        request: Request,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.call(request).await? {
            Response::Vote(response) => Ok(response),
            other => Err(unexpected(&other)),
        }
    }
}

impl RaftNetworkV2<TypeConfig> for Peer {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.call(Request::AppendEntries(rpc)).await? {
            Response::AppendEntries(response) => Ok(response),
            other => Err(unexpected(&other)),
        }
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

    /// A member that lags behind the log cannot be fed yet: one instance has no such member.
    async fn full_snapshot(
        &mut self,
        _: Vote,
        _: SnapshotOf<TypeConfig, SnapshotFile>,
        _: impl Future<Output = ReplicationClosed> + Send + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let error = TransportError::Unreachable("snapshots are not sent".to_owned());
        Err(StreamingError::Unreachable(Unreachable::new(&error)))
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<TypeConfig>,
        _: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.call(Request::TransferLeader(rpc)).await? {
            Response::TransferLeader(response) => Ok(response),
            other => Err(unexpected(&other)),
        }
    }
}

/// The answer is not one to the request, or says that it failed.
fn unexpected(response: &Response) -> RPCError<TypeConfig> {
    let text = match response {
        Response::Failed(why) => why.clone(),
        Response::AppendEntries(_) | Response::Vote(_) | Response::TransferLeader(_) => {
            "the answer is not one to the request".to_owned()
        }
    };
    RPCError::Network(NetworkError::new(&io::Error::other(text)))
}
