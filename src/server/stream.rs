//! A client's connection, as a session uses it. The service has TCP; a simulation brings its own.

use std::{
    fmt, io,
    net::Shutdown,
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use socket2::SockRef;
use tokio::{io::Interest, net::TcpStream};

use crate::platform::sockets::unacknowledged;

/// Bytes both ways, in order, read and written without waiting.
pub trait ClientStream: fmt::Debug + Send + Sync + 'static {
    /// Reads what is there; 0 bytes are the client's FIN.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if nothing is there; else the connection is broken.
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes as much as is taken at once.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if nothing is taken; else the connection is broken.
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize>;

    /// Waits for something to read, in the one task that reads.
    fn poll_readable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Waits until something would be taken, in the one task that writes.
    fn poll_writable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Waits until the connection is broken.
    fn broken(&self) -> BoxFuture<'_, ()>;

    /// Sends the FIN.
    ///
    /// # Errors
    /// If the connection is broken.
    fn finish(&self) -> io::Result<()>;

    /// Whether the far end's kernel has taken everything that was written, as far as the system
    /// tells.
    ///
    /// # Errors
    /// If the far end reset the connection.
    fn is_acknowledged(&self) -> io::Result<bool>;
}

impl ClientStream for TcpStream {
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.try_read(buffer)
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.try_write(bytes)
    }

    /// Unlike [`TcpStream::readable`] this costs the waiting task no room, because a stream keeps a
    /// place for the one task that reads it.
    fn poll_readable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_read_ready(context)
    }

    fn poll_writable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_write_ready(context)
    }

    fn broken(&self) -> BoxFuture<'_, ()> {
        Box::pin(async { drop(self.ready(Interest::ERROR).await) })
    }

    fn finish(&self) -> io::Result<()> {
        SockRef::from(self).shutdown(Shutdown::Write)
    }

    /// A reset empties the queue as well, so the error is looked at last.
    fn is_acknowledged(&self) -> io::Result<bool> {
        let bytes = unacknowledged(&SockRef::from(self))?;
        match self.take_error()? {
            Some(error) => Err(error),
            None => Ok(bytes.is_none_or(|bytes| bytes == 0)),
        }
    }
}
