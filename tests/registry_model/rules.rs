//! What the rules 5, 6 and 8 to 12 bring about by themselves, and when.

use std::collections::BTreeSet;

use emnetchain::{
    ids::{ChainName, Part, Timestamp},
    registry::Why,
};

use super::{Ask, By, Due, Model, Name, Past, Planted, Run, at, order, owns_any, same};

/// An asking head and the next asking socket after it in its run, if that is a tail.
struct Gap {
    head: Ask,
    tail: Ask,
    /// The client before those between, and the one after them.
    ends: (Name, Name),
    between: Vec<Name>,
}

impl Model {
    /// Applies the rules until nothing is left to do: first what concerns runs, then ids.
    pub(super) fn settle(&mut self) {
        let chains: BTreeSet<ChainName> = self.clients.iter().map(|c| c.chain.clone()).collect();
        while chains.iter().any(|chain| self.settle_chain(chain)) || self.pair_same_id() {}
    }

    fn settle_chain(&mut self, chain: &ChainName) -> bool {
        self.end_first_tail(chain)
            || self.cut_doubted(chain)
            || self.link_facing(chain)
            || self.cut_at_once(chain)
            || self.come_back_by_tail(chain)
            || self.cut_tip(chain)
            || self.come_back_by_head(chain)
            || self.end_mark(chain)
    }

    fn link_facing(&mut self, chain: &ChainName) -> bool {
        let gaps = self.gaps(chain);
        let facing = gaps.iter().find(|gap| {
            gap.between.is_empty() && self.is_undecided(gap) && self.doubted_until(gap).is_none()
        });
        facing.is_some_and(|gap| self.engage(gap.head.name, gap.tail.name)) // 5
    }

    fn end_first_tail(&mut self, chain: &ChainName) -> bool {
        let first = self.path(chain).first().and_then(|first| self.ask_of(*first, Part::Tail));
        let ends = first.filter(|ask| ask.id.is_none() && self.has_no_offer(ask)).cloned();
        let Some(Ask { name, session, by: By::Client(..), .. }) = ends else { return false };
        self.asks.retain(|other| other.name != name); // 6
        self.release_if_done(session, Why::Answered);
        true
    }

    fn cut_at_once(&mut self, chain: &ChainName) -> bool {
        let both_say = |gap: &&Gap| {
            let (first, last) = match gap.between[..] {
                [one] => (one, one),
                [first, last] => (first, last),
                _ => return false,
            };
            self.is_reported(first, Part::Tail) && self.is_reported(last, Part::Head)
        };
        let gaps = self.gaps(chain);
        let gap = gaps.iter().find(|gap| self.is_undecided(gap) && both_say(gap));
        gap.is_some_and(|gap| self.cut_off(&gap.between)) // 8
    }

    /// Cuts off one client or two, asking or not, if those beside them say that they are gone
    /// and one of these has said so again and again (8).
    fn cut_doubted(&mut self, chain: &ChainName) -> bool {
        let runs = self.runs.iter().filter(|run| run.chain == *chain);
        let stretches = runs.flat_map(|run| [3, 4].map(|len| run.clients.windows(len)));
        let found = stretches.flatten().find(|stretch| {
            let [left, ref between @ .., right] = **stretch else { return false };
            let (first, last) = (between[0], between[between.len() - 1]);
            let ends = [(left, Part::Head, first), (right, Part::Tail, last)];
            let asks = |(end, part, _): &(Name, Part, Name)| {
                self.ask_of(*end, *part).is_some_and(|ask| self.has_no_offer(ask))
            };
            let doubts = |(end, part, of): &(Name, Part, Name)| {
                self.doubt(*end, *part).is_some_and(|(doubted, _)| doubted == *of)
            };
            let says = |(end, part, of): &(Name, Part, Name)| {
                matches!(self.client(*end).pasts[at(*part)], Past::Left(left, _) if left == *of)
            };
            let alone = self.planted == Planted::DoubtsCutAlone;
            ends.iter().all(asks) && ends.iter().any(doubts) && (alone || ends.iter().all(says))
        });
        let between = found.map(|stretch| stretch[1..stretch.len() - 1].to_vec());
        between.is_some_and(|between| self.cut_off(&between))
    }

    /// The neighbour that an asking socket doubts, and until when (7).
    fn doubt(&self, name: Name, part: Part) -> Option<(Name, Timestamp)> {
        let ask = self.ask_of(name, part)?;
        let Past::Left(neighbour, doubt) = self.client(name).pasts[at(part)] else { return None };
        let until = if self.planted == Planted::DoubtsAnew {
            doubt.map(|_| ask.since.plus_ms(self.policy.gather_ms))
        } else {
            doubt
        }?;
        let doubts = until > self.now && self.planted != Planted::DoubtsNever;
        doubts.then_some((neighbour, until))
    }

