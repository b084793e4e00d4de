//! Everything outside the instances: clients, their connections, and an agenda of what happens
//! when.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use emnetchain::{
    ids::{Endpoint, InstanceId, Part, SessionId},
    registry::{Command, Effect, Message, Then, Why},
};
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
    post::{Letter, Post},
};

/// What happens.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A connection of a client breaks.
    Break,
    /// Somebody leaves an address, as EMNet's clients do.
    Chat,
    /// A client dies.
    Die,
    /// Something goes wrong between or under the instances.
    Fault,
    /// What went wrong goes right again.
    Heal(Fault),
    /// A client hears a message.
    Hear(SessionId, Message, Then),
    /// The operator changes the members.
    ChangeMembers,
    /// It is looked whether those that are well serve.
    Look,
    /// The client that looks after an instance asks something.
    Probe(InstanceId),
    /// Whoever was removed is stopped.
    Retire,
    /// Some are spared for a while.
    Spare,
    /// A client connects and asks.
    Knock(usize, Ask),
    /// A new client comes.
    Join,
    /// A client finds its connection gone.
    Lose(SessionId),
    /// A client misses the partner that a socket of it was told.
    Miss(usize, Part, Endpoint),
    /// A client finds its connection closed in order.
    Released(SessionId, Why),
    /// A client looks whether it still waits for something that nobody works on.
    Review(usize),
    /// Something reaches the instance of a session.
    Submit(Command),
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
    /// Whether the two sides of a gap may ask with a common id. It pairs them whatever stands
    /// between them by now, so the chain need not become one path then.
    pub(crate) has_common_ids: bool,
    /// Whether faults, deaths and newcomers go on.
    pub(crate) is_wild: bool,
    post: Post,
    pub(crate) connections: BTreeMap<SessionId, Connection>,
    agenda: BTreeMap<(Instant, u64), Event>,
    pub(crate) events: u64,
}

impl World {
    /// A world whose founders have just been started.
    pub(crate) fn new(mut chance: Chance, shared: Shared) -> Self {
        let has_common_ids = chance.percent(40);
        let founders: BTreeSet<_> = shared.members.keys().copied().collect();
        let mut world = Self {
            chance,
            oracle: Arc::clone(&shared.oracle),
            instances: BTreeMap::new(),
            network: shared.network.clone(),
            health: Health::default(),
            founders: founders.clone(),
            spared: BTreeSet::new(),
            people: Vec::new(),
            has_common_ids,
            is_wild: true,
            post: shared.post.clone(),
            shared,
            connections: BTreeMap::new(),
            agenda: BTreeMap::new(),
            events: 0,
        };
        founders.into_iter().for_each(|id| world.start_instance(id));
        let events = [
            Event::Fault,
            Event::Die,
            Event::Join,
            Event::Break,
            Event::Chat,
            Event::ChangeMembers,
        ];
        for event in events.into_iter().chain([Event::Retire, Event::Look, Event::Spare]) {
            world.plan(2_000, 5_000, event);
        }
        world
    }

    fn start_instance(&mut self, id: InstanceId) {
        let disk = Disk::new(self.chance.fork(), self.shared.planted);
        self.oracle.knows(id, &disk);
        let mut instance = Instance::new(id, disk, self.shared.clone());
        instance.start();
        self.instances.insert(id, instance);
        self.plan(500, 1_000, Event::Probe(id));
    }

    /// Another instance, under a number that none ever had.
    pub(crate) fn add_instance(&mut self) -> InstanceId {
        let last = self.instances.keys().last().expect("there are some");
        let id = InstanceId(last.0 + 1);
        self.start_instance(id);
        id
    }

    /// Has something happen in so many milliseconds.
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
                    Letter::Closed(instance, life) => {
                        self.health.closed(instance);
                        let is_its =
                            |id: &&SessionId| id.instance == instance && id.incarnation == life;
                        let closed: Vec<_> =
                            self.connections.keys().filter(is_its).copied().collect();
                        for session in closed {
                            self.plan(1, 40, Event::Lose(session));
                        }
                    }
                    Letter::Effect(effect) => self.carry_out(effect),
                    Letter::Ended(instance) => {
                        self.crash(instance);
                        self.feel();
                        self.plan(50, 3_000, Event::Heal(Fault::Down(instance)));
                    }
                    Letter::Failure => return,
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

    /// Takes an effect to its client.
    fn carry_out(&mut self, effect: Effect) {
        if let Some(wait) = self.health.answered(effect.session()) {
            return self.oracle.note(format!("a prober has waited for {wait:?}"));
        }
        let delay = Duration::from_millis(self.chance.between(1, 30));
        let Some(connection) = self.connections.get_mut(&effect.session()) else { return };
        let due = connection.last_due.max(now() + delay);
        connection.last_due = due;
        let event = match effect {
            Effect::Tell { session, message, then } => Event::Hear(session, message, then),
            Effect::Release { session, why } => Event::Released(session, why),
            // A legacy client sees nothing; this one gives up after a while.
            Effect::Refuse { session, .. } => {
                self.plan(1, 500, Event::Submit(Command::Disconnect { session }));
                Event::Lose(session)
            }
        };
        self.plan_at(due, event);
    }

    fn happen(&mut self, event: Event) {
        let is_dull = matches!(
            event,
            Event::Chat
                | Event::Knock(..)
                | Event::Look
                | Event::Probe(_)
                | Event::Retire
                | Event::Review(_)
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
            Event::Chat => self.chat(),
            Event::Die => self.die(),
            Event::Fault => self.fault(),
            Event::Heal(fault) => self.heal(fault),
            Event::Look => self.look(),
            Event::Probe(id) => self.probe(id),
            Event::Retire => self.retire(),
            Event::Spare => self.choose_spared(),
            Event::Hear(session, message, then) => self.hear(session, &message, then),
            Event::Join => self.join(),
            Event::Knock(person, ask) => self.knock(person, ask),
            Event::Lose(session) => self.lose(session),
            Event::Miss(person, part, lost) => self.miss(person, part, lost),
            Event::Released(session, why) => self.released(session, why),
            Event::Review(person) => self.review(person),
            Event::Submit(command) => {
                let session = command.session().expect("it comes from a session");
                self.instances[&session.instance].submit(command);
            }
        }
        if may_hurt {
            self.feel();
        }
    }
}
