//! A real Prometheus watches a real cluster: panels find data, alerts fire and clear. It takes the
//! packages `prometheus` and, for the sandbox, `bubblewrap`.

use std::{
    fs,
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use tempfile::TempDir;

use super::{
    cluster::Cluster,
    crowd::Crowd,
    panels::{DASHBOARDS, queries},
    prometheus::{Prometheus, promtool, wait_for_all},
    support::{Service, eventually, privileged::may_run},
};

#[test]
fn privileged_promtool_finds_no_fault() {
    if !may_run("privileged_promtool_finds_no_fault", "packages", &["promtool"]) {
        return;
    }
    for page in ["prometheus.yml", "local.yml"] {
        promtool(&["check", "config", "--lint=all", "--lint-fatal", page], None);
    }
    promtool(&["check", "rules", "--lint=all", "--lint-fatal", "rules.yml"], None);
    promtool(&["test", "rules", "tests.yml"], None);
}

#[test]
fn privileged_the_compose_file_is_well_formed() {
    if !may_run("privileged_the_compose_file_is_well_formed", "packages", &["docker-compose"]) {
        return;
    }
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/docker/compose.yml");
    let checked = Command::new("docker-compose").args(["-f", page, "config", "-q"]).output();
    let checked = checked.unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}

#[test]
fn privileged_every_panel_shows_something_and_the_right_alerts_fire() {
    let test = "privileged_every_panel_shows_something_and_the_right_alerts_fire";
    if !may_run(test, "packages", &["prometheus", "promtool"]) {
        return;
    }
    let mut cluster = Cluster::start(&["--udp-addr", "127.0.0.1:0"]);
    let prometheus = Prometheus::start();
    let mut known = [None; 3];
    prometheus.watch(&cluster, &mut known);
    wait_for_all(&prometheus);

    let page = TempDir::new().unwrap();
    fs::write(page.path().join("metrics"), cluster.at(1).get("/metrics").1).unwrap();
    promtool(&["check", "metrics"], Some(&page.path().join("metrics")));

    let mut crowd = Crowd::new(cluster.at(1));
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                crowd.make_history(&cluster);
            }
        });
        // However it ends, the crowd must not go on.
        let asked = catch_unwind(AssertUnwindSafe(|| every_query_finds_something(&prometheus)));
        is_over.store(true, Ordering::Relaxed);
        asked.unwrap_or_else(|panic| resume_unwind(panic));
    });

    a_broken_link_is_told(&mut crowd, cluster.at(2), &prometheus);
    a_dead_leader_is_told(&mut cluster, &prometheus, &mut known);
}

/// Asks what each panel asks, as Grafana would, until each has found a number.
fn every_query_finds_something(prometheus: &Prometheus) {
    let mut count = 0;
    for query in DASHBOARDS.into_iter().flat_map(queries) {
        for instance in instances(&query.place) {
            let asked = query
                .text
                .replace("$__rate_interval", "20s")
                .replace("$job", "emnetchain")
                .replace("$instance", instance)
                .replace("$chain", ".*");
            eventually(&format!("{} shows something: {asked}", query.place), || {
                prometheus.ask(&asked).iter().any(|number| !number.is_nan()).then_some(())
            });
            count += 1;
        }
    }
    eprintln!("{count} queries of {} dashboards found something", DASHBOARDS.len());
}

/// The dashboard of one instance is looked at for each of them.
fn instances(place: &str) -> &'static [&'static str] {
    if place.starts_with("instance:") { &["node1", "node2", "node3"] } else { &[".*"] }
}

/// A client lost its neighbour and asks; the other side keeps silent, and then asks as well.
fn a_broken_link_is_told(crowd: &mut Crowd, service: &Service, prometheus: &Prometheus) {
    prometheus.expect_clear(&["EMNetChainChainBroken"]);
    crowd.lose_one(service, || prometheus.expect_firing(&["EMNetChainChainBroken"]));
    prometheus.expect_clear(&["EMNetChainChainBroken"]);
}

fn a_dead_leader_is_told(
    cluster: &mut Cluster,
    prometheus: &Prometheus,
    known: &mut [Option<SocketAddr>; 3],
) {
    let one_down =
        ["EMNetChainMembersDown", "EMNetChainFailureToleranceZero", "EMNetChainInstanceDown"];
    prometheus.expect_clear(&one_down);
    let first = cluster.leader();
    cluster.kill(first);
    prometheus.expect_firing(&one_down);
    prometheus.expect_clear(&["EMNetChainNoLeader"]);
    let second = cluster.leader();
    cluster.kill(second);
    prometheus.expect_firing(&["EMNetChainNoLeader", "EMNetChainNotReady"]);
    cluster.start_these(&[first, second]);
    cluster.wait_ready();
    prometheus.watch(cluster, known);
    prometheus.expect_clear(&["EMNetChainNoLeader", "EMNetChainNotReady"]);
    prometheus.expect_clear(&one_down);
}
