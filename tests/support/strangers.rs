//! Strangers that find each other through two instances, pair after pair: whether these serve, and
//! how long a client waits at most, while something happens to a third.

#![allow(dead_code, reason = "each test program uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, and says why")]

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use emnetchain::clock;

use super::support::{Client, Service, eventually, reconnect, repaired};

/// When pairs were told each other.
#[derive(Debug, Default)]
pub(crate) struct Told {
    times: Mutex<Vec<Instant>>,
    over: AtomicBool,
}

/// Lets no pair come any more.
struct Over<'a>(&'a Told);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::SeqCst);
    }
}

impl Told {
    /// Waits until 20 more pairs are told each other.
    pub(crate) fn more(&self) {
        let goal = self.count() + 20;
        eventually("strangers are told", || (self.count() >= goal).then_some(()));
    }

    fn count(&self) -> usize {
        self.times.lock().unwrap().len()
    }

    fn pair_strangers(&self, at: [&Service; 2]) {
        for number in 0.. {
            if self.over.load(Ordering::SeqCst) {
                return;
            }
            let sockets = [0, 1].map(|part| format!("127.0.0.8:{}", 1000 + 2 * number + part));
            let ask = |part: usize| {
                Client::say(at[part].repair(), reconnect(&number.to_string(), &sockets[part]))
            };
            let (mut one, mut other) = (ask(0), ask(1));
            assert_eq!(one.rest(), repaired(&sockets[1]));
            assert_eq!(other.rest(), repaired(&sockets[0]));
            self.times.lock().unwrap().push(clock::now());
        }
    }
}

/// Has strangers ask at two instances before, during and after something; returns the longest time
/// in which no pair was told.
pub(crate) fn longest_wait_while(at: [&Service; 2], during: impl FnOnce(&Told)) -> Duration {
    let told = Told::default();
    thread::scope(|scope| {
        let _over = Over(&told);
        scope.spawn(|| told.pair_strangers(at));
        told.more();
        during(&told);
        told.more();
    });
    let times = told.times.into_inner().unwrap();
    times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap()
}
