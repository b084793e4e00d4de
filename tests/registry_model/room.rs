//! Rule 19: the entries that make room for a newcomer. Everything is counted by looking at all of
//! it.

use std::collections::BTreeMap;

use emnetchain::{
    ids::{ChainName, Network, Source},
    registry::Why,
};

use super::{Ask, By, Client, Model, Name, Partner, Past, Planted};

/// A newcomer is too many.
enum TooMany {
    OfSource,
    InNetwork,
    Altogether,
}

impl Model {
    /// Has clients make room, at most two; whether the newcomer comes in, as it always does without
    /// a mistake.
    pub(super) fn room_for_client(&mut self, source: Source, chain: &ChainName) -> bool {
        for evicted in 0..2 {
            let sources: Vec<Source> = self.clients.iter().map(|client| client.source).collect();
            let policy = &self.policy;
            let (whole, each) = (policy.clients_max, policy.clients_per_source_max);
            let Some(too_many) = self.too_many(&sources, source, whole, each) else { break };
            let gone = match too_many {
                TooMany::OfSource => self.newest(|client| client.source == source),
                TooMany::InNetwork => {
                    self.newest(|client| client.source.network() == source.network())
                }
                TooMany::Altogether if self.planted == Planted::FullRefuses => return false,
                TooMany::Altogether => self.makes_room(source, self.path(chain).last().copied()),
            };
            let Some(gone) = gone else { return evicted > 0 };
            self.forget(gone);
            self.settle();
        }
        true
    }

    /// This client makes room when the registry is full.
    fn makes_room(&self, source: Source, tip: Option<Name>) -> Option<Name> {
        let had_none = |client: &Client| client.pasts == [Past::New; 2];
        let is_new = |client: &Client| {
            self.is_lone(client) && (had_none(client) || self.planted == Planted::ReportedGo)
        };
        let newest = |network| self.newest(|client| client.source.network() == network);
        let newest_new = |network| {
            let theirs = self.clients.iter().filter(|client| client.source.network() == network);
            theirs.filter(|client| is_new(client)).map(|client| client.name).max()
        };
        if self.planted == Planted::AskingStay {
            return self.of_most(source, tip, |client| self.is_silent(client.name), newest);
        }
        let is_cut_off =
            |client: &&Client| self.is_silent(client.name) && self.run(client.name).cut.is_some();
        let cut_off = self.clients.iter().filter(is_cut_off).map(|client| client.name).max();
        cut_off
            .filter(|_| self.planted == Planted::CutOffGo)
            .or_else(|| self.of_most(source, None, is_new, newest_new))
            .or_else(|| self.of_most(source, tip, |_| true, newest))
    }

    /// What goes of those that have the most of what counts; not the tip, if that can be.
    fn of_most(
        &self,
        source: Source,
        tip: Option<Name>,
        counts: impl Fn(&Client) -> bool,
        goes: impl Fn(Network) -> Option<Name>,
    ) -> Option<Name> {
        let sources = self.clients.iter().filter(|client| counts(client));
        let sources: Vec<Source> = sources.map(|client| client.source).collect();
        let is_tip = |network: &Network| tip.is_some() && goes(*network) == tip;
        let spares_tip = |network: &Network| self.planted != Planted::TipsGo && is_tip(network);
        let most = self.have_most(&sources, Some(source), spares_tip);
        most.into_iter().filter_map(&goes).max()
    }

    /// The newest one: of those that are lone, else of those that are silent, else of all.
    fn newest(&self, is_theirs: impl Fn(&Client) -> bool) -> Option<Name> {
        let theirs: Vec<&Client> = self.clients.iter().filter(|client| is_theirs(client)).collect();
        let newest = |may: &dyn Fn(&Client) -> bool| {
            theirs.iter().filter(|client| may(client)).map(|client| client.name).max()
        };
        if self.planted == Planted::OldestGoes {
            return theirs.first().map(|client| client.name);
        }
        if self.planted == Planted::AskingGo {
            return newest(&|_| true);
        }
        newest(&|client| self.is_lone(client))
            .or_else(|| newest(&|client| self.is_silent(client.name)))
            .or_else(|| newest(&|_| true))
    }

    fn is_lone(&self, client: &Client) -> bool {
        let has_none = client.partners.iter().all(|partner| *partner == Partner::None);
        let lost = client.pasts.iter().any(|past| matches!(past, Past::Lost | Past::Left(..)));
        let lost = lost && self.planted != Planted::LosersLone;
        self.is_silent(client.name) && has_none && !lost
    }

