//! What goes wrong between and under the instances, and how it is put right.

use std::collections::BTreeSet;

use emnetchain::{cluster::admin::Change, ids::InstanceId};

use crate::{
    disk::DIRS,
    instance::Instance,
    network::Way,
    sim_disk::Pace,
    world::{Event, World},
};

/// Something that went wrong and lasts.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Nothing arrives on these ways.
    Cut(Vec<Way>),
    /// An instance is down.
    Down(InstanceId),
    /// Instances are stopped where they stand.
    Paused(Vec<InstanceId>),
    /// A disk takes its time in a directory.
    SlowDisk(InstanceId, &'static str),
    /// Bytes take their time.
    SlowWay(Way),
}

/// Both directions between two instances.
pub(crate) fn both((a, b): Way) -> [Way; 2] {
    [(a, b), (b, a)]
}

impl World {
    pub(crate) fn ids(&self) -> Vec<InstanceId> {
        self.instances.keys().copied().collect()
    }

    pub(crate) fn any_instance(&mut self) -> InstanceId {
        let ids = self.ids();
        self.chance.pick(&ids)
    }

    /// An instance that may suffer.
    fn victim(&mut self) -> Option<InstanceId> {
        let ids: Vec<_> = self.ids().into_iter().filter(|id| !self.spared.contains(id)).collect();
        (!ids.is_empty()).then(|| self.chance.pick(&ids))
    }

    fn may_suffer(&self, (a, b): Way) -> bool {
        !(self.spared.contains(&a) && self.spared.contains(&b))
    }

    fn any_way(&mut self) -> Way {
        let mut ids = self.ids();
        self.chance.shuffle(&mut ids);
        (ids[0], ids[1])
    }

    /// Chooses a majority that nothing happens to for a while, or none: faults of all others must
    /// not keep it from serving.
    pub(crate) fn choose_spared(&mut self) {
        self.plan(8_000, 20_000, Event::Spare);
        self.spared.clear();
        if !self.is_wild || self.chance.percent(30) {
            return;
        }
        let members = self.oracle.members();
        let mut voters: Vec<_> = members.voters().into_iter().collect();
        self.chance.shuffle(&mut voters);
        if let (true, Some(leader)) = (self.chance.percent(60), self.leader()) {
            voters.sort_by_key(|id| *id == leader); // the leader is rather not among them
        }
        let mut spared = BTreeSet::new();
        for voter in voters {
            if !members.is_sure_majority(&spared) {
                spared.insert(voter.0);
            }
        }
        self.spared = spared.into_iter().map(InstanceId).collect();
        self.oracle.note(format!("spared are {:?}", self.spared));
        for id in self.spared.clone() {
            self.heal(Fault::Down(id));
            self.heal(Fault::Paused(vec![id]));
            DIRS.iter().for_each(|dir| self.heal(Fault::SlowDisk(id, dir)));
            for other in self.spared.clone().into_iter().filter(|other| *other != id) {
                self.heal(Fault::Cut(vec![(id, other)]));
                self.heal(Fault::SlowWay((id, other)));
            }
        }
    }

    /// Something goes wrong.
    pub(crate) fn fault(&mut self) {
        if !self.is_wild {
            return;
        }
        self.plan(100, 4_000, Event::Fault);
        match self.chance.below(100) {
            0..25 => self.crash_some(),
            25..33 => {
                let way = self.any_way();
                let one_way = self.chance.percent(50);
                self.cut(if one_way { vec![way] } else { both(way).to_vec() }, 3_000);
            }
            33..43 => self.isolate(),
            43..56 => self.partition(),
            56..64 => {
                let way = self.any_way();
                if self.may_suffer(way) {
                    self.network.reset(way);
                }
            }
            64..72 => self.slow_disk(),
            72..74 => self.fail_disk(),
            74..82 => {
                let way = self.any_way();
                let most = self.chance.pick(&[20, 100, 400]);
                if self.may_suffer(way) {
                    self.network.set_delay(way, 1, most);
                    self.plan(500, 5_000, Event::Heal(Fault::SlowWay(way)));
                }
            }
            82..92 => self.pause_some(),
            _ => self.transfer(),
        }
    }

    /// A disk is slow or hangs, in one of its directories or in all.
    fn slow_disk(&mut self) {
        let Some(id) = self.victim() else { return };
        let pace = self.chance.pick(&[
            Pace::Slow(0, 40),
            Pace::Slow(50, 200),
            Pace::Slow(0, 900),
            Pace::Hangs,
        ]);
        let dirs =
            if self.chance.percent(30) { DIRS.to_vec() } else { vec![self.chance.pick(&DIRS)] };
        for dir in dirs {
            self.instances[&id].disk().set_pace(dir, Some(pace));
            self.plan(500, 5_000, Event::Heal(Fault::SlowDisk(id, dir)));
        }
        self.oracle.note(format!("the disk of {id:?}: {pace:?}"));
    }

    /// A disk fails once, and its instance has to end.
    fn fail_disk(&mut self) {
        let Some(id) = self.victim() else { return };
        if self.instances[&id].is_running() {
            self.instances[&id].disk().fail_soon();
            self.oracle.note(format!("the disk of {id:?} fails soon"));
        }
    }

    fn cut(&mut self, mut ways: Vec<Way>, most_ms: u64) {
        ways.retain(|way| self.may_suffer(*way));
        self.oracle.note(format!("cut {ways:?}"));
        ways.iter().for_each(|way| self.network.set_cut(*way, true));
        self.plan(200, most_ms, Event::Heal(Fault::Cut(ways)));
    }

