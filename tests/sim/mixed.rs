//! Instances of two versions of the program side by side, while everything goes wrong: before,
//! during and after the raise of the rules. Without the feature `rules-3` there is one version
//! only, and nothing to raise.

use std::time::Duration;

use emnetchain::{cluster::admin::Change, ids::InstanceId, registry::Rules};

use crate::{faults::Fault, world::World};

/// How long an older program may take to end behind the raise.
const ENDS_MAX: Duration = Duration::from_secs(25);

/// How often the operator asks for the raise while things go wrong.
const ASKS_MAX: u64 = 15;

impl World {
    /// Restarts an instance with a program that knows no newer rules than these.
    fn install(&mut self, id: InstanceId, newest: Option<Rules>) {
        self.crash(id);
        self.instances.get_mut(&id).expect("it is there").install(newest);
        self.heal(Fault::Down(id));
    }

    fn rules(&self) -> Rules {
        self.oracle.read(|registry| registry.rules())
    }
}

/// Plays it.
pub(crate) async fn play(world: &mut World) {
    let some_time = |world: &mut World, least, most| {
        let time = world.chance.between(least, most);
        Duration::from_millis(time)
    };
    let before = some_time(world, 4_000, 8_000);
    world.pass(before).await;
    let mut ids = world.ids();
    world.chance.shuffle(&mut ids);
    for id in ids {
        world.ask_for(Change::Upgrade);
        world.install(id, None);
        let pause = some_time(world, 300, 2_500);
        world.pass(pause).await;
    }
    // Those that have come meanwhile as well.
    world.shared.newest = None;
    for id in world.ids() {
        if world.instances[&id].newest.is_some() {
            world.install(id, None);
        }
    }
    for _ in 0..ASKS_MAX {
        world.ask_for(Change::Upgrade);
        world.pass(Duration::from_secs(1)).await;
    }
    if world.rules() < Rules::NEWEST {
        // Some fault was in the way all the time.
        world.heal_all();
        world.pass(Duration::from_secs(5)).await;
        world.ask_for(Change::Upgrade);
        let raised = |world: &World| world.rules() == Rules::NEWEST;
        if !world.wait_for(ENDS_MAX, raised).await {
            return world
                .oracle
                .fail("U: the rules are raised when all know newer ones".to_owned());
        }
    }
    if Rules::NEWEST > Rules::FIRST {
        an_older_program_ends(world).await;
    }
}

/// An older program is started where the newer rules are in force.
async fn an_older_program_ends(world: &mut World) {
    let members = world.oracle.members().all();
    let members: Vec<_> = members.into_iter().filter(|id| !world.spared.contains(id)).collect();
    let Some(id) = members.first().copied() else { return };
    world.instances.get_mut(&id).expect("it is there").may_end =
        Some("install a newer EMNetChain here");
    world.install(id, Some(Rules::FIRST));
    let over = |world: &World| world.instances[&id].last_words().is_some();
    if !world.wait_for(ENDS_MAX, over).await {
        return world.oracle.fail(format!("U: an older program ends behind a raise: {id:?}"));
    }
    world.install(id, None);
    world.pass(Duration::from_secs(3)).await;
}
