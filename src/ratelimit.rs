//! Limits what a source may do in a second, in a fixed amount of memory.
//!
//! Each holder that was charged has a virtual clock (GCRA): the time at which one that kept to its
//! rate would be allowed its next turn. An IPv6 source has its own and that of its site, which runs
//! sixteen times as fast: both must allow a turn, so a site with its 65,536 sources gets sixteen
//! sources' worth.
//!
//! The clocks are in a table of sets, by a keyed hash. Where a set is full, the one that lags most
//! gives its slot to a newcomer, whose clock begins at once: no holder waits for another's turns.
//! Little is lost with what is forgotten so: mostly a clock that had run out. In a flood from
//! forged sources, which have one turn each, the clock of a source that has used its turns up is
//! ahead of theirs and stays. For datagrams, the limit on the whole bounds what such a flood gets.
//!
//! The operator's own networks have a higher rate, because one address of theirs often stands for
//! many clients: a proxy, a network of containers. They have one all the same: a service that
//! answers every datagram, and one forged datagram, would keep us busy with each other for ever.

use std::{
    hash::{BuildHasher, Hash, RandomState},
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::{
    ids::{Holder, Source},
    limits::{LOCAL_RATE_FACTOR, NETWORK_SOURCES},
};

/// Sets of slots, and slots in each: 1 MiB for 65,536 holders that are ahead at one time.
const SETS: usize = 1 << 13;
const SLOTS: usize = 8;

/// A time in nanoseconds since the clocks began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Clock(u64);

/// The clock of a holder.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// A hash of what it is of; two are equal about never.
    key: u64,
    clock: Clock,
}

/// A rate of turns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    /// Between two turns at the full rate.
    interval_ns: u64,
    /// The lead that a holder may have on its rate.
    tolerance_ns: u64,
}

impl Rate {
    /// This number of turns a second, and `burst` at once after a quiet time.
    pub(crate) fn per_second(turns: u32, burst: u32) -> Self {
        Self::every(Duration::from_secs(1) / turns.max(1), burst)
    }

    /// One turn in each `interval`, and `burst` at once after a quiet time.
    pub(crate) fn every(interval: Duration, burst: u32) -> Self {
        let interval_ns = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX / 2).max(1);
        Self { interval_ns, tolerance_ns: interval_ns * u64::from(burst.saturating_sub(1)) }
    }

    /// That number of times the turns, at once as well.
    fn times(self, factor: u32) -> Self {
        let factor = u64::from(factor);
        let burst = self.tolerance_ns / self.interval_ns + 1;
        let interval_ns = (self.interval_ns / factor).max(1);
        Self { interval_ns, tolerance_ns: interval_ns * (burst * factor - 1) }
    }

    /// The rate of a proxy of the operators', which asks for many sources.
    pub(crate) fn of_proxy(self) -> Self {
        self.times(LOCAL_RATE_FACTOR)
    }

    /// Returns the rate of a holder, of which this is the one of public sources.
    fn of(self, holder: Holder) -> Self {
        let rate = if holder.is_local() { self.times(LOCAL_RATE_FACTOR) } else { self };
        match holder {
            Holder::Source(_) => rate,
            Holder::Network(_) => rate.times(NETWORK_SOURCES),
        }
    }

    fn wait(self, clock: Clock, now: Clock) -> Duration {
        Duration::from_nanos(clock.0.saturating_sub(now.0 + self.tolerance_ns))
    }

    fn charge(self, clock: &mut Clock, now: Clock) {
        clock.0 = clock.0.max(now.0) + self.interval_ns;
    }
}

/// The virtual clocks of all sources and sites. `what` tells several rates of one source apart, and
/// a rate is that of public sources.
#[derive(Debug)]
pub(crate) struct Clocks {
    began: Instant,
    keys: RandomState,
    sets: Box<[[Slot; SLOTS]]>,
}

impl Clocks {
    pub(crate) fn new(began: Instant) -> Self {
        Self { began, keys: RandomState::new(), sets: vec![Default::default(); SETS].into() }
    }

