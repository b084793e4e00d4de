//! One run: everything follows from a seed. First faults and life at once, then peace, in which
//! everything must come right.

use std::{future::Future, time::Duration};

use emnetchain::{
    ids::InstanceId,
    raft::Member,
    registry::{Policy, Rules},
    runtime,
};

use crate::{
    begin_time,
    chance::Chance,
    instance::Shared,
    lost_disks::{self, Case},
    mixed,
    network::Network,
    now, now_ms,
    oracle::{Figures, Oracle},
    planted::Planted,
    plays,
    post::Post,
    world::World,
};

/// How long everything may take to come right: a dead instance is noticed, its clients are waited
/// for, and silent ones in a gap.
const PEACE_MAX: Duration = Duration::from_secs(90);

/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What is done with a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Play {
    /// Everything that can go wrong does, and then it must come right.
    Wild,
    /// Again and again the leader loses its power and comes back before the others have missed it.
    LeaderComesBack,
    /// Every sync takes long, and again and again the leader dies.
    SlowDisks,
    /// An older copy of a disk is put back.
    OlderCopy,
    /// An instance comes back with a list that names a stranger.
    Stranger,
    /// The registry of one instance is damaged in its memory.
    Damaged,
    /// The leader of five reaches one other only.
    LeaderCutOff,
    /// A member comes back at another address.
    Moves,
    /// All stand still, as on a machine that sleeps.
    AllSleep,
    /// The leader's answers are lost, and what it was asked is not.
    AnswersLost,
    /// Two are given up one after the other, and come back.
    GivenUp,
    /// The leader's disk hangs.
    LeaderHangs,
    /// Disks are lost around the founding of a cluster: one case of them all.
    LostDisks,
    /// Instances of two versions run side by side while everything goes wrong, and the rules are
    /// raised.
    Mixed,
}

impl Play {
    /// How many instances there are; by default chance says so.
    fn instances(self) -> Option<u64> {
        match self {
            Self::Wild | Self::LeaderComesBack | Self::SlowDisks | Self::Mixed => None,
            Self::LeaderCutOff => Some(5),
            _ => Some(3),
        }
    }

    /// How the world begins.
    fn begin(self, chance: Chance, shared: Shared) -> World {
        match self {
            Self::Wild | Self::LeaderComesBack | Self::Mixed => World::new(chance, shared),
            Self::LostDisks => World::quiet(chance, shared),
            _ => World::calm(chance, shared),
        }
    }
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
    on_a_runtime(seed, simulate(Chance::from_seed(seed), play, planted))
}

fn on_a_runtime(seed: u64, playing: impl Future<Output = Outcome>) -> Outcome {
    runtime::follow_seed(seed);
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(playing)
}

async fn simulate(chance: Chance, play: Play, planted: Planted) -> Outcome {
    begin_time();
    let mut world = build(chance, play, planted);
    match play {
        Play::Wild => {
            let wild = Duration::from_secs(world.chance.between(15, 40));
            world.pass(wild).await;
        }
        Play::LeaderComesBack => plays::leader_comes_back(&mut world).await,
        Play::SlowDisks => plays::slow_disks(&mut world).await,
        Play::OlderCopy => plays::older_copy(&mut world).await,
        Play::Stranger => plays::stranger(&mut world).await,
        Play::Damaged => plays::damaged(&mut world).await,
        Play::LeaderCutOff => plays::leader_cut_off(&mut world).await,
        Play::Moves => plays::moves(&mut world).await,
        Play::AllSleep => plays::all_sleep(&mut world).await,
        Play::AnswersLost => plays::answers_lost(&mut world).await,
        Play::GivenUp => plays::given_up(&mut world).await,
        Play::LeaderHangs => plays::leader_hangs(&mut world).await,
        Play::LostDisks => {
            let case = Case::drawn(&mut world.chance);
            lost_disks::play(&mut world, &case).await;
        }
        Play::Mixed => mixed::play(&mut world).await,
    }
    finish(world, play != Play::LostDisks).await
}

/// Runs one case of lost disks.
pub(crate) fn run_case(number: u64, case: &Case) -> Outcome {
    let playing = async {
        begin_time();
        let chance = Chance::from_seed(number);
        let mut world = build(chance, Play::LostDisks, Planted::Nothing);
        lost_disks::play(&mut world, case).await;
        finish(world, false).await
    };
    on_a_runtime(number, playing)
}

/// Ends a run, in peace if everything has to come right.
async fn finish(mut world: World, in_peace: bool) -> Outcome {
    let oracle = world.oracle.clone();
    if oracle.failure().is_none() && in_peace && world.comes_right() {
        make_peace(&mut world).await;
    }
    let (trace, digest) = oracle.trace();
    let figures = oracle.count(|figures| figures.virtual_ms = now_ms());
    Outcome { failure: oracle.failure(), trace, digest, figures }
}

/// A cluster that has just been started.
fn build(mut chance: Chance, play: Play, planted: Planted) -> World {
    let any = chance.pick(&[3, 3, 3, 4, 5]);
    let count = play.instances().unwrap_or(any);
    let member = |id| (InstanceId(id), Member::at(format!("instance-{id}:1")));
    let post = Post::default();
    let shared = Shared {
        network: Network::new(chance.fork(), planted),
        oracle: Oracle::new(post.clone()),
        post,
        members: (1..=count).map(member).collect(),
        policy: Policy { retention_ms: 30_000, ..Policy::default() },
        planted,
        newest: (play == Play::Mixed).then_some(Rules::FIRST),
    };
    play.begin(chance, shared)
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
