//! Faults: each begins, lasts for a while, and is over when all instances are whole and run.

use std::{thread, time::Duration};

use super::{fleet::Fleet, random::Random};

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
}

/// What packets in a hundred [`Fault::Lose`] loses.
const LOST_PERCENT: u8 = 20;

impl Fault {
    /// Whether there is a majority all the time, so that some clients must be answered meanwhile.
    pub(crate) fn leaves_a_majority(self) -> bool {
        self != Self::KillAll
    }

    /// Has it happen, and returns when it is over, with the number of kills.
    pub(crate) fn happen(self, fleet: &mut Fleet, random: &mut Random) -> usize {
        let ids: Vec<u8> = fleet.ids().collect();
        // The leader is the most interesting victim.
        let victim = match (random.below(3), fleet.leader()) {
            (0, Some(leader)) => leader,
            _ => *random.pick(&ids).expect("there are instances"),
        };
        let others: Vec<u8> = ids.iter().copied().filter(|id| *id != victim).collect();
        match self {
            Self::Kill => {
                fleet.take(victim).kill();
                fleet.start_one(victim);
            }
            Self::KillAll => {
                ids.iter().for_each(|id| fleet.take(*id).kill());
                let mut order = ids.clone();
                for end in (1..order.len()).rev() {
                    order.swap(end, random.below(end + 1));
                }
                order.iter().for_each(|id| fleet.start_one(*id));
            }
            Self::Freeze => {
                fleet.at(victim).signal("STOP");
                last(random);
                fleet.at(victim).signal("CONT");
            }
            Self::Part => {
                others.iter().for_each(|other| cut_both_ways(fleet, victim, *other));
                last(random);
                fleet.ids().for_each(|id| fleet.net.heal(id));
            }
            Self::PartOneWay => {
                let is_deaf = random.below(2) == 0;
                for other in &others {
                    let (from, to) = if is_deaf { (*other, victim) } else { (victim, *other) };
                    fleet.net.cut(from, to);
                }
                last(random);
                fleet.ids().for_each(|id| fleet.net.heal(id));
            }
            Self::PartTwo => {
                let other = *random.pick(&others).expect("there are others");
                cut_both_ways(fleet, victim, other);
                last(random);
                fleet.ids().for_each(|id| fleet.net.heal(id));
            }
            Self::Lose => {
                fleet.net.lose(LOST_PERCENT, victim);
                last(random);
                fleet.net.heal(victim);
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
        }
        fleet.wait_ready();
        match self {
            Self::Kill => 1,
            Self::KillAll => usize::from(*fleet.ids().end()),
            Self::Freeze
            | Self::Part
            | Self::PartOneWay
            | Self::PartTwo
            | Self::Lose
            | Self::RollingRestart => 0,
        }
    }
}

fn cut_both_ways(fleet: &Fleet, one: u8, other: u8) {
    fleet.net.cut(one, other);
    fleet.net.cut(other, one);
}

/// Lasts so long that an instance may be given up, or not.
fn last(random: &mut Random) {
    thread::sleep(Duration::from_millis(200 + random.next() % 4500));
}
