//! One run: everything follows from a seed. First faults and life at once, then peace, in which
//! everything must come right.

use std::time::Duration;

use emnetchain::{ids::InstanceId, raft::Member, registry::Policy, runtime};

use crate::{
    begin_time,
    chance::Chance,
    instance::Shared,
    network::Network,
    now, now_ms,
    oracle::{Figures, Oracle},
    planted::Planted,
    post::Post,
    sim_disk::Pace,
    world::World,
};

/// How long everything may take to come right: a dead instance is noticed, its clients are waited
/// for, and silent ones in a gap.
const PEACE_MAX: Duration = Duration::from_secs(90);

/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What is done with a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Play {
    /// Everything that can go wrong does, and then it must come right.
    Wild,
    /// Again and again the leader loses its power and comes back before the others have missed it.
    LeaderComesBack,
    /// Every sync takes 150 ms, and again and again the leader dies.
    SlowDisks,
}

/// What became of a run.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) failure: Option<String>,
    /// The last things that happened.
    pub(crate) trace: String,
    /// Of all that happened.
    pub(crate) digest: u64,
    pub(crate) figures: Figures,
}

/// Runs a seed, with a planted mistake or without.
pub(crate) fn run(seed: u64, play: Play, planted: Planted) -> Outcome {
    runtime::follow_seed(seed);
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(simulate(Chance::from_seed(seed), play, planted))
}

async fn simulate(chance: Chance, play: Play, planted: Planted) -> Outcome {
    begin_time();
    let mut world = build(chance, planted);
    match play {
        Play::Wild => {
            let wild = Duration::from_secs(world.chance.between(15, 40));
            world.go_on_until(now() + wild).await;
        }
        Play::LeaderComesBack => leader_comes_back(&mut world).await,
        Play::SlowDisks => slow_disks(&mut world).await,
    }
    let oracle = world.oracle.clone();
    if oracle.failure().is_none() {
        make_peace(&mut world).await;
    }
    let (trace, digest) = oracle.trace();
    let figures = oracle.count(|figures| figures.virtual_ms = now_ms());
    Outcome { failure: oracle.failure(), trace, digest, figures }
}

/// A cluster that has just been started.
fn build(mut chance: Chance, planted: Planted) -> World {
    let count = chance.pick(&[3, 3, 3, 4, 5]);
    let member = |id| (InstanceId(id), Member::at(format!("instance-{id}:1")));
    let post = Post::default();
    let shared = Shared {
        network: Network::new(chance.fork()),
        oracle: Oracle::new(post.clone()),
        post,
        members: (1..=count).map(member).collect(),
        policy: Policy { retention_ms: 30_000, ..Policy::default() },
        planted,
    };
    World::new(chance, shared)
}

async fn leader_comes_back(world: &mut World) {
    for _ in 0..20 {
        world.go_on_until(now() + Duration::from_millis(700)).await;
        if let Some(leader) = world.leader() {
            world.crash(leader);
        }
        world.go_on_until(now() + Duration::from_millis(20)).await;
        world.restart_all();
    }
}

/// B1: an election takes no longer than this.
const ELECTED_MAX: Duration = Duration::from_secs(5);

async fn slow_disks(world: &mut World) {
    world.is_wild = false;
    for id in world.ids() {
        world.instances[&id].disk().set_pace("raft", Some(Pace::Slow(150, 150)));
    }
    for _ in 0..5 {
        let begun = now();
        while world.leader().is_none() {
            world.go_on_until(now() + Duration::from_millis(50)).await;
            if now() - begun > ELECTED_MAX {
                return world.oracle.fail(format!("B1: a slow disk elects within {ELECTED_MAX:?}"));
            }
        }
        world.go_on_until(now() + Duration::from_secs(1)).await;
        let leader = world.leader().unwrap_or(InstanceId(1));
        world.crash(leader);
        world.restart_all();
    }
}

/// Heals everything, and waits for everything to come right.
async fn make_peace(world: &mut World) {
    world.oracle.note("peace".to_owned());
    world.heal_all();
    let deadline = now() + PEACE_MAX;
    loop {
        world.go_on_until(now() + LOOK_EVERY).await;
        if world.oracle.failure().is_some() {
            return;
        }
        let Err(complaint) = world.complaint() else { return };
        if now() >= deadline {
            return world.oracle.fail(format!("I7: everything comes right: {complaint}"));
        }
    }
}
