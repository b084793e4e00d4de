//! tokio, as openraft runs on it, with chance in our hands: where a simulation says so, what
//! happens on its thread follows from a seed. Three things would stand in the way. openraft draws
//! its election timeouts, so they come from the seed; work that blocks would end at a time of its
//! own choosing on another thread, so it is done on the spot; and tokio's watch channel wakes by
//! chance, so openraft gets one that does not ([`watch`]). There, the tasks of one instance are
//! a [`Process`], which can be stopped and killed.
//!
//! Everywhere, requests for votes get more time than openraft gives them ([`VOTE_MAX`]).

mod process;
pub mod watch;

use std::{cell::Cell, future::Future, io, time::Duration};

use openraft::{OptionalSend, async_runtime::AsyncRuntime};
use openraft_rt_tokio::TokioRuntime;
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};

pub use process::{Process, Task, spawn};

/// The time limit of a request for a vote as openraft knows it. It makes one setting of this and of
/// the least election timeout, which bounds the lease from below, so a longer one would delay every
/// failover. No other limit in openraft is as long.
pub const VOTE_TTL: Duration = Duration::from_millis(601);

/// The real time limit of a request for a vote. The voter syncs its disk before it answers, and
/// a late answer does no harm: the candidate drops it if it stands in another term by then.
pub const VOTE_MAX: Duration = Duration::from_secs(10);

thread_local! {
    /// The next seed, on the thread of a simulation.
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// From here on, chance on this thread follows from a seed. For a runtime of one thread.
pub fn follow_seed(seed: u64) {
    SEED.set(Some(seed));
}

/// Returns whether chance on this thread follows a seed: then this is the one thread of a
/// simulation, and nothing may block it or run beside it.
pub fn follows_seed() -> bool {
    SEED.get().is_some()
}

/// Draws the next seed, if chance on this thread follows one.
fn next_seed() -> Option<u64> {
    let seed = SEED.get()?;
    SEED.set(Some(seed.wrapping_add(1)));
    Some(seed)
}

/// Draws a random number: the system's, or one that follows from the seed.
///
/// # Errors
/// If the system has no random numbers to give.
pub fn random() -> io::Result<u128> {
    let mut bytes = [0; 16];
    match next_seed() {
        Some(seed) => SmallRng::seed_from_u64(seed).fill_bytes(&mut bytes),
        None => getrandom::fill(&mut bytes)?,
    }
    Ok(u128::from_be_bytes(bytes))
}

/// Runs blocking work on a thread for such work.
///
/// # Errors
/// If it panicked, or the runtime is being shut down.
pub async fn spawn_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    if follows_seed() {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

/// [`TokioRuntime`], with chance as told above.
#[derive(Debug)]
pub struct Runtime(TokioRuntime);

impl AsyncRuntime for Runtime {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = <TokioRuntime as AsyncRuntime>::Instant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> =
        <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = SmallRng;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = watch::OrderedWatch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        // The network sets limits of its own, but openraft gives up on a vote here.
        let duration = if duration == VOTE_TTL { VOTE_MAX } else { duration };
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(error)
    }

    fn thread_rng() -> SmallRng {
        match next_seed() {
            Some(seed) => SmallRng::seed_from_u64(seed),
            None => SmallRng::from_rng(&mut rand::rng()),
        }
    }

    fn new(threads: usize) -> Self {
        Self(TokioRuntime::new(threads))
    }

    fn block_on<F: Future<Output = T>, T>(&mut self, future: F) -> T {
        self.0.block_on(future)
    }

    fn spawn_blocking<F, T>(work: F) -> impl Future<Output = io::Result<T>> + Send
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        spawn_blocking(work)
    }
}
