//! `EMNetChain chain show`, `chain list` and `explain`: what a socket is linked to, since when,
//! why, and what it waits for. What an instance says is shown as it is, names and ids of strangers
//! without their control characters.

use std::fmt::Write as _;

use clap::ArgMatches;

use super::{
    call::{Answer, Instance},
    cluster::Failure,
    line,
    table::{OrDash as _, table},
};
use crate::{
    config::Sources,
    console::try_say,
    ids::{Age, Socket},
    limits::VIEW_ITEMS_MAX,
    ops::api::{Client, Explanation, List, Side, Window},
};

/// Reads an answer, and shows it to people.
type Page = fn(Answer) -> Result<String, String>;

/// Carries out one of the commands.
pub(super) fn run(command: &str, matches: &ArgMatches, sources: &Sources) -> Result<(), Failure> {
    let instance = Instance::of(sources).map_err(Failure::Usage)?;
    let operand = line::operand(matches);
    let operand = operand.as_ref().and_then(|text| text.to_str()).unwrap_or_default();
    let option = |name: &'static str| Some((name, line::option(matches, name)?));
    if command == "explain" {
        socket(operand, "")?;
    }
    if let Some((_, at)) = option("at") {
        socket(&at, "--at ")?;
    }
    for name in ["from", "limit"] {
        if let Some((name, text)) = option(name) {
            number(name, &text)?;
        }
    }
    let (path, query, page): (_, Vec<_>, Page) = match command {
        "chain list" => {
            let order = if line::is_set(matches, "broken") { "broken" } else { "size" };
            let order = ("order", order.to_owned());
            ("chains", [order].into_iter().chain(option("limit")).collect(), |answer| {
                Ok(list(&answer.read()?))
            })
        }
        "chain show" => {
            let name = match operand {
                DEFAULT_CHAIN => "",
                name => name,
            };
            let options = ["at", "from", "limit"].into_iter().filter_map(option);
            ("chain", [("name", name.to_owned())].into_iter().chain(options).collect(), |answer| {
                Ok(chain(&answer.read()?))
            })
        }
        _ => ("explain", vec![("address", operand.trim().to_owned())], |answer| {
            Ok(explanation(&answer.read()?))
        }),
    };
    let query =
        serde_urlencoded::to_string(query).map_err(|why| Failure::Usage(why.to_string()))?;
    let answer = instance.get(&format!("/api/v1/{path}?{query}")).map_err(Failure::Instance)?;
    let page = match line::wants_json(matches) {
        true => format!("{}\n", answer.json()),
        false => page(answer).map_err(Failure::Instance)?,
    };
    Ok(try_say(&page)?)
}

/// Refuses what no instance can take for a socket.
fn socket(text: &str, place: &str) -> Result<(), Failure> {
    let is_one = Socket::parse(text.trim()).is_some();
    let why = || Failure::Usage(format!("{place}{text:?} is not an IP:PORT or [IP]:PORT"));
    is_one.then_some(()).ok_or_else(why)
}

/// Refuses what is no serial, or no count that an instance shows at one time.
fn number(name: &str, text: &str) -> Result<(), Failure> {
    let most = if name == "limit" { VIEW_ITEMS_MAX as u64 } else { u64::MAX };
    let is_good = text.parse::<u64>().is_ok_and(|number| (1..=most).contains(&number));
    let why = || Failure::Usage(format!("--{name} {text:?} is no whole number from 1 to {most}"));
    is_good.then_some(()).ok_or_else(why)
}

/// The name that is shown for the unnamed chain.
const DEFAULT_CHAIN: &str = "default";

fn list(list: &List) -> String {
    let rows = list.chains.iter().map(|chain| {
        let totals = &chain.totals;
        [
            called(&chain.name),
            totals.clients.to_string(),
            totals.cut_off.to_string(),
            totals.links.to_string(),
            totals.broken_links.to_string(),
            totals.asks.to_string(),
        ]
    });
    let mut page =
        table(["CHAIN", "CLIENTS", "CUT OFF", "LINKS", "BROKEN", "WAITING"], rows.collect());
    if list.more {
        let _ = writeln!(page, "\n{} chains in all; --limit N shows more", list.total);
    }
    page
}

