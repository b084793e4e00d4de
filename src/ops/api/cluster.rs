//! Changes of the cluster.

use serde::{Deserialize, Serialize};

use crate::ids::InstanceId;

/// Takes an instance in as a learner, or changes where a member is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewMember {
    /// Its number.
    pub id: InstanceId,
    /// `HOST:PORT` of its raft listener.
    pub address: String,
}

/// Names one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OneMember {
    /// Its number.
    pub id: InstanceId,
}

/// Names one member, or leaves the choice to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnyMember {
    /// Its number.
    pub id: Option<InstanceId>,
}

/// A request that says all by its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// The answer to a change, and every error: a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sentence {
    /// It was done, and this is now the case.
    Done(String),
    /// It was not done, or that is not known.
    Error(String),
}
