//! The order of one chain's clients, where it is no longer that of their serials.
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

use super::Serial;

/// The serial of a section's record.
pub(super) type SectionId = Serial;

/// The sums over sections.
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
}

impl Sums {
    pub(super) fn plus(self, other: Self) -> Self {
        self.with(other, |one, other| one + other)
    }

    /// Returns the rest without `other`, which is a part of it.
    pub(super) fn minus(self, other: Self) -> Self {
        self.with(other, |one, other| one - other)
    }

    fn with(self, other: Self, of: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            clients: of(self.clients, other.clients),
            loose: of(self.loose, other.loose),
            marked: of(self.marked, other.marked),
            asking: of(self.asking, other.asking),
        }
    }
}

/// Where a node is among the nodes.
type Slot = usize;

#[derive(Clone, Debug)]
struct Node {
    id: SectionId,
    first: Serial,
    /// `None`: to the end.
    last: Option<Serial>,
    own: Sums,
    /// Over the node and all below it.
    sum: Sums,
    above: Option<Slot>,
    left: Option<Slot>,
    right: Option<Slot>,
}

/// The sections of a chain; none, as long as all its clients are in the order of their serials.
#[derive(Clone, Debug, Default)]
pub(super) struct Sections {
    /// Side by side in memory, because every question is a walk from node to node.
    nodes: Vec<Node>,
    /// The slots of sections that went, to be used again.
    vacant: Vec<Slot>,
    slots: BTreeMap<SectionId, Slot>,
    by_first: BTreeMap<Serial, Slot>,
    /// The first section of each run.
    fronts: BTreeSet<SectionId>,
}

/// Equal sections in equal runs; the shapes of the trees follow from them.
impl PartialEq for Sections {
    fn eq(&self, other: &Self) -> bool {
        let seen = |sections: &Self| -> Vec<_> {
            let node = |(id, slot): (&SectionId, &Slot)| {
                let node = &sections.nodes[*slot];
                (*id, node.first, node.last, node.own, sections.after(*id))
            };
            sections.slots.iter().map(node).collect()
        };
        self.fronts == other.fronts && seen(self) == seen(other)
    }
}

impl Eq for Sections {}

impl Sections {
    /// Returns whether all clients are in the order of their serials.
    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Returns the section that has this serial in its range.
    pub(super) fn find(&self, serial: Serial) -> Option<SectionId> {
        let (_, slot) = self.by_first.range(..=serial).next_back()?;
        let node = &self.nodes[*slot];
        node.last.is_none_or(|last| serial <= last).then_some(node.id)
    }

    /// Returns the section that newcomers are in.
    pub(super) fn open(&self) -> Option<SectionId> {
        let (_, slot) = self.by_first.last_key_value()?;
        Some(self.nodes[*slot].id)
    }

    /// Returns the sections beside this one in the order of serials.
    pub(super) fn beside(&self, first: Serial) -> [Option<SectionId>; 2] {
        let before = self.by_first.range(..first).next_back();
        let after = self.by_first.range(Serial(first.0 + 1)..).next();
        [before, after].map(|side| side.map(|(_, slot)| self.nodes[*slot].id))
    }

    /// Returns the range of a section: its first serial, and the first one behind it.
    pub(super) fn range(&self, id: SectionId) -> (Serial, Serial) {
        let node = &self.nodes[self.slots[&id]];
        (node.first, node.last.map_or(Serial(u64::MAX), |last| Serial(last.0 + 1)))
    }

    pub(super) fn own(&self, id: SectionId) -> Sums {
        self.nodes[self.slots[&id]].own
    }

