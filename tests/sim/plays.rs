//! What is done with a cluster, move by move, where chance would seldom do it: each play is about
//! one promise, and fails if it is broken.

use std::time::Duration;

use emnetchain::{
    cluster::{admin::Change, lives::LOST_AFTER},
    ids::InstanceId,
    limits::DISK_WAIT_MAX,
    raft::Member,
};

use crate::{
    disk::DIRS,
    faults::{Fault, both},
    founding::Loss,
    now,
    sim_disk::Pace,
    world::{Event, World},
};

/// How long a cluster that nothing is wrong with may take to serve.
const SERVES_MAX: Duration = Duration::from_secs(10);

/// How long an instance that must end, or leave service, may take.
const ENDS_MAX: Duration = Duration::from_secs(10);

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

impl World {
    /// Lets so much time pass.
    pub(crate) async fn pass(&mut self, time: Duration) {
        self.go_on_until(now() + time).await;
    }

    /// Lets time pass until something holds. False if that takes longer than `most`.
    pub(crate) async fn wait_for(&mut self, most: Duration, holds: impl Fn(&Self) -> bool) -> bool {
        let end = now() + most;
        while !holds(self) {
            if now() >= end || self.oracle.failure().is_some() {
                return false;
            }
            self.pass(ms(50)).await;
        }
        true
    }

    /// Waits until all serve.
    async fn all_serve(&mut self) -> bool {
        let serves = |world: &Self| world.instances.values().all(|it| it.is_serving());
        let all = self.wait_for(SERVES_MAX, serves).await;
        if !all {
            self.oracle.fail("I7: everything comes right: not all serve".to_owned());
        }
        all
    }

    /// The leader, and the others in any order.
    fn roles(&mut self) -> (InstanceId, Vec<InstanceId>) {
        let mut others = self.ids();
        self.chance.shuffle(&mut others);
        let leader = self.leader().unwrap_or(others[0]);
        others.retain(|id| *id != leader);
        (leader, others)
    }

    /// Waits until an instance has ended for good, which it may only with these words.
    async fn ends(&mut self, id: InstanceId, promise: &str) {
        let over = |world: &Self| world.instances[&id].last_words().is_some();
        if !self.wait_for(ENDS_MAX, over).await {
            self.oracle.fail(format!("{promise}: {id:?} runs on"));
        }
    }

    fn cut_pairs(&mut self, pairs: &[(InstanceId, InstanceId)]) {
        for way in pairs.iter().copied().flat_map(both) {
            self.network.set_cut(way, true);
        }
    }
}

/// Again and again the leader loses its power and comes back before the others have missed it.
pub(crate) async fn leader_comes_back(world: &mut World) {
    for _ in 0..20 {
        world.pass(ms(700)).await;
        if let Some(leader) = world.leader() {
            world.crash(leader);
        }
        world.pass(ms(20)).await;
        world.restart_all();
    }
}

/// B1: every sync takes long, and again and again the leader dies.
pub(crate) async fn slow_disks(world: &mut World) {
    let (sync, elected_max) = world.chance.pick(&[(150, 5), (500, 15)]);
    let elected_max = Duration::from_secs(elected_max);
    for id in world.ids() {
        world.instances[&id].disk().set_pace("raft", Some(Pace::Slow(sync, sync)));
    }
    for _ in 0..5 {
        let leads = |world: &World| world.leader().is_some();
        if !world.wait_for(elected_max, leads).await {
            return world.oracle.fail(format!(
                "B1: with syncs of {sync} ms a leader is elected within {elected_max:?}"
            ));
        }
        world.pass(Duration::from_secs(1)).await;
        let leader = world.leader().unwrap_or(InstanceId(1));
        world.crash(leader);
        world.restart_all();
    }
}

/// A4: an older copy of a disk is put back while the only one that knows better is slow to reach,
/// and one that has forgotten asks for a vote.
pub(crate) async fn older_copy(world: &mut World) {
    if !world.all_serve().await {
        return;
    }
    let (knows, others) = world.roles();
    let [old, asks] = others[..] else { unreachable!("there are three") };
    world.pass(ms(700)).await;
    world.instances[&old].disk().keep_copy();
    world.pass(ms(1_500)).await;
    world.crash(old);
    world.instances[&old].disk().put_copy_back();
    world.oracle.loses(old, Loss::Older);
    world.instances.get_mut(&old).expect("it is there").may_end = Some("is an older copy");
    world.crash(asks);
    world.pass(ms(50)).await;
    world.start(asks);
    world.pass(ms(1_500)).await;
    world.cut_pairs(&[(knows, asks)]);
    for way in both((knows, old)) {
        world.network.set_delay(way, 150, 150);
    }
    world.pass(ms(500)).await;
    world.start(old);
    world.pass(ms(3_000)).await;
    world.heal_ways();
    world.ends(old, "A4: an older copy is refused").await;
}

/// A5: an instance comes back with a list that names a stranger.
pub(crate) async fn stranger(world: &mut World) {
    if !world.all_serve().await {
        return;
    }
    let (_, others) = world.roles();
    let instance = world.instances.get_mut(&others[0]).expect("it is there");
    instance.crash();
    instance.list.insert(InstanceId(9), Member::at("instance-9:1".to_owned()));
    instance.may_end = Some("which this history never knew");
    world.start(others[0]);
    world.ends(others[0], "A5: a list that names a stranger is refused").await;
}

