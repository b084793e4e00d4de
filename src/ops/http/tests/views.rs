//! The views of chains for people and scripts, over HTTP and against a small registry.

use serde_json::{Value, json};

use super::*;
use crate::{
    ids::{
        ChainName, HeadAddr, Incarnation, InstanceId, OrphanAddr, RepairId, SessionId, Socket,
        Source, TailAddr, Timestamp,
    },
    registry::{Command, History, Proposal, Registry},
};

/// Commands one second apart, and what they brought about.
#[derive(Default)]
pub(super) struct Story {
    pub(super) registry: Registry,
    pub(super) history: Option<History>,
    pub(super) entry: u64,
}

fn socket(text: &str) -> Socket {
    Socket::parse(text).unwrap()
}

impl Story {
    fn then(&mut self, command: impl FnOnce(SessionId, IpAddr) -> Command) {
        self.entry += 1;
        let session = SessionId {
            instance: InstanceId(1 + self.entry % 3),
            incarnation: Incarnation(4),
            connection: self.entry,
        };
        let commands = vec![command(session, "10.0.0.9".parse().unwrap())];
        let at = Timestamp(1000 * self.entry);
        let applied = self.registry.apply(&Proposal { at, batch: None, commands });
        let history = self.history.get_or_insert_with(|| History::new(100));
        history.record(at, self.entry, &applied.notes);
    }

    fn connect(&mut self, chain: &str, client: u8) {
        self.then(|session, source| Command::Connect {
            session,
            source: Source::of(source),
            chain: ChainName(chain.into()),
            head: HeadAddr(socket(&format!("10.0.0.{client}:1"))),
            tail: TailAddr(socket(&format!("10.0.0.{client}:2"))),
        });
    }

    fn reconnect(&mut self, orphan: &str, id: &str) {
        self.then(|session, source| Command::Reconnect {
            session,
            source: Source::of(source),
            id: RepairId(id.into()),
            orphan: OrphanAddr(socket(orphan)),
        });
    }
}

/// Five clients in the default chain, of which the second has lost the third; a pair named blue,
/// and one named blush.
pub(super) fn story() -> Story {
    let mut story = Story::default();
    for client in 1..=5 {
        story.connect("", client);
    }
    story.connect("blue", 11);
    story.connect("blue", 12);
    story.connect("blush", 21);
    story.reconnect("10.0.0.2:1", "<b>");
    story.reconnect("10.0.0.77:1", "x");
    story
}

async fn get(bench: &Bench, path: &str) -> (String, Value) {
    let secret = "authorization: Bearer secret\r\n";
    let answer = bench.say("GET", &format!("/api/v1/{path}"), secret).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head[9..12].to_owned(), serde_json::from_str(body).unwrap())
}

async fn seen(bench: &Bench, path: &str) -> Value {
    let (status, answer) = get(bench, path).await;
    assert_eq!(status, "200", "{answer}");
    answer
}

fn names(answer: &Value) -> Vec<&str> {
    let chains = answer["chains"].as_array().unwrap();
    chains.iter().map(|chain| chain["name"].as_str().unwrap()).collect()
}

