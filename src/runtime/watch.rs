//! tokio's watch channel, which wakes those that wait for a change by chance of its own, with a
//! bell that wakes them in the order in which they began to wait.

use std::{pin::pin, sync::Arc};

use openraft::{
    OptionalSend, OptionalSync,
    async_runtime::{
        Watch, WatchReceiver, WatchSender,
        watch::{RecvError, SendError},
    },
};
use tokio::sync::{Notify, watch};

/// The channel.
#[derive(Debug)]
pub struct OrderedWatch;

/// Its sending side.
#[derive(Debug)]
pub struct Sender<T> {
    value: watch::Sender<T>,
    /// Rung last, so that those that wait find the channel closed.
    bell: Bell,
}

/// Its receiving side.
#[derive(Debug)]
pub struct Receiver<T> {
    value: watch::Receiver<T>,
    bell: Arc<Notify>,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), bell: self.bell.clone() }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), bell: Arc::clone(&self.bell) }
    }
}

/// Rung for every change, and when a sender is gone.
#[derive(Clone, Debug)]
struct Bell(Arc<Notify>);

impl Drop for Bell {
    fn drop(&mut self) {
        self.0.notify_waiters();
    }
}

impl Watch for OrderedWatch {
    type Sender<T: OptionalSend + OptionalSync> = Sender<T>;
    type Receiver<T: OptionalSend + OptionalSync> = Receiver<T>;
    type Ref<'a, T: OptionalSend + 'a> = watch::Ref<'a, T>;

    fn channel<T: OptionalSend + OptionalSync>(first: T) -> (Sender<T>, Receiver<T>) {
        let (sender, receiver) = watch::channel(first);
        let bell = Arc::new(Notify::new());
        let receiver = Receiver { value: receiver, bell: Arc::clone(&bell) };
        (Sender { value: sender, bell: Bell(bell) }, receiver)
    }
}

impl<T: OptionalSend + OptionalSync> WatchSender<OrderedWatch, T> for Sender<T> {
    fn send(&self, value: T) -> Result<(), SendError<T>> {
        self.value.send(value).map_err(|error| SendError(error.0))?;
        self.bell.0.notify_waiters();
        Ok(())
    }

    fn send_if_modified<F: FnOnce(&mut T) -> bool>(&self, modify: F) -> bool {
        let modified = self.value.send_if_modified(modify);
        if modified {
            self.bell.0.notify_waiters();
        }
        modified
    }

    fn borrow_watched(&self) -> watch::Ref<'_, T> {
        self.value.borrow()
    }

    fn subscribe(&self) -> Receiver<T> {
        Receiver { value: self.value.subscribe(), bell: Arc::clone(&self.bell.0) }
    }
}

impl<T: OptionalSend + OptionalSync> WatchReceiver<OrderedWatch, T> for Receiver<T> {
    async fn changed(&mut self) -> Result<(), RecvError> {
        loop {
            // It hears the bell from here on, so no change goes unnoticed behind the look.
            let mut rung = pin!(self.bell.notified());
            rung.as_mut().enable();
            if self.value.borrow().has_changed() {
                self.value.mark_unchanged();
                return Ok(());
            }
            if self.value.has_changed().is_err() {
                return Err(RecvError(()));
            }
            rung.await;
        }
    }

    fn borrow_watched(&self) -> watch::Ref<'_, T> {
        self.value.borrow()
    }

    fn borrow_and_update(&mut self) -> watch::Ref<'_, T> {
        self.value.borrow_and_update()
    }
}

#[cfg(test)]
mod tests {
    use std::{future::Future, time::Duration};

    use super::*;

    /// Waits, but not for ever.
    async fn soon<T>(what: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(30), what).await.expect("it came in time")
    }

    #[tokio::test]
    async fn changes_are_seen_and_the_last_one_even_when_the_sender_is_gone() {
        let (sender, mut first) = OrderedWatch::channel(1);
        let mut second = sender.subscribe();
        sender.send(2).unwrap();
        soon(first.changed()).await.unwrap();
        assert_eq!(*first.borrow_watched(), 2);
        assert_eq!(*second.borrow_and_update(), 2);
        let waiting = tokio::spawn(async move { second.changed().await.is_err() });
        assert!(!sender.send_if_modified(|_| false));
        sender.send(3).unwrap();
        drop(sender);
        soon(first.changed()).await.unwrap();
        assert!(soon(first.changed()).await.is_err());
        assert!(!soon(waiting).await.unwrap(), "it saw the last change");
    }

    #[tokio::test]
    async fn a_waiting_receiver_is_told_that_the_sender_is_gone() {
        let (sender, mut receiver) = OrderedWatch::channel(());
        let waiting = tokio::spawn(async move { receiver.changed().await.is_err() });
        tokio::task::yield_now().await;
        drop(sender);
        assert!(soon(waiting).await.unwrap());
    }
}
