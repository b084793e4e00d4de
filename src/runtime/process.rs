//! The processes of a simulation. Several instances share one thread there, so the tasks of each
//! are tied together: they stop and go on together, as under SIGSTOP and SIGCONT, and end together,
//! as when the power is cut. Outside of a simulation there is one process, and this adds nothing.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use tokio::task::JoinHandle;

thread_local! {
    /// The process whose task is being polled on this thread.
    static PRESENT: RefCell<Option<Process>> = const { RefCell::new(None) };
}

/// Spawns a task that belongs to the process of the one that spawns it.
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    match PRESENT.with_borrow(Clone::clone) {
        Some(process) => tokio::spawn(process.run(future)),
        None => tokio::spawn(future),
    }
}

/// Tasks that are stopped and ended together; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Process(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    is_paused: bool,
    is_over: bool,
    tasks: u64,
    /// Wakes each task, in the order in which they were begun.
    wakers: BTreeMap<u64, Waker>,
}

impl Process {
    /// Makes a future, and every task that it spawns, a part of this process.
    pub fn run<F: Future>(&self, future: F) -> Task<F> {
        let mut state = self.lock();
        state.tasks += 1;
        let number = state.tasks;
        drop(state);
        Task { process: self.clone(), number, future: Some(Box::pin(future)) }
    }

    /// Stops all tasks where they wait. Time passes meanwhile.
    pub fn pause(&self) {
        self.lock().is_paused = true;
    }

    /// Lets the tasks go on.
    pub fn resume(&self) {
        self.lock().is_paused = false;
        self.wake_all();
    }

    /// Returns whether the tasks are stopped.
    pub fn is_paused(&self) -> bool {
        self.lock().is_paused
    }

    /// Ends all tasks where they wait: none of them runs another line but its destructors.
    pub fn kill(&self) {
        self.lock().is_over = true;
        self.wake_all();
    }

    fn wake_all(&self) {
        let wakers: Vec<Waker> = self.lock().wakers.values().cloned().collect();
        wakers.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A future that is a part of a process. When the process is killed it stays pending for ever.
#[derive(Debug)]
pub struct Task<F> {
    process: Process,
    number: u64,
    future: Option<Pin<Box<F>>>,
}

impl<F: Future> Future for Task<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        {
            let mut state = self.process.lock();
            let known = state.wakers.get(&self.number);
            if known.is_none_or(|known| !known.will_wake(context.waker())) {
                state.wakers.insert(self.number, context.waker().clone());
            }
            if state.is_paused && !state.is_over {
                return Poll::Pending;
            }
            if state.is_over {
                drop(state);
                self.future = None;
                return Poll::Pending;
            }
        }
        let _present = Present::enter(&self.process);
        match &mut self.future {
            Some(future) => future.as_mut().poll(context),
            None => Poll::Pending,
        }
    }
}

impl<F> Drop for Task<F> {
    fn drop(&mut self) {
        self.process.lock().wakers.remove(&self.number);
    }
}

/// The time in which a task of a process is polled.
struct Present(Option<Process>);

impl Present {
    fn enter(process: &Process) -> Self {
        Self(PRESENT.replace(Some(process.clone())))
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        PRESENT.set(self.0.take());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{sleep, timeout};

    use super::*;

    const TICK: Duration = Duration::from_millis(10);

    #[tokio::test(start_paused = true)]
    async fn tasks_stop_and_go_on_together() {
        let process = Process::default();
        let begun = crate::clock::now();
        let outer = tokio::spawn(process.run(async {
            let inner = spawn(async { sleep(TICK).await });
            inner.await.unwrap();
        }));
        tokio::task::yield_now().await;
        process.pause();
        sleep(10 * TICK).await;
        assert!(!outer.is_finished());
        process.resume();
        outer.await.unwrap();
        assert_eq!(crate::clock::now() - begun, 10 * TICK);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_killed_runs_no_further() {
        let process = Process::default();
        let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
        let task = tokio::spawn(process.run(async move {
            sleep(TICK).await;
            let _ = sender.send(());
        }));
        tokio::task::yield_now().await;
        process.kill();
        receiver.await.unwrap_err();
        timeout(10 * TICK, task).await.unwrap_err();
    }
}