fn chain(shown: &Window) -> String {
    let totals = &shown.totals;
    let mut page = format!(
        "chain {}: {} clients, {} links, {} broken, {} waiting, {} cut off; the first comes \
         first\n\n",
        called(&shown.name),
        totals.clients,
        totals.links,
        totals.broken_links,
        totals.asks,
        totals.cut_off
    );
    let clients = &shown.window;
    if clients.is_empty() {
        return page;
    }
    let rows = clients.iter().enumerate().map(|(n, client)| {
        let found = if Some(client.serial) == shown.found { "*" } else { "" };
        let is_newest = Some(client.serial) == shown.last;
        [
            format!("{}{found}", client.serial),
            plain(&client.tail),
            plain(&client.head),
            Age(client.joined_ms).to_string(),
            client.instance.0.to_string(),
            next(client, clients.get(n + 1), is_newest),
        ]
    });
    let head = ["SERIAL", "TAIL", "HEAD", "AGE", "INSTANCE", "NEXT"];
    page.push_str(&table(head, rows.collect()));
    if shown.later {
        let last = clients.last().map(|client| client.serial).or_dash();
        let _ =
            writeln!(page, "\nmore: --from {last}; one client and its neighbours: --at IP:PORT");
    }
    let gaps: Vec<String> = shown.gaps.iter().map(ToString::to_string).collect();
    if !gaps.is_empty() {
        let more = if shown.more_gaps { ", ..." } else { "" };
        let _ = writeln!(page, "\nbroken after: {}{more}", gaps.join(", "));
    }
    for run in &shown.runs_cut_off {
        let _ = writeln!(
            page,
            "\ncut off for {}: {} clients, from {} to {}: {}; show them: --from {}",
            Age(run.since_ms),
            run.clients,
            run.first,
            run.last,
            plain(&run.why),
            run.first
        );
    }
    page
}

/// Says how a client stands to the next one.
fn next(client: &Client, next: Option<&Client>, is_newest: bool) -> String {
    let head = &client.head_side;
    let asks = |side: &Side| match side {
        Side::Asking(ask) => format!(
            "asks for {} by {} at instance {}{}",
            Age(ask.since_ms),
            plain(&ask.by),
            ask.instance.0,
            if ask.line == "open" { String::new() } else { format!(" ({})", plain(&ask.line)) }
        ),
        Side::Paired { partner, .. } => format!("is paired with {}", plain(partner)),
        Side::Linked { .. } | Side::Open | Side::Reported { .. } | Side::Other => {
            "does not ask".to_owned()
        }
    };
    if let Side::Linked { since_ms, by, .. } = head {
        return format!("linked for {} ({})", Age(*since_ms), plain(by));
    }
    match (head, is_newest) {
        (Side::Asking(_), true) => format!("waits for a newcomer: {}", asks(head)),
        (_, true) => format!("the newest; {}", asks(head)),
        (_, false) => {
            let next = next.map(|next| format!(", the next one {}", asks(&next.tail_side)));
            format!("BROKEN: {}{}", asks(head), next.unwrap_or_default())
        }
    }
}

fn explanation(explanation: &Explanation) -> String {
    let mut page = String::new();
    for sentence in &explanation.says {
        let _ = writeln!(page, "{}", plain(sentence));
    }
    let events = explanation.events.iter().map(|event| {
        [
            format!("{} ago", Age(event.ago_ms)),
            event.entry.to_string(),
            event.request.as_deref().map(plain).or_dash(),
            plain(&event.text),
        ]
    });
    let events: Vec<_> = events.collect();
    if !events.is_empty() {
        page.push('\n');
        page.push_str(&table(["WHEN", "ENTRY", "REQUEST", "WHAT"], events));
    }
    let _ = match explanation.history.since_ms {
        None => writeln!(page, "\nThis instance remembers nothing that happened yet."),
        Some(ms) => {
            writeln!(page, "\nThis instance remembers what happened in the last {}.", Age(ms))
        }
    };
    page
}

fn called(name: &str) -> String {
    if name.is_empty() { DEFAULT_CHAIN.to_owned() } else { plain(name) }
}

/// Returns a text without what would move the cursor.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
