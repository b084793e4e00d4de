//! A snapshot on its way out of a file: the request that announces it, the file's bytes in frames,
//! each with its checksum, and one answer when it is installed. At no time is more than one frame
//! of it in memory. The sender's cancellation is the end of the connection.

use std::{io, time::Duration};

use openraft::raft::SnapshotResponse;
use tokio::time::timeout;

use super::{
    Request, Response,
    frame::{self, FrameError, FrameReader},
    link::{CallError, write_out},
};
use crate::{
    cluster::transport::Stream,
    raft::{TypeConfig, Vote},
    runtime::spawn_blocking,
    storage::SnapshotFile,
};

/// Bytes of the file in one frame.
const CHUNK_BYTES: usize = 256 * 1024;

/// Longest time for checking and installing before the sender begins again.
const INSTALL_WAIT_MAX: Duration = Duration::from_secs(300);

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
