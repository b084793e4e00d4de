//! One direction of a simulated connection: bytes that arrive after a delay, in order, or not at
//! all while their way is cut.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use crate::now;

/// Bytes under way before a writer has to wait.
const BYTES_MAX: usize = 256 * 1024;

/// One direction.
#[derive(Debug, Default)]
pub(crate) struct Pipe(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// What is under way and when it arrives; no bytes are the end of the stream.
    chunks: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    /// How long bytes take.
    delay: Duration,
    /// Nothing arrives, but it is not lost.
    cut: bool,
    /// The connection is broken.
    reset: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl State {
    fn wake(&mut self) {
        self.reader.take().into_iter().chain(self.writer.take()).for_each(Waker::wake);
    }

    fn push(&mut self, bytes: Vec<u8>) {
        let due = now() + self.delay;
        let due = self.chunks.back().map_or(due, |(last, _)| due.max(*last));
        self.bytes += bytes.len();
        self.chunks.push_back((due, bytes));
        self.reader.take().into_iter().for_each(Waker::wake);
    }
}

impl Pipe {
    /// A pipe whose bytes take so long.
    pub(crate) fn new(delay: Duration, cut: bool) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State { delay, cut, ..State::default() })))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// From now on bytes take so long.
    pub(crate) fn set_delay(&self, delay: Duration) {
        self.lock().delay = delay;
    }

    /// Holds everything back, or lets it go on.
    pub(crate) fn set_cut(&self, cut: bool) {
        let mut state = self.lock();
        state.cut = cut;
        state.wake();
    }

    /// Breaks the connection.
    pub(crate) fn reset(&self) {
        let mut state = self.lock();
        state.reset = true;
        state.wake();
    }
}

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct End {
    incoming: Arc<Pipe>,
    outgoing: Arc<Pipe>,
    arrival: Option<Pin<Box<Sleep>>>,
}

impl End {
    /// The two ends of a connection over two pipes.
    pub(crate) fn pair(there: &Arc<Pipe>, back: &Arc<Pipe>) -> (Self, Self) {
        let end = |incoming: &Arc<Pipe>, outgoing: &Arc<Pipe>| Self {
            incoming: Arc::clone(incoming),
            outgoing: Arc::clone(outgoing),
            arrival: None,
        };
        (end(back, there), end(there, back))
    }
}

/// The other end reads the end of the stream, and an error when it writes.
impl Drop for End {
    fn drop(&mut self) {
        self.outgoing.lock().push(Vec::new());
        self.incoming.reset();
    }
}

impl AsyncRead for End {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let pipe = Arc::clone(&self.incoming);
            let mut state = pipe.lock();
            if state.reset {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            state.reader = Some(context.waker().clone());
            let (false, Some(&(due, _))) = (state.cut, state.chunks.front()) else {
                return Poll::Pending;
            };
            if due > now() {
                drop(state);
                let arrival = self.arrival.insert(Box::pin(sleep_until(due)));
                if arrival.as_mut().poll(context).is_pending() {
                    return Poll::Pending;
                }
                continue;
            }
            let (_, mut bytes) = state.chunks.pop_front().expect("it was there");
            if bytes.is_empty() {
                state.chunks.push_front((due, bytes)); // the end stays the end
                return Poll::Ready(Ok(()));
            }
            let count = bytes.len().min(buffer.remaining());
            buffer.put_slice(&bytes[..count]);
            state.bytes -= count;
            if count < bytes.len() {
                state.chunks.push_front((due, bytes.split_off(count)));
            }
            state.writer.take().into_iter().for_each(Waker::wake);
            return Poll::Ready(Ok(()));
        }
    }
}

impl AsyncWrite for End {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.outgoing.lock();
        if state.reset {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = BYTES_MAX - state.bytes.min(BYTES_MAX);
        if room == 0 {
            state.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        let count = room.min(bytes.len());
        if count > 0 {
            state.push(bytes[..count].to_vec());
        }
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outgoing.lock().push(Vec::new());
        Poll::Ready(Ok(()))
    }
}