    /// Until when two neighbours that ask are not linked, for one doubts the other.
    fn doubted_until(&self, gap: &Gap) -> Option<Timestamp> {
        let (left, right) = gap.ends;
        let doubts = [(left, Part::Head, right), (right, Part::Tail, left)];
        let until = |(name, part, of)| {
            self.doubt(name, part).filter(|(doubted, _)| *doubted == of).map(|(_, until)| until)
        };
        doubts.into_iter().filter_map(until).max().filter(|_| gap.between.is_empty())
    }

    fn cut_tip(&mut self, chain: &ChainName) -> bool {
        let [.., before, tip] = *self.path(chain) else { return false };
        let asks = self.ask_of(before, Part::Head).is_some_and(|ask| self.has_no_offer(ask));
        let is_cut = asks && self.is_silent(tip) && self.is_reported(tip, Part::Tail);
        is_cut && self.cut_off(&[tip]) // 8
    }

    fn come_back_by_tail(&mut self, chain: &ChainName) -> bool {
        let asks = |run: &&Run| self.ask_of(run.clients[0], Part::Tail).is_some();
        let run = self.cut_off_runs(chain).filter(asks).min_by_key(|run| run.clients[0]).cloned();
        run.is_some_and(|run| self.bring_back(chain, run.clients)) // 10
    }

    fn come_back_by_head(&mut self, chain: &ChainName) -> bool {
        let asks = |client: Option<&Name>| {
            client.is_some_and(|client| self.ask_of(*client, Part::Head).is_some())
        };
        let runs = self.cut_off_runs(chain).filter(|run| asks(run.clients.last()));
        let run = runs.min_by_key(|run| run.clients.last().copied()).cloned();
        let run = run.filter(|_| !asks(self.path(chain).last()));
        run.is_some_and(|run| self.bring_back(chain, run.clients)) // 10
    }

    fn cut_off_runs<'a>(&'a self, chain: &'a ChainName) -> impl Iterator<Item = &'a Run> {
        self.runs.iter().filter(move |run| run.chain == *chain && run.cut.is_some())
    }

    /// Moves clients of a run that is cut off behind the tip.
    fn bring_back(&mut self, chain: &ChainName, clients: Vec<Name>) -> bool {
        self.take_from_run(&clients);
        self.client_mut(clients[0]).counts_as_first = false; // 12
        self.append(chain, clients);
        true
    }

    fn cut_off(&mut self, clients: &[Name]) -> bool {
        let chain = self.client(clients[0]).chain.clone();
        self.take_from_run(clients);
        self.runs.push(Run { chain, cut: Some(self.now), clients: clients.to_vec() });
        true
    }

    fn take_from_run(&mut self, clients: &[Name]) {
        for run in &mut self.runs {
            run.clients.retain(|client| !clients.contains(client));
        }
        self.runs.retain(|run| !run.clients.is_empty());
    }

    fn end_mark(&mut self, chain: &ChainName) -> bool {
        let first = self.path(chain).first().copied();
        let first = first.map(|first| self.client_mut(first));
        first.is_some_and(|first| std::mem::take(&mut first.counts_as_first)) // 12
    }

    fn pair_same_id(&mut self) -> bool {
        let waits = |ask: &&Ask| ask.id.is_some() && self.has_no_offer(ask) && self.is_free(ask);
        let mut free: Vec<&Ask> = self.asks.iter().filter(waits).collect();
        free.sort_by_key(|ask| (ask.id.clone(), order(ask)));
        let pair = free.iter().enumerate().find_map(|(n, a)| {
            let b = free[n + 1..].iter().find(|b| {
                let at_odds = match (&a.by, &b.by) {
                    (By::Client(a, _), By::Client(b, _)) => {
                        a == b || self.client(*a).chain != self.client(*b).chain
                    }
                    (By::Client(c, _), By::Stranger(socket, source)) => {
                        let client = self.client(*c);
                        client.source == *source && owns_any(client, std::slice::from_ref(socket))
                    }
                    (By::Stranger(..), _) => false, // clients come first
                };
                let one_socket = same(&self.socket(&a.by), &self.socket(&b.by));
                a.id == b.id && !at_odds && !one_socket
            })?;
            Some((a.name, b.name))
        });
        pair.is_some_and(|(a, b)| self.engage(a, b)) // 11
    }

