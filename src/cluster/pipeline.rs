//! Entries on their way to one member: requests go out without waiting for each other, and their
//! answers come back in order. openraft takes what the stream says for the state of the member's
//! log, so nothing follows an answer that is not a plain success.

use std::{sync::Arc, time::Duration};

use futures_util::{
    StreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream, FuturesOrdered},
};
use openraft::{
    errors::RPCError,
    raft::{AppendEntriesRequest, AppendEntriesResponse, StreamAppendResult},
};
use tokio::time::sleep;

use super::{
    progress::Progress,
    rpc::{CallError, Link, Request, Response, link::rpc_error},
};
use crate::raft::{LogId, TypeConfig, Vote};

/// Requests with entries that are sent without waiting for the answer to the first of them; more
/// than the other end works on at once.
const APPENDS_IN_FLIGHT_MAX: usize = 64;

/// Entries in these requests, because they are held in memory until they are answered. A request
/// that exceeds it alone goes alone.
const ENTRIES_IN_FLIGHT_MAX: usize = 512;

pub(super) type AppendResult = Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>;
pub(super) type AppendResults<'s> = BoxStream<'s, AppendResult>;

/// Requests with entries on their way, answered in their order.
pub(super) struct Pipeline {
    link: Arc<Link>,
    within: Duration,
    /// `None` once openraft has nothing more to send in this stream.
    input: Option<BoxStream<'static, AppendEntriesRequest<TypeConfig>>>,
    in_flight: FuturesOrdered<BoxFuture<'static, (Sent, Result<Response, CallError>)>>,
    entries_in_flight: usize,
    /// Told what was acknowledged.
    note: Box<dyn Fn(Progress) + Send>,
}

/// A request until it is answered.
struct Sent {
    entries: usize,
    vote: Vote,
    previous: Option<LogId>,
    last: Option<LogId>,
}

impl Pipeline {
    /// Sends what comes out of `input`; each answer may take `within`. `note` is told what
    /// the member acknowledges.
    pub(super) fn new(
        link: Arc<Link>,
        within: Duration,
        input: BoxStream<'static, AppendEntriesRequest<TypeConfig>>,
        note: impl Fn(Progress) + Send + 'static,
    ) -> Self {
        let (in_flight, note) = (FuturesOrdered::new(), Box::new(note));
        Self { link, within, input: Some(input), in_flight, entries_in_flight: 0, note }
    }

    /// Returns the answers, up to the first error of any kind.
    pub(super) fn into_results(self) -> AppendResults<'static> {
        let results = stream::unfold(Some(self), |pipeline| async move {
            let mut pipeline = pipeline?;
            let result = pipeline.next().await?;
            let rest = matches!(result, Ok(Ok(_))).then_some(pipeline);
            Some((result, rest))
        });
        results.boxed()
    }

    /// Returns the next answer; meanwhile, requests are sent as they come.
    async fn next(&mut self) -> Option<AppendResult> {
        let late = sleep(self.within);
        tokio::pin!(late);
        while self.input.is_some() || !self.in_flight.is_empty() {
            let room = self.in_flight.len() < APPENDS_IN_FLIGHT_MAX
                && (self.entries_in_flight < ENTRIES_IN_FLIGHT_MAX || self.in_flight.is_empty());
            tokio::select! {
                biased;
                Some((sent, answer)) = self.in_flight.next() => {
                    self.entries_in_flight -= sent.entries;
                    let result = answer.and_then(|answer| append_result(answer, &sent));
                    // Only what was sent is sure to be on the member's disk.
                    if let Ok(Ok(last @ Some(_))) = result && sent.entries > 0 {
                        (self.note)(Progress { vote: sent.vote, last });
                    }
                    return Some(result.map_err(rpc_error));
                }
                request = next_of(&mut self.input), if room && self.input.is_some() => {
                    if self.in_flight.is_empty() {
                        late.set(sleep(self.within));
                    }
                    match request {
                        Some(request) => {
                            if let Err(error) = self.send(request).await {
                                return Some(Err(rpc_error(error)));
                            }
                        }
                        None => self.input = None,
                    }
                }
                () = &mut late, if !self.in_flight.is_empty() => {
                    return Some(Err(rpc_error(CallError::Late(self.within))));
                }
            }
        }
        None
    }

    async fn send(&mut self, rpc: AppendEntriesRequest<TypeConfig>) -> Result<(), CallError> {
        let (vote, previous) = (rpc.vote, rpc.prev_log_id);
        let last = rpc.entries.last().map(|entry| entry.log_id).or(previous);
        let sent = Sent { entries: rpc.entries.len(), vote, previous, last };
        self.entries_in_flight += sent.entries;
        let waiting = self.link.start(&Request::AppendEntries(rpc)).await?;
        self.in_flight.push_back(Box::pin(async move { (sent, waiting.answer().await) }));
        Ok(())
    }
}

async fn next_of<T>(input: &mut Option<BoxStream<'static, T>>) -> Option<T> {
    input.as_mut()?.next().await
}

