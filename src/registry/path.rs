//! One chain as it is derived from the records: its clients, its asking sockets, and their order
//! along the runs.

use std::collections::BTreeSet;

use super::{
    ChainTotals, Serial,
    counted::Counted,
    sections::{SectionId, Sections, Sums},
};
use crate::ids::Part;

/// One chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Chain {
    /// Its clients by their serials, over all runs.
    pub(super) clients: Counted,
    /// The asking sockets: a client's tail comes before its head.
    pub(super) asks: BTreeSet<(Serial, Part)>,
    /// The clients that they belong to.
    pub(super) asking: Counted,
    /// The clients whose heads are not linked; the last one of a run is always among them.
    pub(super) loose: Counted,
    /// Asking sockets that doubt, or have doubted, their neighbours. Where none does,
    /// which is nearly always, none need be looked for.
    pub(super) doubts: u64,
    /// The clients that count as first.
    pub(super) marked: Counted,
    pub(super) sections: Sections,
    /// The last clients of runs that are cut off, as far as their heads ask.
    pub(super) waiting_runs: BTreeSet<Serial>,
}

impl Chain {
    /// Returns the number of clients, cut off or not.
    pub(super) fn len(&self) -> u64 {
        self.clients.len()
    }

    /// Returns the sums over all clients.
    fn sums(&self) -> Sums {
        Sums {
            clients: self.clients.len(),
            loose: self.loose.len(),
            marked: self.marked.len(),
            asking: self.asking.len(),
        }
    }

    /// Returns the sums over the path.
    fn path(&self) -> Sums {
        match self.sections.open() {
            Some(open) => self.sections.run(open),
            None => self.sums(),
        }
    }

    /// Clients that are cut off.
    pub(super) fn cut_off(&self) -> u64 {
        self.len() - self.path().clients
    }

    /// Neighbours in the path that are not linked, and should be.
    pub(super) fn gaps(&self) -> u64 {
        let path = self.path();
        path.loose.saturating_sub(u64::from(path.clients > 0) + path.marked)
    }

    /// Links between clients of the path.
    pub(super) fn links(&self) -> u64 {
        let path = self.path();
        path.clients - path.loose
    }

    pub(super) fn totals(&self) -> ChainTotals {
        ChainTotals {
            clients: self.len(),
            cut_off: self.cut_off(),
            asks: self.asks.len() as u64,
            links: self.links(),
            broken_links: self.gaps(),
        }
    }

    /// Has a socket ask, or ask no more.
    pub(super) fn set_asks(&mut self, serial: Serial, part: Part, asks: bool) {
        if asks {
            self.asks.insert((serial, part));
            self.asking.insert(serial);
            return;
        }
        self.asks.remove(&(serial, part));
        if !self.asks.contains(&(serial, part.opposite())) {
            self.asking.remove(serial);
        }
    }

    /// Changes what there is at a serial. What all clients together have more or less is what its
    /// section has more or less, which is much cheaper than to count that again.
    pub(super) fn change_at(&mut self, serial: Serial, change: impl FnOnce(&mut Self)) {
        let before = self.sums();
        change(self);
        if let Some(section) = self.sections.find(serial) {
            let now = self.sections.own(section).plus(self.sums()).minus(before);
            self.sections.set_own(section, now);
        }
    }

    /// Counts what a section has.
    pub(super) fn sum_section(&mut self, section: SectionId) {
        let (first, end) = self.sections.range(section);
        let own = Sums {
            clients: self.clients.count(first, end),
            loose: self.loose.count(first, end),
            marked: self.marked.count(first, end),
            asking: self.asking.count(first, end),
        };
        self.sections.set_own(section, own);
    }

    /// Returns the serials of the clients around `serial` in its section; all of them, if there is
    /// one run in the order of serials.
    fn range(&self, section: Option<SectionId>) -> (Serial, Serial) {
        section.map_or((Serial(0), Serial(u64::MAX)), |id| self.sections.range(id))
    }

