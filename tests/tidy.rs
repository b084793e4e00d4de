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

/// Fails with every line of `files` that `wrong` says something about.
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

/// A file or folder of `src` as paths, whichever it is.
fn module(name: &str) -> Vec<PathBuf> {
    let (file, folder) = (format!("src/{name}.rs"), format!("src/{name}"));
    let mut all = Vec::new();
    all.extend(Some(root().join(file)).filter(|file| file.exists()));
    if root().join(&folder).exists() {
        all.extend(files(&folder, &[".rs"]));
    }
    all
}

#[test]
fn each_layer_knows_only_those_below_it() {
    let layers: [(&str, &[&str]); 19] = [
        ("ids", &["limits"]),
        ("limits", &[]),
        ("codec", &[]),
        ("platform", &[]),
        ("console", &["platform"]),
        ("crowd", &["ids", "limits"]),
        ("descriptors", &["limits", "platform"]),
        ("registry", &["codec", "ids", "limits"]),
        ("wire", &["ids", "limits", "registry"]),
        ("runtime", &["clock"]),
        ("secrets", &["platform"]),
        ("sockets", &["platform"]),
        ("queue", &["registry"]),
        ("ratelimit", &["clock", "ids", "limits"]),
        ("raft", &["ids", "registry", "runtime"]),
        (
            "storage",
            &[
                "clock", "codec", "ids", "limits", "metrics", "platform", "raft", "registry",
                "runtime",
            ],
        ),
        (
            "cluster",
            &[
                "clock",
                "codec",
                "crowd",
                "descriptors",
                "ids",
                "limits",
                "metrics",
                "platform",
                "queue",
                "raft",
                "registry",
                "runtime",
                "secrets",
                "storage",
            ],
        ),
        (
            "server",
            &[
                "clock",
                "crowd",
                "descriptors",
                "ids",
                "limits",
                "metrics",
                "platform",
                "queue",
                "ratelimit",
                "registry",
                "runtime",
                "sockets",
                "wire",
            ],
        ),
        (
            "ops",
            &[
                "clock",
                "cluster",
                "crowd",
                "descriptors",
                "ids",
                "limits",
                "logging",
                "metrics",
                "platform",
                "raft",
                "ratelimit",
                "registry",
                "secrets",
                "server",
                "sockets",
                "storage",
            ],
        ),
    ];
    for (layer, known) in layers {
        no_line(&module(layer), |line| {
            let mut rest = line.trim().strip_prefix("//").is_none().then_some(line)?;
            while let Some(at) = rest.find("crate::") {
                rest = &rest[at + "crate::".len()..];
                let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
                let word = &rest[..end.unwrap_or(rest.len())];
                let other = word.chars().next().is_some_and(char::is_lowercase) && word != layer;
                // The harness of the fuzz targets is every layer's.
                if other && word != "fuzz" && !known.contains(&word) {
                    return Some(format!("{layer} must not know {word}"));
                }
            }
            None
        });
    }
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
         process's own (`process_*`) come on top.\nLinks, repairs and what expires are counted \
         while entries are applied: every instance counts alike, take `max`\nover instances. What \
         the log had already when an instance started is not counted again. The rest is\nthe \
         instance's own.\n\n\
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
