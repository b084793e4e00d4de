//! Requests and answers of the operators' HTTP as types: the server writes, the command line
//! reads. Scripts read them too: keys are added, never renamed or taken away.

use std::borrow::Cow;

mod cluster;
mod explain;
mod status;
mod views;

pub use self::{
    cluster::{AnyMember, NewMember, Nothing, OneMember, Sentence},
    explain::{Explanation, Remembered, Told},
    status::{Chains, Digest, Member, Status},
    views::{Ask, Chain, Client, List, Run, Side, Totals, Window},
};

/// A word of a fixed set, which a later version may extend.
pub type Word = Cow<'static, str>;
