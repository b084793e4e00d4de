//! Rule 19: who makes room for a newcomer. Everything is counted by looking at all of it.

use std::collections::BTreeMap;

use emnetchain::{
    ids::{Network, Source},
    registry::{Refusal, Why},
};

use super::{Ask, By, Client, Model, Name, Partner, Past};

/// A mistake about room that is built into the model, to show that the sequences find it: the
/// registry must then seem wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Planted {
    /// None: this is the page.
    #[default]
    Nothing,
    /// Of all answers the oldest makes room, whichever source has the most.
    AnswersByAge,
    /// Clients that ask make room as readily as silent ones.
    AskingGo,
    /// Sources are bounded in a table that is less than half full.
    BoundedAlways,
    /// Clients that are cut off make room before others.
    CutOffGo,
    /// A newcomer is refused when the registry is full.
    FullRefuses,
    /// The operator's own networks are bounded like others.
    LocalsBounded,
    /// Clients whose partners went count as lone.
    LosersLone,
    /// The oldest client of a source makes room.
    OldestGoes,
    /// The sources of one IPv6 /48 are bounded one by one only.
    SitesUnbounded,
}

impl Planted {
    pub(crate) const ALL: [Self; 9] = [
        Self::AnswersByAge,
        Self::AskingGo,
        Self::BoundedAlways,
        Self::CutOffGo,
        Self::FullRefuses,
        Self::LocalsBounded,
        Self::LosersLone,
        Self::OldestGoes,
        Self::SitesUnbounded,
    ];
}

/// A newcomer is too many.
enum TooMany {
    OfSource,
    InNetwork,
    Altogether,
}

impl Model {
    /// Has clients make room, at most two; the refusal, if none can.
    pub(super) fn room_for_client(&mut self, source: Source) -> Option<Refusal> {
        for evicted in 0..2 {
            let sources: Vec<Source> = self.clients.iter().map(|client| client.source).collect();
            let policy = &self.policy;
            let (whole, each) = (policy.clients_max, policy.clients_per_source_max);
            let too_many = self.too_many(&sources, source, whole, each)?;
            let (gone, refusal) = match too_many {
                TooMany::OfSource => {
                    (self.newest(|client| client.source == source), Refusal::SourceFull)
                }
                TooMany::InNetwork => {
                    let network = source.network();
                    (self.newest(|client| client.source.network() == network), Refusal::SourceFull)
                }
                TooMany::Altogether if self.planted == Planted::FullRefuses => {
                    return Some(Refusal::ClientsFull);
                }
                TooMany::Altogether => (self.makes_room(source), Refusal::ClientsFull),
            };
            let Some(gone) = gone else {
                return Some(refusal).filter(|_| evicted == 0);
            };
            self.forget(gone);
            self.settle();
        }
        None
    }

