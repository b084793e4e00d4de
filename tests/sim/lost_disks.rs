//! Every way in which three members can lose their disks around the founding of their cluster: at
//! which moment, which disks, which members stay down at first, and in which order they start.
//!
//! There are never two histories, and no majority forgets what was acknowledged; the oracle sees
//! to that. Beyond it, where fewer than two disks are lost the cluster comes back, and where it
//! does not, each instance that runs says by name what it waits for. One whose disk was lost ends
//! once a member knows better.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use emnetchain::ids::InstanceId;

use crate::{
    chance::Chance,
    founding::Loss,
    given_budget,
    run::{Outcome, run_case},
    world::{Event, World},
};

/// How long those that can serve may take.
const SERVES_MAX: Duration = Duration::from_secs(12);

/// For how long those that cannot are looked at.
const WAITS: Duration = Duration::from_secs(3);

/// Between two starts.
const APART: Duration = Duration::from_millis(300);

/// Answers that clients got before the disks are lost.
const TOLD_MIN: u64 = 6;

/// How many cases are tried when no time is given.
const CASES_DRAWN: usize = 24;

/// When everything stops.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// Not all have been there.
    Unfounded,
    /// This many milliseconds after all have been started.
    Founding(u64),
    /// All have founded the cluster and served clients.
    Founded,
    /// This one stopped as soon as the founding was in its log, the others have served clients.
    Behind(InstanceId),
}

/// One case.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    moment: Moment,
    lost: BTreeSet<InstanceId>,
    /// Those that are started last, when the others have been looked at.
    down: BTreeSet<InstanceId>,
    order: [InstanceId; 3],
}

const IDS: [InstanceId; 3] = [InstanceId(1), InstanceId(2), InstanceId(3)];

impl Case {
    /// All there are.
    fn all() -> Vec<Self> {
        let founding = [20, 60, 120, 250, 500].map(Moment::Founding);
        let moments = [Moment::Unfounded, Moment::Founded].into_iter();
        let moments = moments.chain(founding).chain(IDS.map(Moment::Behind));
        let subset = |bits: usize| -> BTreeSet<InstanceId> {
            (0..3).filter(|n| bits & (1 << n) != 0).map(|n| IDS[n]).collect()
        };
        let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
        let mut cases = Vec::new();
        for moment in moments {
            for (lost, down) in (0..64).map(|bits| (subset(bits / 8), subset(bits % 8))) {
                cases.extend(orders.map(|order| Self {
                    moment,
                    lost: lost.clone(),
                    down: down.clone(),
                    order: order.map(|n: usize| IDS[n]),
                }));
            }
        }
        cases
    }

    /// One of them.
    pub(crate) fn drawn(chance: &mut Chance) -> Self {
        chance.pick(&Self::all())
    }
}

/// Plays a case.
pub(crate) async fn play(world: &mut World, case: &Case) {
    world.oracle.note(format!("{case:?}"));
    IDS.into_iter().for_each(|id| world.create_instance(id));
    live(world, case).await;
    for id in IDS {
        world.crash(id);
    }
    for id in &case.lost {
        world.instances[id].disk().lose();
        world.oracle.loses(*id, Loss::Lost);
    }
    let holders = world.oracle.holders();
    if !holders.is_empty() {
        for id in &case.lost {
            world.instances.get_mut(id).expect("it is there").may_end =
                Some("cannot be used again");
        }
    }
    for are_down in [false, true] {
        for id in case.order.into_iter().filter(|id| case.down.contains(id) == are_down) {
            world.start(id);
            world.pass(APART).await;
        }
        settle(world, case, &holders).await;
        if world.oracle.failure().is_some() {
            return;
        }
    }
}

/// What happens before the disks are lost.
async fn live(world: &mut World, case: &Case) {
    match case.moment {
        Moment::Unfounded => {
            let last = case.order[2];
            let first = case.order.into_iter().filter(|id| *id != last);
            for id in first.filter(|id| !case.down.contains(id)) {
                world.start(id);
            }
            world.pass(Duration::from_secs(1)).await;
            return;
        }
        Moment::Founding(after) => {
            case.order.into_iter().for_each(|id| world.start(id));
            return world.pass(Duration::from_millis(after)).await;
        }
        Moment::Founded => case.order.into_iter().for_each(|id| world.start(id)),
        Moment::Behind(behind) => {
            case.order.into_iter().for_each(|id| world.start(id));
            let all_hold = |world: &World| world.oracle.holders().len() == IDS.len();
            world.wait_for(SERVES_MAX, all_hold).await;
            world.crash(behind);
        }
    }
    IDS.into_iter().for_each(|id| world.plan(1, 500, Event::Probe(id)));
    if !world.wait_for(SERVES_MAX, |world| world.told() >= TOLD_MIN).await {
        world.oracle.fail("I7: everything comes right: no client is answered".to_owned());
    }
    world.forget_plans();
}

