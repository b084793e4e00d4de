//! Style and structure as a test: the layers, the width, the words, and generated pages that must
//! say what the code says. `UPDATE_GOLDENFILES=1 cargo test --test tidy` writes those pages again.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use emnetchain::metrics::{Declaration, Metrics};
use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below `folder` with one of the given endings, build results left out.
fn files(folder: &str, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if endings.iter().any(|ending| path.to_string_lossy().ends_with(ending)) {
                found.push(path);
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "nothing found in {folder}");
    found
}

/// Fails with every line of `files` in which `wrong` finds a fault.
fn no_line(files: &[PathBuf], wrong: impl Fn(&str) -> Option<String>) {
    let mut faults = String::new();
    for path in files {
        for (number, line) in (1..).zip(fs::read_to_string(path).unwrap().lines()) {
            if let Some(fault) = wrong(line) {
                let name = path.strip_prefix(root()).unwrap().display();
                let _ = writeln!(faults, "{name}:{number}: {fault}: {}", line.trim());
            }
        }
    }
    assert!(faults.is_empty(), "\n{faults}");
}

/// Returns the files of a module of `src`, in a file or a folder.
fn module(name: &str) -> Vec<PathBuf> {
    let (file, folder) = (format!("src/{name}.rs"), format!("src/{name}"));
    let mut all = Vec::new();
    all.extend(Some(root().join(file)).filter(|file| file.exists()));
    if root().join(&folder).exists() {
        all.extend(files(&folder, &[".rs"]));
    }
    all
}

/// The modules from the bottom up, each with those that it may know. All of these stand before it,
/// so there is no circle.
const LAYERS: [(&str, &str); 27] = [
    ("platform", ""),
    ("limits", ""),
    ("ids", "limits"),
    ("clock", ""),
    ("codec", ""),
    ("console", "platform"),
    ("metrics", "platform"),
    ("runtime", "clock"),
    ("secrets", "platform"),
    ("sockets", "platform"),
    ("logging", "clock ids"),
    ("crowd", "ids limits"),
    ("descriptors", "limits platform"),
    ("ratelimit", "clock ids limits"),
    ("registry", "codec ids limits"),
    ("wire", "ids limits registry"),
    ("queue", "registry"),
    ("raft", "ids registry runtime"),
    ("storage", "clock codec ids limits metrics platform raft registry runtime"),
    (
        "cluster",
        "clock codec crowd descriptors ids limits metrics platform queue raft registry runtime \
         secrets storage",
    ),
    (
        "server",
        "clock crowd descriptors ids limits metrics platform queue ratelimit registry runtime \
         sockets wire",
    ),
    (
        "ops",
        "clock cluster crowd descriptors ids limits logging metrics platform raft ratelimit \
         registry secrets server sockets storage",
    ),
    ("config", "cluster ids limits logging ops raft registry secrets server storage wire"),
    (
        "instance",
        "clock cluster config console ids limits logging metrics ops platform queue raft \
         registry server sockets storage",
    ),
    ("cli", "cluster config console ids limits ops platform storage"),
    ("main", "cli config console emnetchain instance logging"),
    // The harness of the fuzz targets is every layer's.
    ("fuzz", "clock"),
];

#[test]
fn every_module_is_a_layer_and_knows_only_those_before_it() {
    let mut before = Vec::new();
    for (layer, known) in LAYERS {
        let known: Vec<&str> = known.split_whitespace().collect();
        let is_before = |other: &&str| before.contains(other) || *other == "emnetchain";
        assert!(known.iter().all(is_before), "{layer} is above all that it knows");
        before.push(layer);
    }
    let all = fs::read_dir(root().join("src")).unwrap().map(|entry| entry.unwrap().path());
    let names = all.map(|path| path.file_stem().unwrap().to_string_lossy().into_owned());
    let without: Vec<_> =
        names.filter(|name| name != "lib" && !before.contains(&name.as_str())).collect();
    assert!(without.is_empty(), "not among the layers: {without:?}");
}

