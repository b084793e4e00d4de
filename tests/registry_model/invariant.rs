//! The promises themselves, by their names in `proto-docs/chains.md` (I) and in the checker of
//! whole histories (S).

use emnetchain::ids::{Endpoint, RepairId, SessionId, Source};

use super::{Fact, Key, Known, Request, Seen, Tell, Told, covers, told};

impl Told {
    /// A client that comes back is told the same again, tail first, and is no new client.
    pub(super) fn invariant_s8_i1_resume(
        &self,
        seen: Seen<'_>,
        session: SessionId,
        client: &Known,
    ) -> Result<(), String> {
        if !self.clients.iter().any(|known| known.is(client)) || self.unsure(seen, 0) {
            return Ok(());
        }
        require(seen.clients.1 <= seen.clients.0, "S8: a resume adds no client")?;
        let told = told(seen.applied, session);
        let mut told = told.iter();
        for socket in [client.tail, client.head] {
            let key = (socket, client.source, None);
            if let Some(fact) = self.facts.get(&key).filter(|fact| !fact.by_id)
                && self.in_force(&key)
            {
                require(
                    told.any(|told| *told == fact.partner),
                    "I1: one that resumes is told the same",
                )?;
            }
        }
        Ok(())
    }

    /// A client that repeats a RECONNECT is told the same again.
    pub(super) fn invariant_i4_retry(
        &self,
        seen: Seen<'_>,
        session: SessionId,
        key: &(RepairId, Endpoint, Source),
    ) -> Result<(), String> {
        let stranger = !self.clients.iter().any(|c| c.source == key.2 && c.owns(key.1));
        if let Some((partner, at)) = self.answers.get(key)
            && stranger
            && !self.new_policy
            && seen.now < at.plus_ms(seen.policy.retention_ms)
        {
            require(told(seen.applied, session) == [*partner], "I4: a retry is told the same")?;
        }
        Ok(())
    }

    /// A socket is told one partner as long as that is in force.
    pub(super) fn invariant_s1_one_partner(&self, tell: &Tell<'_>) -> Result<(), String> {
        let other = self.facts.get(&tell.me).is_some_and(|fact| fact.partner != tell.partner);
        require(!(other && self.in_force(&tell.me)), "S1: a socket has one partner")
    }

    /// A socket that is told a new partner is its partner's partner.
    pub(super) fn invariant_s2_i2_symmetric(
        &self,
        me: &Key,
        partner: Endpoint,
    ) -> Result<(), String> {
        let mut facts = self.facts.iter();
        let mutual = facts.any(|(key, fact)| key.0 == partner && fact.partner == me.0);
        require(mutual || self.said.contains(&(partner, me.0)), "S2: partners are told each other")
    }

    /// No two sockets are told the same partner, and none is told itself.
    pub(super) fn invariant_s3_i2_injective(&self, tell: &Tell<'_>) -> Result<(), String> {
        require(tell.me.0 != tell.partner, "S3: no client is linked to itself")?;
        let both = |c: &Known| c.owns(tell.me.0) && c.owns(tell.partner);
        let itself = |c: &Known| c.source == tell.me.1 && both(c) && c.first + 1 < self.clock;
        let alien = |r: &Request| r.source != tell.me.1 && covers(r, tell.partner) && !r.gone;
        let stranger = tell.me.2.is_some() || self.requests.iter().any(alien);
        require(stranger || !self.clients.iter().any(itself), "S3: no client is linked to itself")?;
        let taken = |(key, fact): (&Key, &Fact)| {
            *key != tell.me && fact.partner == tell.partner && !fact.by_id && self.in_force(key)
        };
        let by_id = self.by_id(tell);
        require(by_id || !self.facts.iter().any(taken), "S3: a socket is told to one other")
    }

    /// The links in force are paths, in the order of arrival. A client that was cut off and asks
    /// comes back when the gather window has passed, behind those that have joined by then.
    pub(super) fn invariant_s4_i3_paths(&self) -> Result<(), String> {
        let link = |a: Endpoint, b: Endpoint, source: (Source, Source)| {
            let (a, b) = ((a, source.0, None), (b, source.1, None));
            let (to, from) = (self.facts.get(&a), self.facts.get(&b));
            matches!((to, from), (Some(to), Some(from)) if to.partner == b.0 && from.partner == a.0
                && !to.by_id && !from.by_id && self.in_force(&a) && self.in_force(&b))
        };
        let next =
            |c: &Known| self.clients.iter().find(|d| link(c.head, d.tail, (c.source, d.source)));
        for client in &self.clients {
            let mut at = client;
            for _ in 0..=self.clients.len() {
                let Some(after) = next(at) else { break };
                require(after.chain == at.chain, "S4: links stay in one chain")?;
                let in_order = after.last.max(after.back) >= at.first;
                require(in_order, "S5: links follow the order of arrival")?;
                require(after != client, "S4: no cycle")?;
                at = after;
            }
        }
        Ok(())
    }

    /// A repair id pairs two sockets that both waited with it, and stays with that.
    pub(super) fn invariant_s7_i4_exactly_two(
        &mut self,
        tell: &Tell<'_>,
        seen: Seen<'_>,
    ) -> Result<(), String> {
        let Some(id) = &tell.request.id else { return Ok(()) };
        let (socket, source, _) = tell.me;
        let key = (id.clone(), socket, source);
        if let Some((partner, at)) = self.answers.get(&key) {
            let remembered = seen.now < at.plus_ms(seen.policy.retention_ms) && !self.new_policy;
            if *partner == tell.partner && (remembered || self.new_policy) {
                return Ok(());
            }
            let free = !remembered || !tell.request.stranger;
            require(free, "S7: a retry of a repair is told the same partner")?;
        }
        // A new session may have brought the partner another id while its address was offered.
        let waited = |r: &Request| r.id.as_ref() == Some(id) && covers(r, tell.partner);
        if tell.request.stranger {
            require(self.requests.iter().any(waited), "S7: the partner waited with the same id")?;
        }
        self.answers.insert(key, (tell.partner, seen.since));
        Ok(())
    }

    /// A socket that is told asked for it, and was not known to be gone.
    pub(super) fn invariant_s9_i5_no_phantom(&self, tell: &Tell<'_>) -> Result<(), String> {
        let asks = |r: &&Request| !r.gone && covers(r, tell.partner);
        let mut fitting =
            self.requests.iter().filter(asks).filter(|r| match (&r.chain, &tell.request.chain) {
                (Some(theirs), Some(mine)) => theirs == mine,
                (Some(_), None) | (None, _) => true,
            });
        require(fitting.next().is_some(), "I5: only sockets that ask are told")
    }

    /// Whether the two may have come together by a common id.
    pub(super) fn by_id(&self, tell: &Tell<'_>) -> bool {
        let ids = |socket| {
            let of_it = self.requests.iter().filter(move |request| covers(request, socket));
            of_it.filter_map(|request| request.id.as_ref())
        };
        ids(tell.me.0).any(|id| ids(tell.partner).any(|other| id == other))
    }
}

fn require(holds: bool, promise: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(promise.to_owned()) }
}
