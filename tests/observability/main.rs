//! What operators look at: dashboards and alerts name metrics that exist and pages that are there,
//! and what `deploy/` says on a command line is what the program understands.
//!
//! With `EMNETCHAIN_PRIVILEGED=1` a real Prometheus watches a real cluster: every query of every
//! panel must find something, and the right alerts must fire and clear.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says why"
)]

#[path = "../support/cluster.rs"]
mod cluster;
#[path = "../support/mod.rs"]
mod support;

mod alerts;
mod crowd;
mod manifests;
mod panels;
mod privileged;
mod prometheus;
mod proxies;
mod sandbox;

use std::{fs, path::Path};

/// A file of `deploy/`.
fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The words of a text that have this beginning, without their repetitions.
fn words<'a>(text: &'a str, beginning: &str) -> Vec<&'a str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut words: Vec<_> =
        text.split(|c| !is_part(c)).filter(|word| word.starts_with(beginning)).collect();
    words.sort_unstable();
    words.dedup();
    words
}

/// Fails if the text names a metric that no instance has.
fn assert_metrics_exist(text: &str, place: &str) {
    for word in words(text, "emnetchain_") {
        let known = emnetchain::metrics::Metrics::TABLE.iter().any(|metric| {
            let rest = word.strip_prefix(metric.name);
            match (rest, metric.kind) {
                (Some(""), kind) => kind != "Histogram",
                (Some("_bucket" | "_count" | "_sum"), kind) => kind == "Histogram",
                (Some(_) | None, _) => false,
            }
        });
        assert!(known, "{place}: no metric {word}");
    }
}