/// Returns the modules that a text names behind `crate::`, alone or in a group of imports.
fn modules_named(text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let text = lines.collect::<Vec<_>>().join("\n");
    let word = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let mut names = Vec::new();
    for (_, after) in text.match_indices("crate::").map(|(at, path)| text.split_at(at + path.len()))
    {
        let Some(group) = after.strip_prefix('{') else {
            names.push(word(after));
            continue;
        };
        names.push(word(group));
        let mut depth = 1;
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => names.push(word(&group[at + 1..])),
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    names.retain(|name| name.starts_with(|c: char| c.is_lowercase()));
    names
}

#[test]
fn each_layer_knows_only_those_below_it() {
    let text = "use crate::{\n a::{b, c},\n d,\n};\n// crate::x\nlet e = crate::f::g(crate::H);";
    assert_eq!(modules_named(text), ["a", "d", "f"]);
    let mut faults = Vec::new();
    for (layer, known) in LAYERS {
        let known: Vec<&str> = known.split_whitespace().chain([layer, "fuzz"]).collect();
        for path in module(layer) {
            let named = modules_named(&fs::read_to_string(&path).unwrap());
            let wrong = named.iter().filter(|name| !known.contains(&name.as_str()));
            faults.extend(wrong.map(|name| format!("{} must not know {name}", path.display())));
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn the_pure_layers_are_pure() {
    let banned = ["tokio", "sled", "openraft", "getrandom", "std::net::Tcp", "std::net::Udp"];
    let banned_more = ["std::fs", "std::thread", "std::time", "async fn", ".await", "tracing"];
    let pure: Vec<PathBuf> = [module("registry"), module("wire")]
        .concat()
        .into_iter()
        .filter(|path| {
            let name = path.to_string_lossy();
            !["tests", "golden", "properties"].iter().any(|tests| name.contains(tests))
        })
        .collect();
    no_line(&pure, |line| {
        let code = line.split("//").next().unwrap_or_default();
        let found = banned.iter().chain(&banned_more).find(|word| code.contains(**word))?;
        Some(format!("a pure layer must not use {found}"))
    });
}

/// A system that one module knows is a system that the next port forgets.
#[test]
fn what_is_the_systems_stays_in_its_room() {
    let mut all = files("src", &[".rs"]);
    all.retain(|path| !path.to_string_lossy().contains("/src/platform/"));
    let foreign = [
        "cfg(unix)",
        "cfg(windows)",
        "libc::",
        "os::fd",
        "os::unix",
        "os::windows",
        "\"/proc",
        "rustix",
        "signal::unix",
        "signal::windows",
        "std::os::",
        "target_family",
        "target_os",
        "target_vendor",
    ];
    no_line(&all, |line| {
        let code = line.split("//").next().unwrap_or_default();
        let found = foreign.iter().find(|word| code.contains(**word))?;
        Some(format!("{found} belongs in src/platform"))
    });
}

/// Options that one listener has and another lacks are found out by an operator.
#[test]
fn listeners_are_opened_in_one_place() {
    let mut all = files("src", &[".rs"]);
    all.retain(|path| {
        let name = path.to_string_lossy();
        !name.contains("tests") && !name.ends_with("src/sockets.rs")
    });
    let openers = ["TcpListener::bind", "UdpSocket::bind", "TcpSocket::new", "Socket::new("];
    for path in all {
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for opener in openers {
            assert!(!code.contains(opener), "{} has {opener}; see sockets.rs", path.display());
        }
    }
}

/// A module that has a folder is wholly in it.
#[test]
fn a_module_is_a_file_or_a_folder() {
    let split = files("src", &[".rs"]).into_iter().filter(|path| path.with_extension("").is_dir());
    let split: Vec<_> = split.map(|path| path.display().to_string()).collect();
    assert!(split.is_empty(), "move these into their folders, as mod.rs: {split:#?}");
}

#[test]
fn the_top_level_holds_what_it_must_and_no_more() {
    let known = [
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE",
        "Makefile",
        "README.md",
        "SECURITY.md",
        "benches",
        "clippy.toml",
        "deny.toml",
        "deploy",
        "emnetchain-data",
        "proto-docs",
        "rustfmt.toml",
        "src",
        "target",
        "tests",
    ];
    let names = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().file_name());
    let names = names.map(|name| name.into_string().unwrap());
    let others: Vec<_> =
        names.filter(|name| !name.starts_with('.') && !known.contains(&name.as_str())).collect();
    assert!(others.is_empty(), "{others:?}");
}

#[test]
fn lines_fit_and_nothing_is_left_for_later() {
    let mut all = files("src", &[".rs"]);
    all.extend(files("tests", &[".rs"]));
    all.extend(files("benches", &[".rs"]));
    let later = ["TO".to_owned() + "DO", "FIX".to_owned() + "ME", "X".to_owned() + "XX"];
    no_line(&all, |line| {
        if line.chars().count() > 100 {
            return Some("more than 100 columns".to_owned());
        }
        later.iter().any(|word| line.contains(word.as_str())).then(|| "left for later".to_owned())
    });
}

/// Words that hide their subject, or that only books have. `CONTRIBUTING.md` says how we write.
const WORDS_OUT: [&str; 22] = [
    "anew",
    "anybody",
    "as ever",
    "everybody",
    "for it is",
    "hence",
    "is told that",
    "it is told",
    "lest",
    "nobody",
    "of late",
    "shall",
    "so long",
    "so many",
    "somebody",
    "thereby",
    "thereof",
    "whatever",
    "which is why",
    "who",
    "whoever",
    "whom",
];

#[test]
fn the_words_are_plain() {
    let texts = [".rs", ".md", ".txt", ".toml", ".yaml", ".yml", ".json", ".js", ".html"];
    let mut all = files("proto-docs", &texts);
    all.extend(files("deploy", &texts));
    // Golden scripts have no ending.
    all.extend(files("src", &[""]));
    let pages = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path());
    all.extend(pages.filter(|path| path.extension().is_some_and(|ending| ending == "md")));
    no_line(&all, |line| {
        let line = line.to_lowercase();
        let is_part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        let has = |word: &str| {
            line.match_indices(word).any(|(at, _)| {
                let (before, after) = (&line[..at], &line[at + word.len()..]);
                !is_part(before.chars().next_back()) && !is_part(after.chars().next())
            })
        };
        let word = WORDS_OUT.iter().find(|word| has(word))?;
        Some(format!("\"{word}\" stays out"))
    });
}

/// A function's doc begins with a verb, a type's with a noun; "what" and "how" hide both.
#[test]
fn docs_begin_with_the_thing_itself() {
    for path in files("src", &[".rs"]) {
        let text = fs::read_to_string(&path).unwrap();
        let mut before = "";
        for (number, line) in (1..).zip(text.lines().map(str::trim)) {
            let first = line.strip_prefix("/// ").or_else(|| line.strip_prefix("//! "));
            let opens = !before.starts_with("///") && !before.starts_with("//!");
            let hides = |doc: &str| doc.starts_with("What ") || doc.starts_with("How ");
            let at = format!("{}:{number}", path.display());
            assert!(!(opens && first.is_some_and(hides)), "{at}: {line}");
            before = line;
        }
    }
}

#[test]
fn every_module_opens_with_prose() {
    for path in files("src", &[".rs"]) {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//! "), "{} does not say what it is", path.display());
    }
}

#[test]
fn the_page_of_metrics_is_the_code() {
    let mut page = String::from(
        "# Metrics\n\nEvery metric of `/metrics`, as `src/metrics.rs` declares it; the \
         process's own (`process_*`) come on top.\nLinks, repairs and expiries are counted when \
         entries are applied: every instance counts the same, so take\n`max` over instances. \
         Entries that were in the log at a start are not counted again. All other metrics are\n\
         the instance's own.\n\n\
         | name | type | labels | meaning |\n|---|---|---|---|\n",
    );
    for Declaration { name, kind, labels, help } in Metrics::TABLE {
        let kind = match *kind {
            "Histogram" => "histogram",
            kind if kind.starts_with("IntCounter") => "counter",
            _ => "gauge",
        };
        let _ = writeln!(page, "| `{name}` | {kind} | {} | {} |", labels.join(", "), help.trim());
    }
    expect_page("proto-docs/metrics.md", &page);
}

/// Compares a generated page with the one that is kept.
fn expect_page(name: &str, text: &str) {
    let path = root().join(name);
    if std::env::var_os("UPDATE_GOLDENFILES").is_some() {
        fs::write(&path, text).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == text, "{name} is not what the code says; UPDATE_GOLDENFILES=1 writes it again");
}
