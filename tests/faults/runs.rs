//! The runs: clients at work, and faults that happen to the cluster one after another.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use emnetchain::clock;

use super::{
    crowd::{Crowd, assert_all_is_as_told},
    disk::Disks,
    fleet::{Fleet, Protection},
    history::History,
    kinds::Fault,
    name::Name,
    net::wait_for_names,
    random::Random,
    support::{eventually, privileged::may_run},
};

/// Deadlines that do not pass during a run, so that only repairs may end a link.
const UNHURRIED: [&str; 8] =
    ["--gather", "1h", "--resume-grace", "1h", "--retention", "24h", "--shutdown-deadline", "2s"];

/// Answers between two faults at least, for a fault that hits nothing proves nothing.
const ANSWERS_MIN: u64 = 20;

/// What a run does.
struct Plan {
    name: &'static str,
    instances: u8,
    protection: Protection,
    disks: Disks,
    faults: &'static [Fault],
    /// How many faults happen at least; without work to do, for each unit of `EMNETCHAIN_FAULTS`.
    rounds: usize,
    /// How many CONNECTs and repairs are finished at least, for each unit of it.
    work: (usize, usize),
}

impl Plan {
    const fn new(name: &'static str, faults: &'static [Fault], rounds: usize) -> Self {
        let (protection, disks) = (Protection::None, Disks::Plain);
        Self { name, instances: 3, protection, disks, faults, rounds, work: (0, 0) }
    }
}

/// One run at a time: they would starve each other.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// By how much a run is longer than in a test of every day.
fn scale() -> usize {
    match std::env::var("EMNETCHAIN_FAULTS") {
        Ok(text) => text.parse().expect("a number"),
        Err(_) => 1,
    }
}

/// Answers before, during and after faults.
#[derive(Debug, Default)]
struct Tally {
    before: u64,
    during: u64,
    rounds_with_answers: usize,
    kills: usize,
    /// The longest time without any answer while there was a majority.
    silence: Duration,
}

fn run(plan: &Plan) {
    let tools: &[&str] = match plan.disks {
        Disks::Plain => &[],
        Disks::Powered => &["unshare", "nsenter", "mkfs.ext4", "python3", "fsfreeze"],
        Disks::Slowed => &["cc"],
    };
    if !may_run(plan.name, "root", &[&["ip", "nft", "dnsmasq"], tools].concat()) {
        return;
    }
    let _turn = turn();
    let mut random = Random::new(plan.name);
    let mut fleet = Fleet::start(plan.instances, plan.protection, plan.disks, &UNHURRIED);
    let name = Name::new(fleet.net.dns(), random.fork());
    wait_for_names(|| name.look_up().map_or(0, |all| all.len()), plan.instances);
    let history = History::default();
    let crowd = Crowd::new(&name, &history);
    let mut choices = random.fork();
    let began = clock::now();
    let (rounds, (connects_min, repairs_min)) = match plan.work {
        (0, 0) => (plan.rounds * scale(), (0, 0)),
        (connects, repairs) => (plan.rounds, (connects * scale(), repairs * scale())),
    };
    let mut tally = Tally::default();
    let mut round = 0;
    let (_, _tip) = crowd.work_while(&mut random, || {
        while round < rounds || crowd.connects() < connects_min || history.repairs() < repairs_min {
            let earlier = history.count();
            let enough = earlier + ANSWERS_MIN + choices.next() % 100;
            eventually("clients are answered", || (history.count() >= enough).then_some(()));
            let fault = *choices.pick(plan.faults).expect("there are faults");
            let (before, began) = (history.count(), clock::now());
            let deadline = fault.answers_within(fleet.ids().len());
            tally.before += before - earlier;
            eprintln!("{}: {fault:?}", plan.name);
            tally.kills += fault.happen(&mut fleet, &mut choices);
            let during = history.count() - before;
            tally.during += during;
            tally.rounds_with_answers += usize::from(during > 0 || deadline.is_none());
            let enough = history.count() + ANSWERS_MIN;
            eventually("clients are answered again", || (history.count() >= enough).then_some(()));
            if let Some(deadline) = deadline {
                let silence = history.longest_silence(began);
                tally.silence = tally.silence.max(silence);
                assert!(silence <= deadline, "{fault:?}: for {silence:?} no client was answered");
            }
            round += 1;
        }
    });
    let seconds = (clock::now() - began).as_secs_f64();
    eprintln!(
        "{}: {round} faults, {} kills in {seconds:.0} s; {} CONNECTs and {} repairs answered; \
         {} answers before faults, {} during faults, at most {:.1} s without one; \
         {} clients in the chain, {} left",
        plan.name,
        tally.kills,
        crowd.connects(),
        history.repairs(),
        tally.before,
        tally.during,
        tally.silence.as_secs_f64(),
        history.settled().len(),
        history.gone(),
    );
    assert!(
        2 * tally.rounds_with_answers >= round,
        "void: in only {} of {round} faults was a client answered",
        tally.rounds_with_answers,
    );
    assert_all_is_as_told(fleet.any(), &name, &history);
    fleet.assert_equal_registries();
}

