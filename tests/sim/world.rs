//! Everything outside the instances: clients, their connections, and an agenda of what happens
//! when.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use emnetchain::ids::{Endpoint, InstanceId, Part};
use tokio::time::{Instant, sleep_until};

use crate::{
    chance::Chance,
    disk::Disk,
    faults::Fault,
    health::Health,
    instance::{Instance, Shared},
    now,
    oracle::Oracle,
    people::{Ask, Connection, Person},
    planted::Planted,
    post::{Letter, Post},
};

/// What happens.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A connection of a client breaks.
    Break,
    /// The operator changes the members.
    ChangeMembers,
    /// A client dies.
    Die,
    /// Something goes wrong between or under the instances.
    Fault,
    /// A client closes its sending side.
    HalfClose(u64),
    /// What went wrong goes right again.
    Heal(Fault),
    /// A client connects and asks.
    Knock(usize, Ask),
    /// A new client comes.
    Join,
    /// It is looked whether those that are well serve.
    Look,
    /// A client finds its connection gone.
    Lose(u64),
    /// A client misses the partner that a socket of it was told.
    Miss(usize, Part, Endpoint),
    /// The client that looks after an instance asks something.
    Probe(InstanceId),
    /// An instance that was removed is stopped.
    Retire,
    /// A client looks whether it still waits for something that no one works on.
    Review(usize),
    /// Some are spared for a while.
    Spare,
}

/// Everything outside the instances.
pub(crate) struct World {
    pub(crate) chance: Chance,
    pub(crate) oracle: Arc<Oracle>,
    pub(crate) instances: BTreeMap<InstanceId, Instance>,
    pub(crate) network: crate::network::Network,
    pub(crate) health: Health,
    /// Those that found the cluster.
    pub(crate) founders: BTreeSet<InstanceId>,
    /// Those that nothing happens to at present.
    pub(crate) spared: BTreeSet<InstanceId>,
    /// What a new instance is given.
    pub(crate) shared: Shared,
    pub(crate) people: Vec<Person>,
    /// Whether the two sides of a gap may ask with a common id. It pairs them, with anything that
    /// stands between them by now, so the chain need not become one path then.
    pub(crate) has_common_ids: bool,
    /// Whether faults, deaths and newcomers go on.
    pub(crate) is_wild: bool,
    post: Post,
    pub(crate) connections: BTreeMap<u64, Connection>,
    agenda: BTreeMap<(Instant, u64), Event>,
    pub(crate) events: u64,
}

impl World {
    /// A world whose founders have just been started, and in which everything goes wrong.
    pub(crate) fn new(chance: Chance, shared: Shared) -> Self {
        let mut world = Self::quiet(chance, shared);
        world.is_wild = true;
        for id in world.founders.clone() {
            world.start_instance(id);
        }
        let events = [Event::Fault, Event::Die, Event::Join, Event::Break, Event::ChangeMembers];
        for event in events.into_iter().chain([Event::Retire, Event::Look, Event::Spare]) {
            world.plan(2_000, 5_000, event);
        }
        world
    }

    /// A world whose founders have just been started, and in which nothing goes wrong.
    pub(crate) fn calm(chance: Chance, shared: Shared) -> Self {
        let mut world = Self::quiet(chance, shared);
        for id in world.founders.clone() {
            world.start_instance(id);
        }
        world
    }

    /// A world in which nothing happens by itself, and no instance exists yet.
    pub(crate) fn quiet(mut chance: Chance, shared: Shared) -> Self {
        let has_common_ids = chance.percent(40);
        let founders: BTreeSet<_> = shared.members.keys().copied().collect();
        Self {
            chance,
            oracle: Arc::clone(&shared.oracle),
            instances: BTreeMap::new(),
            network: shared.network.clone(),
            health: Health::default(),
            founders,
            spared: BTreeSet::new(),
            people: Vec::new(),
            has_common_ids,
            is_wild: false,
            post: shared.post.clone(),
            shared,
            connections: BTreeMap::new(),
            agenda: BTreeMap::new(),
            events: 0,
        }
    }

    /// An instance begins to exist, and is started.
    fn start_instance(&mut self, id: InstanceId) {
        self.create_instance(id);
        self.start(id);
        self.plan(500, 1_000, Event::Probe(id));
    }

