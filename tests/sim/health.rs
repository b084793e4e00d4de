//! Liveness while things go wrong (L3): instances that are up, whose disks work and that all reach
//! each other are *well*. Where they are a majority, and have been for a while, there is a leader,
//! and clients of each of them are answered, even if the others fail.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use emnetchain::{ids::InstanceId, server::Protocol};
use tokio::time::Instant;

use crate::{
    network::Way,
    now,
    visit::Visit,
    world::{Event, World},
};

/// How long a majority must have been well, and how long its clients may wait and it may be
/// without a leader: an election or two, and for a follower to find its leader.
const WAIT_MAX: Duration = Duration::from_secs(6);

/// How long clients of a majority that serves wait at most, mostly.
const SOON: Duration = Duration::from_secs(1);

/// How often it is looked at.
const LOOK_EVERY_MS: u64 = 200;

/// Between an answer and the next request of a prober.
const PAUSE_MS: (u64, u64) = (20, 250);

/// A client of one instance that asks again and again, over one connection while it lasts.
#[derive(Debug, Default)]
struct Prober {
    /// Since when it has waited for an answer.
    since: Option<Instant>,
    visit: Option<(u64, Visit)>,
}

/// Since when what is well has been so, and the clients that find out.
#[derive(Debug, Default)]
pub(crate) struct Health {
    instances: BTreeMap<InstanceId, Instant>,
    ways: BTreeMap<Way, Instant>,
    members_since: Option<(BTreeSet<InstanceId>, Instant)>,
    probers: BTreeMap<InstanceId, Prober>,
    led: Option<Instant>,
    /// When no client of some majority had waited long.
    answered: Option<Instant>,
}

/// Keeps the moment since when something holds.
fn since<T: Ord>(known: &mut BTreeMap<T, Instant>, what: T, holds: bool) {
    if holds {
        known.entry(what).or_insert_with(now);
    } else {
        known.remove(&what);
    }
}

impl Health {
    /// The instances that some majority among `well` consists of, if all in it reach each other.
    fn majorities(
        well: &[InstanceId],
        reach: impl Fn(Way) -> bool,
        is_majority: impl Fn(&BTreeSet<u64>) -> bool,
    ) -> Vec<BTreeSet<InstanceId>> {
        let subsets = (1_u32..1 << well.len()).map(|bits| {
            let is_in = |(n, _): &(usize, &InstanceId)| bits & (1 << n) != 0;
            well.iter().enumerate().filter(is_in).map(|(_, id)| *id).collect::<BTreeSet<_>>()
        });
        let reaches_all = |set: &BTreeSet<InstanceId>| {
            set.iter().all(|a| set.iter().all(|b| a == b || reach((*a, *b))))
        };
        let counts = |set: &BTreeSet<InstanceId>| is_majority(&set.iter().map(|id| id.0).collect());
        subsets.filter(|set| counts(set) && reaches_all(set)).collect()
    }
}

impl World {
    /// Takes note of what is well now.
    pub(crate) fn feel(&mut self) {
        let ids = self.ids();
        for id in &ids {
            let instance = &self.instances[id];
            let is_up = instance.is_running() && !instance.is_paused();
            since(&mut self.health.instances, *id, is_up && instance.has_good_disk());
            for other in ids.iter().filter(|other| *other != id) {
                let way = (*id, *other);
                since(&mut self.health.ways, way, self.network.is_good(way));
            }
        }
        let members = self.oracle.members().all();
        if self.health.members_since.as_ref().is_none_or(|(known, _)| *known != members) {
            self.health.members_since = Some((members, now()));
        }
    }

