//! The hearing of a session: bytes are read and decoded until a request is complete, within a
//! deadline.

use std::{future::poll_fn, io, time::Duration};

use tokio::{select, time::timeout};

use super::{
    Protocol, Rejection, Request, Sender, chain, emnet, line::Line, repair, session::Session,
    stream::ClientStream,
};
use crate::{
    limits::JUNK_BYTES_MAX,
    wire::{Decoder, Object, WireError},
};

impl Session {
    /// Reads until a request is complete. `None` if none will come: the client is gone, its
    /// deadline is over, or its place is needed.
    pub(super) async fn hear(&self, ear: &mut Ear, deadline: Duration) -> Option<Request> {
        let listen = async {
            let mut junk_bytes = 0;
            loop {
                if let Some(request) = self.next_request(ear) {
                    return Some(request);
                }
                if junk_bytes > JUNK_BYTES_MAX {
                    self.reject(Rejection::Flood);
                    return None;
                }
                readable(self.line.stream()).await.ok()?;
                match receive(&self.line, |bytes| ear.unread.extend_from_slice(bytes)) {
                    Ok(Received::Bytes(count)) => junk_bytes += count,
                    Ok(Received::Nothing) => {}
                    Ok(Received::End) | Err(_) => return None,
                }
            }
        };
        select! {
            biased;
            _ = self.line.next_order() => None,
            request = timeout(deadline, listen) => request.unwrap_or_else(|_| {
                self.reject(Rejection::Overdue);
                None
            }),
        }
    }

    /// Returns the next request among the bytes received so far; faults before it are counted, and
    /// met with silence.
    fn next_request(&self, ear: &mut Ear) -> Option<Request> {
        let sender = Sender { session: self.session(), source: self.peer.ip() };
        let policy = self.edge.options.borrow().address_policy;
        while let Some(decoded) = ear.next_object() {
            let request = decoded.map_err(Rejection::Wire).and_then(|object| match self.protocol {
                Protocol::Chain => chain::command(&object, sender, policy).map(Request::Command),
                Protocol::Repair => repair::command(&object, sender, policy).map(Request::Command),
                Protocol::Emnet => Ok(emnet::request(&object, sender)),
            });
            match request {
                Ok(request) => return Some(request),
                Err(rejection) => self.reject(rejection),
            }
        }
        None
    }
}

/// The state of a session that hears: the message so far, and bytes behind it.
pub(super) struct Ear {
    decoder: Decoder,
    unread: Vec<u8>,
}

impl Ear {
    pub(super) fn new(protocol: Protocol) -> Self {
        Self { decoder: Decoder::new(protocol.dialect()), unread: Vec::new() }
    }

    fn next_object(&mut self) -> Option<Result<Object, WireError>> {
        let mut rest = self.unread.as_slice();
        let decoded = self.decoder.next(&mut rest);
        let read = self.unread.len() - rest.len();
        self.unread.drain(..read);
        if self.unread.is_empty() {
            self.unread = Vec::new(); // a silent client holds no buffer
        }
        decoded
    }
}

/// The result of one read.
pub(super) enum Received {
    Bytes(usize),
    /// Nothing yet.
    Nothing,
    /// The client closed its sending side.
    End,
}

/// Waits for something to read.
pub(super) async fn readable(stream: &dyn ClientStream) -> io::Result<()> {
    poll_fn(|context| stream.poll_readable(context)).await
}

/// Reads once, and shows the bytes to `take`. The buffer lives on the stack and only here, so a
/// waiting session costs none.
pub(super) fn receive(line: &Line, take: impl FnOnce(&[u8])) -> io::Result<Received> {
    let mut buffer = [0; 4096];
    match line.stream().try_read(&mut buffer) {
        Ok(0) => Ok(Received::End),
        Ok(count) => {
            take(&buffer[..count]);
            Ok(Received::Bytes(count))
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Received::Nothing),
        Err(error) => Err(error),
    }
}
