//! Answers that no client of today can bring about: names and ids as hostile as they may get, each
//! state of a socket, a thousand chains; and how the page asks for them.

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{browser::Browser, may_look, stage::Stage, support::Service};

/// What would be a script if it were not text, with a character that turns the line around.
const HOSTILE: &str =
    "\"><img src=x onerror=document.title=1><svg onload=document.title=2>\u{202e}";

#[test]
fn privileged_names_of_strangers_stay_text() {
    if !may_look("privileged_names_of_strangers_stay_text") {
        return;
    }
    let (_dir, _service, stage) = begin();
    stage.play("api/v1/chains", 200, chains(&[HOSTILE, "", "default"], 3));
    let mut chain = chain_of(vec![client(1, asking("offered", HOSTILE), open())]);
    chain["name"] = json!(HOSTILE);
    stage.play("api/v1/chain", 200, chain);
    let explanation = json!({
        "address": "10.0.0.1:1000", "part": "head", "client": null, "says": [HOSTILE],
        "events": [{ "ago_ms": 5, "entry": 1, "request": HOSTILE, "text": HOSTILE }],
        "history": { "events": 1, "capacity": 2, "since_ms": 3 },
    });
    stage.play("api/v1/explain", 200, explanation);
    let browser = Browser::open(&format!("{}#address=10.0.0.1:1000", stage.url()));
    for place in ["#list", "#chain-title", "#path", "#says", "#events"] {
        browser.until_text(place, &[HOSTILE]);
    }
    let injected = "return document.body.querySelectorAll('main :is(img, svg[onload])').length";
    assert_eq!(browser.run(injected), json!(0));
    assert!(browser.text("title").contains("EMNetChain"));
    // The chain without a name is not to be mistaken for one that is called "default".
    let unnamed = "return [...document.querySelectorAll('#list bdi')]
        .map((it) => [it.textContent, it.classList.contains('unnamed')]).slice(1)";
    assert_eq!(browser.run(unnamed), json!([["default", true], ["default", false]]));
    // The address leads to the chain again, with any name.
    browser.click("#list a");
    browser.until("return document.getElementById('explanation').hidden", &json!(true));
    let url = browser.run("return location.href");
    browser.go("about:blank");
    browser.go(url.as_str().unwrap());
    browser.until_text("#chain-title", &[HOSTILE]);
    let asked = stage.asked("api/v1/chain?").pop().unwrap();
    assert!(asked.contains("%3Cimg") && asked.contains("%22"), "{asked}");
    browser.assert_readable_everywhere("hostile");
    // Should markup ever get in, the policy keeps it from running.
    browser.run(
        "const script = document.createElement('script');
         script.textContent = 'document.title = 3';
         document.body.append(script);
         const image = document.createElement('div');
         image.innerHTML = '<img src=x onerror=document.title=4>';
         document.body.append(image);",
    );
    browser.until_text("title", &["EMNetChain"]);
    assert!(browser.complaints().iter().any(|line| line.contains("Content Security Policy")));
}

