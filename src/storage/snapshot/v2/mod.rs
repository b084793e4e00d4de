//! Snapshots of version 0.2.0, and so its backups: format 2. That version had no encoding that can
//! grow, and its data directories are refused; a backup is how its clients are carried over.
//!
//! Its frames are plain postcard, which cannot skip what it does not know. So everything in them is
//! spelled out here and in [`mod@records`] as it was, and what records gain later does not matter
//! here.

mod records;

use std::collections::BTreeMap;

use openraft::{storage::SnapshotMeta, type_config::alias::CommittedLeaderIdOf};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::format::{End, Header};
use crate::{
    codec::Undecodable,
    ids::{Incarnation, InstanceId, Timestamp},
    raft::{self, TypeConfig},
    registry::{Instance, Meta, Record, Rules, Serial},
    storage::identity::ClusterId,
};

/// The number in the head of the file.
pub(super) const FORMAT: u32 = 2;

/// The address of a member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Member {
    raft_addr: String,
}

#[derive(Deserialize)]
struct OldHeader {
    cluster: ClusterId,
    at: SnapshotMeta<CommittedLeaderIdOf<TypeConfig>, u64, Member>,
    meta: OldMeta,
}

#[derive(Deserialize)]
struct OldMeta {
    now: Timestamp,
    next_serial: Serial,
    policy: records::Policy,
    instances: BTreeMap<InstanceId, OldInstance>,
}

#[derive(Deserialize)]
struct OldEnd {
    records: u64,
    check: u32,
}

#[derive(Deserialize)]
struct OldInstance {
    incarnation: Incarnation,
    batches_through: u64,
}

impl From<OldHeader> for Header {
    fn from(old: OldHeader) -> Self {
        // Only a restoration reads this, and it has one member, its own.
        let at = raft::SnapshotMeta { last_log_id: old.at.last_log_id, ..Default::default() };
        Self { cluster: old.cluster, at, meta: old.meta.into() }
    }
}

impl From<OldMeta> for Meta {
    fn from(old: OldMeta) -> Self {
        let instances = old.instances.into_iter().map(|(id, old)| (id, old.into()));
        Self {
            now: old.now,
            next_serial: old.next_serial,
            policy: old.policy.into(),
            instances: instances.collect(),
            rules: Rules::FIRST,
            ..Self::default()
        }
    }
}

impl From<OldInstance> for Instance {
    fn from(old: OldInstance) -> Self {
        let OldInstance { incarnation, batches_through } = old;
        Self { incarnation, batches_through, store: None, removed_by: None }
    }
}

/// Reads the frame of the header.
pub(super) fn header(body: &[u8]) -> Result<Header, Undecodable> {
    decode::<OldHeader>(body).map(Header::from)
}

/// Reads a frame of records. A client that had been taken out is `None`: as then, it joins at the
/// tip if it asks again.
pub(super) fn records(body: &[u8]) -> Result<Vec<Option<(Serial, Record)>>, Undecodable> {
    let old: Vec<(Serial, records::Record)> = decode(body)?;
    Ok(old.into_iter().map(|(serial, record)| Some((serial, record.into_present()?))).collect())
}

/// Reads the last frame.
pub(super) fn end(body: &[u8]) -> Result<End, Undecodable> {
    let OldEnd { records, check } = decode(body)?;
    Ok(End { records, check })
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, Undecodable> {
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        Ok(_) | Err(_) => Err(Undecodable::Malformed),
    }
}
