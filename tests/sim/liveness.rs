//! I7: once faults have stopped, everything comes right within a bounded time: one leader, equal
//! registries, and survivors that all ask are one path and know it.

use emnetchain::{
    ids::{ChainName, InstanceId, Part},
    registry::{Client, Place, Side},
};

use crate::{people::Person, world::World};

impl World {
    /// What is not right yet.
    pub(crate) fn complaint(&self) -> Result<(), String> {
        self.instances_agree()?;
        if !self.has_common_ids {
            self.survivors_are_one_path()?;
        }
        self.pairs_are_told()
    }

    fn instances_agree(&self) -> Result<(), String> {
        let mut states = Vec::new();
        let members = self.oracle.members().all();
        for (id, instance) in self.instances.iter().filter(|(id, _)| members.contains(id)) {
            let cluster = instance.cluster().ok_or(format!("{id:?} has not started"))?;
            if !instance.is_serving() {
                return Err(format!("{id:?} does not serve"));
            }
            let status = cluster.status();
            let image = cluster.view().digest().digest;
            states.push((status.leader, status.term, status.applied_index, image));
            if status.role == "leader" && status.leader != Some(*id) {
                return Err(format!("{id:?} leads beside {:?}", status.leader));
            }
        }
        // Probers go on asking, so an entry may be on its way to some.
        let agree = |(leader, term, applied, image): &(Option<InstanceId>, u64, u64, u64)| {
            let (first_leader, first_term, first_applied, first_image) = &states[0];
            let is_led = leader.is_some() && (leader, term) == (first_leader, first_term);
            is_led && (applied != first_applied || image == first_image)
        };
        let same = states.iter().all(agree);
        if same { Ok(()) } else { Err(format!("instances differ: {states:?}")) }
    }

    fn survivors_are_one_path(&self) -> Result<(), String> {
        let path: Vec<(Client, &Person)> = self.oracle.read(|registry| {
            let window = registry.window(&ChainName::default(), Place::Start, usize::MAX);
            let members = window.unwrap_or_default().clients.into_iter();
            let mut path = Vec::new();
            for client in members.filter_map(|serial| registry.client(serial)) {
                let is_its = |person: &&Person| person.head.endpoint() == client.head.0.endpoint();
                let person = self.people.iter().find(is_its).expect("only people are clients");
                if person.is_client {
                    path.push((client.clone(), person));
                }
            }
            path
        });
        for person in self.people.iter().filter(|p| p.alive && p.is_client) {
            if !path.iter().any(|(_, member)| member.number == person.number) {
                return Err(format!("{} is in no path", person.number));
            }
        }
        let is_alive = |(_, person): &&(Client, &Person)| person.alive;
        let first = path.iter().position(|member| is_alive(&member)).unwrap_or_default();
        let last = path.iter().rposition(|member| is_alive(&member)).unwrap_or_default();
        for pair in path.get(first..=last).unwrap_or_default().windows(2) {
            let [(a, left), (b, right)] = pair else { unreachable!("two at a time") };
            let what = format!("from {} to {}", left.number, right.number);
            if !(left.alive && right.alive) {
                return Err(format!("the dead are in the path {what}"));
            }
            let knows = left.told_head == Some(right.tail.endpoint())
                && right.told_tail == Some(left.head.endpoint());
            if !knows {
                return Err(format!("not told {what}: {left:?} {right:?}"));
            }
            // A request that has gone to a leader cannot be taken back. If its way is cut just then
            // and its client hangs up and is told by another instance, it arrives late, and ends a
            // link of which both its clients know: neither has a reason to ask. (Here bytes wait on
            // a cut way for as long as it is cut; a kernel gives them up after 3 s.)
            let sides = [a.side(Part::Head), b.side(Part::Tail)];
            let ended_late = sides.iter().any(|side| side.is_reported())
                && sides.iter().all(|side| matches!(side, Side::Open(_)));
            if !(a.side(Part::Head).is_linked() || ended_late) {
                return Err(format!("no link {what}: {sides:?}"));
            }
        }
        Ok(())
    }

    /// Two sockets with a common id that no chain knows.
    fn pairs_are_told(&self) -> Result<(), String> {
        let strangers: Vec<&Person> =
            self.people.iter().filter(|person| !person.is_client).collect();
        for pair in strangers.chunks(2) {
            let [a, b] = pair else { unreachable!("they come in pairs") };
            let knows =
                a.told_head == Some(b.head.endpoint()) && b.told_head == Some(a.head.endpoint());
            if !knows {
                return Err(format!("the pair {} is not told: {a:?} {b:?}", a.number));
            }
        }
        Ok(())
    }
}
