//! A snapshot on its way into a file. At no time is more than one frame of it in memory. What
//! arrives goes into a draft that is checked as a whole before raft sees it, and is removed unless
//! it became the snapshot.

use std::{io, time::Duration};

use openraft::{Raft, RaftMetrics, storage::Snapshot, vote::RaftLeaderId as _};
use tokio::{
    io::{AsyncRead, AsyncWriteExt as _},
    time::timeout,
};

use super::{ServeError, ServiceOptions, check_author};
use crate::{
    cluster::{
        rpc::{FrameError, FrameReader, Request, Response, frame, link::write_out},
        transport::Stream,
    },
    ids::InstanceId,
    limits::SNAPSHOT_BYTES_MAX,
    raft::{TypeConfig, Vote},
    runtime::spawn,
    storage::{SnapshotDraft, SnapshotInbox, StateMachine, StorageError, fault::FaultReporter},
};

/// The most that is taken in one frame.
const CHUNK_BYTES_MAX: usize = 1024 * 1024;

/// Longest wait of the receiver for the next frame.
const CHUNK_WAIT_MAX: Duration = Duration::from_secs(10);

/// Longest wait of a snapshot for entries in the log to be applied: many heartbeats.
const CATCH_UP_MAX: Duration = Duration::from_secs(2);

/// Receives one snapshot, has it installed, and answers.
pub(super) async fn receive(
    options: &ServiceOptions,
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
    let (raft, faults) = (options.raft.clone(), options.faults.clone());
    let response = match fill(&options.inbox, peer, bytes, &mut frames).await {
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
