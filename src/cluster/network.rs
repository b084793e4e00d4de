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
        match self.transport.call(self.target, &self.member, request).await {
            Ok(Response::Failed(why)) => Err(failed(&why)),
            Ok(response) => Ok(response),
            Err(error @ TransportError::Unreachable(_)) => {
                Err(RPCError::Unreachable(Unreachable::new(&error)))
            }
            Err(error @ TransportError::Frame(_)) => {
                Err(RPCError::Network(NetworkError::new(&error)))
            }
        }
    }

    async fn vote_call(
        &self,
        request: Request,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let Response::Vote(response) = self.call(request).await? else {
            return Err(failed("the answer is not one to the request"));
        };
        Ok(response)
    }
}

impl RaftNetworkV2<TypeConfig> for Peer {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let Response::AppendEntries(response) = self.call(Request::AppendEntries(rpc)).await?
        else {
            return Err(failed("the answer is not one to the request"));
        };
        Ok(response)
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
        let Response::TransferLeader(response) = self.call(Request::TransferLeader(rpc)).await?
        else {
            return Err(failed("the answer is not one to the request"));
        };
        Ok(response)
    }
}

fn failed(why: &str) -> RPCError<TypeConfig> {
    RPCError::Network(NetworkError::new(&io::Error::other(why)))
}
