//! The order of one chain's clients, where it is not that of their serials any more.
//!
//! A run is a list of *sections*, and a section is all clients of the chain in a range of serials.
//! Records hold the ranges, and which section comes next; this is what is derived from them: for
//! each run a balanced tree of its sections, each node with the sums over its part of the run. So
//! the run of a client, its next asking section, and how many clients a run has are found in
//! O(log n), and so is the run cut and joined.
//!
//! The trees are treaps (Seidel and Aragon, 1996): a node is above those of lower priority, and
//! the priorities are scrambled serials, so every replica has the same trees. No client is shown a
//! serial, so none can choose them for a tree that is not balanced.

use std::collections::{BTreeMap, BTreeSet};

use super::{Serial, shares::Spare};

/// The serial of a section's record.
pub(super) type SectionId = Serial;

/// What is summed up over sections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    /// Clients.
    pub(super) clients: u64,
    /// Clients whose heads are not linked.
    pub(super) loose: u64,
    /// Clients that count as first.
    pub(super) marked: u64,
    /// Clients that ask.
    pub(super) asking: u64,
    /// Clients that have no partner and do not ask.
    pub(super) lone: u64,
}

impl Sums {
    fn plus(self, other: Self) -> Self {
        Self {
            clients: self.clients + other.clients,
            loose: self.loose + other.loose,
            marked: self.marked + other.marked,
            asking: self.asking + other.asking,
            lone: self.lone + other.lone,
        }
    }

