//! A snapshot on its way from one file to another: the request that announces it, the file's bytes
//! in frames, each with its checksum, and one answer when it is installed.
//!
//! At no time is more than one frame of it in memory. What arrives goes into a draft that is
//! checked as a whole before raft sees it, and is removed unless it became the snapshot. The
//! sender's cancellation is the end of the connection.

use std::{io, time::Duration};

use openraft::{
    Raft, RaftMetrics, raft::SnapshotResponse, storage::Snapshot, vote::RaftLeaderId as _,
};
use tokio::{
    io::{AsyncRead, AsyncWriteExt as _},
    time::timeout,
};

use super::{
    Request, Response, ServeError, Service,
    frame::{self, FrameError, FrameReader},
    link::{CallError, write_out},
    service::check_author,
};
use crate::{
    cluster::transport::Stream,
    ids::InstanceId,
    limits::SNAPSHOT_BYTES_MAX,
    raft::{TypeConfig, Vote},
    runtime::{spawn, spawn_blocking},
    storage::{
        SnapshotDraft, SnapshotFile, SnapshotInbox, StateMachine, StorageError,
        fault::FaultReporter,
    },
};

/// Bytes of the file in one frame.
const CHUNK_BYTES: usize = 256 * 1024;

/// The most that is taken in one frame.
const CHUNK_BYTES_MAX: usize = 1024 * 1024;

/// Longest wait of the receiver for the next frame.
const CHUNK_WAIT_MAX: Duration = Duration::from_secs(10);

/// Longest time for checking and installing before the sender begins again.
const INSTALL_WAIT_MAX: Duration = Duration::from_secs(300);

/// Longest wait of a snapshot for entries in the log to be applied: many heartbeats.
const CATCH_UP_MAX: Duration = Duration::from_secs(2);

/// Sends a snapshot over a connection of its own, and waits until it is installed. Dropping the
/// future cancels it.
///
/// # Errors
/// If it did not arrive, or was not installed.
pub async fn send(
    mut stream: Box<dyn Stream>,
    vote: Vote,
    snapshot: &SnapshotFile,
) -> Result<SnapshotResponse<TypeConfig>, CallError> {
    let unreadable = |error: FrameError| CallError::Unsendable(error.to_string());
    let lost = |_: io::Error| CallError::Lost;
    let bytes = snapshot.bytes();
    let mut out = frame::encode(0, &Request::Snapshot { vote, bytes }).map_err(unreadable)?;
    let mut at = 0;
    while at < bytes {
        let file = snapshot.clone();
        let length = usize::try_from(bytes - at).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        let read =
            spawn_blocking(move || frame::encode_raw(0, length, |body| file.read_at(body, at)));
        let chunk = read.await.map_err(|_| CallError::Lost)?.map_err(unreadable)?;
        write_out(&mut stream, &mut out).await.map_err(lost)?;
        out = chunk;
        at += length as u64;
    }
    write_out(&mut stream, &mut out).await.map_err(lost)?;
    let mut frames = FrameReader::new(stream);
    let answered = timeout(INSTALL_WAIT_MAX, frames.next()).await;
    let answered = answered.map_err(|_| CallError::Late(INSTALL_WAIT_MAX))?;
    let answer = answered.ok().flatten().ok_or(CallError::Lost)?;
    let answer = frame::decode(&answer.body).map_err(|_| CallError::Mismatched)?;
    if let Response::Failed(why) = answer {
        return Err(CallError::Failed(why));
    }
    let Response::Snapshot(response) = answer else { return Err(CallError::Mismatched) };
    Ok(response)
}

