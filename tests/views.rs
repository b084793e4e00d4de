//! What a person at a terminal is told of chains: `chain list`, `chain show` and `explain`, asked
//! of any instance, and the ids by which a request is found again in the logs.

#![expect(clippy::unwrap_used, reason = "a helper that cannot go on fails its test")]

#[path = "support/cluster.rs"]
mod cluster;
mod support;

use std::process::Command;

use cluster::{Cluster, chain_through, wait_for_asks, wait_for_clients};
use serde_json::Value;
use support::{Client, Finish as _, Member, Service, chain, eventually, reconnect, repaired};
use tempfile::TempDir;

/// `EMNetChain WORDS`, asked of this instance.
#[track_caller]
fn ask(service: &Service, words: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_EMNetChain"));
    command.args(words).env_clear();
    command.arg("--http-addr").arg(service.address("HTTP").to_string());
    let output = command.finish();
    assert_eq!(output.status.code(), Some(0), "{words:?}: {output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(service: &Service, words: &[&str]) -> Value {
    serde_json::from_str(&ask(service, &[words, &["--json"]].concat())).unwrap()
}

/// The rows of a table below its head, each as its words.
fn rows<'a>(page: &'a str, head: &str) -> Vec<Vec<&'a str>> {
    let lines = page.lines().skip_while(|line| !line.starts_with(head)).skip(1);
    lines
        .take_while(|line| !line.is_empty())
        .map(|line| line.split_whitespace().collect())
        .collect()
}

#[track_caller]
fn assert_says(page: &str, sentences: &[&str]) {
    for words in sentences {
        assert!(page.contains(words), "{words:?} in:\n{page}");
    }
}

#[test]
fn a_gap_is_seen_from_any_instance_and_its_cause_and_its_end() {
    let cluster = Cluster::start(&["--gather", "1h"]);
    let members: Vec<Member> = (0..5).map(Member).collect();
    let mut ids = cluster.ids().cycle();
    let _tip = chain_through(&members, || cluster.at(ids.next().unwrap()));
    let places: Vec<_> = cluster.ids().map(|id| cluster.at(id)).collect();
    let everywhere = |look: &dyn Fn(&Service)| places.iter().copied().for_each(look);
    everywhere(&|service| wait_for_clients(service, 5));

    // The second client has lost the third, and the fourth has not noticed yet.
    let mut left = Client::say(places[0].repair(), reconnect("left", &members[1].head()));
    everywhere(&|service| {
        let broken = || {
            let page = ask(service, &["chain", "show"]);
            page.contains("5 clients, 3 links, 1 broken, 2 waiting, 0 cut off").then_some(page)
        };
        let page = eventually("the gap is known", broken);
        let rows = rows(&page, "SERIAL");
        let heads: Vec<_> = rows.iter().map(|row| row[2]).collect();
        let expected = [0, 1, 2, 3, 4].map(|n| members[n].head());
        assert_eq!(heads, expected, "{page}");
        assert_says(&page, &["BROKEN: asks for", "by RECONNECT at instance 1, the next one does"]);
        assert_says(&page, &["waits for a newcomer"]);
        assert_says(
            &ask(service, &["chain", "list", "--broken"]),
            &["default", "5", "0", "3", "1"],
        );

        let lost = ask(service, &["explain", &members[2].tail()]);
        assert_says(
            &lost,
            &["Its tail has no partner: the partner said", "that this client is gone"],
        );
        let third = members[2].tail();
        let waiting = ask(service, &["explain", &members[1].head()]);
        assert_says(
            &waiting,
            &[
                "is the head of a client in chain default",
                "by RECONNECT with an id that is shown with the operators' token (request 1-",
                &format!("Its neighbour {third} does not ask: they are linked as soon as it does"),
                "its head asked for a new partner by RECONNECT with an id",
            ],
        );
        let silent = ask(service, &["explain", &third]);
        assert_says(&silent, &["its tail has lost its partner"]);
    });

    let mut right = Client::say(places[2].repair(), reconnect("right", &members[3].tail()));
    assert_eq!(left.rest(), repaired(&members[3].tail()));
    assert_eq!(right.rest(), repaired(&members[1].head()));
    everywhere(&|service| {
        let healed = || {
            let page = ask(service, &["explain", &members[3].tail()]);
            page.contains("a repair brought them together").then_some(page)
        };
        let page = eventually("the repair is known", healed);
        let linked = format!("its tail was linked with {} by a repair", members[1].head());
        assert_says(&page, &[&linked, "by RECONNECT with an id"]);
        let lost = ask(service, &["explain", &members[2].tail()]);
        let why = "its neighbours reported it as lost";
        assert_says(
            &lost,
            &["It has been cut off from the path of its chain", why, "forgotten in"],
        );
        let page = ask(service, &["chain", "show"]);
        assert_says(
            &page,
            &["5 clients, 3 links, 0 broken, 1 waiting, 1 cut off", "cut off for", why],
        );
        let shown = json(service, &["chain", "show", "--at", &members[3].head(), "--limit", "1"]);
        assert_eq!(shown["window"][0]["tail_side"]["by"], "repair");
        assert_eq!(shown["window"][0]["serial"], shown["found"]);
        assert_eq!((&shown["gaps"], &shown["broken_links"]), (&Value::from([0; 0]), &0.into()));
    });
}

#[test]
fn a_wait_whose_instance_died_says_so() {
    let mut cluster = Cluster::start(&["--resume-grace", "10min"]);
    let [dying, asked] = cluster.followers()[..] else { panic!("two follow") };
    let alone = Member(0);
    let waiting = Client::say(cluster.at(dying).chain(), alone.connect());
    wait_for_asks(cluster.at(asked), 1);
    cluster.kill(dying);
    drop(waiting);
    let given_up = || {
        let page = ask(cluster.at(asked), &["explain", &alone.head()]);
        page.contains("the instance that held its connection is gone").then_some(page)
    };
    let page = eventually("the instance is given up", given_up);
    let request = format!("(request {dying}-1-1 at instance {dying})");
    assert_says(&page, &[&request, "it has the resume grace", "It is the newest of its chain"]);
}

#[test]
fn the_id_of_a_request_leads_to_its_lines_in_the_log() {
    for (level, told) in [("trace", true), ("info", false)] {
        let dir = TempDir::new().unwrap();
        let mut service = Service::start(dir.path(), &["--log-level", level]);
        let members = [Member(0), Member(1)];
        let tip = chain(&service, &members);
        let explained = json(&service, &["explain", &members[1].tail()]);
        let request = explained["client"]["request"].as_str().unwrap();
        assert_eq!(request, "1-1-2");
        let lines = |word: &str| {
            let log = service.log();
            log.lines().filter(|line| line.contains(request) && line.contains(word)).count()
        };
        if told {
            eventually("both are logged", || {
                (lines("asks") > 0 && lines("answers") > 0).then_some(())
            });
        }
        service.stop();
        let log = service.log();
        let addresses = [tip.local_address().to_string(), members[1].tail()];
        assert_eq!(addresses.iter().any(|address| log.contains(address)), told, "{log}");
        assert_eq!(log.contains(request), told, "{log}");
    }
}
