//! Liveness while things go wrong (L3): instances that are up, whose disks work and that all reach
//! each other are *well*. Where they are a majority, and have been for a while, there is a leader,
//! and clients of each of them are answered, whatever happens to the others.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use emnetchain::{
    ids::{InstanceId, PeerId, SessionId},
    registry::Command,
};
use tokio::time::Instant;

use crate::{
    network::Way,
    now,
    world::{Event, World},
};

/// How long a majority must have been well, and how long its clients may wait and it may be
/// without a leader: an election or two, and for a follower to find its leader.
const WAIT_MAX: Duration = Duration::from_secs(6);

/// How often it is looked at.
const LOOK_EVERY_MS: u64 = 200;

/// Between an answer and the next request of a prober.
const PAUSE_MS: (u64, u64) = (100, 600);

/// A client of one instance that asks again and again.
#[derive(Clone, Copy, Debug)]
struct Prober {
    /// Since when it has waited for an answer.
    since: Option<Instant>,
    session: Option<SessionId>,
}

/// Since when what is well has been so, and the clients that find out.
#[derive(Debug, Default)]
pub(crate) struct Health {
    instances: BTreeMap<InstanceId, Instant>,
    ways: BTreeMap<Way, Instant>,
    members_since: Option<(BTreeSet<InstanceId>, Instant)>,
    probers: BTreeMap<InstanceId, Prober>,
    led: Option<Instant>,
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
    /// A session was told something; true if it is a prober's.
    pub(crate) fn answered(&mut self, session: SessionId) -> Option<Duration> {
        let prober = self.probers.get_mut(&session.instance)?;
        if prober.session != Some(session) {
            return None;
        }
        prober.session = None;
        Some(now() - prober.since.take()?)
    }

    /// Sessions are closed: who waits asks again.
    pub(crate) fn closed(&mut self, instance: InstanceId) {
        if let Some(prober) = self.probers.get_mut(&instance) {
            prober.session = None;
        }
    }

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
        let candidate = PeerId(u32::try_from(self.chance.below(1_000_000)).expect("it is small"));
        let new = Prober { since: None, session: None };
        let prober = self.health.probers.entry(id).or_insert(new);
        prober.since.get_or_insert_with(now);
        let instance = self.instances.get_mut(&id).expect("it is one of them");
        if prober.session.is_some() {
            return;
        }
        let Some(session) = instance.accept() else { return };
        prober.session = Some(session);
        let address = format!("prober {}", id.0);
        instance.submit(Command::AddPeer { session, address, candidate });
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
            self.health.led = None;
            return;
        }
        let Health { instances, ways, .. } = &self.health;
        let voters = members.voters();
        let is_well = |id: &InstanceId| instances.get(id).is_some_and(|since| long_ago(since));
        let well: Vec<_> = voters.iter().copied().filter(is_well).collect();
        let reach = |way: Way| ways.get(&way).is_some_and(|since| long_ago(since));
        if Health::majorities(&well, reach, is_majority).is_empty() {
            self.health.led = None;
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