    /// Has strangers that wait make room, at most two.
    pub(super) fn room_for_stranger(&mut self, source: Source) {
        for _ in 0..2 {
            let waits = |ask: &Ask| match &ask.by {
                By::Stranger(_, source) => Some((ask.name, *source)),
                By::Client(..) => None,
            };
            let waits: Vec<(Name, Source)> = self.asks.iter().filter_map(waits).collect();
            let (whole, each) = (self.policy.repairs_max, self.policy.repairs_per_source_max);
            let Some(gone) = self.goes(&waits, source, whole, each) else { break };
            self.give_up(gone, Why::TakenOut);
        }
    }

    /// Has EMNet entries make room, at most two.
    pub(super) fn room_for_peer(&mut self, source: Source) {
        for _ in 0..2 {
            let entries = self.peers.values().map(|(name, source, _, _)| (*name, *source));
            let entries: Vec<(Name, Source)> = entries.collect();
            let (whole, each) = (self.policy.peers_max, self.policy.peers_per_source_max);
            let Some(gone) = self.goes(&entries, source, whole, each) else { break };
            self.peers.retain(|_, (name, _, _, _)| *name != gone);
        }
    }

    /// Forgets answers until there are no more than may be.
    pub(super) fn trim_answers(&mut self) {
        while self.answers.len() as u64 > self.policy.repairs_max.max(1) {
            let answers = self.answers.iter().map(|answer| (answer.name, answer.source));
            let answers: Vec<(Name, Source)> = answers.collect();
            let gone = self.oldest_of_most(&answers, None).expect("there are some");
            let gone = if self.planted == Planted::AnswersByAge { answers[0].0 } else { gone };
            self.answers.retain(|answer| answer.name != gone);
        }
    }

    /// What one more from this source would be too many for.
    fn too_many(&self, of: &[Source], source: Source, whole: u64, each: u64) -> Option<TooMany> {
        let count = |is_theirs: &dyn Fn(&Source) -> bool| {
            of.iter().filter(|source| is_theirs(source)).count() as u64
        };
        let (whole, each) = (whole.max(1), each.max(1));
        let is_public = !source.is_local() || self.planted == Planted::LocalsBounded;
        let is_half_full = 2 * of.len() as u64 > whole || self.planted == Planted::BoundedAlways;
        let is_bounded = is_public && is_half_full;
        let is_wide = source.site().is_some() && self.planted != Planted::SitesUnbounded;
        if is_bounded && count(&|other| *other == source) >= each {
            return Some(TooMany::OfSource);
        }
        let network = count(&|other| other.network() == source.network());
        if is_bounded && is_wide && network >= 4 * each {
            return Some(TooMany::InNetwork);
        }
        (of.len() as u64 >= whole).then_some(TooMany::Altogether)
    }

    /// Which of these entries makes room for one more; `None` if there is room.
    fn goes(
        &self,
        entries: &[(Name, Source)],
        source: Source,
        whole: u64,
        each: u64,
    ) -> Option<Name> {
        let sources: Vec<Source> = entries.iter().map(|(_, source)| *source).collect();
        let network = source.network();
        match self.too_many(&sources, source, whole, each)? {
            TooMany::OfSource => oldest(entries, |other| other == source),
            TooMany::InNetwork => oldest(entries, |other| other.network() == network),
            TooMany::Altogether => self.oldest_of_most(entries, Some(source)),
        }
    }

    /// The oldest entry of those that have the most.
    fn oldest_of_most(&self, entries: &[(Name, Source)], newcomer: Option<Source>) -> Option<Name> {
        let sources: Vec<Source> = entries.iter().map(|(_, source)| *source).collect();
        let most = self.have_most(&sources, newcomer, |_| false);
        oldest(entries, |source| most.contains(&source.network()))
    }

    /// The networks that have the most of these, without those that are spared, unless all are;
    /// only the newcomer's, if it is among them.
    fn have_most(
        &self,
        sources: &[Source],
        newcomer: Option<Source>,
        is_spared: impl Fn(&Network) -> bool,
    ) -> Vec<Network> {
        let mut counts = BTreeMap::<Network, u64>::new();
        sources.iter().for_each(|source| *counts.entry(source.network()).or_default() += 1);
        let most = counts.values().max().copied();
        counts.retain(|_, count| Some(*count) == most);
        if !counts.keys().all(&is_spared) {
            counts.retain(|network, _| !is_spared(network));
        }
        let own = newcomer.map(Source::network).filter(|own| counts.contains_key(own));
        let last = counts.keys().last().filter(|_| self.planted == Planted::TiesByAddress);
        match own.or(last.copied()) {
            Some(only) => vec![only],
            None => counts.into_keys().collect(),
        }
    }
}

fn oldest(entries: &[(Name, Source)], is_theirs: impl Fn(Source) -> bool) -> Option<Name> {
    entries.iter().filter(|(_, source)| is_theirs(*source)).map(|(name, _)| *name).min()
}