    /// Returns the section that `serial` belongs to: `None` if it belongs to none; in a chain that
    /// has no sections, every serial belongs to the whole.
    pub(super) fn place_of(&self, serial: Serial) -> Option<Option<SectionId>> {
        if self.sections.is_empty() { Some(None) } else { self.sections.find(serial).map(Some) }
    }

    /// Returns the next client, in the direction that a socket faces, whether there is a client at
    /// `serial` or there was one.
    pub(super) fn neighbour(&self, serial: Serial, part: Part) -> Option<Serial> {
        let section = self.place_of(serial)?;
        let (first, end) = self.range(section);
        let here = match part {
            Part::Head => self.clients.range(Serial(serial.0 + 1)..end).next(),
            Part::Tail => self.clients.range(first..serial).next_back(),
        };
        here.or_else(|| {
            let forward = part == Part::Head;
            let beyond = self.sections.beyond(section?, forward, |sums| sums.clients > 0)?;
            self.end_of(beyond, part.opposite())
        })
    }

    /// Returns the first client of a section, seen from its tail, or the last one, seen from its
    /// head.
    fn end_of(&self, section: SectionId, part: Part) -> Option<Serial> {
        let (first, end) = self.sections.range(section);
        match part {
            Part::Tail => self.clients.range(first..end).next(),
            Part::Head => self.clients.range(first..end).next_back(),
        }
    }

    /// Returns the asking socket before or after this one in its run.
    pub(super) fn next_ask(&self, at: (Serial, Part), forward: bool) -> Option<(Serial, Part)> {
        let section = self.place_of(at.0)?;
        let (first, end) = self.range(section);
        let here = match forward {
            true => self.asks.range(at..(end, Part::Tail)).find(|ask| **ask != at),
            false => self.asks.range((first, Part::Tail)..at).next_back(),
        };
        here.copied().or_else(|| {
            let beyond = self.sections.beyond(section?, forward, |sums| sums.asking > 0)?;
            let (first, end) = self.sections.range(beyond);
            let mut there = self.asks.range((first, Part::Tail)..(end, Part::Tail));
            if forward { there.next() } else { there.next_back() }.copied()
        })
    }

    /// Returns the socket at the other end of the gap that an asking socket is one end of.
    pub(super) fn across(&self, at: (Serial, Part)) -> Option<Serial> {
        let facing = self.next_ask(at, at.1 == Part::Head)?;
        (facing.1 == at.1.opposite()).then_some(facing.0)
    }

    /// Returns the first and the last client of the run that `serial` belongs to.
    pub(super) fn ends(&self, serial: Serial) -> Option<(Serial, Serial)> {
        let Some(section) = self.place_of(serial)? else {
            return Some((self.clients.range(..).next()?, self.clients.range(..).next_back()?));
        };
        self.run_ends(section)
    }

    /// Returns the first and the last client of the path.
    pub(super) fn path_ends(&self) -> Option<(Serial, Serial)> {
        self.ends(Serial(u64::MAX))
    }

    fn run_ends(&self, section: SectionId) -> Option<(Serial, Serial)> {
        let (first, last) = self.sections.ends(section);
        let first = self.nearest(first, Part::Tail)?;
        Some((first, self.nearest(last, Part::Head)?))
    }

    /// Returns the first client of a section, seen from its tail, or the last one, seen from its
    /// head; if the section has none, the nearest one beyond it in the run.
    pub(super) fn nearest(&self, section: SectionId, part: Part) -> Option<Serial> {
        let holder = match self.sections.own(section).clients {
            0 => self.sections.beyond(section, part == Part::Tail, |sums| sums.clients > 0)?,
            _ => section,
        };
        self.end_of(holder, part)
    }

    /// Returns whether what belongs to this serial is of the path.
    pub(super) fn is_path(&self, serial: Serial) -> bool {
        match (self.place_of(serial), self.sections.open()) {
            (Some(Some(section)), Some(open)) => self.sections.is_one_run(section, open),
            (Some(None), _) => true,
            (Some(Some(_)) | None, _) => false,
        }
    }

    /// Returns the last of a run that is cut off and waits for a tip that asks.
    pub(super) fn waiting_run(&self) -> Option<Serial> {
        self.waiting_runs.first().copied()
    }
}
