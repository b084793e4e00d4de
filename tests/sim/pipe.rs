//! One direction of a simulated connection: bytes that arrive after a delay, in order, or not at
//! all while their way is cut. And the end of one that openraft's requests take.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
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
    /// No one will read any more, and the far kernel will say so when bytes arrive.
    unread: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// Wait for a reset.
    watchers: Vec<Waker>,
}

impl State {
    fn wake(&mut self) {
        let watchers = self.watchers.drain(..);
        watchers.chain(self.reader.take()).chain(self.writer.take()).for_each(Waker::wake);
    }
}

impl Pipe {
    /// A pipe whose bytes take this time.
    pub(crate) fn new(delay: Duration, cut: bool) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State { delay, cut, ..State::default() })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// From now on bytes take this time.
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

    /// Waits until the connection is broken.
    pub(crate) fn poll_broken(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if state.reset {
            return Poll::Ready(());
        }
        state.watchers.push(context.waker().clone());
        Poll::Pending
    }

    /// The reader is gone.
    pub(crate) fn leave_unread(&self) {
        self.lock().unread = true;
    }

    /// Whether the reader is gone.
    pub(crate) fn is_unread(&self) -> bool {
        self.lock().unread
    }

    /// Whether everything has arrived.
    ///
    /// # Errors
    /// If the connection is broken.
    pub(crate) fn has_arrived(&self) -> io::Result<bool> {
        let state = self.lock();
        if state.reset {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let last = state.chunks.iter().rfind(|(_, bytes)| !bytes.is_empty());
        Ok(!state.cut && last.is_none_or(|(due, _)| *due <= now()))
    }

    /// Puts bytes on their way; none are the end of the stream.
    pub(crate) fn push(&self, bytes: Vec<u8>) {
        let mut state = self.lock();
        let due = now() + state.delay;
        let due = state.chunks.back().map_or(due, |(last, _)| due.max(*last));
        state.bytes += bytes.len();
        state.chunks.push_back((due, bytes));
        state.reader.take().into_iter().for_each(Waker::wake);
    }

    /// Takes what has arrived; `None` if nothing has, no bytes at the end of the stream.
    ///
    /// # Errors
    /// If the connection is broken.
    pub(crate) fn take(&self, most: usize) -> io::Result<Option<Vec<u8>>> {
        let mut state = self.lock();
        if state.reset {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let (false, Some((due, _))) = (state.cut, state.chunks.front()) else { return Ok(None) };
        if *due > now() {
            return Ok(None);
        }
        let (due, mut bytes) = state.chunks.pop_front().expect("it was there");
        if bytes.is_empty() {
            state.chunks.push_front((due, Vec::new())); // the end stays the end
            return Ok(Some(bytes));
        }
        if bytes.len() > most {
            let rest = bytes.split_off(most);
            state.chunks.push_front((due, rest));
        }
        state.bytes -= bytes.len();
        state.writer.take().into_iter().for_each(Waker::wake);
        Ok(Some(bytes))
    }

    /// Waits until there is something to take. `arrival` is where the one reader keeps its timer.
    pub(crate) fn poll_arrived(
        &self,
        context: &mut Context<'_>,
        arrival: &mut Option<Pin<Box<Sleep>>>,
    ) -> Poll<()> {
        loop {
            let due = {
                let mut state = self.lock();
                if state.reset {
                    return Poll::Ready(());
                }
                state.reader = Some(context.waker().clone());
                match (state.cut, state.chunks.front()) {
                    (false, Some((due, _))) => *due,
                    (true, _) | (_, None) => return Poll::Pending,
                }
            };
            if due <= now() {
                return Poll::Ready(());
            }
            let arrival = arrival.insert(Box::pin(sleep_until(due)));
            if arrival.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// Writes as much as there is room for; `None` if there is none.
    ///
    /// # Errors
    /// If the connection is broken.
    pub(crate) fn write(&self, bytes: &[u8]) -> io::Result<Option<usize>> {
        let room = {
            let state = self.lock();
            if state.reset {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            BYTES_MAX - state.bytes.min(BYTES_MAX)
        };
        let count = room.min(bytes.len());
        if count > 0 {
            self.push(bytes[..count].to_vec());
        }
        Ok((room > 0).then_some(count))
    }

    /// Waits for room.
    pub(crate) fn poll_room(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if state.reset || state.bytes < BYTES_MAX {
            return Poll::Ready(());
        }
        state.writer = Some(context.waker().clone());
        Poll::Pending
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
    /// The end that reads from `incoming`.
    pub(crate) fn new(incoming: &Arc<Pipe>, outgoing: &Arc<Pipe>) -> Self {
        let (incoming, outgoing) = (Arc::clone(incoming), Arc::clone(outgoing));
        Self { incoming, outgoing, arrival: None }
    }
}

/// The other end reads the end of the stream, and an error when it writes.
impl Drop for End {
    fn drop(&mut self) {
        self.outgoing.push(Vec::new());
        self.incoming.reset();
    }
}

impl AsyncRead for End {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { incoming, arrival, .. } = &mut *self;
        loop {
            if let Some(bytes) = incoming.take(buffer.remaining())? {
                buffer.put_slice(&bytes);
                return Poll::Ready(Ok(()));
            }
            std::task::ready!(incoming.poll_arrived(context, arrival));
        }
    }
}

impl AsyncWrite for End {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            if let Some(count) = self.outgoing.write(bytes)? {
                return Poll::Ready(Ok(count));
            }
            std::task::ready!(self.outgoing.poll_room(context));
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outgoing.push(Vec::new());
        Poll::Ready(Ok(()))
    }
}