    fn clock(&self, now: Instant) -> Clock {
        let since = now.saturating_duration_since(self.began);
        Clock(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX / 2))
    }

    /// Returns the slot of a holder; if it has none, one that it can have.
    fn slot(&mut self, key: u64) -> &mut Slot {
        let set = &mut self.sets[key as usize % SETS];
        let place = set.iter().position(|slot| slot.key == key);
        let lagging = || (0..SLOTS).min_by_key(|at| set[*at].clock).unwrap_or_default();
        let place = place.unwrap_or_else(lagging);
        &mut set[place]
    }

    /// Returns how long a source must wait for its next turn.
    pub(crate) fn wait(
        &mut self,
        source: Source,
        what: &impl Hash,
        rate: Rate,
        now: Instant,
    ) -> Duration {
        let now = self.clock(now);
        let wait = |holder: Holder| {
            let key = self.keys.hash_one((holder, what));
            let slot = *self.slot(key);
            let clock = if slot.key == key { slot.clock } else { Clock::default() };
            rate.of(holder).wait(clock, now)
        };
        source.holders().map(wait).max().unwrap_or_default()
    }

    /// Counts a turn.
    pub(crate) fn charge(&mut self, source: Source, what: &impl Hash, rate: Rate, now: Instant) {
        let now = self.clock(now);
        for holder in source.holders() {
            let key = self.keys.hash_one((holder, what));
            let slot = self.slot(key);
            if slot.key != key {
                *slot = Slot { key, clock: Clock::default() };
            }
            rate.of(holder).charge(&mut slot.clock, now);
        }
    }

    /// Takes back a turn that was counted.
    pub(crate) fn refund(&mut self, source: Source, what: &impl Hash, rate: Rate) {
        for holder in source.holders() {
            let key = self.keys.hash_one((holder, what));
            let slot = self.slot(key);
            if slot.key == key {
                slot.clock.0 = slot.clock.0.saturating_sub(rate.of(holder).interval_ns);
            }
        }
    }
}

/// Decides which datagrams may be answered.
#[derive(Debug)]
pub(crate) struct RateLimit {
    per_source: Rate,
    in_all: Rate,
    clocks: Clocks,
    all: Clock,
}

impl RateLimit {
    /// Begins with no turn taken.
    pub(crate) fn new(per_source: Rate, in_all: u32, began: Instant) -> Self {
        Self {
            per_source,
            in_all: Rate::per_second(in_all, in_all / 10),
            clocks: Clocks::new(began),
            all: Clock::default(),
        }
    }

    /// Returns whether a datagram from `source` may be answered now; if so, it is charged for.
    pub(crate) fn allow(&mut self, source: IpAddr, now: Instant) -> bool {
        let (source, time) = (Source::of(source), self.clocks.clock(now));
        let waits = !self.in_all.wait(self.all, time).is_zero()
            || !self.clocks.wait(source, &(), self.per_source, now).is_zero();
        if !waits {
            self.clocks.charge(source, &(), self.per_source, now);
            self.in_all.charge(&mut self.all, time);
        }
        !waits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    fn limit(in_all: u32) -> (RateLimit, Instant) {
        let now = clock::now();
        (RateLimit::new(Rate::per_second(10, 50), in_all, now), now)
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

    #[test]
    fn one_ipv6_site_is_answered_as_sixteen_sources_are() {
        let (mut limit, now) = limit(20_000);
        let mut of_site = |now| {
            let one = |n| format!("2001:db8:7:{n:x}::1");
            (0..1000).map(|n| allowed(&mut limit, &one(n), now, 100)).sum::<usize>()
        };
        assert_eq!(of_site(now), 16 * 50);
        let later = now + Duration::from_secs(1);
        assert_eq!(of_site(later), 16 * 10);
        assert_eq!(allowed(&mut limit, "2001:db8:8::1", later, 100), 50, "another site");
    }

    /// Uses up the turns of `count` sources.
    fn used_up(count: u32) -> (Clocks, impl FnMut(&mut Clocks, u32) -> bool) {
        let (mut clocks, now) = (Clocks::new(clock::now()), clock::now());
        let rate = Rate::every(Duration::from_secs(3600), 5);
        let of = |n: u32| Source::of(IpAddr::from((0xcb00_0000 + n).to_be_bytes()));
        for n in (0..count).flat_map(|n| [n; 5]) {
            clocks.charge(of(n), &(), rate, now);
        }
        (clocks, move |clocks, n| !clocks.wait(of(n), &(), rate, now).is_zero())
    }

    #[test]
    fn no_source_waits_for_the_turns_of_others() {
        let (mut clocks, mut waits) = used_up(100_000);
        assert!((100_000..101_000).all(|n| !waits(&mut clocks, n)));
    }

    #[test]
    fn the_turns_of_thirty_thousand_sources_are_known() {
        let (mut clocks, mut waits) = used_up(30_000);
        let known = (0..30_000).filter(|n| waits(&mut clocks, *n)).count();
        assert!(known > 29_000, "{known}");
    }

    /// A flood of sources with a turn or two each does not give a guesser its own turns back.
    #[test]
    fn what_has_used_its_turns_up_is_not_forgotten_in_a_flood() {
        let (mut clocks, now) = (Clocks::new(clock::now()), clock::now());
        let rate = Rate::every(Duration::from_secs(10), 5);
        let of = |n: u32| Source::of(IpAddr::from((0xcb00_0000 + n).to_be_bytes()));
        for _ in 0..5 {
            clocks.charge(of(0), &(), rate, now);
        }
        for n in 1..100_000 {
            clocks.charge(of(n), &(), rate, now);
        }
        assert!(!clocks.wait(of(0), &(), rate, now).is_zero());
    }
}