#[test]
fn kills_of_one_instance_after_the_other() {
    let plan = Plan { work: (1000, 200), ..Plan::new("kills_of_one", &[Fault::Kill], 40) };
    run(&plan);
}

#[test]
fn kills_of_all() {
    run(&Plan::new("kills_of_all", &[Fault::KillAll], 20));
}

#[test]
fn freezes() {
    run(&Plan::new("freezes", &[Fault::Freeze], 4));
}

#[test]
fn partitions() {
    let faults = &[Fault::Part, Fault::PartOneWay, Fault::PartTwo];
    let plan = Plan { protection: Protection::Certificates, ..Plan::new("partitions", faults, 6) };
    run(&plan);
}

#[test]
fn lost_packets() {
    run(&Plan::new("lost_packets", &[Fault::Lose], 3));
}

#[test]
fn rolling_restarts() {
    run(&Plan::new("rolling_restarts", &[Fault::RollingRestart], 2));
}

#[test]
fn everything_to_five_instances() {
    let faults =
        &[Fault::Kill, Fault::Freeze, Fault::Part, Fault::PartOneWay, Fault::PartTwo, Fault::Lose];
    run(&Plan { instances: 5, ..Plan::new("everything_to_five", faults, 6) });
}

#[test]
fn power_cuts() {
    let faults = &[Fault::CutPowerOfAll, Fault::CutPowerOfAll, Fault::CutPower];
    run(&Plan { disks: Disks::Powered, ..Plan::new("power_cuts", faults, 8) });
}

#[test]
fn frozen_disks() {
    let faults = &[Fault::FrozenDisk, Fault::DeadDisk];
    run(&Plan { disks: Disks::Powered, ..Plan::new("frozen_disks", faults, 3) });
}

#[test]
fn slow_disks() {
    let faults = &[Fault::SlowDisk, Fault::SlowDisks, Fault::HangingDisk];
    run(&Plan { disks: Disks::Slowed, ..Plan::new("slow_disks", faults, 4) });
}

#[test]
fn slow_disks_of_five() {
    let faults = &[Fault::SlowDisk, Fault::SlowDisks, Fault::HangingDisk];
    run(&Plan { instances: 5, disks: Disks::Slowed, ..Plan::new("slow_disks_of_five", faults, 3) });
}

#[test]
fn replaced_instances() {
    run(&Plan::new("replaced_instances", &[Fault::Replace], 3));
}

#[test]
fn exchanged_disks() {
    run(&Plan::new("exchanged_disks", &[Fault::Exchange], 2));
}

#[test]
fn lost_disks() {
    run(&Plan::new("lost_disks", &[Fault::Wipe, Fault::OlderCopy], 3));
}

#[test]
fn lost_disks_of_five() {
    let faults = &[Fault::Wipe, Fault::OlderCopy, Fault::Exchange, Fault::Replace];
    run(&Plan { instances: 5, ..Plan::new("lost_disks_of_five", faults, 4) });
}
