//! The sentences that say why an instance does not serve: each of the program's is on the page with
//! what to do, and the page has no other.

use std::{fs, path::Path};

/// The files that make such sentences.
const SOURCES: [&str; 9] = [
    "src/cluster/compare.rs",
    "src/cluster/found.rs",
    "src/cluster/node.rs",
    "src/cluster/peers.rs",
    "src/cluster/trouble.rs",
    "src/cluster/turned.rs",
    "src/cluster/waiting.rs",
    "src/cluster/watchdog.rs",
    "src/ops/readiness.rs",
];

/// The sources of which every sentence is one of these; the others say more.
const WHOLE: [&str; 3] =
    ["src/cluster/trouble.rs", "src/cluster/turned.rs", "src/cluster/waiting.rs"];

/// Shorter texts are parts of sentences.
const SENTENCE: usize = 30;

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// The texts of a source, without its tests. What stands for a value is an `N`.
fn texts(name: &str) -> Vec<String> {
    let source = read(name);
    let (code, _) = source.split_once("#[cfg(test)]").unwrap_or((&source, ""));
    let code: Vec<&str> =
        code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let code = code.join("\n");
    let joined: Vec<&str> = code.split("\\\n").map(str::trim_start).collect();
    joined.concat().split('"').skip(1).step_by(2).map(without_values).collect()
}

fn without_values(text: &str) -> String {
    let mut plain = String::new();
    for (number, part) in text.split(['{', '}']).enumerate() {
        plain += if number % 2 == 0 { part } else { "N" };
    }
    plain
}

/// The sentences of the page's table, or their parts, with what to do about each.
fn rows() -> Vec<(Vec<String>, String)> {
    let page = read("deploy/RUNBOOK.md");
    let (_, section) = page.split_once("### Not ready").expect("the section is there");
    let (section, _) = section.split_once("\n### ").expect("another one follows");
    let rows = section.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    let rows = rows.filter_map(|row| row.split_once(" | "));
    let quoted = |cell: &str| {
        let said = cell.split('`').skip(1).step_by(2).filter(|said| *said != "its ...");
        said.map(str::to_owned).collect()
    };
    let rows = rows.map(|(said, todo): (&str, &str)| (quoted(said), todo.to_owned()));
    rows.filter(|(said, _): &(Vec<String>, _)| !said.is_empty()).collect()
}

#[test]
fn every_cause_is_on_the_page_with_what_to_do() {
    let rows = rows();
    let said: Vec<&String> = rows.iter().flat_map(|(said, _)| said).collect();
    for source in WHOLE {
        let sentences = texts(source).into_iter().filter(|text| {
            let is_part = ["N", ";", "it ", "its ", "what listens", "nothing listens"];
            text.len() >= SENTENCE && !is_part.iter().any(|begin| text.starts_with(begin))
        });
        for sentence in sentences {
            let is_there = said.iter().any(|it| is_in(it, &sentence));
            assert!(is_there, "not on the page: {sentence:?} of {source}; there are {said:#?}");
        }
    }
    assert!(rows.iter().all(|(_, todo)| todo.len() > 5), "each row says what to do");
}

#[test]
fn every_sentence_of_the_page_is_one_of_the_program() {
    let texts: Vec<String> = SOURCES.into_iter().flat_map(texts).collect();
    for said in rows().into_iter().flat_map(|(said, _)| said) {
        let is_said = texts.iter().any(|text| is_in(&said, text));
        assert!(is_said, "the program never says {said:?}");
    }
}

/// Whether a sentence of the page, or a part of one, is in a text of the program, but for values.
fn is_in(said: &str, text: &str) -> bool {
    let said = said.replace("(HOST:PORT)", " N").replace("...", " N");
    said.split(" N").map(|part| part.trim_matches([' ', ':'])).all(|part| text.contains(part))
}
