//! The page must not look well when the cluster or its instance is not.

use std::net::SocketAddr;

use serde_json::json;
use tempfile::TempDir;

use super::{
    browser::Browser,
    cluster::{Cluster, chain_through},
    live::look_at,
    may_look,
    support::{Member, Service, free_address},
};

#[test]
fn privileged_a_cluster_without_a_leader_is_told() {
    if !may_look("privileged_a_cluster_without_a_leader_is_told") {
        return;
    }
    let mut cluster = Cluster::start(&[]);
    let leader = cluster.leader();
    let [kept, lost] = cluster.followers()[..] else { panic!("there are two") };
    let members: Vec<Member> = (1..=3).map(Member).collect();
    let mut turn = [kept, lost, leader].into_iter();
    let tip = chain_through(&members, || cluster.at(turn.next().unwrap()));

    let of_leader = look_at(cluster.at(leader));
    of_leader.until_text("#state", &["Serving", "leader is this instance", "3 of 3 members heard"]);
    let rows = "return document.querySelectorAll('#members tr').length";
    of_leader.until(rows, &json!(3));
    drop(of_leader);

    let browser = look_at(cluster.at(kept));
    let is_leader = format!("leader is instance {leader}");
    browser.until_text("#state", &["Serving", &is_leader, "heard"]);
    browser.until_text("#lag-note", &[&format!("see the page of instance {leader}")]);
    browser.until_text("#path", &[&members[0].head(), &format!("instance {leader}")]);
    browser.assert_readable_everywhere("follower");

    drop(tip);
    cluster.kill(lost);
    cluster.kill(leader);
    browser.until_text("#state", &["Not serving", "the cluster has no leader"]);
    browser.until_text("#trouble", &["No client that asks", "may be old", "since"]);
    browser.until_text("#members", &["follower", "voter", "ago"]);
    browser.until("return document.title.startsWith('⚠')", &json!(true));
    // What it knew is still there, and the instance itself answers.
    browser.until_text("#path", &[&members[0].head()]);
    assert_eq!(browser.run("return document.getElementById('stale').hidden"), json!(true));
    browser.assert_readable_everywhere("no-leader");

    cluster.start_these(&[lost]);
    browser.until_text("#state", &["Serving"]);
    browser.until("return document.getElementById('trouble').hidden", &json!(true));
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn privileged_an_instance_that_does_not_answer_is_told() {
    if !may_look("privileged_an_instance_that_does_not_answer_is_told") {
        return;
    }
    let dir = TempDir::new().unwrap();
    let http = free_address();
    let mut service = start_at(&dir, http);
    let browser = look_at(&service);
    browser.until_text("#pulse", &["live"]);

    // It hangs: no connection breaks, and yet nothing comes.
    service.signal("STOP");
    expect_stale(&browser);
    service.signal("CONT");
    expect_fresh(&browser);

    service.kill();
    expect_stale(&browser);
    browser.picture("stale");
    let _service = start_at(&dir, http);
    expect_fresh(&browser);
}

fn start_at(dir: &TempDir, http: SocketAddr) -> Service {
    let addresses = ["127.0.0.1:0", "127.0.0.1:0", &http.to_string()];
    Service::try_start_at(addresses, &[], dir.path(), Vec::new()).unwrap()
}

fn expect_stale(browser: &Browser) {
    browser.until_text("#state", &["This instance does not answer"]);
    browser.until_text("#stale", &["No answer since", "What is shown is from then"]);
    let opacity = "return getComputedStyle(document.querySelector('main')).opacity < 1";
    browser.until(opacity, &json!(true));
}

fn expect_fresh(browser: &Browser) {
    browser.until_text("#state", &["Serving"]);
    browser.until_text("#pulse", &["live"]);
    browser.until("return document.getElementById('stale').hidden", &json!(true));
}
