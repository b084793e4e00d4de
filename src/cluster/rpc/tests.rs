//! A link over connections that the test holds in its hands.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::BoxFuture;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse};
use tokio::io::{AsyncWriteExt as _, DuplexStream};

use super::{
    CallError, FrameError, FrameReader, Link, Refusal, Request, Response,
    frame::{decode, encode},
};
use crate::{
    cluster::{
        greeter::Unwelcome,
        service::ServeError,
        transport::{Lane, Stream, Transport},
    },
    ids::InstanceId,
    raft::{Member, TypeConfig, Vote},
};

/// Hands out connections that the test prepared.
#[derive(Default)]
pub(in crate::cluster) struct Prepared(Mutex<Vec<DuplexStream>>);

impl Prepared {
    /// Returns the far end of the connection that will be opened next.
    pub(in crate::cluster) fn next(&self) -> DuplexStream {
        let (near, far) = tokio::io::duplex(1 << 20);
        self.0.lock().unwrap().push(near);
        far
    }
}

impl Transport for Prepared {
    fn connect(
        &self,
        _: InstanceId,
        _: &Member,
        _: Lane,
    ) -> BoxFuture<'static, io::Result<Box<dyn Stream>>> {
        let next = self.0.lock().unwrap().pop();
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let stream = next.map(|stream| Box::new(stream) as Box<dyn Stream>).ok_or_else(refused);
        Box::pin(std::future::ready(stream))
    }
}

fn link(transport: &Arc<Prepared>) -> Link {
    let transport: Arc<dyn Transport> = Arc::<Prepared>::clone(transport);
    Link::new(transport, InstanceId(2), Member::default(), Lane::Append)
}

fn heartbeat(term: u64) -> Request {
    Request::AppendEntries(AppendEntriesRequest::<TypeConfig> {
        vote: Vote::new_committed(term, 1),
        prev_log_id: None,
        entries: Vec::new(),
        leader_commit: None,
    })
}

fn success() -> Response {
    Response::AppendEntries(AppendEntriesResponse::Success)
}

const LONG: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn requests_do_not_wait_for_answers_and_answers_find_their_requests() {
    let transport = Arc::new(Prepared::default());
    let far = transport.next();
    let link = link(&transport);
    let mut waiting = Vec::new();
    for term in 0..20 {
        waiting.push(link.start(&heartbeat(term)).await.unwrap());
    }
    let (input, mut output) = tokio::io::split(far);
    let mut frames = FrameReader::new(input);
    let mut ids = Vec::new();
    for term in 0..20 {
        let frame = frames.next().await.unwrap().unwrap();
        let Request::AppendEntries(rpc) = decode(&frame.body).unwrap() else { panic!() };
        assert_eq!(rpc.vote.leader_id.term, term, "in order, none answered yet");
        ids.push(frame.id);
    }
    // One is not waited for any more; the others are answered in any order.
    drop(waiting.remove(7));
    for id in ids.iter().rev() {
        let answer = if *id == ids[3] { Response::Failed("no".to_owned()) } else { success() };
        output.write_all(&encode(*id, &answer).unwrap()).await.unwrap();
    }
    for (place, waiting) in waiting.into_iter().enumerate() {
        match waiting.answer().await {
            Ok(Response::AppendEntries(AppendEntriesResponse::Success)) => assert_ne!(place, 3),
            other => {
                assert_eq!(other.unwrap_err(), CallError::Failed("no".to_owned()));
                assert_eq!(place, 3);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_connection_is_said_and_the_next_request_opens_another() {
    let transport = Arc::new(Prepared::default());
    let far = transport.next();
    let link = link(&transport);
    let waiting = link.start(&heartbeat(1)).await.unwrap();
    let mut frames = FrameReader::new(far);
    frames.next().await.unwrap().unwrap();
    drop(frames);
    assert_eq!(waiting.answer().await.unwrap_err(), CallError::Lost);

    // Nothing listens there: said at once, and again while the pause lasts.
    for _ in 0..3 {
        let refused = link.call(&heartbeat(2), LONG).await.unwrap_err();
        assert!(matches!(refused, CallError::Unreachable(_)), "{refused:?}");
    }
    let far = transport.next();
    let calling = async {
        loop {
            match link.call(&heartbeat(3), LONG).await {
                Ok(response) => return response,
                Err(CallError::Unreachable(_)) => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(other) => panic!("{other:?}"),
            }
        }
    };
    let answering = async {
        let (input, mut output) = tokio::io::split(far);
        let mut frames = FrameReader::new(input);
        let frame = frames.next().await.unwrap().unwrap();
        output.write_all(&encode(frame.id, &success()).unwrap()).await.unwrap();
    };
    let (response, ()) = tokio::join!(calling, answering);
    assert!(matches!(response, Response::AppendEntries(AppendEntriesResponse::Success)));
}

#[tokio::test(start_paused = true)]
async fn a_connection_on_which_nothing_comes_back_is_given_up() {
    let transport = Arc::new(Prepared::default());
    let silent = transport.next();
    let link = link(&transport);
    let late = link.call(&heartbeat(1), Duration::from_millis(75)).await.unwrap_err();
    assert_eq!(late, CallError::Late(Duration::from_millis(75)));
    let lost = link.call(&heartbeat(2), LONG).await.unwrap_err();
    assert_eq!(lost, CallError::Lost);
    drop(silent);

    // With nothing to wait for, silence means nothing.
    let far = transport.next();
    let (input, mut output) = tokio::io::split(far);
    let mut frames = FrameReader::new(input);
    for term in 3..6 {
        let request = heartbeat(term);
        let calling = link.call(&request, LONG);
        let answering = async {
            let frame = frames.next().await.unwrap().unwrap();
            output.write_all(&encode(frame.id, &success()).unwrap()).await.unwrap();
        };
        assert!(tokio::join!(calling, answering).0.is_ok());
        tokio::time::sleep(LONG).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_none_ends_the_connection() {
    let transport = Arc::new(Prepared::default());
    let mut far = transport.next();
    let link = link(&transport);
    let waiting = link.start(&heartbeat(1)).await.unwrap();
    far.write_all(&[7; 64]).await.unwrap();
    assert_eq!(waiting.answer().await.unwrap_err(), CallError::Lost);
}

#[test]
fn what_a_peer_did_wrong_is_counted_and_what_happens_to_connections_is_not() {
    let lost = io::Error::from(io::ErrorKind::ConnectionReset);
    for (error, expected) in [
        (FrameError::Io(lost).into(), None),
        (ServeError::Stopped, None),
        (ServeError::Unwelcome(Unwelcome::Declined(Refusal::Store)), None),
        (ServeError::Unwelcome(Unwelcome::Refused(Refusal::Store)), Some("store")),
        (FrameError::Checksum.into(), Some("frame")),
        (FrameError::Length(9).into(), Some("frame")),
        (FrameError::Malformed.into(), Some("frame")),
        (ServeError::WrongLane, Some("frame")),
        (ServeError::Forged, Some("forged")),
    ] {
        assert_eq!(error.refusal(), expected, "{error}");
    }
}
