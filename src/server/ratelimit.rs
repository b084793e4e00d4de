//! Limits the datagrams answered per source and in all, in a fixed amount of memory.
//!
//! Sources share a table of slots by a keyed hash. Each slot is a virtual clock (GCRA): the time at
//! which a source that kept to its rate would be allowed its next datagram. A flood from forged
//! sources spreads over all slots and stays below the rate of each, so it locks no source out; the
//! limit on the whole bounds what it gets.

use std::{
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    time::Instant,
};

use super::ServerOptions;
use crate::ids::{Source, is_local};

/// Slots for sources: 512 KiB, and few enough collisions for 10,000 sources at a time.
const SLOTS: usize = 1 << 16;

/// Decides which datagrams may be answered.
#[derive(Debug)]
pub(super) struct RateLimit {
    began: Instant,
    per_source: Rate,
    in_all: Rate,
    keys: RandomState,
    slots: Box<[Slot]>,
    all: Slot,
}

/// Nanoseconds since the limiter began.
#[derive(Clone, Copy, Debug, Default)]
struct Slot(u64);

#[derive(Clone, Copy, Debug)]
struct Rate {
    /// Between two datagrams at the full rate.
    interval_ns: u64,
    /// How far ahead of its rate a source may be.
    tolerance_ns: u64,
}

impl Rate {
    fn new(per_second: u32, burst: u32) -> Self {
        let interval_ns = 1_000_000_000 / u64::from(per_second.max(1));
        Self { interval_ns, tolerance_ns: interval_ns * u64::from(burst.saturating_sub(1)) }
    }

    fn allows(self, slot: Slot, now_ns: u64) -> bool {
        slot.0 <= now_ns + self.tolerance_ns
    }

    fn charge(self, slot: &mut Slot, now_ns: u64) {
        slot.0 = slot.0.max(now_ns) + self.interval_ns;
    }
}

impl RateLimit {
    pub(super) fn new(options: &ServerOptions, began: Instant) -> Self {
        let in_all = options.datagrams_in_all;
        Self {
            began,
            per_source: Rate::new(options.datagrams_per_source, options.datagrams_per_source_burst),
            in_all: Rate::new(in_all, in_all / 10),
            keys: RandomState::new(),
            slots: vec![Slot::default(); SLOTS].into(),
            all: Slot::default(),
        }
    }

    /// Whether a datagram from `source` may be answered now; if so, it is charged for.
    pub(super) fn allow(&mut self, source: IpAddr, now: Instant) -> bool {
        let now_ns = u64::try_from(now.saturating_duration_since(self.began).as_nanos())
            .unwrap_or(u64::MAX / 2);
        if !self.in_all.allows(self.all, now_ns) {
            return false;
        }
        if !is_local(source) {
            let hash = self.keys.hash_one(Source::of(source));
            let slot = &mut self.slots[hash as usize % SLOTS];
            if !self.per_source.allows(*slot, now_ns) {
                return false;
            }
            self.per_source.charge(slot, now_ns);
        }
        self.in_all.charge(&mut self.all, now_ns);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
    fn one_ipv6_customer_is_one_source_and_loopback_is_none() {
        let (mut limit, now) = limit(20_000);
        assert_eq!(allowed(&mut limit, "2001:db8::1", now, 100), 50);
        assert_eq!(allowed(&mut limit, "2001:db8::2", now, 100), 0);
        assert_eq!(allowed(&mut limit, "127.0.0.1", now, 100), 100);
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