/// Looks at those that are up until they serve, or have said why they do not.
async fn settle(world: &mut World, case: &Case, holders: &BTreeSet<InstanceId>) {
    let is_up = |id: &InstanceId| world.instances[id].is_running();
    // A crash may have taken the entry that founds: that is known when the logs have been opened.
    let mut holders = holders.clone();
    holders.retain(|id| !(is_up(id) && world.oracle.was_empty(*id)));
    let up: Vec<InstanceId> = IDS.into_iter().filter(is_up).collect();
    let is_lost = |id: &InstanceId| !holders.is_empty() && case.lost.contains(id);
    let (lost, good): (Vec<_>, Vec<_>) = up.iter().copied().partition(|id| is_lost(id));
    let knows = good.iter().any(|id| holders.contains(id));
    let serve = if holders.is_empty() { good.len() == 3 } else { knows && good.len() > 1 };
    let have_ended =
        |world: &World| !knows || lost.iter().all(|id| world.instances[id].last_words().is_some());
    let serves = |world: &World, id: &InstanceId| world.instances[id].is_serving();
    if serve {
        let back = |world: &World| good.iter().all(|id| serves(world, id));
        if !world.wait_for(SERVES_MAX, back).await {
            let says: Vec<_> = good.iter().map(|id| world.instances[id].says()).collect();
            return world.oracle.fail(format!("A1: what was not lost comes back: {says:?}"));
        }
    } else {
        world.pass(WAITS).await;
        let named = |world: &World| IDS.iter().all(|id| names(world, *id).is_ok());
        if up.iter().any(|id| serves(world, id)) {
            return world.oracle.fail(format!("A1: without a majority none serves: {up:?}"));
        }
        if !world.wait_for(SERVES_MAX, named).await {
            let all: Result<(), String> = IDS.iter().try_for_each(|id| names(world, *id));
            let why = all.err().unwrap_or_default();
            return world.oracle.fail(format!("A1: what is waited for is named: {why}"));
        }
    }
    if !world.wait_for(SERVES_MAX, have_ended).await {
        world.oracle.fail(format!("A1: an instance whose disk was lost ends: {lost:?}"));
    }
}

/// Whether an instance, if it runs, names all the others that do not.
fn names(world: &World, id: InstanceId) -> Result<(), String> {
    let instance = &world.instances[&id];
    if !instance.is_running() {
        return Ok(());
    }
    let says = instance.says();
    let away = IDS.into_iter().filter(|other| !world.instances[other].is_running());
    for other in away {
        if !says.contains(&format!("{0} (instance-{0}:1)", other.0)) {
            return Err(format!("{id:?} does not name {other:?}: {says:?}"));
        }
    }
    Ok(())
}

fn assert_passes(number: usize, case: &Case, outcome: &Outcome) {
    if let Some(failure) = &outcome.failure {
        panic!("{}\ncase {number} fails: {failure}\n{case:?}", outcome.trace);
    }
}

/// Without `EMNETCHAIN_SIM_SECONDS` it draws some cases, by the seed that is given or a new one;
/// with it, it goes through all of them as far as the time suffices. `EMNETCHAIN_SIM_CASE` plays
/// one.
#[test]
fn lost_disks() {
    let cases: Vec<(usize, Case)> = Case::all().into_iter().enumerate().collect();
    let (begun, budget) = (emnetchain::clock::now(), given_budget());
    let mut chance = Chance::from_seed(Chance::given_seed().unwrap_or_else(Chance::any_seed));
    let mut chosen = cases.clone();
    if let Ok(number) = std::env::var("EMNETCHAIN_SIM_CASE") {
        chosen = vec![cases[number.parse::<usize>().expect("the number of a case")].clone()];
    } else if budget.is_none() {
        chance.shuffle(&mut chosen);
        chosen.truncate(CASES_DRAWN);
    }
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some((number, case)) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
            if budget.is_some_and(|budget| emnetchain::clock::now() - begun > budget) {
                return;
            }
            assert_passes(*number, case, &run_case(*number as u64, case));
        }
    };
    let workers = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            worker.join().unwrap_or_else(|why| std::panic::resume_unwind(why));
        }
    });
    let tried = next.into_inner().min(chosen.len());
    eprintln!("{tried} of {} cases of lost disks", cases.len());
}
