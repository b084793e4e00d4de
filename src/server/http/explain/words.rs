//! The sentences of `explain`. Each says what is the case, why, and what would change it.

use super::Own;
use crate::{
    ids::{Age, Endpoint, Part, Socket, Timestamp},
    registry::{
        Ask, Asked, Caller, Cause, Client, Ended, Event, Forgotten, Line, LinkedBy, Look, Note,
        Refusal, Request, Serial, Side, Standing, What,
    },
    server::http::chains::quoted,
};

/// A client that a chain knows.
pub(super) fn of_client(
    look: Look<'_>,
    serial: Serial,
    part: Part,
    events: &[&Event],
) -> Vec<String> {
    let Some(client) = look.registry.client(serial) else { return Vec::new() };
    let mut says = vec![format!(
        "{} is the {} of a client in chain {}, whose {} is {}. It joined {} ago and \
         was heard of {} ago; its last request was {} at instance {}.",
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
    match client.standing {
        Standing::Member => {
            says.extend([Part::Tail, Part::Head].map(|part| of_side(look, serial, client, part)));
        }
        Standing::Out => says.push(out(look, client, events)),
    }
    says
}

/// A socket that no chain knows, and that waits.
pub(super) fn of_caller(now: Timestamp, caller: &Caller) -> String {
    format!(
        "No chain knows {}. It {}, and will be paired with the next other socket that sends the \
         same id.",
        caller.socket,
        waits(now, &caller.ask)
    )
}

/// A socket of which nothing is known.
pub(super) fn of_stranger(socket: &Socket) -> String {
    format!(
        "No chain knows {socket}, and it does not wait for a repair: it was never announced, or it \
         left and is forgotten."
    )
}

fn out(look: Look<'_>, client: &Client, events: &[&Event]) -> String {
    let cause = events.iter().rev().find_map(|event| {
        let What::TakenOut(cause) = event.note.what else { return None };
        Some(format!(": {}", of_cause(cause)))
    });
    let left = client.refreshed.plus_ms(look.registry.policy().retention_ms).ms_since(look.now);
    format!(
        "It was taken out of its chain{}. If it asks again it joins at the tip; otherwise it is \
         forgotten in {}.",
        cause.unwrap_or_default(),
        Age(left)
    )
}

fn of_side(look: Look<'_>, serial: Serial, client: &Client, part: Part) -> String {
    let whose = format!("Its {}", part.as_str());
    let for_ms = |since: Timestamp| Age(look.now.ms_since(since));
    let neighbour = look.registry.neighbour(serial, part);
    let neighbour = neighbour.and_then(|serial| look.registry.client(serial));
    let facing = neighbour.map(|neighbour| neighbour.socket(part.opposite()));
    match client.side(part) {
        Side::Linked { since, by } => {
            let partner = facing.map(ToString::to_string).unwrap_or_default();
            let by = match by {
                LinkedBy::Gather => "the clients between them kept silent and were taken out",
                LinkedBy::Join => "the later of the two joined behind the other",
                LinkedBy::Repair => "a repair brought them together",
            };
            format!("{whose} has been linked with {partner} for {}: {by}.", for_ms(*since))
        }
        Side::Paired { partner, since } => format!(
            "{whose} has been paired with {partner} for {}: both sent the same repair id, and they \
             are no neighbours in a chain.",
            for_ms(*since)
        ),
        Side::Open => match (part, facing) {
            (Part::Tail, None) => {
                format!("{whose} has no partner: it is the oldest client of its chain.")
            }
            (Part::Head, None) => format!(
                "{whose} has no partner and does not ask for one, though it is the newest client \
                 of its chain: it will be told a newcomer when it asks again."
            ),
            (_, Some(facing)) => format!(
                "{whose} has no partner and does not ask for one; {facing} faces it across the gap."
            ),
        },
        Side::Asking(ask) => {
            let why = why_it_waits(look, serial, part, facing);
            format!("{whose} {}{}. {why}", waits(look.now, ask), of_line(&ask.line))
        }
    }
}

fn waits(now: Timestamp, ask: &Ask) -> String {
    let by = match &ask.request {
        Request::Connect => "CONNECT".to_owned(),
        Request::Reconnect(id) => format!("RECONNECT with id {:?}", id.0),
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

fn why_it_waits(look: Look<'_>, serial: Serial, part: Part, facing: Option<&Socket>) -> String {
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
            format!(
                "The clients between it and {} keep silent: if they still do in {}, they are taken \
                 out and the two are linked.",
                other.map(ToString::to_string).unwrap_or_default(),
                Age(at.ms_since(look.now))
            )
        }
        None => format!(
            "Its neighbour {facing} does not ask: they are linked as soon as it does, or it is \
             taken out when a client beyond it asks as well."
        ),
    }
}

fn of_cause(cause: Cause) -> &'static str {
    match cause {
        Cause::Forgotten => "it was not heard of for the retention time",
        Cause::Lost => "its neighbour reported that it lost it",
        Cause::Replaced => "its owner uses one of its sockets in another pair",
        Cause::Silent => "it kept silent while clients on both sides of it asked",
    }
}

/// What happened, as seen from one client.
pub(super) fn of_note(own: &Own, note: &Note) -> String {
    let sockets = || note.about.iter().flatten().copied();
    let mine = sockets().find_map(|socket| own.part(socket));
    let its = match mine.flatten() {
        Some(part) => format!("its {}", part.as_str()),
        None => "it".to_owned(),
    };
    let other = sockets().find(|socket| own.part(*socket).is_none());
    let other = other.as_ref().map(Endpoint::to_string).unwrap_or_default();
    match &note.what {
        What::Asked(id) => format!("{its} asked for a new partner by RECONNECT with id {:?}", id.0),
        What::CameBack => "it asked again by CONNECT".to_owned(),
        What::Detached => format!(
            "the instance that held the connection of {its} is gone; it has the resume grace"
        ),
        What::Ended(Ended::Expired(Asked::Connect | Asked::Reconnect)) => {
            format!("{its} waits no longer: its time was up")
        }
        What::Ended(Ended::HungUp) => format!("{its} waits no longer: its connection was closed"),
        What::Ended(Ended::Superseded) => format!("{its} waits no longer: it asked in another way"),
        What::Forgotten(Forgotten::Answer) => "the answer kept for its retries expired".to_owned(),
        What::Forgotten(Forgotten::Client | Forgotten::Peer) => "it was forgotten".to_owned(),
        What::Joined => "it joined its chain at the tip".to_owned(),
        What::Linked { by, waited_ms } => {
            let by = match by {
                LinkedBy::Gather => "past silent clients",
                LinkedBy::Join => "as newcomer and tip",
                LinkedBy::Repair => "by a repair",
            };
            format!("{its} was linked with {other} {by}, after {}", Age(*waited_ms))
        }
        What::Paired { waited_ms } => {
            format!("{its} was paired with {other} by a repair id, after {}", Age(*waited_ms))
        }
        What::Parted => {
            format!("{its} lost its link with {other}: one of the two was taken out of the chain")
        }
        What::Refused(why) => format!("its request was refused: {}", of_refusal(*why)),
        What::TakenOut(cause) => format!("it was taken out of its chain: {}", of_cause(*cause)),
    }
}

fn of_refusal(why: Refusal) -> &'static str {
    match why {
        Refusal::ClientsFull => "the registry holds as many clients as it may",
        Refusal::NotOwner => "one of its sockets belongs to another source address",
        Refusal::RepairsFull => "as many repair ids wait as may",
        Refusal::SourceFull => "its source address has as many clients or repair ids as it may",
    }
}