    /// A prober asks, unless it waits for an answer already.
    pub(crate) fn probe(&mut self, id: InstanceId) {
        self.plan(PAUSE_MS.0, PAUSE_MS.1, Event::Probe(id));
        let mut prober = self.health.probers.remove(&id).unwrap_or_default();
        let had_asked = prober.since.is_some() && prober.visit.is_some();
        prober.since.get_or_insert_with(now);
        if prober.visit.is_none() {
            let source = IpAddr::from([10, 9, 9, 9]);
            prober.visit = self.visit(id, Protocol::Emnet, source);
        }
        if let Some((_, visit)) = prober.visit.as_ref().filter(|_| !had_asked) {
            self.events += 1;
            let name = self.events;
            visit.say(format!(r#"{{"msg":"ADD_PEER","IP_Peer":"prober {name}"}}"#));
        }
        self.health.probers.insert(id, prober);
    }

    fn prober(&mut self, number: u64) -> Option<&mut Prober> {
        let is_its = |prober: &&mut Prober| prober.visit.as_ref().is_some_and(|v| v.0 == number);
        self.health.probers.values_mut().find(is_its)
    }

    /// True if a prober hears this.
    pub(crate) fn heard_by_prober(&mut self, number: u64, bytes: &[u8]) -> bool {
        let Some(prober) = self.prober(number) else { return false };
        if bytes.ends_with(b"\n")
            && let Some(since) = prober.since.take()
        {
            self.oracle.note(format!("a prober has waited for {:?}", now() - since));
        }
        true
    }

    /// True if this was a prober's connection. It asks again over another one.
    pub(crate) fn lost_by_prober(&mut self, number: u64) -> bool {
        let Some(prober) = self.prober(number) else { return false };
        prober.visit.take().into_iter().for_each(|(_, visit)| visit.close());
        true
    }

    /// Looks whether those that are well serve.
    pub(crate) fn look(&mut self) {
        self.plan(LOOK_EVERY_MS, LOOK_EVERY_MS, Event::Look);
        self.feel();
        let members = self.oracle.members();
        let is_majority = |of: &BTreeSet<u64>| members.is_sure_majority(of);
        let long_ago = |since: &Instant| now() - *since >= WAIT_MAX;
        let known = self.health.members_since.as_ref();
        if !self.is_wild || !known.is_some_and(|(_, since)| long_ago(since)) {
            (self.health.led, self.health.answered) = (None, None);
            return;
        }
        let Health { instances, ways, .. } = &self.health;
        let voters = members.voters();
        let is_well = |id: &InstanceId| instances.get(id).is_some_and(&long_ago);
        let well: Vec<_> = voters.iter().copied().filter(is_well).collect();
        let reach = |way: Way| ways.get(&way).is_some_and(&long_ago);
        if Health::majorities(&well, reach, is_majority).is_empty() {
            (self.health.led, self.health.answered) = (None, None);
            return;
        }
        if well.len() < voters.len() {
            self.oracle.count(|figures| figures.healthy_looks += 1);
        }
        // It may serve by any majority, and if that is another one, not with all that are well.
        let up = |id: &InstanceId| self.instances[id].is_running();
        let up: Vec<_> = voters.iter().copied().filter(up).collect();
        let open = |way: Way| !self.network.is_cut(way);
        let majorities = Health::majorities(&up, open, is_majority);
        let waits = |id: &InstanceId| {
            let since = self.health.probers.get(id).and_then(|prober| prober.since);
            since.map_or(Duration::ZERO, |since| now() - since)
        };
        let longest = |set: &BTreeSet<InstanceId>| set.iter().map(waits).max().unwrap_or_default();
        let wait = majorities.iter().map(longest).min().unwrap_or_default();
        let leads = |id: &InstanceId| {
            let cluster = self.instances[id].cluster();
            cluster.is_some_and(|cluster| cluster.status().role == "leader")
        };
        if up.iter().any(leads) {
            self.health.led = Some(now());
        }
        // When the majority that served breaks, the clients of others have waited for long already;
        // what counts is since when none served.
        if wait <= SOON {
            self.health.answered = Some(now());
        }
        let wait = wait.min(SOON + (now() - *self.health.answered.get_or_insert_with(now)));
        let leaderless = now() - *self.health.led.get_or_insert_with(now);
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).expect("runs are short");
        self.oracle.count(|figures| {
            figures.longest_wait_ms = figures.longest_wait_ms.max(ms(wait));
            figures.longest_leaderless_ms = figures.longest_leaderless_ms.max(ms(leaderless));
        });
        if leaderless > WAIT_MAX {
            self.oracle.fail(format!("L3: a majority that is well has a leader: {well:?}"));
        } else if wait > WAIT_MAX {
            let waits: Vec<_> = up.iter().map(|id| (id.0, waits(id))).collect();
            self.oracle.fail(format!("L3: a majority that is well answers: {well:?}: {waits:?}"));
        }
    }
}
