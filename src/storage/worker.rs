//! The drivers of the two writers, of the log and of the image. In the service each is a thread,
//! which may block. Where chance follows a seed ([`crate::runtime`]) each is a task, because all of
//! a simulation runs on one thread, in the order of the seed.
//!
//! Both take jobs from the same queue and carry them out by the same function. A task waits first
//! for as long as the simulated disk wants to be waited for.

use std::{
    io,
    ops::ControlFlow,
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, SendError, Sender, TryRecvError},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use futures_util::future::BoxFuture;
use tokio::{sync::Notify, time::timeout};

use super::{fault::DiskFault, pulse::Pulse};
use crate::{clock, runtime};

/// Carries out jobs. It is dropped when the last sender of its queue is gone.
pub(super) trait Worker: Send + 'static {
    /// The kind of its jobs.
    type Job: Send + 'static;

    /// The name of its thread.
    const NAME: &str;

    /// Carries out a job, and as many of those behind it as are to share its sync. A break ends the
    /// worker.
    fn work(&mut self, job: Self::Job, behind: &Receiver<Self::Job>) -> ControlFlow<()>;

    /// Returns when [`Self::idle`] is to be called though no job comes.
    fn due(&self) -> Option<Instant> {
        None
    }

    /// Does what is due, or what is left to do when no job can come any more. A break ends the
    /// worker.
    fn idle(&mut self) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// Returns where it marks what it is doing. On a thread it does so itself.
    fn pulse(&self) -> &Pulse;

    /// Returns the pause that a simulated disk wants before anything is written.
    fn pause(&self) -> Option<BoxFuture<'static, ()>>;
}

/// The sending side of a worker's queue. Its drop ends the worker, once all that was sent is done.
#[derive(Debug)]
pub(super) struct Queue<J> {
    // The order counts: a task that hears the bell finds the sender gone.
    sender: Sender<J>,
    bell: Option<Bell>,
}

impl<J> Queue<J> {
    /// Queues a job.
    ///
    /// # Errors
    /// If the worker has ended.
    pub(super) fn send(&self, job: J) -> Result<(), SendError<J>> {
        self.sender.send(job)?;
        if let Some(Bell(bell)) = &self.bell {
            bell.notify_one();
        }
        Ok(())
    }
}

/// Wakes a task, because a blocking queue cannot; rung for the last time when it is dropped.
#[derive(Debug)]
struct Bell(Arc<Notify>);

impl Drop for Bell {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

/// A worker's thread; nothing where it is a task.
pub(super) type Running = Option<JoinHandle<()>>;

/// Starts a worker.
///
/// # Errors
/// If the system has no thread to give; `fault` says of it what was to be started.
pub(super) fn start<W: Worker>(
    worker: W,
    fault: impl FnOnce(io::Error) -> DiskFault,
) -> Result<(Queue<W::Job>, Running), DiskFault> {
    let (sender, jobs) = mpsc::channel();
    if runtime::follows_seed() {
        let bell = Arc::new(Notify::new());
        runtime::spawn(run_as_task(worker, jobs, Arc::clone(&bell)));
        return Ok((Queue { sender, bell: Some(Bell(bell)) }, None));
    }
    let thread = thread::Builder::new().name(W::NAME.to_owned());
    let thread = thread.spawn(move || run_on_thread(worker, &jobs)).map_err(fault)?;
    Ok((Queue { sender, bell: None }, Some(thread)))
}

fn run_on_thread<W: Worker>(mut worker: W, jobs: &Receiver<W::Job>) {
    loop {
        let next = match worker.due() {
            None => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(due) => jobs.recv_timeout(due.saturating_duration_since(clock::now())),
        };
        let is_over = matches!(next, Err(RecvTimeoutError::Disconnected));
        let flow = match next {
            Ok(job) => worker.work(job, jobs),
            Err(_) => worker.idle(),
        };
        if flow.is_break() || is_over {
            return;
        }
    }
}

async fn run_as_task<W: Worker>(mut worker: W, jobs: Receiver<W::Job>, bell: Arc<Notify>) {
    loop {
        let next = match jobs.try_recv() {
            Err(TryRecvError::Empty) => match worker.due() {
                None => {
                    bell.notified().await;
                    continue;
                }
                Some(due) => {
                    let left = due.saturating_duration_since(clock::now());
                    if timeout(left, bell.notified()).await.is_ok() {
                        continue;
                    }
                    Err(TryRecvError::Empty)
                }
            },
            next => next,
        };
        if let Some(pause) = worker.pause() {
            let beat = worker.pulse().begin();
            pause.await;
            worker.pulse().took(beat.elapsed());
        }
        let is_over = matches!(next, Err(TryRecvError::Disconnected));
        let flow = match next {
            Ok(job) => worker.work(job, &jobs),
            Err(_) => worker.idle(),
        };
        if flow.is_break() || is_over {
            return;
        }
    }
}
