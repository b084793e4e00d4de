//! What goes wrong between and under the instances, and how it is put right.

use emnetchain::{cluster::admin::Change, ids::InstanceId};

use crate::{
    instance::Instance,
    network::Way,
    world::{Event, World},
};

/// Something that went wrong and lasts.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Nothing arrives on these ways.
    Cut(Vec<Way>),
    /// An instance is down.
    Down(InstanceId),
    /// A disk takes its time.
    SlowDisk(InstanceId),
    /// Bytes take their time.
    SlowWay(Way),
}

impl World {
    fn ids(&self) -> Vec<InstanceId> {
        self.instances.keys().copied().collect()
    }

    pub(crate) fn any_instance(&mut self) -> InstanceId {
        let ids = self.ids();
        self.chance.pick(&ids)
    }

    fn any_way(&mut self) -> Way {
        let mut ids = self.ids();
        self.chance.shuffle(&mut ids);
        (ids[0], ids[1])
    }

    /// Something goes wrong.
    pub(crate) fn fault(&mut self) {
        if !self.is_wild {
            return;
        }
        self.plan(100, 4_000, Event::Fault);
        match self.chance.below(100) {
            0..30 => self.crash_some(),
            30..45 => {
                let (a, b) = self.any_way();
                let one_way = self.chance.percent(50);
                self.cut(if one_way { vec![(a, b)] } else { vec![(a, b), (b, a)] });
            }
            45..60 => {
                let alone = self.any_instance();
                let deaf = self.chance.percent(70);
                let dumb = !deaf || self.chance.percent(70);
                let others: Vec<_> = self.ids().into_iter().filter(|id| *id != alone).collect();
                let to = others.iter().filter(|_| deaf).map(|other| (*other, alone));
                let from = others.iter().filter(|_| dumb).map(|other| (alone, *other));
                self.cut(to.chain(from).collect());
            }
            60..70 => {
                let way = self.any_way();
                self.network.reset(way);
            }
            70..80 => {
                let id = self.any_instance();
                let most = self.chance.pick(&[30, 200, 900]);
                self.instances[&id].set_disk_delay(0, most);
                self.plan(500, 5_000, Event::Heal(Fault::SlowDisk(id)));
            }
            80..90 => {
                let way = self.any_way();
                let most = self.chance.pick(&[20, 100, 400]);
                self.network.set_delay(way, 1, most);
                self.plan(500, 5_000, Event::Heal(Fault::SlowWay(way)));
            }
            _ => self.transfer(),
        }
    }

    fn cut(&mut self, ways: Vec<Way>) {
        self.oracle.note(format!("cut {ways:?}"));
        ways.iter().for_each(|way| self.network.set_cut(*way, true));
        self.plan(200, 3_000, Event::Heal(Fault::Cut(ways)));
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
            instance.crash(&mut self.chance);
            self.oracle.note(format!("{id:?} crashed"));
            self.oracle.count(|figures| figures.crashes += 1);
        }
        is_up
    }

    /// Who leads and knows it.
    pub(crate) fn leader(&self) -> Option<InstanceId> {
        let leads = |instance: &Instance| {
            instance.cluster().is_some_and(|cluster| cluster.status().role == "leader")
        };
        self.instances.iter().find(|(_, instance)| leads(instance)).map(|(id, _)| *id)
    }

    /// Whoever is down is started.
    pub(crate) fn restart_all(&mut self) {
        self.ids().into_iter().for_each(|id| self.heal(Fault::Down(id)));
    }

    fn transfer(&mut self) {
        let (to, at) = self.any_way();
        if let Some(cluster) = self.instances[&at].cluster().cloned() {
            // Whether it comes to that is chance.
            tokio::spawn(async move { cluster.change(Change::TransferLeader(Some(to))).await });
        }
    }

    /// Something goes right again.
    pub(crate) fn heal(&mut self, fault: Fault) {
        match fault {
            Fault::Cut(ways) => ways.iter().for_each(|way| self.network.set_cut(*way, false)),
            Fault::Down(id) => {
                let instance = self.instances.get_mut(&id).expect("it is one of them");
                if !instance.is_running() {
                    instance.start();
                }
            }
            Fault::SlowDisk(id) => self.instances[&id].set_disk_delay(0, 3),
            Fault::SlowWay(way) => self.network.set_delay(way, 1, 3),
        }
    }

    /// Everything goes right again.
    pub(crate) fn heal_all(&mut self) {
        self.is_wild = false;
        self.restart_all();
        let ids = self.ids();
        for id in &ids {
            self.heal(Fault::SlowDisk(*id));
            for other in ids.iter().filter(|other| *other != id) {
                self.heal(Fault::Cut(vec![(*id, *other)]));
                self.heal(Fault::SlowWay((*id, *other)));
            }
        }
    }
}
