//! Faults: each begins, lasts for a while, and is over when all instances are whole and run.

use std::{os::unix::process::ExitStatusExt as _, thread, time::Duration};

use super::{disk::cut_power, fleet::Fleet, random::Random, slow::FOR_EVER};

/// What may happen to a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// kill -9 of one instance, which is started again at once.
    Kill,
    /// kill -9 of all, which are started again in any order.
    KillAll,
    /// One instance stands still.
    Freeze,
    /// One instance and the others do not hear each other.
    Part,
    /// One instance is heard by the others and does not hear them, or the other way round.
    PartOneWay,
    /// One instance and another one do not hear each other.
    PartTwo,
    /// A fifth of what arrives at an instance is lost.
    Lose,
    /// One instance after the other is stopped in order and started again.
    RollingRestart,
    /// The power of one instance's disk is cut.
    CutPower,
    /// The power of all disks is cut at once.
    CutPowerOfAll,
    /// The syncs of one instance are slow.
    SlowDisk,
    /// The syncs of all are slow, and the leader is killed meanwhile.
    SlowDisks,
    /// The syncs of one instance do not return for a while.
    HangingDisk,
    /// The file system of one instance is frozen for a moment.
    FrozenDisk,
    /// The file system of one instance is frozen until the instance gives it up.
    DeadDisk,
    /// One instance comes back with an empty disk, is refused, and replaced by a new one.
    Wipe,
    /// One instance comes back with an older copy of its disk, is refused, and replaced.
    OlderCopy,
    /// Two instances come back with each other's disks, are refused, and get their own back.
    Exchange,
    /// A new instance is taken in, and one that serves is taken out.
    Replace,
}

/// What packets in a hundred [`Fault::Lose`] loses.
const LOST_PERCENT: u8 = 20;

/// How long slow syncs take. Those of 500 ms are for one instance only: if all take as long, a
/// client gives up before it can be answered.
const SYNCS: [Duration; 4] = [
    Duration::from_millis(20),
    Duration::from_millis(100),
    Duration::from_millis(150),
    Duration::from_millis(500),
];

/// Within what time clients are answered again.
const SOON: Duration = Duration::from_secs(10);

impl Fault {
    /// Within what time some client must be answered at any moment of it; `None` if there is no
    /// majority all the time. An election takes a second or two, and clients try an instance for
    /// as long before they go to another; a busy machine takes its time as well.
    pub(crate) fn answers_within(self, members: usize) -> Option<Duration> {
        match self {
            Self::KillAll | Self::CutPowerOfAll => None,
            Self::Exchange => (members > 4).then_some(SOON),
            Self::SlowDisks => Some(2 * SOON),
            Self::Kill
            | Self::Freeze
            | Self::Part
            | Self::PartOneWay
            | Self::PartTwo
            | Self::Lose
            | Self::RollingRestart
            | Self::CutPower
            | Self::SlowDisk
            | Self::HangingDisk
            | Self::FrozenDisk
            | Self::DeadDisk
            | Self::Wipe
            | Self::OlderCopy
            | Self::Replace => Some(SOON),
        }
    }

    /// Has it happen, and returns when it is over, with the number of kills.
    pub(crate) fn happen(self, fleet: &mut Fleet, random: &mut Random) -> usize {
        let ids = fleet.ids();
        // The leader is the most interesting victim.
        let victim = match (random.below(3), fleet.leader()) {
            (0, Some(leader)) => leader,
            _ => *random.pick(&ids).expect("there are instances"),
        };
        let others = fleet.others(victim);
        let other = *random.pick(&others).expect("there are others");
        let mut kills = 0;
        match self {
            Self::Kill => {
                kills += 1;
                fleet.take(victim).kill();
                fleet.start_one(victim);
            }
            Self::KillAll => {
                kills += ids.len();
                ids.iter().for_each(|id| fleet.take(*id).kill());
                random.shuffled(&ids).into_iter().for_each(|id| fleet.start_one(id));
            }
            Self::Freeze => {
                fleet.at(victim).signal("STOP");
                last(random);
                fleet.at(victim).signal("CONT");
            }
            Self::Part | Self::PartOneWay | Self::PartTwo | Self::Lose => {
                self.break_network(fleet, random, victim, other);
            }
            Self::RollingRestart => {
                for id in ids {
                    let mut service = fleet.take(id);
                    let status = service.stop();
                    assert_eq!(status.code(), Some(0), "{}", service.log());
                    fleet.start_one(id);
                    fleet.wait_ready();
                }
            }
            Self::CutPower
            | Self::CutPowerOfAll
            | Self::SlowDisk
            | Self::SlowDisks
            | Self::HangingDisk
            | Self::FrozenDisk
            | Self::DeadDisk => self.slow_or_cut(fleet, random, victim, &mut kills),
            Self::Wipe | Self::OlderCopy | Self::Exchange => {
                kills += self.lose_a_disk(fleet, victim, other);
            }
            Self::Replace => {
                fleet.grow();
                fleet.shrink(victim);
            }
        }
        fleet.wait_ready();
        kills
    }