fn heads(answer: &Value) -> Vec<&str> {
    let clients = answer["window"].as_array().unwrap();
    clients.iter().map(|client| client["head"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn chains_are_listed_in_three_orders() {
    let bench = Bench::start(HttpOptions::default());
    let all = seen(&bench, "chains").await;
    assert_eq!(names(&all), ["", "blue", "blush"]);
    let first = json!({
        "name": "", "clients": 5, "cut_off": 0, "asks": 2, "links": 3, "broken_links": 1
    });
    assert_eq!(all["chains"][0], first);
    assert_eq!((&all["total"], &all["more"]), (&json!(3), &json!(false)));
    assert_eq!(names(&seen(&bench, "chains?order=broken").await), [""]);
    assert_eq!(names(&seen(&bench, "chains?order=name&prefix=bl").await), ["blue", "blush"]);
    let one = seen(&bench, "chains?order=name&prefix=bl&limit=1").await;
    assert_eq!((names(&one), &one["more"]), (vec!["blue"], &json!(true)));
}

#[tokio::test]
async fn a_window_is_moved_over_a_chain() {
    let bench = Bench::start(HttpOptions::default());
    let [one, two, three, four, five] = [1, 2, 3, 4, 5].map(|n| format!("10.0.0.{n}:1"));
    let [one, two, three, four, five] = [&one, &two, &three, &four, &five].map(String::as_str);
    let all = seen(&bench, "chain").await;
    assert_eq!(heads(&all), [one, two, three, four, five]);
    let serials: Vec<u64> = all["window"]
        .as_array()
        .unwrap()
        .iter()
        .map(|client| client["serial"].as_u64().unwrap())
        .collect();
    assert_eq!((&all["first"], &all["last"]), (&json!(serials[0]), &json!(serials[4])));
    assert_eq!(all["gaps"], json!([serials[1]]));
    let linked = json!({
        "state": "linked", "partner": "10.0.0.2:2", "since_ms": 8500, "by": "join"
    });
    assert_eq!(all["window"][0]["head_side"], linked);
    let asking = json!({
        "state": "asking", "since_ms": 1500, "left_ms": 86_398_500, "instance": 1,
        "request": "1-4-9", "by": "RECONNECT", "id": "<b>", "line": "open"
    });
    assert_eq!(all["window"][1]["head_side"], asking);
    let reported = json!({"state": "reported", "since_ms": 1500});
    assert_eq!(all["window"][2]["tail_side"], reported);
    assert_eq!(all["runs_cut_off"], json!([]));

    let part = seen(&bench, &format!("chain?from={}&limit=2", serials[1])).await;
    assert_eq!(heads(&part), [two, three]);
    let part = seen(&bench, &format!("chain?after={}&limit=2", serials[0])).await;
    assert_eq!(heads(&part), [two, three]);
    assert_eq!((&part["earlier"], &part["later"]), (&json!(true), &json!(true)));
    let part = seen(&bench, &format!("chain?before={}&limit=2", serials[2])).await;
    assert_eq!(heads(&part), [one, two]);
    assert_eq!((&part["earlier"], &part["later"]), (&json!(false), &json!(true)));
    let part = seen(&bench, "chain?at=10.0.0.4:2&limit=3").await;
    assert_eq!((heads(&part), &part["found"]), (vec![three, four, five], &json!(serials[3])));
    assert_eq!(heads(&seen(&bench, "chain?name=blue").await), ["10.0.0.11:1", "10.0.0.12:1"]);
}

#[tokio::test]
async fn what_cannot_be_shown_is_told() {
    let bench = Bench::start(HttpOptions::default());
    for (path, status, words) in [
        ("chain?name=green", "404", "there is no chain \"green\""),
        ("chain?at=10.0.0.33:1", "404", "/api/v1/explain?address=10.0.0.33:1"),
        ("chain?at=10.0.0.11:1", "404", "no client in chain default"),
        ("chain?at=here", "400", "is not an IP:PORT"),
        ("chain?from=1&before=2", "400", "only one of"),
        ("chain?limit=0", "400", "from 1 to 1000"),
        ("chain?limit=1001", "400", "from 1 to 1000"),
        ("chain?color=red", "400", "color"),
        ("chains?order=age", "400", "age"),
        ("chains?prefix=b", "400", "order=name"),
        ("explain", "400", "address"),
        ("explain?address=10.0.0.1", "400", "is not an IP:PORT"),
    ] {
        let (code, answer) = get(&bench, path).await;
        assert_eq!(code, status, "{path}: {answer}");
        assert!(answer["error"].as_str().unwrap().contains(words), "{path}: {answer}");
    }
}

#[tokio::test]
async fn a_socket_is_explained() {
    let bench = Bench::start(HttpOptions::default());
    let explained = async |address: &str, sentences: &[&str], events: &[&str]| {
        let answer = seen(&bench, &format!("explain?address={address}")).await;
        let says = answer["says"].as_array().unwrap();
        assert_eq!(says.len(), sentences.len(), "{answer:#}");
        for (says, words) in says.iter().zip(sentences) {
            assert!(says.as_str().unwrap().contains(words), "{words:?} in {answer:#}");
        }
        let told = answer["events"].as_array().unwrap();
        let texts: Vec<_> = told.iter().map(|event| event["text"].as_str().unwrap()).collect();
        assert_eq!(texts, events);
        answer
    };
    let joined = "it joined its chain at the tip";
    let second = explained(
        "10.0.0.2:2",
        &[
            "10.0.0.2:2 is the tail of a client in chain default",
            "Its tail has been linked with 10.0.0.1:1 for 8 s: the later of the two joined",
            "Its neighbour 10.0.0.3:2 does not ask: they are linked as soon as it does",
        ],
        &[
            joined,
            "its tail was linked with 10.0.0.1:1 as newcomer and tip, after 1 s",
            "its head was linked with 10.0.0.3:2 as newcomer and tip, after 1 s",
            "its head asked for a new partner by RECONNECT with id \"<b>\"",
            "its head has lost its partner 10.0.0.3:2: one of the two reported the other",
        ],
    )
    .await;
    let asked = json!({"ago_ms": 1500, "entry": 9, "request": "1-4-9",
        "text": "its head asked for a new partner by RECONNECT with id \"<b>\""});
    assert_eq!(second["events"][3], asked);
    explained(
        "10.0.0.3:1",
        &[
            "10.0.0.3:1 is the head",
            "Its tail has no partner: the partner said 1 s ago that this client is gone",
            "Its head has been linked with 10.0.0.4:2",
        ],
        &[
            joined,
            "its tail was linked with 10.0.0.2:1 as newcomer and tip, after 1 s",
            "its head was linked with 10.0.0.4:2 as newcomer and tip, after 1 s",
            "its tail has lost its partner 10.0.0.2:1: one of the two reported the other",
        ],
    )
    .await;
    explained(
        "10.0.0.21:1",
        &["chain \"blush\"", "it is the oldest client", "It is the newest of its chain"],
        &[joined],
    )
    .await;
    let waits = ["It has waited for 500 ms by RECONNECT with id \"x\" (request 2-4-10"];
    let asked = ["it asked for a new partner by RECONNECT with id \"x\""];
    let stranger = explained("10.0.0.77:1", &waits, &asked).await;
    assert_eq!(stranger["waits"][0]["id"], "x");
    explained("10.0.0.99:1", &["No chain knows 10.0.0.99:1, and it does not wait"], &[]).await;
}
