//! `GET /api/v1/backup`: the whole registry as one file, while the instance serves. It holds every
//! client's addresses and repair ids, so it takes what a change of the cluster takes
//! ([`super::gate`]).
//!
//! One at a time, in pieces that are read from the disk as the reader takes them. A reader that
//! takes none within the life of a connection is cut off. What has arrived is the reader's to
//! check: when it has the file on its disk, it says so by `POST /api/v1/backup/kept`, and the
//! metric tells that there is a backup.

use std::{io, sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    body::Body,
    extract::State,
    http::{HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures_util::{Stream, stream};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::spawn_blocking,
};

use super::{
    HttpSources,
    admin::{Wish, answer},
    fresh,
    life::{Kept, Life},
};
use crate::{
    clock,
    ops::{Backup, api::Nothing},
};

/// Longest wait for the first byte. The instance gives up before that.
pub const PREPARATION_MAX: Duration = Duration::from_secs(330);

/// Bytes that are in memory at one time.
const PIECE_BYTES: usize = 256 * 1024;

/// The entry through which a backup goes.
const ENTRY: HeaderName = HeaderName::from_static("emnetchain-entry");

/// The records that it holds.
const RECORDS: HeaderName = HeaderName::from_static("emnetchain-records");

/// One backup at a time.
#[derive(Clone)]
struct Turn(Arc<Semaphore>);

pub(super) fn routes() -> Router<HttpSources> {
    Router::new()
        .route("/api/v1/backup", get(hand_out))
        .route("/api/v1/backup/kept", post(keep))
        .layer(Extension(Turn(Arc::new(Semaphore::new(1)))))
}

async fn hand_out(
    State(sources): State<HttpSources>,
    Extension(life): Extension<Life>,
    Extension(Turn(turn)): Extension<Turn>,
) -> Response {
    let Ok(turn) = turn.try_acquire_owned() else {
        let why = "this instance is handing out another backup; ask again when that is done";
        return answer(StatusCode::SERVICE_UNAVAILABLE, Err(why.to_owned()));
    };
    let life = life.keep();
    life.renew_for(PREPARATION_MAX);
    let backup = match sources.backend.backup().await {
        Ok(backup) => backup,
        Err(why) => {
            tracing::warn!(%why, "an operator is denied a backup");
            return answer(StatusCode::SERVICE_UNAVAILABLE, Err(why.to_string()));
        }
    };
    let Backup { bytes, entry, records, .. } = backup;
    tracing::info!(bytes, entry, records, "a backup is sent");
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, bytes.to_string()),
        // The next backup does not wait for a reader that keeps the connection.
        (header::CONNECTION, "close".to_owned()),
        (ENTRY, entry.to_string()),
        (RECORDS, records.to_string()),
    ];
    fresh((headers, Body::from_stream(pieces(backup, Held { life, _turn: turn }))).into_response())
}

/// The parts of a backup while it is sent.
struct Held {
    life: Kept,
    _turn: OwnedSemaphorePermit,
}

/// Returns the bytes of the file; the last piece sets everything free.
fn pieces(backup: Backup, held: Held) -> impl Stream<Item = io::Result<Vec<u8>>> {
    let Backup { bytes, read_at, .. } = backup;
    stream::try_unfold((0, Some(held)), move |(at, held)| {
        let read_at = Arc::clone(&read_at);
        async move {
            let Some(held) = held.filter(|_| at < bytes) else { return Ok(None) };
            held.life.renew();
            let length = usize::try_from(bytes - at).unwrap_or(usize::MAX).min(PIECE_BYTES);
            let read = spawn_blocking(move || {
                let mut piece = vec![0; length];
                read_at(&mut piece, at).map(|()| piece)
            });
            let piece = read.await.map_err(io::Error::other)??;
            let next = at + length as u64;
            Ok(Some((piece, (next, (next < bytes).then_some(held)))))
        }
    })
}

/// Notes that an operator has a whole backup of this instance on a disk.
async fn keep(State(sources): State<HttpSources>, Wish(Nothing {}): Wish<Nothing>) -> Response {
    let now = i64::try_from(clock::unix_seconds()).unwrap_or(i64::MAX);
    sources.metrics.backup_timestamp.set(now);
    answer(StatusCode::OK, Ok("the backup is known to be kept".to_owned()))
}
