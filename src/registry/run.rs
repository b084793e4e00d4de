//! Runs: a part of one is cut off, and comes back. Neither changes a client: sections are split and
//! joined, so both cost O(log n), however many clients there are (see [`super::sections`]).

use super::{
    Cause, Cut, Note, Record, Registry, Section, Serial, What, path::Chain, sections::SectionId,
};
use crate::ids::{ChainName, Part};

impl Registry {
    pub(super) fn chain(&self, chain: &ChainName) -> Option<&Chain> {
        self.index.chains.get(chain)
    }

    pub(super) fn section(&self, id: SectionId) -> Option<&Section> {
        self.image.records.get(id)?.section()
    }

    fn edit_section(&mut self, id: SectionId, change: impl FnOnce(&mut Section)) {
        self.edit(id, |record| {
            if let Record::Section(section) = record {
                change(section);
            }
        });
    }

    /// Has the run of one section go on with another one, or end with it.
    fn set_next(&mut self, id: SectionId, next: Option<SectionId>) {
        if self.section(id).is_some_and(|section| section.next != next) {
            // What came next is a run of its own before something else comes next.
            self.edit_section(id, |section| section.next = None);
            self.edit_section(id, |section| section.next = next);
        }
    }

    /// Returns the section whose first client is at `first` or behind it. Splits the one that has
    /// it in its range, unless that would leave a part without a client; `None` if none has it.
    fn section_from(&mut self, chain: &ChainName, first: Serial) -> Option<SectionId> {
        if self.chain(chain)?.sections.is_empty() {
            let whole = Section {
                chain: chain.clone(),
                first: Serial(0),
                last: None,
                next: None,
                cut: None,
            };
            self.insert(Record::Section(whole));
        }
        let id = self.chain(chain)?.sections.find(first)?;
        let section = self.section(id)?.clone();
        let known = self.chain(chain)?;
        if known.clients.range(section.first..first).next().is_none() {
            return Some(id);
        }
        self.set_next(id, None);
        self.edit_section(id, |section| section.last = Some(Serial(first.0 - 1)));
        let rest = self.insert(Record::Section(Section {
            chain: chain.clone(),
            first,
            last: section.last,
            next: None,
            cut: None,
        }));
        self.set_next(rest, section.next);
        self.set_next(id, Some(rest));
        Some(rest)
    }

    /// Cuts the clients from `first` to `last` off their run. They are two clients of one run, and
    /// not linked with those beside them.
    pub(super) fn cut(&mut self, chain: &ChainName, first: Serial, last: Serial, cause: Cause) {
        let Some(begin) = self.section_from(chain, first) else { return };
        // The section after the last one, or what is left of its own. A section without a client
        // would hide those beyond it, and never go; only the one for newcomers may be empty.
        let beyond = Serial(last.0 + 1);
        let is_within = |chain: &Chain| {
            chain.sections.find(last).is_some_and(|id| {
                let (_, end) = chain.sections.range(id);
                let is_open = chain.sections.open() == Some(id);
                is_open || chain.clients.range(beyond..end).next().is_some()
            })
        };
        let rest = match self.chain(chain).is_some_and(is_within) {
            true => self.section_from(chain, beyond),
            false => None,
        };
        let Some(known) = self.chain(chain) else { return };
        let Some(end) = known.sections.find(last) else { return };
        let (before, after) = (known.sections.before(begin), known.sections.after(end));
        debug_assert!(rest.is_none() || rest == after, "what is left of a section comes next");
        let was_cut = self.section(begin).and_then(|section| section.cut);
        self.set_next(end, None);
        if let Some(before) = before {
            self.set_next(before, after);
        }
        if let Some(after) = after.filter(|_| before.is_none()) {
            self.edit_section(after, |section| section.cut = was_cut);
        }
        // What begins a run that is cut off stays so, for the old reason.
        if before.is_some() || was_cut.is_none() {
            let cut = Cut { since: self.now(), cause };
            self.edit_section(begin, |section| section.cut = Some(cut));
            self.note_run(chain, first, last, |clients| What::CutOff { clients, cause });
        }
        let ends = [before.map(|id| (id, Part::Head)), after.map(|id| (id, Part::Tail))];
        self.unsettle_ends(chain, first, ends.into_iter().flatten());
        self.drop_if_empty(chain, after);
    }

