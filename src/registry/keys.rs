//! The entries of the index for one record: a function of the record alone.

use super::{
    Answer, Ask, AskRef, Caller, Client, Line, Past, Peer, Policy, Record, Request, Section,
    Serial, index::Timer, sections::SectionId, shares::Spare,
};
use crate::ids::{ChainName, Endpoint, Part, PeerId, RepairId, SessionId, Source, Timestamp};

/// One entry of the index on behalf of one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Socket(Endpoint, Part),
    Member(ChainName),
    Ask(ChainName, Part),
    Doubt(ChainName, Part),
    Loose(ChainName),
    Marked(ChainName),
    Section(ChainName),
    First(ChainName, Serial),
    Last(ChainName, Option<Serial>),
    Next(ChainName, SectionId),
    Session(SessionId, AskRef),
    Waiting(RepairId, AskRef, Option<ChainName>),
    Caller(Source, Endpoint),
    Owner(Source, Spare),
    Answer(RepairId, Endpoint, Source),
    Offer(AskRef, AskRef),
    Peer(PeerId, Source),
    Timer(Timestamp, Timer),
}

/// Returns all entries of a record.
pub(super) fn index_keys(serial: Serial, record: &Record, policy: &Policy) -> Vec<Key> {
    match record {
        Record::Client(client) => client_keys(serial, client, policy),
        Record::Caller(caller) => caller_keys(serial, caller),
        Record::Answer(Answer { id, socket, source, until, .. }) => vec![
            Key::Answer(id.clone(), *socket, *source),
            Key::Timer(*until, Timer::Forget(serial)),
        ],
        Record::Peer(Peer { id, source, until, .. }) => {
            vec![Key::Peer(*id, *source), Key::Timer(*until, Timer::Forget(serial))]
        }
        Record::Section(Section { chain, first, last, next, .. }) => {
            let mut keys = vec![
                Key::Section(chain.clone()),
                Key::First(chain.clone(), *first),
                Key::Last(chain.clone(), *last),
            ];
            keys.extend(next.map(|next| Key::Next(chain.clone(), next)));
            keys
        }
    }
}

fn client_keys(serial: Serial, client: &Client, policy: &Policy) -> Vec<Key> {
    let mut keys = Vec::with_capacity(12);
    keys.push(Key::Owner(client.source, client.spare()));
    keys.push(Key::Member(client.chain.clone()));
    if !client.head_side.is_linked() {
        keys.push(Key::Loose(client.chain.clone()));
    }
    if client.is_marked {
        keys.push(Key::Marked(client.chain.clone()));
    }
    let mut asks = false;
    for part in [Part::Tail, Part::Head] {
        keys.push(Key::Socket(client.socket(part).endpoint(), part));
        if let Some(ask) = client.side(part).ask() {
            asks = true;
            keys.push(Key::Ask(client.chain.clone(), part));
            if let Past::Left { doubt: Some(_), .. } = ask.past {
                keys.push(Key::Doubt(client.chain.clone(), part));
            }
            push_ask_keys(&mut keys, AskRef::Side(serial, part), ask, Some(&client.chain));
        }
    }
    if !asks && let Some(at) = client.forgotten_at(policy) {
        keys.push(Key::Timer(at, Timer::Forget(serial)));
    }
    keys
}

fn caller_keys(serial: Serial, caller: &Caller) -> Vec<Key> {
    let mut keys = vec![Key::Caller(caller.source, caller.socket.endpoint())];
    push_ask_keys(&mut keys, AskRef::Caller(serial), &caller.ask, None);
    keys
}

fn push_ask_keys(keys: &mut Vec<Key>, at: AskRef, ask: &Ask, chain: Option<&ChainName>) {
    keys.push(Key::Session(ask.session, at));
    keys.push(Key::Timer(ask.until, Timer::Ask(at)));
    if let Request::Reconnect(id) = &ask.request {
        keys.push(Key::Waiting(id.clone(), at, chain.cloned()));
    }
    if let Line::Offered(to) = ask.line {
        keys.push(Key::Offer(to, at));
    }
}
