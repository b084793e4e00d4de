//! Hostile requests, through hyper and the real routes.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use hyper::service::{Service as _, service_fn};
use tokio::io::AsyncWrite;

use super::*;
use crate::fuzz::{Arriving, Target};

const SECRET: &[u8] = b"secret";

fn has(bytes: &[u8], word: &[u8]) -> bool {
    bytes.windows(word.len()).any(|window| window == word)
}

/// Every status that a handler or hyper may answer with; none of them is a fault of the server.
const CODES: [&str; 16] = [
    "200", "303", "400", "403", "404", "405", "408", "409", "411", "413", "414", "415", "422",
    "429", "431", "503",
];

/// The beginning of what is answered; a backup can be long.
struct Answer(Vec<u8>);

impl AsyncWrite for Answer {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let room = (128 << 10_usize) - self.0.len();
        self.0.extend(&bytes[..bytes.len().min(room)]);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// No request does anything without the token, or is told an id that waits.
#[test]
fn http() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let fake = Arc::new(Fake::new());
    let (sources, _readiness, _secret) = sources(Metrics::new(), Arc::clone(&fake) as _);
    let router = router(sources, gate::Open::default());
    let (life, routes) = (Life::new(Duration::from_secs(3600)), TowerToHyperService::new(router));
    let target = Target::new("http", 512 * 1024).inputs_below(2048);
    target.run(2000, |input, chance| {
        // Enough callers that none of them uses up its guesses of the token.
        let host = u8::try_from(chance.between(1, 254)).unwrap();
        let caller = chance.pick(&[[127, 0, 0, host], [10, 0, host, 1], [203, 0, 113, host]]);
        let service = service_fn(|mut request: hyper::Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(gate::Caller(caller.into()));
            request.extensions_mut().insert(life.clone());
            routes.call(request)
        });
        let mut answer = Answer(Vec::new());
        let stream = tokio::io::join(Arriving::new(input, chance), &mut answer);
        let connection = http1::Builder::new()
            .half_close(true) // all bytes are there, and the end behind them
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service);
        drop(runtime.block_on(connection));
        let Answer(answer) = answer;
        let before = fake.changes();
        let knows = has(input, SECRET);
        assert!(knows || before == 0, "a change without the token");
        let shown = String::from_utf8_lossy(&answer);
        let told = has(&answer, b"\\u003cb\\u003e") || has(&answer, b"\"<b>\"");
        assert!(knows || !told, "an id that waits: {shown}");
        if answer.is_empty() {
            return false;
        }
        let code = shown.get(9..12).unwrap_or_default();
        assert!(shown.starts_with("HTTP/1.") && CODES.contains(&code), "{shown}");
        code == "200"
    });
}