    /// An instance exists from now on, with an empty disk.
    pub(crate) fn create_instance(&mut self, id: InstanceId) {
        let disk = Disk::new(self.chance.fork(), self.shared.planted);
        self.oracle.knows(id, &disk);
        self.instances.insert(id, Instance::new(id, disk, self.shared.clone()));
    }

    /// Starts an instance that is down.
    pub(crate) fn start(&mut self, id: InstanceId) {
        if self.shared.planted == Planted::FoundedWithoutAll {
            let is_up = |other: &InstanceId| *other == id || self.instances[other].is_running();
            let mut list = self.shared.members.clone();
            list.retain(|other, _| is_up(other));
            self.instances.get_mut(&id).expect("it is one of them").list = list;
        }
        self.instances.get_mut(&id).expect("it is one of them").start();
    }

    /// How many answers clients were given.
    pub(crate) fn told(&self) -> u64 {
        self.oracle.count(|_| {}).told
    }

    /// Nothing happens any more that was planned.
    pub(crate) fn forget_plans(&mut self) {
        self.agenda.clear();
    }

    /// Another instance, under a number that none ever had.
    pub(crate) fn add_instance(&mut self) -> InstanceId {
        let last = self.instances.keys().last().expect("there are some");
        let id = InstanceId(last.0 + 1);
        self.start_instance(id);
        id
    }

    /// Has something happen in this number of milliseconds.
    pub(crate) fn plan(&mut self, least: u64, most: u64, event: Event) {
        let at = now() + Duration::from_millis(self.chance.between(least, most));
        self.plan_at(at, event);
    }

    fn plan_at(&mut self, at: Instant, event: Event) {
        self.events += 1;
        self.agenda.insert((at, self.events), event);
    }

    /// Lets everything happen until a moment, or until something is wrong.
    pub(crate) async fn go_on_until(&mut self, end: Instant) {
        loop {
            while let Some(letter) = self.post.take() {
                match letter {
                    Letter::Ended(instance) => {
                        self.crash(instance);
                        self.feel();
                        if self.instances[&instance].last_words().is_none() {
                            self.plan(50, 3_000, Event::Heal(Fault::Down(instance)));
                        }
                    }
                    Letter::Failure => return,
                    Letter::Heard(number, bytes) => self.hear(number, &bytes),
                    Letter::Over(number) => self.lose(number),
                }
            }
            let next = self.agenda.first_key_value().map(|((at, _), _)| *at);
            let next = next.map_or(end, |at| at.min(end));
            if next <= now() {
                match self.agenda.pop_first() {
                    Some(((at, _), event)) if at <= end => self.happen(event),
                    other => {
                        self.agenda.extend(other);
                        return;
                    }
                }
                continue;
            }
            tokio::select! {
                biased;
                () = self.post.wait() => {}
                () = sleep_until(next) => if next == end { return },
            }
        }
    }

    fn happen(&mut self, event: Event) {
        let is_dull = matches!(
            event,
            Event::Knock(..) | Event::Look | Event::Probe(_) | Event::Retire | Event::Review(_)
        );
        if !is_dull {
            self.oracle.note(format!("{event:?}"));
        }
        let may_hurt = matches!(
            event,
            Event::ChangeMembers | Event::Fault | Event::Heal(_) | Event::Retire | Event::Spare
        );
        match event {
            Event::Break => self.break_one(),
            Event::ChangeMembers => self.change_members(),
            Event::Die => self.die(),
            Event::Fault => self.fault(),
            Event::HalfClose(number) => self.half_close(number),
            Event::Heal(fault) => self.heal(fault),
            Event::Join => self.join(),
            Event::Knock(person, ask) => self.knock(person, ask),
            Event::Look => self.look(),
            Event::Lose(number) => self.lose(number),
            Event::Miss(person, part, lost) => self.miss(person, part, lost),
            Event::Probe(id) => self.probe(id),
            Event::Retire => self.retire(),
            Event::Review(person) => self.review(person),
            Event::Spare => self.choose_spared(),
        }
        if may_hurt {
            self.feel();
        }
    }
}
