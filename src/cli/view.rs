//! `EMNetChain chain show`, `chain list` and `explain`: what a socket is linked to, since when,
//! why, and what it waits for. What an instance says is shown as it is, names and ids of strangers
//! without their control characters.

use std::fmt::Write as _;

use clap::ArgMatches;
use serde_json::Value;

use super::{call::Instance, cluster::Failure, line, table::table};
use crate::{
    config::Sources,
    console::try_say,
    ids::{Age, Socket},
    limits::VIEW_ITEMS_MAX,
};

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
    let (path, query, page): (_, Vec<_>, fn(&Value) -> String) = match command {
        "chain list" => {
            let order = if line::is_set(matches, "broken") { "broken" } else { "size" };
            let order = ("order", order.to_owned());
            ("chains", [order].into_iter().chain(option("limit")).collect(), list)
        }
        "chain show" => {
            let name = match operand {
                DEFAULT_CHAIN => "",
                name => name,
            };
            let options = ["at", "from", "limit"].into_iter().filter_map(option);
            ("chain", [("name", name.to_owned())].into_iter().chain(options).collect(), chain)
        }
        _ => ("explain", vec![("address", operand.trim().to_owned())], explanation),
    };
    let query =
        serde_urlencoded::to_string(query).map_err(|why| Failure::Usage(why.to_string()))?;
    let answer = instance.get(&format!("/api/v1/{path}?{query}")).map_err(Failure::Instance)?;
    let page = if line::wants_json(matches) { format!("{answer}\n") } else { page(&answer) };
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

fn list(answer: &Value) -> String {
    let rows = items(&answer["chains"]).map(|chain| {
        [
            called(&chain["name"]),
            chain["clients"].to_string(),
            chain["cut_off"].to_string(),
            chain["links"].to_string(),
            chain["broken_links"].to_string(),
            chain["asks"].to_string(),
        ]
    });
    let mut page =
        table(["CHAIN", "CLIENTS", "CUT OFF", "LINKS", "BROKEN", "WAITING"], rows.collect());
    if answer["more"] == true {
        let _ = writeln!(page, "\n{} chains in all; --limit N shows more", answer["total"]);
    }
    page
}

fn chain(answer: &Value) -> String {
    let mut page = format!(
        "chain {}: {} clients, {} links, {} broken, {} waiting, {} cut off; the first comes \
         first\n\n",
        called(&answer["name"]),
        answer["clients"],
        answer["links"],
        answer["broken_links"],
        answer["asks"],
        answer["cut_off"]
    );
    let clients: Vec<&Value> = items(&answer["window"]).collect();
    if clients.is_empty() {
        return page;
    }
    let rows = clients.iter().enumerate().map(|(n, client)| {
        let is_newest = client["serial"] == answer["last"];
        let found = if client["serial"] == answer["found"] { "*" } else { "" };
        [
            format!("{}{found}", client["serial"]),
            text(&client["tail"]),
            text(&client["head"]),
            age(&client["joined_ms"]),
            client["instance"].to_string(),
            next(client, clients.get(n + 1).copied(), is_newest),
        ]
    });
    let head = ["SERIAL", "TAIL", "HEAD", "AGE", "INSTANCE", "NEXT"];
    page.push_str(&table(head, rows.collect()));
    if answer["later"] == true {
        let last = clients.last().map(|client| client["serial"].to_string()).unwrap_or_default();
        let _ =
            writeln!(page, "\nmore: --from {last}; one client and its neighbours: --at IP:PORT");
    }
    let gaps: Vec<String> = items(&answer["gaps"]).map(ToString::to_string).collect();
    if !gaps.is_empty() {
        let more = if answer["more_gaps"] == true { ", ..." } else { "" };
        let _ = writeln!(page, "\nbroken after: {}{more}", gaps.join(", "));
    }
    for run in items(&answer["runs_cut_off"]) {
        let _ = writeln!(
            page,
            "\ncut off for {}: {} clients, from {} to {}: {}; show them: --from {}",
            age(&run["since_ms"]),
            run["clients"],
            run["first"],
            run["last"],
            text(&run["why"]),
            run["first"]
        );
    }
    page
}

/// Returns the state of a client's link to the next one.
fn next(client: &Value, next: Option<&Value>, is_newest: bool) -> String {
    let head = &client["head_side"];
    let asks = |side: &Value| match side["state"].as_str() {
        Some("asking") => format!(
            "asks for {} by {} at instance {}{}",
            age(&side["since_ms"]),
            text(&side["by"]),
            side["instance"],
            match side["line"].as_str() {
                Some("open") | None => String::new(),
                Some(line) => format!(" ({line})"),
            }
        ),
        Some("paired") => format!("is paired with {}", text(&side["partner"])),
        Some(_) | None => "does not ask".to_owned(),
    };
    match head["state"].as_str() {
        Some("linked") => format!("linked for {} ({})", age(&head["since_ms"]), text(&head["by"])),
        Some("asking") if is_newest => format!("waits for a newcomer: {}", asks(head)),
        Some(_) | None if is_newest => format!("the newest; {}", asks(head)),
        Some(_) | None => {
            let next = next.map(|next| format!(", the next one {}", asks(&next["tail_side"])));
            format!("BROKEN: {}{}", asks(head), next.unwrap_or_default())
        }
    }
}

fn explanation(answer: &Value) -> String {
    let mut page = String::new();
    for sentence in items(&answer["says"]) {
        let _ = writeln!(page, "{}", text(sentence));
    }
    let events: Vec<[String; 4]> = items(&answer["events"])
        .map(|event| {
            [
                format!("{} ago", age(&event["ago_ms"])),
                event["entry"].to_string(),
                text(&event["request"]),
                text(&event["text"]),
            ]
        })
        .collect();
    if !events.is_empty() {
        page.push('\n');
        page.push_str(&table(["WHEN", "ENTRY", "REQUEST", "WHAT"], events));
    }
    let history = &answer["history"];
    let _ = match history["since_ms"].is_null() {
        true => writeln!(page, "\nThis instance remembers nothing that happened yet."),
        false => writeln!(
            page,
            "\nThis instance remembers what happened in the last {}.",
            age(&history["since_ms"])
        ),
    };
    page
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn called(name: &Value) -> String {
    match text(name).as_str() {
        "" => DEFAULT_CHAIN.to_owned(),
        name => name.to_owned(),
    }
}

/// Returns a text without what would move the cursor.
fn text(value: &Value) -> String {
    let text = value.as_str().unwrap_or("-");
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn age(ms: &Value) -> String {
    Age(ms.as_u64().unwrap_or(0)).to_string()
}
