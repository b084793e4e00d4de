//! The sentences of `explain`. Each tells the state, its cause, and the events that would change
//! it.

use super::Own;
use crate::{
    ids::{Age, Endpoint, Part, RepairId, Socket, Timestamp},
    ops::http::{chains::quoted, client::of_cause, gate::Reader},
    registry::{
        Ask, Asked, Caller, Client, Cut, Ended, Forgotten, Line, LinkedBy, Look, Note, Past,
        Refusal, Request, Serial, Side, What,
    },
};

/// Describes a client that a chain knows.
pub(super) fn of_client(look: Look<'_>, serial: Serial, part: Part, reader: Reader) -> Vec<String> {
    let Some(client) = look.registry.client(serial) else { return Vec::new() };
    let mut says = vec![format!(
        "{} is the {} of a client in chain {}, whose {} is {}. It joined {} ago and \
         was last seen {} ago; its last request was {} at instance {}.",
        client.socket(part),
        part.as_str(),
        quoted(&client.chain),
        part.opposite().as_str(),
        client.socket(part.opposite()),
        Age(look.now.ms_since(client.joined)),
        Age(look.now.ms_since(client.refreshed)),
        client.session,
        client.session.instance.0,
    )];
    says.extend(look.registry.cut_of(serial).map(|cut| cut_off(look, cut)));
    says.extend([Part::Tail, Part::Head].map(|part| of_side(look, serial, client, part, reader)));
    if let Some(at) = client.forgotten_at(look.registry.policy()).filter(|_| client.is_idle()) {
        let left = Age(at.ms_since(look.now));
        says.push(format!("Unless it asks again, it is forgotten in {left}."));
    }
    says
}

/// Describes a socket that no chain knows, and that waits.
pub(super) fn of_caller(now: Timestamp, caller: &Caller, reader: Reader) -> String {
    format!(
        "No chain knows {}. It {}, and will be paired with the next other socket that sends the \
         same id.",
        caller.socket,
        waits(now, &caller.ask, reader)
    )
}

/// Describes a socket of which nothing is known.
pub(super) fn of_stranger(socket: &Socket) -> String {
    format!(
        "No chain knows {socket}, and it does not wait for a repair: it was never announced, or it \
         left and is forgotten."
    )
}

fn cut_off(look: Look<'_>, cut: &Cut) -> String {
    format!(
        "It has been cut off from the path of its chain for {}, together with its run: {}. The \
         run keeps its links, and returns behind the tip when the tail of its first client asks, \
         or when the head of its last one asks and the tip does not.",
        Age(look.now.ms_since(cut.since)),
        of_cause(cut.cause)
    )
}

fn of_side(look: Look<'_>, serial: Serial, client: &Client, part: Part, reader: Reader) -> String {
    let whose = format!("Its {}", part.as_str());
    let for_ms = |since: Timestamp| Age(look.now.ms_since(since));
    let neighbour = look.registry.neighbour(serial, part);
    let neighbour = neighbour.and_then(|serial| look.registry.client(serial));
    let facing = neighbour.map(|neighbour| neighbour.socket(part.opposite()));
    match client.side(part) {
        Side::Linked { since, by } => {
            let partner = facing.map(ToString::to_string).unwrap_or_default();
            let by = match by {
                LinkedBy::Gather => "the clients between them were silent and were cut off",
                LinkedBy::Join => "the later of the two joined behind the other",
                LinkedBy::Repair => "a repair brought them together",
                LinkedBy::Again => "they were neighbours before, and both asked again",
            };
            format!("{whose} has been linked with {partner} for {}: {by}.", for_ms(*since))
        }
        Side::Paired { partner, since } => format!(
            "{whose} has been paired with {partner} for {}: both sent the same repair id, and they \
             are not neighbours in a chain.",
            for_ms(*since)
        ),
        Side::Open(Past::Reported { since, .. }) => format!(
            "{whose} has no partner: the partner said {} ago that this client is gone, and it has \
             not asked since.",
            for_ms(*since)
        ),
        Side::Open(Past::New | Past::Lost | Past::Left { .. }) => match (part, facing) {
            (Part::Tail, None) => {
                format!("{whose} has no partner: it is the oldest client of its chain.")
            }
            (Part::Head, None) => format!(
                "{whose} has no partner and does not ask for one, though it is the newest client \
                 of its chain: it gets a newcomer when it asks again."
            ),
            (_, Some(facing)) => format!(
                "{whose} has no partner and does not ask for one; {facing} faces it across the gap."
            ),
        },
        Side::Asking(ask) => {
            let why = why_it_waits(look, serial, client, part, facing);
            format!("{whose} {}{}. {why}", waits(look.now, ask, reader), of_line(&ask.line))
        }
    }
}

/// Returns a repair id, for a reader that may see it.
fn with_id(id: &RepairId, reader: Reader) -> String {
    match reader.sees_ids {
        true => format!("RECONNECT with id {:?}", id.0),
        false => "RECONNECT with an id that is shown with the operators' token".to_owned(),
    }
}

fn waits(now: Timestamp, ask: &Ask, reader: Reader) -> String {
    let by = match &ask.request {
        Request::Connect => "CONNECT".to_owned(),
        Request::Reconnect(id) => with_id(id, reader),
    };
    format!(
        "has waited for {} by {by} (request {} at instance {}) and is given up in {}",
        Age(now.ms_since(ask.since)),
        ask.session,
        ask.session.instance.0,
        Age(ask.until.ms_since(now))
    )
}

