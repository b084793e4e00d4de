//! What `deploy/` says to the program: flags, variables and members that it understands.

use std::{fs, path::Path};

use emnetchain::config::{Config, InitialCluster, Value};

use super::{read, words};

/// Flags that are no keys of the configuration.
const OTHER_FLAGS: [&str; 8] =
    ["at", "broken", "config", "from", "help", "json", "limit", "version"];

/// Read by the tests alone.
const OF_TESTS: &str = "EMNETCHAIN_PRIVILEGED";

/// Every file of `deploy/` that is text, by its name there.
fn pages() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    let (mut folders, mut pages) = (vec![root.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_none_or(|extension| extension != "png") {
                let name = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
                pages.push((name, fs::read_to_string(path).unwrap()));
            }
        }
    }
    pages
}

#[test]
fn every_variable_is_one_of_the_configuration() {
    let mut count = 0;
    for (name, text) in pages() {
        for word in words(&text, "EMNETCHAIN_") {
            let key = word.strip_prefix("EMNETCHAIN_").unwrap().to_lowercase();
            let is_known = Config::key(&key).is_some() || word == OF_TESTS;
            assert!(is_known, "{name}: there is no {word}");
            count += 1;
        }
    }
    assert!(count > 10, "only {count} were found");
}

#[test]
fn every_flag_is_one_of_the_program() {
    let mut count = 0;
    for (name, text) in pages() {
        let mut is_command = false;
        for line in text.lines() {
            // A command of ours may go on over several lines; other programs have their own flags.
            is_command = line.contains("EMNetChain ") || (is_command && line.starts_with(' '));
            let command = line.split(" | ").next().unwrap_or_default();
            for flag in command.split("--").skip(1).filter(|_| is_command) {
                let end = flag.find(|c: char| !c.is_ascii_lowercase() && c != '-');
                let flag = &flag[..end.unwrap_or(flag.len())];
                let is_key = Config::KEYS.iter().any(|key| key.flag() == flag);
                assert!(is_key || OTHER_FLAGS.contains(&flag), "{name}: there is no --{flag}");
                count += 1;
            }
            is_command &= line.ends_with('\\');
        }
    }
    assert!(count > 10, "only {count} were found");
}

#[test]
fn members_are_the_three_that_run() {
    for (page, template) in [
        ("docker/compose.yml", "emnetchain-{}:7000"),
        ("kubernetes/statefulset.yaml", "emnetchain-{}.emnetchain-raft:7000"),
    ] {
        let text = read(page);
        let line = text.lines().find(|line| line.contains("1=emnetchain-1")).unwrap();
        let members = InitialCluster::parse(&line[line.find("1=").unwrap()..]).unwrap();
        assert_eq!(members.0.len(), 3, "{page}");
        for (id, member) in members.0 {
            assert_eq!(member.raft_addr, template.replace("{}", &id.0.to_string()), "{page}");
        }
    }
    let pods = read("kubernetes/statefulset.yaml");
    for line in ["podManagementPolicy: Parallel", "ordinals: {start: 1}", "replicas: 3"] {
        assert!(pods.contains(line), "a StatefulSet without `{line}` cannot be founded");
    }
    assert!(read("kubernetes/services.yaml").contains("publishNotReadyAddresses: true"));
}
