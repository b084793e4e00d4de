//! One client's stream, as the dispatcher and the session's task share it. The dispatcher writes
//! answers on the spot, so that the order of effects is the order of bytes, even across
//! connections; what the socket does not take at once, and what is to happen next, it leaves to
//! the task.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io,
    sync::{Mutex, MutexGuard},
};

use tokio::sync::Notify;

use super::stream::ClientStream;
use crate::{limits::UNSENT_BYTES_MAX, registry::Then};

/// The next order for a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// A message was written, or waits in the line's queue: send the rest, then go on like this.
    Told(Then),
    /// The request changed nothing; wait for another one.
    Refused,
    /// Close without a further byte: nothing more will come.
    Release,
    /// The client cannot be reached: a write failed, or it leaves too much unread.
    Broken,
    /// Close, though the registry did not say so: the instance stops.
    Stop,
    /// Close at once: its place is needed. If it has asked, the registry hears that it is gone.
    Yield,
}

/// A stream and what its task must know.
#[derive(Debug)]
pub(super) struct Line {
    stream: Box<dyn ClientStream>,
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    unsent: Vec<u8>,
    /// Whether the last answer was that there is no such id.
    has_missed: bool,
    orders: VecDeque<Order>,
}

/// The client reads too slowly: [`UNSENT_BYTES_MAX`] is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Overflow;

impl Line {
    pub(super) fn new(stream: Box<dyn ClientStream>) -> Self {
        Self { stream, state: Mutex::default(), wake: Notify::new() }
    }

    /// Returns the stream, for reading and for asking about it.
    pub(super) fn stream(&self) -> &dyn ClientStream {
        &*self.stream
    }

    /// Writes a message now, or as much of it as the socket takes, and says what comes then.
    pub(super) fn tell(&self, message: &[u8], then: Then) -> Result<(), Overflow> {
        let mut state = self.state();
        let outcome = state.write(&*self.stream, message);
        state.orders.push_back(match outcome {
            Outcome::Taken => Order::Told(then),
            Outcome::Failed | Outcome::Overflowed => Order::Broken,
        });
        drop(state);
        self.wake.notify_one();
        match outcome {
            Outcome::Taken | Outcome::Failed => Ok(()),
            Outcome::Overflowed => Err(Overflow),
        }
    }

    /// Notes that the answer which comes next is that there is no such id.
    pub(super) fn note_missed(&self) {
        self.state().has_missed = true;
    }

    /// Tells whether that was noted, and forgets it.
    pub(super) fn take_missed(&self) -> bool {
        std::mem::take(&mut self.state().has_missed)
    }

    /// Hands the session's task an order.
    pub(super) fn order(&self, order: Order) {
        self.state().orders.push_back(order);
        self.wake.notify_one();
    }

    /// Returns the next order; only the session's task waits here. Nothing is lost if the wait is
    /// dropped.
    pub(super) async fn next_order(&self) -> Order {
        loop {
            if let Some(order) = self.take_order() {
                return order;
            }
            self.wake.notified().await;
        }
    }

    /// Returns whether the session was told to stop, even if it has other orders to see to first.
    pub(super) fn is_stopping(&self) -> bool {
        let ends = |order: &Order| matches!(order, Order::Stop | Order::Yield);
        self.state().orders.iter().any(ends)
    }

    /// Waits until the session's place is needed, past all other orders; only the
    /// session's task waits here.
    pub(super) async fn needed(&self) {
        while !self.state().orders.contains(&Order::Yield) {
            self.wake.notified().await;
        }
    }

    /// Waits until the socket has taken everything.
    pub(super) async fn flush(&self) -> io::Result<()> {
        while !self.state().flush(&*self.stream)? {
            poll_fn(|context| self.stream.poll_writable(context)).await?;
        }
        Ok(())
    }

    fn take_order(&self) -> Option<Order> {
        let mut state = self.state();
        let order = state.orders.pop_front();
        if state.orders.is_empty() {
            state.orders = VecDeque::new(); // a waiting session keeps no buffer
        }
        order
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no task panics while holding it")
    }
}

/// The outcome of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Taken,
    Failed,
    Overflowed,
}

impl State {
    fn write(&mut self, stream: &dyn ClientStream, message: &[u8]) -> Outcome {
        if self.unsent.len() + message.len() > UNSENT_BYTES_MAX {
            return Outcome::Overflowed;
        }
        self.unsent.extend_from_slice(message);
        match self.flush(stream) {
            Ok(_) => Outcome::Taken,
            Err(_) => Outcome::Failed,
        }
    }

    /// Sends what the socket takes; true if nothing is left.
    fn flush(&mut self, stream: &dyn ClientStream) -> io::Result<bool> {
        while !self.unsent.is_empty() {
            match stream.try_write(&self.unsent) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        self.unsent = Vec::new();
        Ok(true)
    }
}