    /// Puts the run of this client, which is cut off, behind the tip.
    pub(super) fn put_back(&mut self, chain: &ChainName, of: Serial) {
        let Some(known) = self.chain(chain) else { return };
        let (Some(section), Some(open)) = (known.sections.find(of), known.sections.open()) else {
            return;
        };
        let Some((first, last)) = known.ends(of) else { return };
        let (begin, end) = known.sections.ends(section);
        let tip = known.path_ends().map(|(_, tip)| tip);
        let before = match known.sections.own(open).clients {
            0 => known.sections.before(open),
            _ => {
                // Newcomers are in a new section, behind the run that comes back.
                let next = self.image.meta.next_serial;
                self.section_from(chain, next);
                Some(open)
            }
        };
        let Some(open) = self.chain(chain).and_then(|known| known.sections.open()) else { return };
        if let Some(before) = before {
            self.set_next(before, None);
            self.set_next(before, Some(begin));
        }
        self.edit_section(begin, |section| section.cut = None);
        self.set_next(end, Some(open));
        self.note_run(chain, first, last, |clients| What::Returned { clients });
        self.edit_client(first, |client| client.is_marked = false);
        for place in [Some(first), Some(last), tip].into_iter().flatten() {
            self.index.unsettled.insert((chain.clone(), place));
        }
        self.merge_beside(chain, begin);
        self.merge_beside(chain, end);
    }

    /// Has the clients at the ends of runs looked at.
    fn unsettle_ends(
        &mut self,
        chain: &ChainName,
        also: Serial,
        ends: impl Iterator<Item = (SectionId, Part)>,
    ) {
        let Some(known) = self.index.chains.get(chain) else { return };
        let mut places: Vec<Serial> =
            known.ends(also).into_iter().flat_map(<[_; 2]>::from).collect();
        for (section, part) in ends {
            let (first, _) = known.sections.range(section);
            places.extend(known.nearest(section, part));
            places.extend(known.ends(first).into_iter().flat_map(<[_; 2]>::from));
        }
        self.index.unsettled.extend(places.into_iter().map(|place| (chain.clone(), place)));
    }

    /// Drops a section that has no client, unless it takes newcomers.
    pub(super) fn drop_if_empty(&mut self, chain: &ChainName, section: Option<SectionId>) {
        let Some(id) = section else { return };
        let Some(known) = self.chain(chain) else { return };
        let is_open = known.sections.open() == Some(id);
        if is_open || known.sections.own(id).clients > 0 {
            return;
        }
        let (before, after) = (known.sections.before(id), known.sections.after(id));
        let Some(gone) = self.section(id).cloned() else { return };
        self.set_next(id, None);
        if let Some(before) = before {
            self.set_next(before, after);
        } else if let Some(after) = after {
            self.edit_section(after, |section| section.cut = gone.cut);
        }
        self.remove(id);
        let ends = [before.map(|id| (id, Part::Head)), after.map(|id| (id, Part::Tail))];
        self.unsettle_ends(chain, gone.first, ends.into_iter().flatten());
        let beside = self.chain(chain).map(|known| known.sections.beside(gone.first));
        for id in beside.into_iter().flatten().flatten() {
            self.merge_beside(chain, id);
        }
    }

    /// Makes one of two sections that follow each other in the run and in the order of serials.
    fn merge_beside(&mut self, chain: &ChainName, id: SectionId) {
        let merges = |known: &Chain, id: SectionId| {
            let [_, after] = known.sections.beside(known.sections.range(id).0);
            after.filter(|after| known.sections.after(id) == Some(*after))
        };
        let Some(section) = self.section(id) else { return };
        let first = section.first;
        if let Some(after) = self.chain(chain).and_then(|known| merges(known, id)) {
            let Some(taken) = self.section(after).cloned() else { return };
            self.set_next(id, None);
            self.set_next(after, None);
            self.remove(after);
            self.edit_section(id, |section| section.last = taken.last);
            self.set_next(id, taken.next);
        }
        let Some(known) = self.chain(chain) else { return };
        let [before, _] = known.sections.beside(first);
        if known.sections.len() == 1 {
            self.remove(id); // one run in the order of serials
        } else if let Some(before) = before.filter(|before| merges(known, *before) == Some(id)) {
            self.merge_beside(chain, before);
        }
    }

    /// Drops what is left of a chain that has no client.
    pub(super) fn drop_chain(&mut self, chain: &ChainName) {
        while let Some(open) = self.chain(chain).and_then(|known| known.sections.open()) {
            // A cut-off run may have left sections of its own.
            if let Some(before) = self.chain(chain).and_then(|known| known.sections.before(open)) {
                self.set_next(before, None);
            }
            self.remove(open);
        }
        self.index.chains.remove(chain);
    }

    fn note_run(
        &mut self,
        chain: &ChainName,
        first: Serial,
        last: Serial,
        what: impl FnOnce(u64) -> What,
    ) {
        let Some(known) = self.chain(chain) else { return };
        let clients = known.sections.find(first).map(|id| known.sections.run(id).clients);
        let about = [(first, Part::Tail), (last, Part::Head)];
        let about = about
            .map(|(serial, part)| self.client(serial).map(|client| client.socket(part).endpoint()));
        self.note(Note { about, session: None, what: what(clients.unwrap_or_default()) });
    }

    /// Returns why a client is cut off; `None` if it is in the path.
    pub fn cut_of(&self, serial: Serial) -> Option<&Cut> {
        let known = self.chain(&self.client(serial)?.chain)?;
        let (first, _) = known.sections.ends(known.sections.find(serial)?);
        self.section(first)?.cut.as_ref()
    }
}