#[test]
fn privileged_each_state_of_a_gap_has_its_words() {
    if !may_look("privileged_each_state_of_a_gap_has_its_words") {
        return;
    }
    let (_dir, _service, stage) = begin();
    stage.play("api/v1/chains", 200, chains(&[""], 1));
    let paired = json!({ "state": "paired", "partner": "10.9.9.9:9", "since_ms": 61_000 });
    let gathered =
        json!({ "state": "linked", "partner": "10.0.0.7:2000", "since_ms": 7_000, "by": "gather" });
    let window = vec![
        client(1, asking("offered", "a"), open()),
        client(2, asking("detached", "b"), asking("half-closed", "c")),
        client(3, open(), asking("open", "d")),
        client(4, paired, open()),
        client(5, open(), open()),
        client(6, gathered, open()),
        client(7, open(), open()),
    ];
    stage.play("api/v1/chain", 200, chain_of(window));
    let browser = Browser::open(&stage.url());
    let words: [&[&str]; 7] = [
        &["both sides wait", "its partner is offered", "its connection is half closed"],
        &["both sides wait", "its connection or instance is gone", "Tail waits", "connected"],
        &["no client asks for a repair", "Head is silent", "Tail is silent"],
        &["Head is paired with 10.9.9.9:9, no neighbour, for 1 min 1 s"],
        &["no client asks for a repair"],
        &["linked for 7 s, by gathering: those between were silent"],
        &["The newest; it does not wait for a newcomer now"],
    ];
    for (number, words) in (1..).zip(words) {
        browser.until_text(&format!(".client:nth-child({number}) .join"), words);
    }
    browser.assert_readable_everywhere("gaps");
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn privileged_each_state_of_a_cluster_has_its_words() {
    if !may_look("privileged_each_state_of_a_cluster_has_its_words") {
        return;
    }
    let (_dir, _service, stage) = begin();
    let members = [
        member(1, true, Some(0), Some(120)),
        member(2, true, Some(0), Some(0)),
        member(3, true, Some(77), Some(65_000)),
        member(4, false, Some(1), Some(10)),
    ];
    stage.play("status", 200, status("leader", json!(2), Value::Null, &members));
    let browser = Browser::open(&stage.url());
    browser
        .until_text("#state", &["▲", "Serving · leader is this instance · 3 of 4 members heard"]);
    browser.until_text("#members", &["leader", "this one", "77", "1 min 5 s ago", "learner"]);
    browser.assert_readable_everywhere("silent-member");

    let unknown = [1, 2, 3].map(|node| member(node, true, None, None));
    let why = json!("the cluster has no leader");
    stage.play("status", 200, status("candidate", Value::Null, why, &unknown));
    browser.until_text("#state", &["✕", "Not serving · the cluster has no leader"]);
    browser.until_text("#trouble", &["No client", "may be old", "since"]);
    browser.until_text("#members", &["voter", "candidate", "?"]);
    browser.assert_readable_everywhere("election");

    let learner = [member(1, true, None, Some(80)), member(2, false, None, None)];
    stage.play("status", 200, status("learner", json!(1), Value::Null, &learner));
    browser.until_text("#state", &["●", "Serving · leader is instance 1, and is heard"]);
    browser.until_text("#lag-note", &["see the page of instance 1"]);
    browser.until("return document.getElementById('trouble').hidden", &json!(true));
    stage.play("status", 503, json!({ "error": "too much to do" }));
    browser.until_text("#stale", &["No answer since"]);
}

fn member(node: u64, voter: bool, lag: Option<u64>, silent_ms: Option<u64>) -> Value {
    let address = format!("node-{node}.emnetchain.example.org:7000");
    json!({ "node": node, "address": address, "voter": voter, "lag": lag, "silent_ms": silent_ms })
}

/// The status of instance 2.
fn status(role: &str, leader: Value, trouble: Value, members: &[Value]) -> Value {
    json!({
        "version": "0.2.0", "cluster": "ab", "node": 2, "role": role, "leader": leader, "term": 7,
        "last_log_index": 9, "applied_index": 8, "trouble": trouble, "members": members,
        "chains": { "count": 1, "clients": 1, "cut_off": 0, "asks": 1, "links": 0,
                    "broken_links": 0, "repairs_pending": 0 },
        "connections": {},
    })
}

#[test]
fn privileged_many_chains_are_listed_in_part_and_searched_by_name() {
    if !may_look("privileged_many_chains_are_listed_in_part_and_searched_by_name") {
        return;
    }
    let (_dir, _service, stage) = begin();
    let names: Vec<String> = (0..50).map(|number| format!("chain {number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    stage.play("api/v1/chains", 200, chains(&names, 1000));
    stage.play("api/v1/chain", 200, chain_of(vec![client(1, open(), open())]));
    let browser = Browser::open(&stage.url());
    browser.until_text("#list-note", &["50 of 1,000; find others by name"]);
    browser.until_text("#list", &["chain 49"]);
    browser.click("[data-order=broken]");
    until_asked(&stage, "api/v1/chains?order=broken&limit=");
    browser.write("#prefix", "chain 4");
    until_asked(&stage, "api/v1/chains?order=name&prefix=chain+4&limit=");
    browser.assert_readable_everywhere("chains");
    browser.click("[data-order=size]");
    until_asked(&stage, "api/v1/chains?order=size&limit=");
    // Two chains for one click: the list is in the middle of being asked for again.
    browser.run("document.querySelectorAll('#list a')[3].click()");
    until_asked(&stage, "api/v1/chain?name=chain+3&");

    // A chain that has gone says so, and the rest goes on.
    stage.play("api/v1/chain", 404, json!({ "error": "There is no such chain." }));
    browser.until_text("#summary", &["There is no such chain."]);
    browser.until_text("#pulse", &["live"]);
    assert_eq!(stage.at_once_max(), 1, "one question at a time");
}

/// Waits until the latest question of its kind begins so.
fn until_asked(stage: &Stage, beginning: &str) {
    let kind = beginning.split('?').next().unwrap();
    super::support::eventually(beginning, || {
        let last = stage.asked(&format!("{kind}?")).pop()?;
        last.starts_with(beginning).then_some(())
    });
}

fn begin() -> (TempDir, Service, Stage) {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &[]);
    let stage = Stage::before(&service);
    (dir, service, stage)
}

fn chains(names: &[&str], total: usize) -> Value {
    let chains = names.iter().map(|name| {
        json!({
            "name": name, "clients": 9, "cut_off": 0, "asks": 1, "links": 7, "broken_links": 1,
        })
    });
    let chains: Vec<Value> = chains.collect();
    json!({ "applied": 1, "total": total, "more": names.len() < total, "chains": chains })
}

fn chain_of(window: Vec<Value>) -> Value {
    json!({
        "name": "", "applied": 1, "clients": window.len(), "cut_off": 0, "runs_cut_off": [],
        "asks": 1, "links": 1, "broken_links": 1, "first": 1, "last": window.len(), "gaps": [1],
        "more_gaps": false, "earlier": false, "later": false, "found": null, "window": window,
    })
}

fn client(serial: u64, head_side: Value, tail_side: Value) -> Value {
    json!({
        "serial": serial, "chain": "", "head": format!("10.0.0.{serial}:1000"),
        "tail": format!("10.0.0.{serial}:2000"), "source": "10.0.0.1", "standing": "member",
        "instance": 1, "request": "1-4-77", "joined_ms": 86_400_000, "refreshed_ms": 1200,
        "head_side": head_side, "tail_side": tail_side,
    })
}

fn open() -> Value {
    json!({ "state": "open" })
}

fn asking(line: &str, id: &str) -> Value {
    json!({
        "state": "asking", "since_ms": 1200, "left_ms": 58_000, "instance": 2,
        "request": "2-1-9", "by": "RECONNECT", "id": id, "line": line,
    })
}
