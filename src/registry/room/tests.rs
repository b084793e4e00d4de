//! One that floods the registry behind an address of many, and one that has a whole IPv6 /48: the
//! clients that are served meanwhile, and afterwards. `cargo test crowd -- --nocapture` prints the
//! figures.

#![expect(clippy::print_stdout, reason = "the figures are for people")]

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::super::*;
use crate::ids::{ChainName, HeadAddr, Holder, OrphanAddr, Part, RepairId, Source, TailAddr};

const NAT: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7));

/// Returns a source of one of many other users.
fn elsewhere(number: u32) -> IpAddr {
    Ipv4Addr::from(0x0800_0000 + number).into()
}

/// Returns a source of the one that has the /48 2001:db8:7::.
fn of_site(number: u32) -> IpAddr {
    Ipv6Addr::from(0x2001_0db8_0007_0000_0000_0000_0000_0001 + (u128::from(number) << 64)).into()
}

fn socket(number: u32, part: Part) -> Socket {
    let port = if part == Part::Head { 1 } else { 2 };
    Socket::parse(&format!("{}:{port}", Ipv4Addr::from(0x0a00_0000 + number))).unwrap()
}

#[derive(Default)]
struct Crowd {
    registry: Registry,
    clients: u32,
    sessions: u64,
    refused: u64,
    /// The answers to each client's sockets, by its number.
    told: BTreeMap<(SessionId, Part), Socket>,
}

impl Crowd {
    fn session(&mut self) -> SessionId {
        self.sessions += 1;
        let (instance, incarnation) = (InstanceId(1), Incarnation(0));
        SessionId { instance, incarnation, connection: self.sessions }
    }

    fn apply(&mut self, command: Command) {
        let at = self.registry.now().plus_ms(1);
        let applied = self.registry.apply(&Proposal { at, batch: None, commands: vec![command] });
        for effect in applied.effects {
            match effect {
                Effect::Tell { session, message: Message::Link { part, ip }, .. } => {
                    self.told.insert((session, part), ip);
                }
                Effect::Tell { session, message: Message::Repair { ip }, .. } => {
                    self.told.insert((session, Part::Head), ip);
                }
                Effect::Refuse { .. } => self.refused += 1,
                Effect::Tell { .. } | Effect::Release { .. } => {}
            }
        }
    }

    /// One more client joins.
    fn join(&mut self, source: IpAddr) -> (u32, SessionId) {
        let (number, session) = (self.clients, self.session());
        self.clients += 1;
        self.apply(Command::Connect {
            session,
            source: Source::of(source),
            chain: ChainName::default(),
            head: HeadAddr(socket(number, Part::Head)),
            tail: TailAddr(socket(number, Part::Tail)),
        });
        (number, session)
    }

    fn is_known(&self, number: u32) -> bool {
        self.registry.find(socket(number, Part::Head).endpoint()).is_some()
    }

    /// Has the neighbours of a client of the NAT that has died ask for each other; whether they
    /// are told.
    fn mend(&mut self, gone: u32) -> bool {
        let sides = [(gone - 1, Part::Head), (gone + 1, Part::Tail)];
        let sessions = sides.map(|(number, part)| {
            let (session, orphan) = (self.session(), OrphanAddr(socket(number, part)));
            let (source, id) = (Source::of(NAT), RepairId(number.to_string().into()));
            self.apply(Command::Reconnect { session, source, id, orphan });
            session
        });
        let [left, right] = sides.map(|(number, part)| socket(number, part));
        let told = sessions.map(|session| self.told.get(&(session, Part::Head)));
        told == [Some(&right), Some(&left)]
    }
}

#[test]
fn a_crowd_behind_one_address_is_served_beside_floods() {
    let mut crowd = Crowd::default();
    let policy = Policy { clients_max: 40_000, clients_per_source_max: 2_048, ..Policy::default() };
    crowd.apply(Command::SetPolicy(policy));
    let old: Vec<u32> = (0..10_000).map(|_| crowd.join(NAT).0).collect();
    let (mut beside, mut others) = (Vec::new(), Vec::new());
    for n in 0..12_000 {
        crowd.join(NAT); // the one that floods
        crowd.join(of_site(n));
        match n % 24 {
            0 => beside.push(crowd.join(NAT)),
            12 => others.push(crowd.join(elsewhere(n))),
            _ => {}
        }
    }
    crowd.registry.check().unwrap();
    let linked = |crowd: &Crowd, newcomers: &[(u32, SessionId)]| {
        let both = [Part::Tail, Part::Head];
        let has_both =
            |session: SessionId| both.iter().all(|part| crowd.told.contains_key(&(session, *part)));
        newcomers.iter().filter(|(_, session)| has_both(*session)).count()
    };
    let known = |crowd: &Crowd, numbers: &[u32]| {
        numbers.iter().filter(|number| crowd.is_known(**number)).count()
    };
    let numbers = |newcomers: &[(u32, SessionId)]| -> Vec<u32> {
        newcomers.iter().map(|(number, _)| *number).collect()
    };
    let (of_nat, elsewhere) = (linked(&crowd, &beside), linked(&crowd, &others));
    let kept = [&old, &numbers(&beside), &numbers(&others)].map(|numbers| known(&crowd, numbers));
    let shares = &crowd.registry.index.client_shares;
    let held = [NAT, of_site(0)].map(|source| {
        let source = Source::of(source);
        shares.of(source.site().map_or(Holder::Source(source), Holder::Network))
    });
    let mended = (1..500).filter(|n| crowd.mend(n * 20)).count();
    println!(
        "10,000 users of one address; one floods it with 12,000 CONNECTs, a /48 sends 12,000:"
    );
    println!("{} refused; newcomers linked on both sides, of 500 each:", crowd.refused);
    println!("  {of_nat} at the address, {elsewhere} elsewhere");
    println!("remembered: {} of 10,000 from before; of newcomers, of 500 each:", kept[0]);
    println!("  {} at the address, {} elsewhere", kept[1], kept[2]);
    println!("the address holds {} of 40,000 places, the /48 {}", held[0], held[1]);
    println!("{mended} of 499 losses among those from before are mended");
    assert_eq!((crowd.refused, of_nat, elsewhere), (0, 500, 500), "every newcomer is served");
    assert_eq!((kept[0], kept[2]), (10_000, 500), "floods push out their own");
    assert_eq!(mended, 499, "repairs go on");
    assert!(held[1] <= 4 * policy.clients_per_source_max, "a /48 has four sources' worth");
}
