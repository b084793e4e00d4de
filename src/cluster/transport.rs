//! How instances reach each other: a request and its answer in one frame each.
//!
//! A frame is `length u32 LE | version u8 | body`, the body in postcard. The length counts version
//! and body and is checked against [`RPC_FRAME_BYTES_MAX`] before anything is allocated; a version
//! that is not ours is refused by name, so that members of different make can tell.

use futures_util::future::BoxFuture;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    limits::RPC_FRAME_BYTES_MAX,
    raft::{Member, TypeConfig},
};

/// The version that this make writes and reads.
pub const FRAME_VERSION: u8 = 1;

/// Bytes before the body: length and version.
const HEADER_BYTES: usize = 5;

/// What one instance asks of another.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Raft: entries, or a heartbeat.
    AppendEntries(AppendEntriesRequest<TypeConfig>),
    /// Raft: would you vote for me?
    PreVote(VoteRequest<TypeConfig>),
    /// Raft: take over the leadership.
    TransferLeader(TransferLeaderRequest<TypeConfig>),
    /// Raft: vote for me.
    Vote(VoteRequest<TypeConfig>),
}

/// The answer to a [`Request`] of the same name.
#[derive(Debug, Serialize, Deserialize)]
pub enum Response {
    /// To entries.
    AppendEntries(AppendEntriesResponse<TypeConfig>),
    /// To either kind of vote.
    Vote(VoteResponse<TypeConfig>),
    /// To the transfer of the leadership.
    TransferLeader(TransferLeaderResponse<TypeConfig>),
    /// The request could not be carried out.
    Failed(String),
}

/// Why another instance could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// It can not be reached.
    #[error("cannot reach {0}")]
    Unreachable(String),
    /// What came is no frame of ours.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// Carries requests to other instances.
pub trait Transport: Send + Sync + 'static {
    /// Sends `request` to a member and waits for its answer.
    fn call(
        &self,
        target: u64,
        member: &Member,
        request: Request,
    ) -> BoxFuture<'static, Result<Response, TransportError>>;
}

/// The transport of an instance that is alone: nobody can be reached.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Transport for Alone {
    fn call(
        &self,
        target: u64,
        member: &Member,
        _: Request,
    ) -> BoxFuture<'static, Result<Response, TransportError>> {
        let error = TransportError::Unreachable(format!("{target} at {}", member.raft_addr));
        Box::pin(std::future::ready(Err(error)))
    }
}

/// Why bytes are no frame of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Longer than a frame may be, or shorter than it can be.
    #[error("a frame of {0} bytes; at most {RPC_FRAME_BYTES_MAX} are taken")]
    Length(usize),
    /// The body does not decode.
    #[error("the body of a frame does not decode: {0}")]
    Malformed(#[from] postcard::Error),
    /// Written by another make.
    #[error("frame version {0}; this instance speaks version {FRAME_VERSION}")]
    Version(u8),
}

/// Encodes one message as a frame.
///
/// # Errors
/// If it is longer than a frame may be.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; HEADER_BYTES - 1];
    frame.push(FRAME_VERSION);
    let mut frame = postcard::to_extend(message, frame)?;
    let length = frame.len() - (HEADER_BYTES - 1);
    let prefix = u32::try_from(length).ok().filter(|_| length <= RPC_FRAME_BYTES_MAX);
    let prefix = prefix.ok_or(FrameError::Length(length))?;
    frame[..HEADER_BYTES - 1].copy_from_slice(&prefix.to_le_bytes());
    Ok(frame)
}

/// The length that a frame announces, version and body together.
///
/// # Errors
/// If no frame may be that long.
pub fn announced_length(prefix: [u8; 4]) -> Result<usize, FrameError> {
    let length = usize::try_from(u32::from_le_bytes(prefix)).unwrap_or(usize::MAX);
    if (1..=RPC_FRAME_BYTES_MAX).contains(&length) {
        Ok(length)
    } else {
        Err(FrameError::Length(length))
    }
}

/// Decodes what follows the length: version and body.
///
/// # Errors
/// If the version is another, or the body does not decode.
pub fn decode<T: DeserializeOwned>(frame: &[u8]) -> Result<T, FrameError> {
    match frame.split_first() {
        Some((&FRAME_VERSION, body)) => Ok(postcard::from_bytes(body)?),
        Some((version, _)) => Err(FrameError::Version(*version)),
        None => Err(FrameError::Length(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_round_trip_and_refuse_what_is_not_theirs() {
        let frame = encode(&Response::Failed("no".to_owned())).unwrap();
        let length = announced_length(frame[..4].try_into().unwrap()).unwrap();
        assert_eq!(length, frame.len() - 4);
        assert!(matches!(decode(&frame[4..]), Ok(Response::Failed(why)) if why == "no"));
        let mut other = frame[4..].to_vec();
        other[0] = 9;
        assert_eq!(decode::<Response>(&other).unwrap_err(), FrameError::Version(9));
        assert!(matches!(decode::<Response>(&[1, 77]), Err(FrameError::Malformed(_))));
        assert!(announced_length([0xff; 4]).is_err() && announced_length([0; 4]).is_err());
        let giant = Response::Failed("x".repeat(RPC_FRAME_BYTES_MAX));
        assert!(matches!(encode(&giant), Err(FrameError::Length(_))));
    }
}
