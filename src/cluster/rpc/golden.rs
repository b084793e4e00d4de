//! Golden bytes of every message between instances.

use std::collections::{BTreeMap, BTreeSet};

use openraft::{
    EntryPayload, Membership,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
        VoteRequest, VoteResponse,
    },
    type_config::alias::CommittedLeaderIdOf,
    vote::RaftLeaderId as _,
};

use super::{Request, Response};
use crate::{
    cluster::{proposer::Written, rpc::Change},
    codec::golden::Page,
    ids::{Incarnation, InstanceId, StoreId},
    raft::{Entry, LogId, Member, TypeConfig, Vote},
    registry::{BatchId, Command, Verdict},
};

fn log_id(index: u64) -> LogId {
    LogId::new(CommittedLeaderIdOf::<TypeConfig>::new(7, 2), index)
}

fn entries() -> AppendEntriesRequest<TypeConfig> {
    let member = Member { store: Some(StoreId(5)), ..Member::at("host:7000") };
    let members =
        Membership::new(vec![BTreeSet::from([2])], BTreeMap::from([(2, member)])).unwrap();
    AppendEntriesRequest {
        vote: Vote::new_committed(7, 2),
        prev_log_id: Some(log_id(8)),
        entries: vec![
            Entry { log_id: log_id(9), payload: EntryPayload::Blank },
            Entry { log_id: log_id(10), payload: EntryPayload::Membership(members) },
        ],
        leader_commit: None,
    }
}

#[test]
fn golden_bytes_of_requests() {
    let vote = Vote::new(7, 2);
    let batch = BatchId { instance: InstanceId(2), incarnation: Incarnation(3), number: 400 };
    let (batch, commands) = (Some(batch), vec![Command::Tick]);
    let transfer = TransferLeaderRequest::new(vote, 3, Some(log_id(9)));
    let member = Member::at("host:7000");
    let requests = [
        ("append-entries", Request::AppendEntries(entries())),
        ("pre-vote", Request::PreVote(VoteRequest::new(vote, Some(log_id(9))))),
        ("propose", Request::Propose { batch, commands }),
        ("snapshot", Request::Snapshot { vote, bytes: 70_000 }),
        ("transfer-leader", Request::TransferLeader(transfer)),
        ("vote", Request::Vote(VoteRequest::new(vote, None))),
        ("change-add", Request::Change(Change::Add { instance: InstanceId(4), member })),
        ("change-promote", Request::Change(Change::Promote(InstanceId(4)))),
        ("change-remove", Request::Change(Change::Remove(InstanceId(4)))),
        ("change-leader", Request::Change(Change::TransferLeader(None))),
        ("change-upgrade", Request::Change(Change::Upgrade)),
        ("digests", Request::Digests),
    ];
    let mut page = Page::open("requests.txt");
    for (name, request) in &requests {
        page.holds(name, request);
    }
    page.close();
}

#[test]
fn golden_bytes_of_responses() {
    let vote = Vote::new(7, 2);
    let written = Written { index: 300, verdict: Verdict::Duplicate };
    let appended = Response::AppendEntries;
    let responses = [
        ("append-success", appended(AppendEntriesResponse::Success)),
        ("append-partial", appended(AppendEntriesResponse::PartialSuccess(Some(log_id(9))))),
        ("append-conflict", appended(AppendEntriesResponse::Conflict)),
        ("append-higher-vote", appended(AppendEntriesResponse::HigherVote(vote))),
        ("failed", Response::Failed("a reason".to_owned())),
        ("proposed", Response::Proposed(written)),
        ("snapshot", Response::Snapshot(SnapshotResponse::new(vote))),
        ("vote", Response::Vote(VoteResponse::new(vote, Some(log_id(9)), true))),
        ("changed", Response::Changed("a sentence".to_owned())),
    ];
    let mut page = Page::open("responses.txt");
    for (name, response) in &responses {
        page.holds(name, response);
    }
    page.close();
}