fn append_result(
    answer: Response,
    sent: &Sent,
) -> Result<StreamAppendResult<TypeConfig>, CallError> {
    let Response::AppendEntries(response) = answer else { return Err(CallError::Mismatched) };
    if response == AppendEntriesResponse::Conflict && sent.previous.is_none() {
        // Nothing can be in conflict with the beginning of the log.
        return Err(CallError::Mismatched);
    }
    Ok(response.into_stream_result(sent.previous, sent.last))
}

#[cfg(test)]
mod tests {
    use openraft::{
        RaftNetworkFactory as _, RaftNetworkV2 as _, entry::RaftEntry as _, network::RPCOption,
        vote::RaftLeaderIdExt as _,
    };
    use tokio::io::AsyncWriteExt as _;

    use super::*;
    use crate::{
        cluster::{
            network::Network,
            peers::Peers,
            progress::Acknowledged,
            rpc::{FrameReader, frame, tests::Prepared},
        },
        raft::{Entry, Member},
    };

    type LeaderId = openraft::type_config::alias::LeaderIdOf<TypeConfig>;

    fn at(index: u64) -> LogId {
        LogId::new(LeaderId::new_committed(1, 1), index)
    }

    fn request(index: u64) -> AppendEntriesRequest<TypeConfig> {
        AppendEntriesRequest {
            vote: Vote::new_committed(1, 1),
            prev_log_id: (index > 0).then(|| at(index - 1)),
            entries: vec![Entry::new_blank(at(index))],
            leader_commit: None,
        }
    }

    /// Streams a hundred requests. The far end answers nothing until as many have come as may be
    /// in flight; then it answers, the one numbered `special` by `answer`.
    async fn stream(special: u64, answer: Response) -> Vec<AppendResult> {
        let transport = Arc::new(Prepared::default());
        let (input, mut output) = tokio::io::split(transport.next());
        let far = async move {
            let mut answer = Some(answer);
            let mut frames = FrameReader::new(input);
            let mut unanswered = Vec::new();
            for index in 0..100 {
                let Ok(Some(frame)) = frames.next().await else { return };
                let Request::AppendEntries(rpc) = frame::decode(&frame.body).unwrap() else {
                    unreachable!()
                };
                assert_eq!(rpc.entries[0].log_id, at(index), "in order");
                unanswered.push(frame.id);
                if unanswered.len() < APPENDS_IN_FLIGHT_MAX && index < 99 {
                    continue;
                }
                for id in unanswered.drain(..) {
                    let success = Response::AppendEntries(AppendEntriesResponse::Success);
                    let special = (id == special + 1).then(|| answer.take().unwrap());
                    let bytes = frame::encode(id, &special.unwrap_or(success)).unwrap();
                    let _ = output.write_all(&bytes).await;
                }
            }
        };
        let near = async {
            let mut network =
                Network::new(transport.clone(), Peers::default(), Acknowledged::default());
            let mut peer = network.new_client(2, &Member::default()).await;
            let option = RPCOption::new(Duration::from_millis(100));
            let input = stream::iter((0..100).map(request));
            let results = peer.stream_append(input, option).await.unwrap();
            results.collect().await
        };
        let far = tokio::spawn(far);
        let results: Vec<_> = near.await;
        far.await.unwrap();
        results
    }

    #[tokio::test(start_paused = true)]
    async fn entries_stream_without_waiting_and_end_at_the_first_that_does_not_fit() {
        let success = || Response::AppendEntries(AppendEntriesResponse::Success);
        let results = stream(0, success()).await;
        assert_eq!(results.len(), 100);
        for (index, result) in (0..).zip(&results) {
            assert_eq!(result.as_ref().unwrap(), &Ok(Some(at(index))));
        }

        let conflict = || Response::AppendEntries(AppendEntriesResponse::Conflict);
        let results = stream(70, conflict()).await;
        assert_eq!(results.len(), 71);
        assert!(matches!(&results[70], Ok(Err(openraft::raft::StreamAppendError::Conflict(_)))));
        assert!(results[..70].iter().all(|result| matches!(result, Ok(Ok(_)))));

        // Answers that make no sense, or are none, are errors of the connection.
        let results = stream(0, conflict()).await;
        assert!(matches!(results.as_slice(), [Err(RPCError::Unreachable(_))]));
        let results = stream(3, Response::Failed("no".to_owned())).await;
        assert!(results.len() == 4 && matches!(&results[3], Err(RPCError::Network(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn entries_that_are_never_answered_are_given_up() {
        let transport = Arc::new(Prepared::default());
        let _silent = transport.next();
        let mut network =
            Network::new(transport.clone(), Peers::default(), Acknowledged::default());
        let mut peer = network.new_client(2, &Member::default()).await;
        let option = RPCOption::new(Duration::from_millis(100));
        let input = stream::iter([request(0)]).chain(stream::pending()).boxed();
        let mut results = peer.stream_append(input, option).await.unwrap();
        assert!(matches!(results.next().await, Some(Err(RPCError::Network(_)))));
        assert!(results.next().await.is_none());
    }
}
