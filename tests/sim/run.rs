//! One run: everything follows from a seed. First faults and life at once, then peace, in which
//! everything must come right.

use std::{collections::BTreeMap, path::Path, time::Duration};

use emnetchain::{ids::InstanceId, raft::Member, registry::Policy, runtime};

use crate::{
    begin_time,
    chance::Chance,
    disk::Disk,
    instance::{Instance, Shared},
    network::Network,
    now, now_ms,
    oracle::{Figures, Oracle},
    planted::Planted,
    post::Post,
    world::World,
};

/// How long everything may take to come right: a dead instance is noticed, its clients are waited
/// for, and silent ones in a gap.
const PEACE_MAX: Duration = Duration::from_secs(90);

/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

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
pub(crate) fn run(seed: u64, planted: Planted) -> Outcome {
    runtime::follow_seed(seed);
    let folder = ["/dev/shm", "/tmp"].iter().find(|folder| Path::new(folder).is_dir());
    let root = match folder {
        Some(folder) => tempfile::tempdir_in(folder),
        None => tempfile::tempdir(),
    };
    let root = root.expect("there is room for snapshots");
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(simulate(Chance::from_seed(seed), planted, root.path()))
}

async fn simulate(mut chance: Chance, planted: Planted, root: &Path) -> Outcome {
    begin_time();
    let count = if chance.percent(20) { 5 } else { 3 };
    let ids: Vec<InstanceId> = (1..=count).map(InstanceId).collect();
    let disks: BTreeMap<_, _> =
        ids.iter().map(|id| (*id, Disk::new(chance.fork(), planted))).collect();
    let post = Post::default();
    let oracle = Oracle::new(disks.clone(), post.clone());
    let network = Network::new(chance.fork());
    let member = |id: &InstanceId| Member { raft_addr: format!("instance-{}:1", id.0) };
    let shared = Shared {
        network: network.clone(),
        oracle: oracle.clone(),
        post: post.clone(),
        members: ids.iter().map(|id| (*id, member(id))).collect(),
        policy: Policy { retention_ms: 30_000, ..Policy::default() },
        planted,
        root: root.to_path_buf(),
    };
    let instances = disks.into_iter().map(|(id, disk)| {
        let mut instance = Instance::new(id, disk, shared.clone());
        instance.start();
        (id, instance)
    });
    let instances = instances.collect();
    let peace_at = now() + Duration::from_secs(chance.between(15, 40));
    let mut world = World::new(chance, oracle.clone(), instances, network, post);
    world.go_on_until(peace_at).await;
    if oracle.failure().is_none() {
        make_peace(&mut world).await;
    }
    let (trace, digest) = oracle.trace();
    let figures = oracle.count(|figures| figures.virtual_ms = now_ms());
    Outcome { failure: oracle.failure(), trace, digest, figures }
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
