//! The promises of the registry as a check over all of it. It costs time in proportion to the
//! registry, so the service runs it when it opens an image, and the tests after every command.

use super::{Index, Line, Registry, Serial};
use crate::ids::Part;

/// A promise that does not hold: a damaged image, or a mistake in the registry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{promise} (record {serial:?})")]
pub struct Violation {
    promise: &'static str,
    serial: Option<Serial>,
}

impl Violation {
    pub(super) fn new(promise: &'static str) -> Self {
        Self { promise, serial: None }
    }
}

impl Registry {
    /// Verifies every promise that the registry can be held to at rest.
    ///
    /// # Errors
    /// The first promise that does not hold.
    pub fn check(&self) -> Result<(), Violation> {
        self.check_records()?;
        self.index_follows_records()
    }

    /// Verifies what the records promise each other, given an index made from them.
    pub(super) fn check_records(&self) -> Result<(), Violation> {
        self.sockets_belong_to_one_client()?;
        self.sections_hold_every_client()?;
        self.links_are_symmetric()?;
        self.facing_asks_are_engaged()?;
        self.offers_are_mutual()
    }

    fn sockets_belong_to_one_client(&self) -> Result<(), Violation> {
        // Every client has entered two sockets; one that two clients claim counts once.
        let sockets = u64::try_from(self.index.sockets.len()).unwrap_or(u64::MAX);
        if sockets != 2 * self.index.clients() {
            return Err(Violation::new("a socket belongs to one client"));
        }
        Ok(())
    }

    fn links_are_symmetric(&self) -> Result<(), Violation> {
        for (serial, _) in self.image.records.iter() {
            let known = serial < self.image.meta.next_serial;
            require(known, "serials are given out in order", serial)?;
        }
        for chain in self.index.chains.values() {
            for serial in chain.clients.iter() {
                for part in [Part::Tail, Part::Head] {
                    let linked = |serial, part| {
                        self.client(serial).is_some_and(|client| client.side(part).is_linked())
                    };
                    let facing = chain.neighbour(serial, part);
                    let faces = facing.is_some_and(|facing| linked(facing, part.opposite()));
                    require(linked(serial, part) == faces, "links are symmetric", serial)?;
                }
            }
        }
        Ok(())
    }

    /// Sections hold every serial of a client once, each run is one list of them, and one run is
    /// the path.
    fn sections_hold_every_client(&self) -> Result<(), Violation> {
        let wrong = || Violation::new("the sections of a chain hold each client once");
        for chain in self.index.chains.values().filter(|chain| !chain.sections.is_empty()) {
            let fronts: Vec<_> = chain.sections.fronts().collect();
            let held: u64 = fronts.iter().map(|front| chain.sections.run(*front).clients).sum();
            let is_held = |serial| chain.sections.find(serial).is_some();
            if held != chain.len() || !chain.clients.iter().all(is_held) {
                return Err(wrong());
            }
            let Some(open) = chain.sections.open() else { return Err(wrong()) };
            for front in fronts {
                let is_path = chain.sections.is_one_run(front, open);
                let is_cut = self.section(front).is_some_and(|section| section.cut.is_some());
                // Else sections would outnumber clients without bound.
                let mut run = std::iter::successors(Some(front), |id| chain.sections.after(*id));
                if run.any(|id| id != open && chain.sections.own(id).clients == 0) {
                    return Err(wrong());
                }
                if is_path == is_cut || (is_path && chain.sections.after(open).is_some()) {
                    return Err(wrong());
                }
            }
        }
        Ok(())
    }

    fn facing_asks_are_engaged(&self) -> Result<(), Violation> {
        for chain in self.index.chains.values() {
            let heads = chain.asks.iter().filter(|(_, part)| *part == Part::Head);
            for left in heads.map(|(serial, _)| *serial) {
                let Some(right) = chain.neighbour(left, Part::Head) else { continue };
                let ask = |serial, part| self.client(serial)?.side(part).ask();
                if let (Some(a), Some(b)) = (ask(left, Part::Head), ask(right, Part::Tail)) {
                    let offered = |line: &Line| matches!(line, Line::Offered(_));
                    let doubts = |serial, part| self.doubted_until(serial, part).is_some();
                    let engaged = offered(&a.line)
                        || offered(&b.line)
                        || self.is_spoken_for(left, right)
                        || doubts(left, Part::Head)
                        || doubts(right, Part::Tail);
                    require(engaged, "two sockets that face each other do not both wait", left)?;
                }
            }
        }
        Ok(())
    }

    /// Returns whether one of two facing asks is on offer to another ask, by their common repair
    /// id.
    fn is_spoken_for(&self, left: Serial, right: Serial) -> bool {
        use super::AskRef::Side;
        self.index.offers.contains_key(&Side(left, Part::Head))
            || self.index.offers.contains_key(&Side(right, Part::Tail))
    }

    fn offers_are_mutual(&self) -> Result<(), Violation> {
        for (to, from) in &self.index.offers {
            let held = self.ask(*to).is_some_and(|ask| !matches!(ask.line, Line::Offered(_)));
            let offered = self.ask(*from).is_some_and(|ask| ask.line == Line::Offered(*to));
            if !(held && offered) {
                return Err(Violation::new("what is on offer asks, and is offered once"));
            }
        }
        Ok(())
    }

    fn index_follows_records(&self) -> Result<(), Violation> {
        let mut rebuilt =
            Self { image: self.image.clone(), index: Index::build(&self.image), ..Self::default() };
        rebuilt.settle();
        if rebuilt.index != self.index || rebuilt.image != self.image {
            return Err(Violation::new("the index is the one that the records give"));
        }
        Ok(())
    }
}

fn require(holds: bool, promise: &'static str, serial: Serial) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation { promise, serial: Some(serial) }) }
}