/// Receives one snapshot, has it installed, and answers.
pub(super) async fn receive(
    service: &Service,
    stream: Box<dyn Stream>,
    peer: InstanceId,
) -> Result<(), ServeError> {
    let (input, mut output) = tokio::io::split(stream);
    let mut frames = FrameReader::new(input);
    let Some(first) = frames.next().await? else { return Ok(()) };
    let request = frame::decode(&first.body)?;
    check_author(&request, peer)?;
    let Request::Snapshot { vote, bytes } = request else { return Err(ServeError::WrongLane) };
    if bytes > SNAPSHOT_BYTES_MAX {
        return Err(FrameError::Length(usize::try_from(bytes).unwrap_or(usize::MAX)).into());
    }
    let (raft, faults) = (service.0.raft.clone(), service.0.faults.clone());
    let response = match fill(&service.0.inbox, peer, bytes, &mut frames).await {
        // Raft must find the draft until it has done with it, even if the connection ends.
        Ok(draft) => match spawn(install(raft, faults, draft, vote)).await {
            Ok(response) => response,
            Err(_) => return Err(ServeError::Stopped),
        },
        Err(Unfilled::Connection(error)) => return Err(error.into()),
        Err(Unfilled::File(error)) => Response::Failed(format!("it cannot be stored: {error}")),
    };
    let mut out = frame::encode(first.id, &response)?;
    write_out(&mut output, &mut out).await.map_err(FrameError::Io)?;
    output.shutdown().await.map_err(FrameError::Io)?;
    Ok(())
}

/// Why a draft could not be filled.
enum Unfilled {
    Connection(FrameError),
    File(io::Error),
}

impl From<io::Error> for Unfilled {
    fn from(error: io::Error) -> Self {
        Self::File(error)
    }
}

async fn fill(
    inbox: &SnapshotInbox,
    peer: InstanceId,
    bytes: u64,
    frames: &mut FrameReader<impl AsyncRead + Unpin>,
) -> Result<SnapshotDraft, Unfilled> {
    let mut draft = inbox.begin(peer).await?;
    let mut at = 0;
    while at < bytes {
        let next = timeout(CHUNK_WAIT_MAX, frames.next()).await;
        let frame = next.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()));
        let frame = frame.map_err(Unfilled::Connection)?;
        let cut = || FrameError::Io(io::ErrorKind::UnexpectedEof.into());
        let chunk = frame.ok_or_else(cut).map_err(Unfilled::Connection)?.body;
        let length = chunk.len() as u64;
        if chunk.is_empty() || chunk.len() > CHUNK_BYTES_MAX || length > bytes - at {
            return Err(Unfilled::Connection(FrameError::Length(chunk.len())));
        }
        draft = draft.write(chunk).await?;
        at += length;
    }
    Ok(draft)
}

/// Waits until every entry in the log is applied, or for long enough. openraft 0.10.0-alpha.37
/// purges the log behind a snapshot at once, and panics if entries that it purged have been written
/// under the present leader and not been applied: the snapshot says that they are committed, and
/// their ids are gone (openraft #2116). With the next heartbeat it hears that they are, and has
/// applied them before the snapshot comes. Entries of an earlier leader it does not apply, so they
/// do no harm, and may keep this waiting in vain.
async fn catch_up(raft: &Raft<TypeConfig, StateMachine>) {
    let is_applied = |now: &RaftMetrics<TypeConfig>| {
        now.last_log_index <= now.last_applied.as_ref().map(|last| last.index)
    };
    let waited = raft.wait(Some(CATCH_UP_MAX)).metrics(is_applied, "all entries are applied").await;
    if waited.is_err() {
        tracing::debug!("a snapshot takes the place of entries that are not applied");
    }
}

async fn install(
    raft: Raft<TypeConfig, StateMachine>,
    faults: FaultReporter,
    draft: SnapshotDraft,
    vote: Vote,
) -> Response {
    let snapshot = match draft.check().await {
        Ok(snapshot) => snapshot,
        Err(error @ StorageError::Newer { .. }) => {
            return Response::Failed(faults.refuse(error).to_string());
        }
        Err(error) => return Response::Failed(error.to_string()),
    };
    let meta = snapshot.meta().clone();
    let term = meta.last_log_id.map_or(0, |last| last.committed_leader_id().term);
    if term > vote.leader_id.term() {
        // openraft takes that for granted.
        return Response::Failed("the snapshot is of a later term than its sender".to_owned());
    }
    catch_up(&raft).await;
    match raft.install_full_snapshot(vote, Snapshot { meta, snapshot }).await {
        Ok(response) => Response::Snapshot(response),
        Err(error) => Response::Failed(error.to_string()),
    }
}