    /// Whether an ask by RECONNECT may be paired by its id.
    fn is_free(&self, ask: &Ask) -> bool {
        let is_over = self.now >= ask.since.plus_ms(self.policy.gather_ms);
        matches!(ask.by, By::Stranger(..)) || is_over && !self.is_end_of_gap(ask)
    }

    fn is_end_of_gap(&self, ask: &Ask) -> bool {
        let By::Client(client, _) = ask.by else { return false };
        let mut gaps = self.gaps(&self.client(client).chain).into_iter();
        gaps.any(|gap| gap.head.name == ask.name || gap.tail.name == ask.name)
    }

    /// Cuts off the clients between a head and the next asking socket.
    pub(super) fn close_gap(&mut self, head: Name) {
        let gaps = self.gaps(&self.client(head).chain);
        let gap = gaps.into_iter().find(|gap| gap.ends.0 == head).expect("its window was open");
        if !gap.between.is_empty() {
            self.cut_off(&gap.between);
        } // else a doubt is over, and the two are linked
    }

    /// Carries out the window of a tail before which no head asks.
    pub(super) fn front(&mut self, name: Name) {
        let Run { chain, cut, clients } = self.run(name).clone();
        if cut.is_none() {
            self.client_mut(name).counts_as_first = true; // 12
            return;
        }
        let rest = clients.into_iter().skip_while(|client| *client != name);
        self.bring_back(&chain, rest.collect()); // 10
    }

    /// The windows of gaps, of tails and of ids.
    pub(super) fn windows(&self) -> Vec<(Timestamp, Due)> {
        let gather_ms = self.policy.gather_ms;
        let mut windows = Vec::new();
        let chains: BTreeSet<&ChainName> = self.runs.iter().map(|run| &run.chain).collect();
        for gap in chains.into_iter().flat_map(|chain| self.gaps(chain)) {
            let due = gap.head.since.max(gap.tail.since).plus_ms(gather_ms);
            let open = !gap.between.is_empty() && self.is_undecided(&gap); // 9
            windows.extend(open.then_some((due, Due::Gap(gap.ends.0))));
            let doubted = self.doubted_until(&gap).filter(|_| self.is_undecided(&gap));
            windows.extend(doubted.map(|due| (due, Due::Gap(gap.ends.0)))); // 7
        }
        for run in &self.runs {
            let asks = self.asks_in(run);
            for (n, (client, part, ask)) in asks.iter().enumerate() {
                let after_head = n > 0 && asks[n - 1].1 == Part::Head;
                let is_first = run.clients.first() == Some(client);
                if *part == Part::Head || after_head || is_first {
                    continue;
                }
                let known = self.client(*client);
                let lost = known.pasts[at(*part)] != Past::New;
                if run.cut.is_some() || (lost && !known.counts_as_first) {
                    windows.push((ask.since.plus_ms(gather_ms), Due::Front(*client)));
                }
            }
        }
        let of_clients = |ask: &&Ask| ask.id.is_some() && matches!(ask.by, By::Client(..));
        for ask in self.asks.iter().filter(of_clients) {
            let due = ask.since.plus_ms(gather_ms);
            let open = due > self.now && !self.is_end_of_gap(ask);
            windows.extend(open.then_some((due, Due::Free(order(ask))))); // 11
        }
        windows
    }

    /// The asking sockets of a run, in its order.
    fn asks_in(&self, run: &Run) -> Vec<(Name, Part, &Ask)> {
        let sides = run.clients.iter().flat_map(|c| [(*c, Part::Tail), (*c, Part::Head)]);
        sides.filter_map(|(c, part)| Some((c, part, self.ask_of(c, part)?))).collect()
    }

    fn gaps(&self, chain: &ChainName) -> Vec<Gap> {
        let mut gaps = Vec::new();
        for run in self.runs.iter().filter(|run| run.chain == *chain) {
            for pair in self.asks_in(run).windows(2) {
                let [(before, Part::Head, head), (after, Part::Tail, tail)] = pair else {
                    continue;
                };
                let place = |name| run.clients.iter().position(|other| other == name);
                let (from, to) = (place(before).expect("it asks"), place(after).expect("it asks"));
                let between = run.clients[from + 1..to].to_vec();
                let (head, tail, ends) = ((*head).clone(), (*tail).clone(), (*before, *after));
                gaps.push(Gap { head, tail, ends, between });
            }
        }
        gaps
    }

    /// Whether neither of its asks has part in an offer.
    fn is_undecided(&self, gap: &Gap) -> bool {
        self.has_no_offer(&gap.head) && self.has_no_offer(&gap.tail)
    }
}