    /// Returns the first section of each run.
    pub(super) fn fronts(&self) -> impl DoubleEndedIterator<Item = SectionId> + '_ {
        self.fronts.iter().copied()
    }

    pub(super) fn insert(&mut self, id: SectionId) {
        let node = Node {
            id,
            first: Serial(0),
            last: None,
            own: Sums::default(),
            sum: Sums::default(),
            above: None,
            left: None,
            right: None,
        };
        let slot = self.vacant.pop().unwrap_or(self.nodes.len());
        match self.nodes.get_mut(slot) {
            Some(vacant) => *vacant = node,
            None => self.nodes.push(node),
        }
        self.slots.insert(id, slot);
        self.fronts.insert(id);
    }

    /// Takes out a section that is a run of its own.
    pub(super) fn remove(&mut self, id: SectionId) {
        self.vacant.extend(self.slots.remove(&id));
        self.fronts.remove(&id);
        if self.slots.is_empty() {
            *self = Self::default(); // gives the memory back
        }
    }

    pub(super) fn set_first(&mut self, id: SectionId, first: Serial) {
        let slot = self.slots[&id];
        self.by_first.insert(first, slot);
        self.nodes[slot].first = first;
    }

    pub(super) fn forget_first(&mut self, first: Serial) {
        self.by_first.remove(&first);
    }

    pub(super) fn set_last(&mut self, id: SectionId, last: Option<Serial>) {
        let slot = self.slots[&id];
        self.nodes[slot].last = last;
    }

    /// Sets what a section has.
    pub(super) fn set_own(&mut self, id: SectionId, own: Sums) {
        let slot = self.slots[&id];
        let before = std::mem::replace(&mut self.nodes[slot].own, own);
        let mut at = Some(slot);
        while let Some(slot) = at {
            let node = &mut self.nodes[slot];
            node.sum = node.sum.plus(own).minus(before);
            at = node.above;
        }
    }

    /// Has one run go on with another: `last` is the last section of the one, `first` the first of
    /// the other.
    pub(super) fn link(&mut self, last: SectionId, first: SectionId) {
        let (left, right) = (self.root(self.slots[&last]), self.root(self.slots[&first]));
        let root = self.merge(Some(left), Some(right));
        self.set_above(root, None);
        self.fronts.remove(&first);
    }

    /// Has a run end with this section; what came after it is a run of its own.
    pub(super) fn unlink(&mut self, last: SectionId) {
        let Some(first) = self.after(last) else { return };
        let slot = self.slots[&last];
        let mut path = Vec::new();
        let mut at = slot;
        while let Some(above) = self.nodes[at].above {
            path.push((above, self.nodes[above].right == Some(at)));
            at = above;
        }
        let mut right = self.nodes[slot].right.take();
        self.sum_up(slot);
        let mut left = Some(slot);
        for (above, is_right) in path {
            if is_right {
                self.nodes[above].right = None;
                self.sum_up(above);
                left = self.merge(Some(above), left);
            } else {
                self.nodes[above].left = None;
                self.sum_up(above);
                right = self.merge(right, Some(above));
            }
        }
        self.set_above(left, None);
        self.set_above(right, None);
        self.fronts.insert(first);
    }

    /// Returns the sums over the run of a section.
    pub(super) fn run(&self, id: SectionId) -> Sums {
        self.nodes[self.root(self.slots[&id])].sum
    }

    /// Returns the first and the last section of the run of a section.
    pub(super) fn ends(&self, id: SectionId) -> (SectionId, SectionId) {
        let root = self.root(self.slots[&id]);
        (self.nodes[self.end(root, false)].id, self.nodes[self.end(root, true)].id)
    }

    pub(super) fn is_one_run(&self, a: SectionId, b: SectionId) -> bool {
        a == b || self.root(self.slots[&a]) == self.root(self.slots[&b])
    }

    /// Returns the next section of the run.
    pub(super) fn after(&self, id: SectionId) -> Option<SectionId> {
        self.beyond(id, true, |_| true)
    }

    /// Returns the previous section of the run.
    pub(super) fn before(&self, id: SectionId) -> Option<SectionId> {
        self.beyond(id, false, |_| true)
    }

    /// Returns the next section, or the previous one, in which there is something.
    pub(super) fn beyond(
        &self,
        id: SectionId,
        forward: bool,
        has: impl Fn(Sums) -> bool,
    ) -> Option<SectionId> {
        let inner = |node: &Node| if forward { node.right } else { node.left };
        let outer = |node: &Node| if forward { node.left } else { node.right };
        let holds = |slot: Option<Slot>| slot.filter(|slot| has(self.nodes[*slot].sum));
        let mut at = self.slots[&id];
        let mut below = holds(inner(&self.nodes[at]));
        while below.is_none() {
            // Up, until from the near side: that node and what is beyond it come next.
            let above = self.nodes[at].above?;
            let is_next = outer(&self.nodes[above]) == Some(at);
            at = above;
            if is_next {
                if has(self.nodes[at].own) {
                    return Some(self.nodes[at].id);
                }
                below = holds(inner(&self.nodes[at]));
            }
        }
        let mut at = below?;
        loop {
            let node = &self.nodes[at];
            if let Some(nearer) = holds(outer(node)) {
                at = nearer;
            } else if has(node.own) {
                return Some(node.id);
            } else {
                at = inner(node)?;
            }
        }
    }

    fn root(&self, slot: Slot) -> Slot {
        let mut at = slot;
        while let Some(above) = self.nodes[at].above {
            at = above;
        }
        at
    }

    /// Returns the first node below `root`, or the last one.
    fn end(&self, root: Slot, is_last: bool) -> Slot {
        let mut at = root;
        while let Some(below) = if is_last { self.nodes[at].right } else { self.nodes[at].left } {
            at = below;
        }
        at
    }

    fn set_above(&mut self, slot: Option<Slot>, above: Option<Slot>) {
        if let Some(slot) = slot {
            self.nodes[slot].above = above;
        }
    }

    fn sum_up(&mut self, slot: Slot) {
        let node = &self.nodes[slot];
        let below = [node.left, node.right].into_iter().flatten();
        let sum = below.map(|slot| self.nodes[slot].sum).fold(node.own, Sums::plus);
        self.nodes[slot].sum = sum;
    }

    /// Joins two trees, all of the one before all of the other.
    fn merge(&mut self, left: Option<Slot>, right: Option<Slot>) -> Option<Slot> {
        let (Some(a), Some(b)) = (left, right) else { return left.or(right) };
        if priority(self.nodes[a].id) > priority(self.nodes[b].id) {
            let below = self.merge(self.nodes[a].right, right);
            self.nodes[a].right = below;
            self.set_above(below, Some(a));
            self.sum_up(a);
            left
        } else {
            let below = self.merge(left, self.nodes[b].left);
            self.nodes[b].left = below;
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
                        marked: below(9) as u64 / 8,
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
            let asks = |id: &&Serial| owns[id].marked > 0;
            let (next, previous) = (run[at + 1..].iter().find(asks), run[..at].iter().rfind(asks));
            assert_eq!(sections.beyond(run[at], true, |sum| sum.marked > 0), next.copied());
            assert_eq!(sections.beyond(run[at], false, |sum| sum.marked > 0), previous.copied());
            assert_eq!(sections.find(Serial(run[at].0 + 5)), Some(run[at]));
            assert_eq!(sections.fronts().collect::<Vec<_>>(), {
                let mut fronts: Vec<_> = runs.iter().map(|run| run[0]).collect();
                fronts.sort();
                fronts
            });
        }
    }
}