    /// What happens to disks that keep what they have acknowledged.
    fn slow_or_cut(self, fleet: &mut Fleet, random: &mut Random, victim: u8, kills: &mut usize) {
        match self {
            Self::CutPower => lose_power(fleet, &[victim]),
            Self::CutPowerOfAll => {
                let ids = random.shuffled(&fleet.ids());
                lose_power(fleet, &ids);
            }
            Self::SlowDisk => {
                fleet.disk(victim).take(*random.pick(&SYNCS).expect("some"));
                last(random);
                fleet.disk(victim).take(Duration::ZERO);
            }
            Self::SlowDisks => {
                *kills += 1;
                let time = *random.pick(&SYNCS[..3]).expect("some");
                fleet.disks().for_each(|disk| disk.take(time));
                last(random);
                let leader = fleet.leader().unwrap_or(victim);
                fleet.take(leader).kill();
                last(random);
                fleet.start_one(leader);
                last(random);
                fleet.disks().for_each(|disk| disk.take(Duration::ZERO));
            }
            Self::HangingDisk => {
                fleet.disk(victim).take(FOR_EVER);
                last(random);
                fleet.disk(victim).take(Duration::ZERO);
                fleet.start_if_it_gave_up(victim);
            }
            Self::FrozenDisk | Self::DeadDisk => {
                let frozen = fleet.disk(victim).freeze();
                fleet.wait_for_hang(victim);
                if self == Self::DeadDisk {
                    fleet.wait_for_log(victim, "the disk has not answered for 30 s");
                }
                last(random);
                drop(frozen);
                fleet.start_if_it_gave_up(victim);
            }
            other => unreachable!("{other:?} is none of them"),
        }
    }

    /// What happens to a disk that does not keep what it has acknowledged; returns the kills.
    fn lose_a_disk(self, fleet: &mut Fleet, victim: u8, other: u8) -> usize {
        let mut kills = 0;
        match self {
            Self::Wipe => {
                kills += 1;
                fleet.take(victim).kill();
                fleet.disk(victim).wipe();
                fleet.start_refused(victim);
                fleet.grow();
                fleet.shrink(victim);
            }
            Self::OlderCopy => {
                kills += 2;
                fleet.take(victim).kill();
                fleet.disk(victim).copy();
                fleet.start_one(victim);
                fleet.wait_ready();
                fleet.wait_for_progress(victim);
                fleet.take(victim).kill();
                fleet.disk(victim).put_back();
                fleet.start_refused(victim);
                fleet.grow();
                fleet.shrink(victim);
            }
            Self::Exchange => {
                kills += 2;
                [victim, other].iter().for_each(|id| fleet.take(*id).kill());
                fleet.disk(victim).exchange(fleet.disk(other));
                [victim, other].iter().for_each(|id| drop(fleet.start_refused(*id)));
                fleet.disk(victim).exchange(fleet.disk(other));
                [victim, other].iter().for_each(|id| fleet.start_one(*id));
            }
            other => unreachable!("{other:?} is none of them"),
        }
        kills
    }

    /// What happens to the network alone.
    fn break_network(self, fleet: &Fleet, random: &mut Random, victim: u8, other: u8) {
        let others = fleet.others(victim);
        match self {
            Self::Part => others.iter().for_each(|other| cut_both_ways(fleet, victim, *other)),
            Self::PartOneWay => {
                let is_deaf = random.below(2) == 0;
                for other in others {
                    let (from, to) = if is_deaf { (other, victim) } else { (victim, other) };
                    fleet.net.cut(from, to);
                }
            }
            Self::PartTwo => cut_both_ways(fleet, victim, other),
            Self::Lose => fleet.net.lose(LOST_PERCENT, victim),
            other => unreachable!("{other:?} is none of the network"),
        }
        last(random);
        fleet.ids().into_iter().for_each(|id| fleet.net.heal(id));
    }
}

fn cut_both_ways(fleet: &Fleet, one: u8, other: u8) {
    fleet.net.cut(one, other);
    fleet.net.cut(other, one);
}

/// Cuts the power of these at once. They start again, in this order, with what their disks have.
fn lose_power(fleet: &mut Fleet, ids: &[u8]) {
    cut_power(ids.iter().map(|id| fleet.disk(*id)));
    for id in ids {
        let mut service = fleet.take(*id);
        // It may have noticed, and then it must have said so; or it had nothing to write yet.
        let status = service.end();
        let is_right = status.code() == Some(74) || status.signal() == Some(9);
        assert!(is_right, "{status}: {}", service.log());
    }
    for id in ids {
        fleet.disk(*id).restore_power();
        fleet.start_one(*id);
    }
}

/// Lasts long enough that an instance may be given up, or not.
fn last(random: &mut Random) {
    thread::sleep(Duration::from_millis(200 + random.next() % 4500));
}