    /// This client makes room when the registry is full: of those that have the most of what goes
    /// first.
    fn makes_room(&self, source: Source) -> Option<Name> {
        let of_most = |goes: &dyn Fn(&Client) -> bool| {
            let sources = self.clients.iter().filter(|client| goes(client));
            let most = largest(sources.map(|client| client.source), Some(source))?;
            self.newest(|client| client.source.network() == most)
        };
        let cut_off = || {
            let is_cut_off = |client: &&Client| self.run(client.name).cut.is_some();
            let silent = self.clients.iter().filter(|client| self.is_silent(client.name));
            silent.filter(is_cut_off).map(|client| client.name).max()
        };
        let cut_off = if self.planted == Planted::CutOffGo { cut_off() } else { None };
        cut_off
            .or_else(|| of_most(&|client| self.is_lone(client)))
            .or_else(|| of_most(&|client| self.is_silent(client.name)))
            .or_else(|| self.newest(|client| client.source == source))
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

    /// Has strangers that wait make room, at most two; the refusal, if none can.
    pub(super) fn room_for_stranger(&mut self, source: Source) -> Option<Refusal> {
        for evicted in 0..2 {
            let waits = |ask: &Ask| match &ask.by {
                By::Stranger(_, source) => Some((ask.name, *source)),
                By::Client(..) => None,
            };
            let mut waits: Vec<(Name, Source)> = self.asks.iter().filter_map(waits).collect();
            waits.sort_unstable();
            let (whole, each) = (self.policy.repairs_max, self.policy.repairs_per_source_max);
            let (gone, refusal) = self.goes(&waits, source, whole, each)?;
            match gone {
                Some(gone) => self.give_up(gone, Why::TakenOut),
                None => return Some(refusal).filter(|_| evicted == 0),
            }
        }
        None
    }

    /// Has EMNet entries make room, at most two; whether there is any.
    pub(super) fn room_for_peer(&mut self, source: Source) -> bool {
        for evicted in 0..2 {
            let entries = self.peers.values().map(|(name, source, _, _)| (*name, *source));
            let mut entries: Vec<(Name, Source)> = entries.collect();
            entries.sort_unstable();
            let (whole, each) = (self.policy.peers_max, self.policy.peers_per_source_max);
            let Some((gone, _)) = self.goes(&entries, source, whole, each) else { return true };
            let Some(gone) = gone else { return evicted > 0 };
            self.peers.retain(|_, (name, _, _, _)| *name != gone);
        }
        true
    }

    /// Forgets answers until there are no more than may be.
    pub(super) fn trim_answers(&mut self) {
        while self.answers.len() as u64 > self.policy.repairs_max {
            let most = largest(self.answers.iter().map(|answer| answer.source), None);
            let is_theirs = |answer: &super::Answer| Some(answer.source.network()) == most;
            let oldest = self.answers.iter().position(is_theirs).expect("there are some");
            self.answers.remove(if self.planted == Planted::AnswersByAge { 0 } else { oldest });
        }
    }

    /// What one more from this source would be too many for.
    fn too_many(&self, of: &[Source], source: Source, whole: u64, each: u64) -> Option<TooMany> {
        let count = |is_theirs: &dyn Fn(&Source) -> bool| {
            of.iter().filter(|source| is_theirs(source)).count() as u64
        };
        let is_public = !source.is_local() || self.planted == Planted::LocalsBounded;
        let is_half_full = 2 * of.len() as u64 > whole || self.planted == Planted::BoundedAlways;
        let is_bounded = is_public && is_half_full;
        let is_wide =
            source.network().only_source().is_none() && self.planted != Planted::SitesUnbounded;
        if is_bounded && count(&|other| *other == source) >= each {
            return Some(TooMany::OfSource);
        }
        let network = count(&|other| other.network() == source.network());
        if is_bounded && is_wide && network >= 4 * each {
            return Some(TooMany::InNetwork);
        }
        (of.len() as u64 >= whole).then_some(TooMany::Altogether)
    }

    /// Which of these entries, the oldest first, makes room for one more; `None` if there is room.
    fn goes(
        &self,
        entries: &[(Name, Source)],
        source: Source,
        whole: u64,
        each: u64,
    ) -> Option<(Option<Name>, Refusal)> {
        let sources: Vec<Source> = entries.iter().map(|(_, source)| *source).collect();
        let oldest = |is_theirs: &dyn Fn(Source) -> bool| {
            entries.iter().find(|(_, source)| is_theirs(*source)).map(|(name, _)| *name)
        };
        Some(match self.too_many(&sources, source, whole, each)? {
            TooMany::OfSource => (oldest(&|other| other == source), Refusal::SourceFull),
            TooMany::InNetwork => {
                (oldest(&|other| other.network() == source.network()), Refusal::SourceFull)
            }
            TooMany::Altogether => {
                let most = largest(sources.iter().copied(), Some(source));
                (oldest(&|other| Some(other.network()) == most), Refusal::RepairsFull)
            }
        })
    }
}

/// The network that has the most; of equal ones the newcomer's, or else the last in the order of
/// addresses.
fn largest(sources: impl Iterator<Item = Source>, newcomer: Option<Source>) -> Option<Network> {
    let mut counts = BTreeMap::<Network, u64>::new();
    sources.for_each(|source| *counts.entry(source.network()).or_default() += 1);
    let is_own = |network: Network| newcomer.is_some_and(|newcomer| newcomer.network() == network);
    let most = counts.into_iter().max_by_key(|(it, count)| (*count, is_own(*it), *it));
    most.map(|(network, _)| network)
}