/// A6: the registry of one instance is damaged in its memory.
pub(crate) async fn damaged(world: &mut World) {
    if !world.all_serve().await {
        return;
    }
    let (leader, others) = world.roles();
    let hurt = world.chance.pick(&[leader, others[0]]);
    world.oracle.excuse(hurt);
    world.instances[&hurt].damage();
    world.pass(Duration::from_secs(6)).await;
    let serving: Vec<_> =
        world.ids().into_iter().filter(|id| world.instances[id].is_serving()).collect();
    if serving.contains(&hurt) {
        world.oracle.fail(format!("A6: a replica that differs leaves service: {hurt:?}"));
    } else if serving.len() != 2 {
        world.oracle.fail(format!("A6: those that agree go on serving: {serving:?}"));
    }
}

/// B4: the leader of five reaches one other only; that one and two more reach each other, and the
/// fifth is down.
pub(crate) async fn leader_cut_off(world: &mut World) {
    if !world.all_serve().await {
        return;
    }
    let (leader, others) = world.roles();
    world.look_on();
    let (friend, rest) = others.split_first().expect("there are four");
    let (gone, rest) = rest.split_first().expect("there are three");
    world.oracle.note(format!("{leader:?} reaches {friend:?} only, {gone:?} is down"));
    world.crash(*gone);
    let pairs: Vec<_> = rest.iter().map(|other| (leader, *other)).collect();
    world.cut_pairs(&pairs);
    world.feel();
    world.pass(Duration::from_secs(20)).await;
    world.heal(Fault::Down(*gone));
}

/// B8: a member comes back at another address, which the operator tells the others.
pub(crate) async fn moves(world: &mut World) {
    if !world.all_serve().await {
        return;
    }
    let (leader, others) = world.roles();
    let moved = others[0];
    world.crash(moved);
    world.pass(LOST_AFTER + ms(500)).await;
    let member = Member::at(format!("instance-{}:2", moved.0));
    world.network.move_to(moved, &member.raft_addr);
    let change = Change::Add { instance: moved, member };
    let oracle = world.oracle.clone();
    world.instances[&leader].spawn(|cluster| async move {
        let changed = cluster.change(change.clone()).await;
        oracle.note(format!("{change:?}: {changed:?}"));
    });
    world.pass(ms(1_000)).await;
    world.start(moved);
    let serves = |world: &World| world.instances[&moved].is_serving();
    if !world.wait_for(SERVES_MAX, serves).await {
        world.oracle.fail(format!("B8: a member is reached where it is now: {moved:?}"));
    }
}

impl World {
    /// Whether the cluster of a play has to come right in the end.
    pub(crate) fn comes_right(&self) -> bool {
        self.instances.values().all(|it| it.last_words().is_none()) && !self.oracle.excuses_any()
    }
}

/// B5: all stand still, as on a machine that sleeps, and go on.
pub(crate) async fn all_sleep(world: &mut World) {
    if !world.all_serve().await {
        return;
    }
    for _ in 0..2 {
        let ids = world.ids();
        ids.iter().for_each(|id| world.instances[id].set_paused(true));
        world.pass(Duration::from_secs(5)).await;
        world.heal(Fault::Paused(ids));
        world.pass(Duration::from_secs(2)).await;
    }
}

/// S1: the leader hears the others, and for a while they do not hear its answers.
pub(crate) async fn answers_lost(world: &mut World) {
    if !world.all_serve().await {
        return;
    }
    for _ in 0..6 {
        let (leader, others) = world.roles();
        world.network.set_cut((leader, others[0]), true);
        world.pass(ms(400)).await;
        world.network.reset((leader, others[0]));
        world.heal_ways();
        world.pass(ms(600)).await;
    }
}

impl World {
    /// From here on it is looked whether those that are well serve.
    fn look_on(&mut self) {
        self.forget_plans();
        self.is_wild = true;
        self.ids().into_iter().for_each(|id| self.plan(1, 100, Event::Probe(id)));
        self.plan(1, 1, Event::Look);
        self.feel();
    }
}

/// L3: two are cut off one after the other, long enough that the others give them up.
pub(crate) async fn given_up(world: &mut World) {
    if !world.all_serve().await {
        return;
    }
    let (leader, others) = world.roles();
    world.look_on();
    for id in &others {
        let pairs: Vec<_> =
            world.ids().into_iter().filter(|it| it != id).map(|it| (it, *id)).collect();
        world.cut_pairs(&pairs);
        world.feel();
        world.pass(LOST_AFTER + Duration::from_secs(2)).await;
        world.heal_ways();
        world.feel();
        world.pass(Duration::from_secs(2)).await;
    }
    world.oracle.note(format!("{leader:?} led while {others:?} were given up"));
    world.pass(Duration::from_secs(14)).await;
}

/// L3, B3: the leader's disk hangs. The others serve, and in the end it gives up.
pub(crate) async fn leader_hangs(world: &mut World) {
    for id in world.ids() {
        world.crash(id);
        world.instances.get_mut(&id).expect("it is there").may_end = Some("the disk hangs");
        world.start(id);
    }
    if !world.all_serve().await {
        return;
    }
    let (leader, _) = world.roles();
    world.look_on();
    world.pass(ms(500)).await;
    for dir in DIRS {
        world.instances[&leader].disk().set_pace(dir, Some(Pace::Hangs));
    }
    world.feel();
    world.pass(DISK_WAIT_MAX).await;
    world.ends(leader, "B3: an instance whose disk hangs ends").await;
}