    /// Whether there are clients that make room as readily as that.
    pub(super) fn spares(self, spare: Spare) -> bool {
        match spare {
            Spare::Asks => self.clients > 0,
            Spare::Silent => self.clients > self.asking,
            Spare::Lone => self.lone > 0,
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Node {
    first: Serial,
    /// `None`: to the end, whatever comes.
    last: Option<Serial>,
    own: Sums,
    /// Over the node and all below it.
    sum: Sums,
    above: Option<SectionId>,
    left: Option<SectionId>,
    right: Option<SectionId>,
}

/// The sections of a chain; none, as long as all its clients are in the order of their serials.
#[derive(Clone, Debug, Default)]
pub(super) struct Sections {
    nodes: BTreeMap<SectionId, Node>,
    by_first: BTreeMap<Serial, SectionId>,
    /// The first section of each run.
    fronts: BTreeSet<SectionId>,
    /// The first sections of the runs that have silent clients, and of those that have lone ones.
    spare_fronts: BTreeSet<(Spare, SectionId)>,
}

/// Equal sections in equal runs; the shapes of the trees follow from them.
impl PartialEq for Sections {
    fn eq(&self, other: &Self) -> bool {
        let seen = |sections: &Self| -> Vec<_> {
            let node = |(id, node): (&SectionId, &Node)| {
                (*id, node.first, node.last, node.own, sections.after(*id))
            };
            sections.nodes.iter().map(node).collect()
        };
        let fronts = |sections: &Self| (sections.fronts.clone(), sections.spare_fronts.clone());
        fronts(self) == fronts(other) && seen(self) == seen(other)
    }
}

impl Eq for Sections {}

impl Sections {
    /// Whether all clients are in the order of their serials.
    pub(super) fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The section that has this serial in its range.
    pub(super) fn find(&self, serial: Serial) -> Option<SectionId> {
        let (_, id) = self.by_first.range(..=serial).next_back()?;
        self.nodes[id].last.is_none_or(|last| serial <= last).then_some(*id)
    }

    /// The section that newcomers are in.
    pub(super) fn open(&self) -> Option<SectionId> {
        let (_, id) = self.by_first.last_key_value()?;
        Some(*id)
    }

    /// The sections beside this one in the order of serials.
    pub(super) fn beside(&self, first: Serial) -> [Option<SectionId>; 2] {
        let before = self.by_first.range(..first).next_back().map(|(_, id)| *id);
        let after = self.by_first.range(Serial(first.0 + 1)..).next().map(|(_, id)| *id);
        [before, after]
    }

    /// The range of a section: its first serial, and the first one behind it.
    pub(super) fn range(&self, id: SectionId) -> (Serial, Serial) {
        let node = &self.nodes[&id];
        (node.first, node.last.map_or(Serial(u64::MAX), |last| Serial(last.0 + 1)))
    }

    pub(super) fn own(&self, id: SectionId) -> Sums {
        self.nodes[&id].own
    }

    /// The first section of each run.
    pub(super) fn fronts(&self) -> impl DoubleEndedIterator<Item = SectionId> + '_ {
        self.fronts.iter().copied()
    }

    pub(super) fn insert(&mut self, id: SectionId) {
        self.nodes.insert(id, Node::default());
        self.fronts.insert(id);
    }

    /// Takes out a section that is a run of its own.
    pub(super) fn remove(&mut self, id: SectionId) {
        self.nodes.remove(&id);
        self.forget_front(id);
    }

    fn forget_front(&mut self, id: SectionId) {
        self.fronts.remove(&id);
        for spare in [Spare::Silent, Spare::Lone] {
            self.spare_fronts.remove(&(spare, id));
        }
    }

    /// Takes note of what the run of a section could give to make room.
    fn rate(&mut self, id: SectionId) {
        let (sums, (front, _)) = (self.run(id), self.ends(id));
        for spare in [Spare::Silent, Spare::Lone] {
            match sums.spares(spare) {
                true => self.spare_fronts.insert((spare, front)),
                false => self.spare_fronts.remove(&(spare, front)),
            };
        }
    }

    /// The first section of a run that has clients as spare as that, and is not the path.
    pub(super) fn spare_front(&self, spare: Spare) -> Option<SectionId> {
        let fronts = self.spare_fronts.range((spare, Serial(0))..=(spare, Serial(u64::MAX)));
        let open = self.open()?;
        fronts.map(|(_, front)| *front).find(|front| !self.is_one_run(*front, open))
    }

    pub(super) fn set_first(&mut self, id: SectionId, first: Serial) {
        self.by_first.insert(first, id);
        self.node(id).first = first;
    }

    pub(super) fn forget_first(&mut self, first: Serial) {
        self.by_first.remove(&first);
    }

    pub(super) fn set_last(&mut self, id: SectionId, last: Option<Serial>) {
        self.node(id).last = last;
    }

    /// Sets what a section has.
    pub(super) fn set_own(&mut self, id: SectionId, own: Sums) {
        self.node(id).own = own;
        let mut at = Some(id);
        while let Some(id) = at {
            self.sum_up(id);
            at = self.nodes[&id].above;
        }
        self.rate(id);
    }

    /// Has one run go on with another: `last` is the last section of the one, `first` the first of
    /// the other.
    pub(super) fn link(&mut self, last: SectionId, first: SectionId) {
        let (left, right) = (self.root(last), self.root(first));
        let root = self.merge(Some(left), Some(right));
        self.set_above(root, None);
        self.forget_front(first);
        self.rate(last);
    }

    /// Has a run end with this section; what came after it is a run of its own.
    pub(super) fn unlink(&mut self, last: SectionId) {
        let Some(first) = self.after(last) else { return };
        let mut path = Vec::new();
        let mut at = last;
        while let Some(above) = self.nodes[&at].above {
            path.push((above, self.nodes[&above].right == Some(at)));
            at = above;
        }
        let mut right = self.node(last).right.take();
        self.sum_up(last);
        let mut left = Some(last);
        for (above, is_right) in path {
            let node = self.node(above);
            if is_right {
                node.right = None;
                self.sum_up(above);
                left = self.merge(Some(above), left);
            } else {
                node.left = None;
                self.sum_up(above);
                right = self.merge(right, Some(above));
            }
        }
        self.set_above(left, None);
        self.set_above(right, None);
        self.fronts.insert(first);
        self.rate(last);
        self.rate(first);
    }

    /// The sums over the run of a section.
    pub(super) fn run(&self, id: SectionId) -> Sums {
        self.nodes[&self.root(id)].sum
    }

    /// The first and the last section of the run of a section.
    pub(super) fn ends(&self, id: SectionId) -> (SectionId, SectionId) {
        let root = self.root(id);
        let (mut first, mut last) = (root, root);
        while let Some(left) = self.nodes[&first].left {
            first = left;
        }
        while let Some(right) = self.nodes[&last].right {
            last = right;
        }
        (first, last)
    }

    pub(super) fn is_one_run(&self, a: SectionId, b: SectionId) -> bool {
        self.root(a) == self.root(b)
    }

    /// The next section of the run.
    pub(super) fn after(&self, id: SectionId) -> Option<SectionId> {
        self.beyond(id, true, |_| true)
    }

    /// The previous section of the run.
    pub(super) fn before(&self, id: SectionId) -> Option<SectionId> {
        self.beyond(id, false, |_| true)
    }

    /// The next section, or the previous one, in which there is something.
    pub(super) fn beyond(
        &self,
        id: SectionId,
        forward: bool,
        has: impl Fn(Sums) -> bool,
    ) -> Option<SectionId> {
        let inner = |node: &Node| if forward { node.right } else { node.left };
        let outer = |node: &Node| if forward { node.left } else { node.right };
        let holds = |id: Option<SectionId>| id.filter(|id| has(self.nodes[id].sum));
        let mut at = id;
        let mut below = holds(inner(&self.nodes[&at]));
        while below.is_none() {
            // Up, until from the near side: that node and what is beyond it come next.
            let above = self.nodes[&at].above?;
            let is_next = outer(&self.nodes[&above]) == Some(at);
            at = above;
            if is_next {
                if has(self.nodes[&at].own) {
                    return Some(at);
                }
                below = holds(inner(&self.nodes[&at]));
            }
        }
        let mut at = below?;
        loop {
            let node = &self.nodes[&at];
            if let Some(nearer) = holds(outer(node)) {
                at = nearer;
            } else if has(node.own) {
                return Some(at);
            } else {
                at = inner(node)?;
            }
        }
    }

    fn node(&mut self, id: SectionId) -> &mut Node {
        self.nodes.entry(id).or_default()
    }

    fn root(&self, id: SectionId) -> SectionId {
        let mut at = id;
        while let Some(above) = self.nodes[&at].above {
            at = above;
        }
        at
    }

    fn set_above(&mut self, id: Option<SectionId>, above: Option<SectionId>) {
        if let Some(id) = id {
            self.node(id).above = above;
        }
    }

    fn sum_up(&mut self, id: SectionId) {
        let node = &self.nodes[&id];
        let below = [node.left, node.right].into_iter().flatten();
        let sum = below.map(|id| self.nodes[&id].sum).fold(node.own, Sums::plus);
        self.node(id).sum = sum;
    }

    /// Joins two trees, all of the one before all of the other.
    fn merge(&mut self, left: Option<SectionId>, right: Option<SectionId>) -> Option<SectionId> {
        let (Some(a), Some(b)) = (left, right) else { return left.or(right) };
        if priority(a) > priority(b) {
            let inner = self.nodes[&a].right;
            let below = self.merge(inner, right);
            self.node(a).right = below;
            self.set_above(below, Some(a));
            self.sum_up(a);
            left
        } else {
            let inner = self.nodes[&b].left;
            let below = self.merge(left, inner);
            self.node(b).left = below;
            self.set_above(below, Some(b));
            self.sum_up(b);
            right
        }
    }
}

/// Scrambles a serial, by the finalizer of SplitMix64 (Steele, Lea and Flood, 2014).
fn priority(id: SectionId) -> u64 {
    let mut bits = id.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs as plain lists, changed at random in the same way.
    #[test]
    fn trees_are_the_lists_that_they_stand_for() {
        let mut sections = Sections::default();
        let mut runs: Vec<Vec<Serial>> = Vec::new();
        let mut owns = BTreeMap::<Serial, Sums>::new();
        let mut bits = 1_u64;
        let mut below = |bound: usize| {
            bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            usize::try_from(bits >> 33).unwrap() % bound
        };
        for n in 0..4000 {
            if n < 300 {
                let id = Serial(n * 10);
                sections.insert(id);
                sections.set_first(id, id);
                sections.set_last(id, Some(Serial(id.0 + 9)));
                runs.push(vec![id]);
                owns.insert(id, Sums::default());
            }
            match below(3) {
                0 if runs.len() > 1 => {
                    let mut run = runs.swap_remove(below(runs.len()));
                    let at = below(runs.len());
                    sections.link(*runs[at].last().unwrap(), run[0]);
                    runs[at].append(&mut run);
                }
                1 => {
                    let run = below(runs.len());
                    let at = below(runs[run].len());
                    sections.unlink(runs[run][at]);
                    let rest = runs[run].split_off(at + 1);
                    runs.extend((!rest.is_empty()).then_some(rest));
                }
                _ => {
                    let run = &runs[below(runs.len())];
                    let id = run[below(run.len())];
                    let own = Sums {
                        clients: below(9) as u64,
                        lone: below(9) as u64 / 8,
                        ..Sums::default()
                    };
                    sections.set_own(id, own);
                    owns.insert(id, own);
                }
            }
            let run = &runs[below(runs.len())];
            let sum = run.iter().map(|id| owns[id]).fold(Sums::default(), Sums::plus);
            let at = below(run.len());
            assert_eq!(sections.run(run[at]), sum);
            assert_eq!(sections.ends(run[at]), (run[0], *run.last().unwrap()));
            assert_eq!(sections.after(run[at]), run.get(at + 1).copied());
            assert_eq!(sections.before(run[at]), at.checked_sub(1).map(|at| run[at]));
            let asks = |id: &&Serial| owns[id].lone > 0;
            let (next, previous) = (run[at + 1..].iter().find(asks), run[..at].iter().rfind(asks));
            assert_eq!(sections.beyond(run[at], true, |sum| sum.lone > 0), next.copied());
            assert_eq!(sections.beyond(run[at], false, |sum| sum.lone > 0), previous.copied());
            assert_eq!(sections.find(Serial(run[at].0 + 5)), Some(run[at]));
            assert_eq!(sections.fronts().collect::<Vec<_>>(), {
                let mut fronts: Vec<_> = runs.iter().map(|run| run[0]).collect();
                fronts.sort();
                fronts
            });
        }
    }
}
