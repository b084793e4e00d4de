//! Requests that have one kind of answer, as types: the type of a request names that of its answer.

use std::time::Duration;

use super::{CallError, Change, FoundingAnswer, Link, Request, Response, hello::Facts};
use crate::storage::Digests;

/// A request with one kind of answer.
pub trait Question: Sized {
    /// The answer.
    type Answer;

    /// Returns the request.
    fn request(self) -> Request;

    /// Returns the answer in a response; `None` if it is another kind of response.
    fn answer(response: Response) -> Option<Self::Answer>;

    /// Asks over a link, and waits for this time at most.
    ///
    /// # Errors
    /// If no answer comes, or one of another kind.
    fn over(
        self,
        link: &Link,
        within: Duration,
    ) -> impl Future<Output = Result<Self::Answer, CallError>> + Send {
        let request = self.request();
        async move {
            let response = link.call(&request, within).await?;
            Self::answer(response).ok_or(CallError::Mismatched)
        }
    }
}

/// An instance that wants to get into the cluster asks how another one stands.
#[derive(Clone, Copy, Debug)]
pub struct Introduce;

impl Question for Introduce {
    type Answer = FoundingAnswer;

    fn request(self) -> Request {
        Request::Introduce
    }

    fn answer(response: Response) -> Option<FoundingAnswer> {
        if let Response::Introduced(standing) = response { Some(standing) } else { None }
    }
}

/// An instance tells how it is now, and hears the same of the other one.
impl Question for Facts {
    type Answer = Self;

    fn request(self) -> Request {
        Request::Announce(self)
    }

    fn answer(response: Response) -> Option<Self> {
        if let Response::Announced(facts) = response { Some(facts) } else { None }
    }
}

/// The leader is to change the cluster, and says what is now the case.
impl Question for Change {
    type Answer = String;

    fn request(self) -> Request {
        Request::Change(self)
    }

    fn answer(response: Response) -> Option<String> {
        if let Response::Changed(done) = response { Some(done) } else { None }
    }
}

/// A question for the digests of another registry.
#[derive(Clone, Copy, Debug)]
pub struct AskDigests;

impl Question for AskDigests {
    type Answer = Digests;

    fn request(self) -> Request {
        Request::Digests
    }

    fn answer(response: Response) -> Option<Digests> {
        if let Response::Digests(digests) = response { Some(digests) } else { None }
    }
}