    /// An instance hears none of the others, or is heard by none.
    fn isolate(&mut self) {
        let alone = self.any_instance();
        let deaf = self.chance.percent(70);
        let dumb = !deaf || self.chance.percent(70);
        let others: Vec<_> = self.ids().into_iter().filter(|id| *id != alone).collect();
        let to = others.iter().filter(|_| deaf).map(|other| (*other, alone));
        let from = others.iter().filter(|_| dumb).map(|other| (alone, *other));
        self.cut(to.chain(from).collect(), 3_000);
    }

    /// The network falls apart, in one of the ways in which some instances still reach some.
    fn partition(&mut self) {
        let mut ids = self.ids();
        self.chance.shuffle(&mut ids);
        let mut pairs: Vec<Way> = Vec::new();
        for (n, a) in ids.iter().enumerate() {
            pairs.extend(ids[n + 1..].iter().map(|b| (*a, *b)));
        }
        let half = ids.len() / 2;
        let is_left = |id: InstanceId| ids[..half].contains(&id);
        let leader = self.leader().unwrap_or(ids[0]);
        let friends: Vec<_> = ids.iter().copied().filter(|id| *id != leader).take(1).collect();
        let shape = self.chance.below(4);
        let ways: Vec<Way> = pairs
            .into_iter()
            .filter(|(a, b)| match shape {
                // Two groups.
                0 => is_left(*a) != is_left(*b),
                // Two groups, and one instance that reaches both.
                1 => is_left(*a) != is_left(*b) && *a != ids[0] && *b != ids[0],
                // The leader reaches one of the others only, and the others reach each other.
                2 => {
                    let other = if *a == leader { b } else { a };
                    (*a == leader || *b == leader) && !friends.contains(other)
                }
                // Anything.
                _ => self.chance.percent(50),
            })
            .flat_map(both)
            .collect();
        let most_ms = self.chance.pick(&[3_000, 12_000]);
        self.cut(ways, most_ms);
    }

    /// One instance crashes, or several do at once.
    fn crash_some(&mut self) {
        let mut ids = self.ids();
        self.chance.shuffle(&mut ids);
        let count = match self.chance.below(10) {
            0 => ids.len(),
            1..3 => 2,
            _ => 1,
        };
        ids.retain(|id| !self.spared.contains(id));
        for id in ids.into_iter().take(count) {
            if self.crash(id) {
                self.plan(50, 3_000, Event::Heal(Fault::Down(id)));
            }
        }
    }

    /// An instance crashes, unless it is down already.
    pub(crate) fn crash(&mut self, id: InstanceId) -> bool {
        let instance = self.instances.get_mut(&id).expect("it is one of them");
        let is_up = instance.is_running();
        if is_up {
            instance.crash();
            if self.chance.percent(10) {
                instance.disk().spoil_image();
            }
            self.oracle.note(format!("{id:?} crashed"));
            self.oracle.count(|figures| figures.crashes += 1);
        }
        is_up
    }

    /// One instance stands still, or all do, as on a machine that sleeps.
    fn pause_some(&mut self) {
        let all = self.chance.percent(40);
        let paused = if all { self.ids() } else { self.victim().into_iter().collect() };
        if paused.is_empty() || all && !self.spared.is_empty() {
            return;
        }
        paused.iter().for_each(|id| self.instances[id].set_paused(true));
        self.oracle.count(|figures| figures.pauses += 1);
        self.oracle.note(format!("paused {paused:?}"));
        let most = self.chance.pick(&[700, 4_000, 10_000]);
        self.plan(100, most, Event::Heal(Fault::Paused(paused)));
    }

    /// The instance that leads and knows it.
    pub(crate) fn leader(&self) -> Option<InstanceId> {
        let leads = |instance: &Instance| {
            instance.cluster().is_some_and(|cluster| cluster.status().role == "leader")
        };
        self.instances.iter().find(|(_, instance)| leads(instance)).map(|(id, _)| *id)
    }

    /// Starts all that are down.
    pub(crate) fn restart_all(&mut self) {
        self.ids().into_iter().for_each(|id| self.heal(Fault::Down(id)));
    }

    fn transfer(&mut self) {
        let (to, _) = self.any_way();
        self.ask_for(Change::TransferLeader(Some(to)));
    }

    /// Something goes right again.
    pub(crate) fn heal(&mut self, fault: Fault) {
        match fault {
            Fault::Cut(ways) => ways.iter().for_each(|way| self.network.set_cut(*way, false)),
            Fault::Down(id) => {
                let instance = &self.instances[&id];
                let is_over = instance.is_retired() || instance.last_words().is_some();
                if !instance.is_running() && !is_over {
                    self.start(id);
                }
            }
            Fault::Paused(ids) => {
                let paused = ids.iter().map(|id| &self.instances[id]);
                paused.filter(|one| one.is_paused()).for_each(|one| one.set_paused(false));
            }
            Fault::SlowDisk(id, dir) => self.instances[&id].disk().set_pace(dir, None),
            Fault::SlowWay(way) => self.network.set_delay(way, 1, 3),
        }
    }

    /// Everything goes right again.
    pub(crate) fn heal_all(&mut self) {
        self.is_wild = false;
        self.spared.clear();
        let ids = self.ids();
        self.heal(Fault::Paused(ids.clone()));
        self.restart_all();
        for id in &ids {
            DIRS.iter().for_each(|dir| self.heal(Fault::SlowDisk(*id, dir)));
        }
        self.heal_ways();
    }

    /// All reach each other again, and soon.
    pub(crate) fn heal_ways(&mut self) {
        let ids = self.ids();
        for id in &ids {
            for other in ids.iter().filter(|other| *other != id) {
                self.heal(Fault::Cut(vec![(*id, *other)]));
                self.heal(Fault::SlowWay((*id, *other)));
            }
        }
    }
}
