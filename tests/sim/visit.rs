//! A client's connection to an instance: the stream under the real session code at one end, and the
//! client's end, whose news go to the world.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
    time::Duration,
};

use emnetchain::server::ClientStream;
use futures_util::future::BoxFuture;
use tokio::{io::AsyncReadExt as _, task::AbortHandle, time::Sleep};

use crate::{
    pipe::{End, Pipe},
    post::{Letter, Post},
};

/// The instance's end.
#[derive(Debug)]
pub(crate) struct Guest {
    incoming: Arc<Pipe>,
    outgoing: Arc<Pipe>,
    arrival: Mutex<Option<Pin<Box<Sleep>>>>,
}

impl ClientStream for Guest {
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.incoming.take(buffer.len())?;
        let bytes = bytes.ok_or(io::ErrorKind::WouldBlock)?;
        buffer[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.outgoing.write(bytes)?;
        if self.outgoing.is_unread() {
            // The far kernel has no process to give it to.
            self.outgoing.reset();
            self.incoming.reset();
        }
        written.ok_or(io::ErrorKind::WouldBlock.into())
    }

    fn poll_readable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut arrival = self.arrival.lock().unwrap();
        ready!(self.incoming.poll_arrived(context, &mut arrival));
        Poll::Ready(Ok(()))
    }

    fn poll_writable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.outgoing.poll_room(context));
        Poll::Ready(Ok(()))
    }

    fn broken(&self) -> BoxFuture<'_, ()> {
        Box::pin(poll_fn(|context| self.incoming.poll_broken(context)))
    }

    fn finish(&self) -> io::Result<()> {
        self.outgoing.push(Vec::new());
        Ok(())
    }

    fn is_acknowledged(&self) -> io::Result<bool> {
        self.outgoing.has_arrived()
    }
}

/// The process is gone, or has closed the connection: its kernel says so.
impl Drop for Guest {
    fn drop(&mut self) {
        self.outgoing.push(Vec::new());
        self.incoming.reset();
    }
}

/// The client's end.
#[derive(Debug)]
pub(crate) struct Visit {
    there: Arc<Pipe>,
    back: Arc<Pipe>,
    listening: AbortHandle,
}

impl Visit {
    /// A connection with this number. What the client hears is posted under it.
    pub(crate) fn begin(number: u64, delays: [Duration; 2], post: Post) -> (Self, Box<Guest>) {
        let [there, back] = delays.map(|delay| Pipe::new(delay, false));
        let (incoming, outgoing) = (Arc::clone(&there), Arc::clone(&back));
        let guest = Guest { incoming, outgoing, arrival: Mutex::default() };
        let end = End::new(&back, &there);
        let listening = tokio::spawn(listen(end, number, post)).abort_handle();
        (Self { there, back, listening }, Box::new(guest))
    }

    /// The client says something.
    pub(crate) fn say(&self, text: String) {
        self.there.push(text.into_bytes());
    }

    /// The client closes its sending side, and reads on.
    pub(crate) fn half_close(&self) {
        self.there.push(Vec::new());
    }

    /// The client's process is gone.
    pub(crate) fn die(&self) {
        self.back.leave_unread();
        self.half_close();
    }

    /// The connection breaks, as the instance sees it.
    pub(crate) fn breaks_there(&self) {
        self.there.reset();
        self.back.leave_unread();
    }

    /// The client closes the connection, or finds it broken.
    pub(crate) fn close(self) {
        self.listening.abort();
    }
}

async fn listen(mut end: End, number: u64, post: Post) {
    let mut buffer = [0; 512];
    while let Ok(count) = end.read(&mut buffer).await
        && count > 0
    {
        post.send(Letter::Heard(number, buffer[..count].to_vec()));
    }
    post.send(Letter::Over(number));
    // The end stays open: half a connection is one still.
    std::future::pending::<()>().await;
}
