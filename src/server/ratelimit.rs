//! Limits what a source may do in a second, in a fixed amount of memory.
//!
//! Sources share a table of slots by a keyed hash. Each slot is a virtual clock (GCRA): the time at
//! which a source that kept to its rate would be allowed its next turn. A flood from forged sources
//! spreads over all slots and stays below the rate of each, so it locks no source out; for
//! datagrams, the limit on the whole bounds what it gets.
//!
//! The operator's own networks have a higher rate, for one address of theirs often stands for many
//! clients: a proxy, a network of containers. They have one all the same: a service that answers
//! whatever it is sent, and one forged datagram, would keep us busy with each other for ever.

use std::{
    hash::{BuildHasher, Hash, RandomState},
    net::IpAddr,
    time::{Duration, Instant},
};

use super::ServerOptions;
use crate::{
    ids::{Source, is_local},
    limits::LOCAL_RATE_FACTOR,
};

/// Slots for sources: 512 KiB, and few enough collisions for 10,000 sources at a time.
const SLOTS: usize = 1 << 16;

/// Nanoseconds since the clocks began.
#[derive(Clone, Copy, Debug, Default)]
struct Slot(u64);

/// How often a turn may be taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    /// Between two turns at the full rate.
    interval_ns: u64,
    /// How far ahead of its rate a source may be.
    tolerance_ns: u64,
}

impl Rate {
    fn per_second(turns: u32, burst: u32) -> Self {
        Self::every(Duration::from_secs(1) / turns.max(1), burst)
    }

    /// One turn in each `interval`, and `burst` at once after a quiet time.
    pub(super) fn every(interval: Duration, burst: u32) -> Self {
        let interval_ns = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX / 2).max(1);
        Self { interval_ns, tolerance_ns: interval_ns * u64::from(burst.saturating_sub(1)) }
    }

    /// The same for the operator's own networks.
    fn of_local(self) -> Self {
        let factor = u64::from(LOCAL_RATE_FACTOR);
        let burst = self.tolerance_ns / self.interval_ns + 1;
        let interval_ns = (self.interval_ns / factor).max(1);
        Self { interval_ns, tolerance_ns: interval_ns * (burst * factor - 1) }
    }

    /// The rate of a proxy of the operators', which asks for many addresses.
    pub(super) fn of_proxy(self) -> Self {
        self.of_local().of_local()
    }

    /// The rate of an address, of which this is the one of public addresses.
    pub(super) fn of(self, address: IpAddr) -> Self {
        if is_local(address) { self.of_local() } else { self }
    }

    fn wait(self, slot: Slot, now_ns: u64) -> Duration {
        Duration::from_nanos(slot.0.saturating_sub(now_ns + self.tolerance_ns))
    }

    fn charge(self, slot: &mut Slot, now_ns: u64) {
        slot.0 = slot.0.max(now_ns) + self.interval_ns;
    }
}

/// The virtual clocks of all sources.
#[derive(Debug)]
pub(super) struct Clocks {
    began: Instant,
    keys: RandomState,
    slots: Box<[Slot]>,
}

impl Clocks {
    pub(super) fn new(began: Instant) -> Self {
        Self { began, keys: RandomState::new(), slots: vec![Slot::default(); SLOTS].into() }
    }

    fn now_ns(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.began);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX / 2)
    }

    fn slot(&mut self, of: &impl Hash) -> &mut Slot {
        &mut self.slots[self.keys.hash_one(of) as usize % SLOTS]
    }

    /// Returns how long a source must wait for its next turn.
    pub(super) fn wait(&mut self, of: &impl Hash, rate: Rate, now: Instant) -> Duration {
        let now_ns = self.now_ns(now);
        rate.wait(*self.slot(of), now_ns)
    }

    /// Counts a turn.
    pub(super) fn charge(&mut self, of: &impl Hash, rate: Rate, now: Instant) {
        let now_ns = self.now_ns(now);
        rate.charge(self.slot(of), now_ns);
    }

    /// Takes back a turn that was counted.
    pub(super) fn refund(&mut self, of: &impl Hash, rate: Rate) {
        let slot = self.slot(of);
        slot.0 = slot.0.saturating_sub(rate.interval_ns);
    }
}

/// Decides which datagrams may be answered.
#[derive(Debug)]
pub(super) struct RateLimit {
    per_source: Rate,
    in_all: Rate,
    clocks: Clocks,
    all: Slot,
}

impl RateLimit {
    pub(super) fn new(options: &ServerOptions, began: Instant) -> Self {
        let in_all = options.datagrams_in_all;
        let burst = options.datagrams_per_source_burst;
        Self {
            per_source: Rate::per_second(options.datagrams_per_source, burst),
            in_all: Rate::per_second(in_all, in_all / 10),
            clocks: Clocks::new(began),
            all: Slot::default(),
        }
    }

    /// Whether a datagram from `source` may be answered now; if so, it is charged for.
    pub(super) fn allow(&mut self, source: IpAddr, now: Instant) -> bool {
        let now_ns = self.clocks.now_ns(now);
        let (rate, source) = (self.per_source.of(source), Source::of(source));
        let waits = !self.in_all.wait(self.all, now_ns).is_zero()
            || !self.clocks.wait(&source, rate, now).is_zero();
        if !waits {
            self.clocks.charge(&source, rate, now);
            self.in_all.charge(&mut self.all, now_ns);
        }
        !waits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    fn limit(in_all: u32) -> (RateLimit, Instant) {
        let options = ServerOptions { datagrams_in_all: in_all, ..ServerOptions::default() };
        let now = clock::now();
        (RateLimit::new(&options, now), now)
    }

    fn allowed(limit: &mut RateLimit, source: &str, now: Instant, tries: usize) -> usize {
        let source = source.parse().unwrap();
        (0..tries).filter(|_| limit.allow(source, now)).count()
    }

    #[test]
    fn a_source_has_a_burst_and_then_its_rate() {
        let (mut limit, now) = limit(20_000);
        assert_eq!(allowed(&mut limit, "203.0.113.1", now, 100), 50);
        assert_eq!(allowed(&mut limit, "203.0.113.1", now + Duration::from_secs(1), 100), 10);
        assert_eq!(allowed(&mut limit, "203.0.113.1", now + Duration::from_secs(60), 100), 50);
    }

    #[test]
    fn one_ipv6_customer_is_one_source() {
        let (mut limit, now) = limit(20_000);
        assert_eq!(allowed(&mut limit, "2001:db8::1", now, 100), 50);
        assert_eq!(allowed(&mut limit, "2001:db8::2", now, 100), 0);
    }

    /// A service nearby that answers every datagram would keep us busy for ever otherwise.
    #[test]
    fn a_local_source_has_a_rate_too_and_a_higher_one() {
        for source in ["127.0.0.1", "10.0.0.1", "fd00::1"] {
            let (mut limit, now) = limit(20_000);
            assert_eq!(allowed(&mut limit, source, now, 1500), 1000);
            assert_eq!(allowed(&mut limit, source, now + Duration::from_secs(1), 1500), 200);
        }
    }

    #[test]
    fn all_sources_together_have_a_limit_too() {
        let (mut limit, now) = limit(100);
        let total: usize =
            (1..=100).map(|i| allowed(&mut limit, &format!("203.0.113.{i}"), now, 1)).sum();
        assert_eq!(total, 10);
        assert_eq!(allowed(&mut limit, "127.0.0.1", now, 1), 0);
    }
}