fn of_line(line: &Line) -> &'static str {
    match line {
        Line::Open => "",
        Line::HalfClosed => "; the client has closed its sending side",
        Line::Offered(_) => "; its partner's address is on the way to it",
        Line::Detached => "; the instance that held its connection is gone, and it may come back",
    }
}

fn why_it_waits(
    look: Look<'_>,
    serial: Serial,
    client: &Client,
    part: Part,
    facing: Option<&Socket>,
) -> String {
    if part == Part::Tail && client.is_marked {
        return "No client before it has asked for the gather window: it counts as the first."
            .to_owned();
    }
    if part == Part::Tail
        && let Some(at) = look.registry.waits_as_first(serial)
    {
        let what = match look.registry.is_path(serial) {
            true => "it counts as the first",
            false => "it comes back to the path, with those behind it",
        };
        return format!("If no client before it asks in {}, {what}.", Age(at.ms_since(look.now)));
    }
    let Some(facing) = facing else {
        return match part {
            Part::Head => "It is the newest of its chain: the next that joins will be its partner.",
            Part::Tail => {
                "No client is before it in its chain: only the same repair id can pair it."
            }
        }
        .to_owned();
    };
    match look.registry.gathering(serial, part) {
        Some((other, at)) => {
            let other = look.registry.client(other).map(|other| other.socket(part.opposite()));
            if other == Some(facing) {
                return format!(
                    "It or {facing} has reported the other again and again: they are linked once \
                     more in {}, unless the client beyond says the same; then the one between is \
                     cut off.",
                    Age(at.ms_since(look.now))
                );
            }
            format!(
                "The clients between it and {} are silent: if they still are in {}, they are cut \
                 off and the two are linked.",
                other.map(ToString::to_string).unwrap_or_default(),
                Age(at.ms_since(look.now))
            )
        }
        None => format!(
            "Its neighbour {facing} does not ask: they are linked as soon as it does, or it is \
             cut off when a client beyond it asks as well."
        ),
    }
}

/// Returns an event in words, as seen from one client.
pub(super) fn of_note(own: &Own, note: &Note, reader: Reader) -> String {
    let sockets = || note.about.iter().flatten().copied();
    let mine = sockets().find_map(|socket| own.part(socket));
    let its = match mine.flatten() {
        Some(part) => format!("its {}", part.as_str()),
        None => "it".to_owned(),
    };
    let other = sockets().find(|socket| own.part(*socket).is_none());
    let other = other.as_ref().map(Endpoint::to_string).unwrap_or_default();
    match &note.what {
        What::Asked(id) => format!("{its} asked for a new partner by {}", with_id(id, reader)),
        What::CameBack => "it asked again by CONNECT".to_owned(),
        What::Detached => format!(
            "the instance that held the connection of {its} is gone; it has the resume grace"
        ),
        What::Ended(Ended::Expired(Asked::Connect | Asked::Reconnect)) => {
            format!("{its} waits no longer: its time was up")
        }
        What::Ended(Ended::HungUp) => format!("{its} waits no longer: its connection was closed"),
        What::Ended(Ended::MadeRoom) => {
            format!("{its} waits no longer: it made room for another one")
        }
        What::Ended(Ended::Superseded) => format!("{its} waits no longer: it asked in another way"),
        What::Forgotten(Forgotten::Answer) => "the answer kept for its retries expired".to_owned(),
        What::Forgotten(Forgotten::Client | Forgotten::Peer) => "it was forgotten".to_owned(),
        What::MadeRoom(Forgotten::Answer) => {
            "the answer kept for its retries made room for a newer one".to_owned()
        }
        What::MadeRoom(Forgotten::Client | Forgotten::Peer) => "it made room".to_owned(),
        What::Joined => "it joined its chain at the tip".to_owned(),
        What::Linked { by, waited_ms } => {
            let by = match by {
                LinkedBy::Gather => "past silent clients",
                LinkedBy::Join => "as newcomer and tip",
                LinkedBy::Repair => "by a repair",
                LinkedBy::Again => "again",
            };
            format!("{its} was linked with {other} {by}, after {}", Age(*waited_ms))
        }
        What::Paired { waited_ms } => {
            format!("{its} was paired with {other} by a repair id, after {}", Age(*waited_ms))
        }
        What::Parted => {
            format!("{its} has lost its partner {other}: one of the two reported the other")
        }
        What::CountsAsFirst => {
            "it counts as the first of its chain: no client before it asks".to_owned()
        }
        What::CutOff { clients, cause } => format!(
            "{clients} clients of which it is the first or the last were cut off: {}",
            of_cause(*cause)
        ),
        What::Returned { clients } => format!(
            "{clients} clients of which it is the first or the last came back behind the tip"
        ),
        What::Refused(why) => format!("its request was refused: {}", of_refusal(*why)),
        What::TakenOut(cause) => format!("it left its chain: {}", of_cause(*cause)),
    }
}

fn of_refusal(why: Refusal) -> &'static str {
    match why {
        Refusal::NotOwner => "one of its sockets belongs to another source address",
    }
}
