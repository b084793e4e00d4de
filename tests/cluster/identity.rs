//! What becomes of disks that are lost, exchanged or put back from an older copy: no acknowledged
//! answer is ever contradicted. Each test is told from the side of a client and of an operator.

use std::{fs, path::Path, process::Command};

use super::chains::expect_neighbours;
use crate::{
    replicas::{Cluster, chain_through, member_list},
    support::{
        Member, Service, eventually, free_address,
        operator::{operate, read_status},
    },
};

/// Starts an instance that ends by itself; its exit code and its log.
fn start_and_end(cluster: &Cluster, id: usize) -> (Option<i32>, String) {
    match cluster.try_start(id) {
        Ok(mut service) => (service.wait().code(), service.log()),
        Err((status, log)) => (status.code(), log),
    }
}

/// Waits until an instance that is not ready says something.
fn wait_until_it_says(service: &Service, words: &[&str]) -> String {
    eventually(&format!("it says {words:?}"), || {
        let (code, why) = service.get("/readyz");
        (code == 503 && words.iter().all(|word| why.contains(word))).then_some(why)
    })
}

fn empty(cluster: &Cluster, id: usize) {
    fs::remove_dir_all(cluster.data_dir(id)).unwrap();
}

/// Copies a data directory of an instance that does not run.
fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-r").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

#[test]
fn two_of_three_do_not_found_a_cluster_and_name_the_third() {
    let mut cluster = Cluster::new(&[]);
    cluster.start_these(&[1, 2]);
    let third = cluster.raft(3).to_string();
    wait_until_it_says(cluster.at(1), &["founding", &format!("3 ({third})"), "cluster add"]);
    wait_until_it_says(cluster.at(2), &["founding", &third]);
    cluster.kill(2);
    cluster.start_these(&[3]);
    let second = cluster.raft(2).to_string();
    wait_until_it_says(cluster.at(1), &["founding", &format!("2 ({second})")]);
    assert!(!cluster.is_ready(1) && !cluster.is_ready(3));
    cluster.start_these(&[2]);
    cluster.wait_ready();
    let history = |id: usize| cluster.status(id)["cluster"].clone();
    assert_eq!(history(1), history(3));
    cluster.assert_equal_registries();
}

#[test]
fn lists_that_differ_are_told() {
    let cluster = Cluster::new(&[]);
    let [one, two] = [1, 2].map(|id| cluster.raft(id));
    let start = |id: usize, list: &str| {
        let (number, raft) = (id.to_string(), cluster.raft(id).to_string());
        let id_of_both = "00000000000000000000000000000001";
        let arguments = ["--node-id", &number, "--raft-addr", &raft, "--initial-cluster", list];
        let arguments = [arguments.as_slice(), &["--cluster-id", id_of_both]].concat();
        Service::start(&cluster.data_dir(id), &arguments)
    };
    let first = start(1, &member_list(&[one, two]));
    let _second = start(2, &member_list(&[one, two, cluster.raft(3)]));
    wait_until_it_says(&first, &["another --initial-cluster", &two.to_string()]);
}

/// An instance with a list of its own, in its data directory.
fn start_with(cluster: &Cluster, id: usize, list: &str) -> Service {
    let (number, raft) = (id.to_string(), cluster.raft(id).to_string());
    let arguments = ["--node-id", &number, "--raft-addr", &raft, "--initial-cluster", list];
    let arguments = [arguments.as_slice(), &["--insecure-cluster"]].concat();
    Service::start(&cluster.data_dir(id), &arguments)
}

/// A lost disk waits for the others; with a shorter list it is another cluster, not theirs again.
#[test]
fn a_lost_disk_that_founds_alone_does_not_keep_a_majority_from_starting() {
    let mut cluster = Cluster::start(&[]);
    let members = [0, 1, 2].map(Member);
    drop(chain_through(&members, || cluster.at(1)));
    let before = cluster.status(1)["cluster"].clone();
    cluster.ids().for_each(|id| cluster.kill(id));
    empty(&cluster, 3);
    let all = member_list(&[1, 2, 3].map(|id| cluster.raft(id)));
    let waiting = start_with(&cluster, 3, &all);
    wait_until_it_says(&waiting, &["founding"]);
    drop(waiting);
    let alone = start_with(&cluster, 3, &format!("3={}", cluster.raft(3)));
    eventually("it serves alone", || (alone.get("/readyz").0 == 200).then_some(()));
    assert_ne!(read_status(&alone, "/status")["cluster"], before, "it is another cluster");
    cluster.start_these(&[1, 2]);
    cluster.wait_ready();
    assert_eq!(cluster.status(1)["cluster"], before);
    expect_neighbours(cluster.at(2), members[1], Some(members[0]), members[2]);
}

/// What was never founded has promised nothing, so a list that was wrong can be corrected.
#[test]
fn a_list_with_a_mistake_can_be_corrected_while_nothing_was_founded() {
    correct_a_list(|_| {});
}

/// It may have been killed before its image was finished.
#[test]
fn a_list_with_a_mistake_can_be_corrected_beside_an_image_that_was_never_finished() {
    correct_a_list(|registry| {
        fs::remove_dir_all(registry).unwrap();
        drop(sled::open(registry).unwrap());
    });
}

fn correct_a_list(killed: impl Fn(&Path)) {
    let mut cluster = Cluster::new(&[]);
    let port = cluster.raft(1).port();
    let [two, three] = [2, 3].map(|id| cluster.raft(id));
    let wrong = start_with(&cluster, 3, &format!("1=localhost:{port},2={two},3={three}"));
    wait_until_it_says(&wrong, &["founding"]);
    drop(wrong);
    killed(&cluster.data_dir(3).join("registry"));
    cluster.start_these(&[1, 2, 3]);
    cluster.wait_ready();
    cluster.assert_equal_registries();
}

#[test]
fn a_data_directory_of_another_cluster_than_the_named_one_is_refused() {
    let dir = tempfile::TempDir::new().unwrap();
    let named = |id: u8| ["--cluster-id".to_owned(), format!("{id:032x}")];
    let start = |id: u8| {
        let flags = named(id);
        let raft = free_address().to_string();
        let list = format!("1={raft}");
        let flags = flags.iter().map(String::as_str);
        let flags: Vec<_> =
            flags.chain(["--initial-cluster", &list, "--raft-addr", &raft]).collect();
        let flags = [flags.as_slice(), &["--insecure-cluster"]].concat();
        Service::try_start(dir.path(), flags.into_iter().map(str::to_owned).collect())
    };
    let mut first = start(1).unwrap();
    eventually("it serves", || (first.get("/readyz").0 == 200).then_some(()));
    first.stop();
    let (status, log) = start(2).unwrap_err();
    assert_eq!(status.code(), Some(78), "{log}");
    assert!(log.contains("belongs to cluster 00"), "{log}");
}

/// Input A1: with all three founded, 2 down and 3 emptied, 2 and 3 must not answer without 1.
#[test]
fn a_member_that_lost_its_disk_does_not_make_a_majority_with_one_that_was_away() {
    let mut cluster = Cluster::start(&["--resume-grace", "10min"]);
    cluster.kill(2);
    cluster.wait_ready();
    let members = [0, 1, 2].map(Member);
    let mut at = [1, 3].iter().cycle();
    drop(chain_through(&members, || cluster.at(*at.next().unwrap())));
    cluster.kill(1);
    cluster.kill(3);
    empty(&cluster, 3);
    cluster.start_these(&[2]);
    let (code, log) = start_and_end(&cluster, 3);
    assert_eq!(code, Some(78), "{log}");
    assert!(log.contains("cluster add") && log.contains("cluster remove 3"), "{log}");
    let first = cluster.raft(1).to_string();
    wait_until_it_says(cluster.at(2), &["no leader", &format!("1 ({first})"), "nothing listens"]);
    assert!(!cluster.is_ready(2), "a client is not answered without the first");
    cluster.start_these(&[1]);
    cluster.wait_ready();
    expect_neighbours(cluster.at(2), members[1], Some(members[0]), members[2]);
    cluster.assert_equal_registries();
}

/// Input A2: two emptied disks never make a second history.
#[test]
fn two_members_that_lost_their_disks_do_not_found_a_second_history() {
    let mut cluster = Cluster::start(&[]);
    let members = [0, 1, 2].map(Member);
    drop(chain_through(&members, || cluster.at(1)));
    cluster.ids().for_each(|id| cluster.kill(id));
    empty(&cluster, 2);
    empty(&cluster, 3);
    cluster.start_these(&[2, 3]);
    let first = format!("1 ({})", cluster.raft(1));
    wait_until_it_says(cluster.at(2), &[&first]);
    wait_until_it_says(cluster.at(3), &[&first]);
    cluster.start_these(&[1]);
    for id in [2, 3] {
        let mut lost = cluster.take(id);
        assert_eq!(lost.wait().code(), Some(78), "{}", lost.log());
        assert!(lost.log().contains("the disk was lost or replaced"), "{}", lost.log());
    }
    let others = [2, 3].map(|id| format!("{id} ({})", cluster.raft(id)));
    wait_until_it_says(cluster.at(1), &["no majority", &others[0], &others[1], "runbook"]);
}

#[test]
fn two_histories_under_one_cluster_id_do_not_mix() {
    let (dir, cluster) = (tempfile::TempDir::new().unwrap(), Cluster::new(&[]));
    let [one, two] = [1, 2].map(|id| cluster.raft(id).to_string());
    let path = |id: &str| dir.path().join(id);
    let both = format!("1={one},2={two}");
    let alone = |id: &str, address: &str, list: &str| {
        let cluster = ["--cluster-id", "00000000000000000000000000000001", "--initial-cluster"];
        let own = ["--node-id", id, "--raft-addr", address];
        [own.as_slice(), &cluster, &[list]].concat().into_iter().map(str::to_owned).collect()
    };
    let mut services = Vec::new();
    for (id, address) in [("1", &one), ("2", &two)] {
        let arguments: Vec<String> = alone(id, address, &format!("{id}={address}"));
        let service = Service::try_start(&path(id), arguments).expect("it starts");
        eventually("it serves alone", || (service.get("/readyz").0 == 200).then_some(()));
        services.push(service);
    }
    services.pop().unwrap().kill();
    let (code, log) = match Service::try_start(&path("2"), alone("2", &two, &both)) {
        Ok(mut service) => (service.wait().code(), service.log()),
        Err((status, log)) => (status.code(), log),
    };
    assert_eq!(code, Some(78), "{log}");
    assert!(log.contains("under the same cluster id"), "{log}");
    let first = &services[0];
    assert!(first.log().contains("another history"), "{}", first.log());
    eventually("the refusal is counted", || {
        (first.metric("emnetchain_raft_refused_total{reason=\"history\"}") > 0.0).then_some(())
    });
    assert_eq!(first.get("/readyz").0, 200);
}

/// Input A4: an older copy of a data directory is put back, of a follower and of a leader.
#[test]
fn an_older_copy_of_a_data_directory_is_refused_by_those_that_remember_more() {
    for leads in [false, true] {
        let mut cluster = Cluster::start(&[]);
        let leader = cluster.leader();
        let goes_back = if leads { cluster.followers()[0] } else { cluster.followers()[1] };
        let other = cluster.ids().find(|id| ![leader, goes_back].contains(id)).unwrap();
        cluster.kill(goes_back);
        let older = cluster.data_dir(goes_back).with_extension("older");
        copy(&cluster.data_dir(goes_back), &older);
        cluster.start_these(&[goes_back]);
        cluster.wait_ready();
        if leads {
            eventually("it leads", || {
                let id = goes_back.to_string();
                (operate(cluster.at(other), &["transfer-leader", &id]).0 == 0).then_some(())
            });
            cluster.wait_ready();
        }
        let members = [0, 1, 2].map(Member);
        drop(chain_through(&members, || cluster.at(other)));
        if leads {
            // It hands over, and so acknowledges what another one leads.
            eventually("it leads no longer", || {
                let id = other.to_string();
                (operate(cluster.at(leader), &["transfer-leader", &id]).0 == 0).then_some(())
            });
            cluster.wait_ready();
        }
        cluster.kill(goes_back);
        empty(&cluster, goes_back);
        fs::rename(&older, cluster.data_dir(goes_back)).unwrap();
        let (code, log) = start_and_end(&cluster, goes_back);
        assert_eq!(code, Some(78), "leader: {leads}: {log}");
        assert!(log.contains("is an older copy") && log.contains("acknowledged"), "{log}");
        cluster.wait_ready();
        let logs = cluster.at(leader).log() + &cluster.at(other).log();
        assert!(logs.contains("its data directory is an older copy"), "{logs}");
        expect_neighbours(cluster.at(other), members[1], Some(members[0]), members[2]);
        cluster.assert_equal_registries();
    }
}

/// The logs of two instances are exchanged, with all members of one cluster.
#[test]
fn a_raft_log_of_another_instance_is_refused_and_checked() {
    let mut cluster = Cluster::start(&[]);
    drop(chain_through(&[0, 1].map(Member), || cluster.at(1)));
    cluster.ids().for_each(|id| cluster.kill(id));
    let [first, second] = [1, 2].map(|id| cluster.data_dir(id).join("raft"));
    let aside = first.with_extension("aside");
    for (from, to) in [(&first, &aside), (&second, &first), (&aside, &second)] {
        fs::rename(from, to).unwrap();
    }
    for id in [1, 2] {
        let data = cluster.data_dir(id);
        let mut check = Command::new(env!("CARGO_BIN_EXE_EMNetChain"));
        let check = check.args(["check", "--data-dir"]).arg(data).env_clear().output().unwrap();
        let found = String::from_utf8_lossy(&check.stdout).into_owned();
        let under = |heading: &str| found.lines().find(|line| line.starts_with(heading)).unwrap();
        assert!(under("store:").contains("`raft` is of another data directory"), "{check:?}");
        assert!(under("image:").contains("whole"), "{check:?}");
        assert_eq!(check.status.code(), Some(78), "{check:?}");
        let (code, log) = start_and_end(&cluster, id);
        assert_eq!(code, Some(78), "{log}");
        assert!(log.contains("`raft` is of another data directory"), "{log}");
    }
}

/// Input A5: one backup, restored three times, all started with one list.
#[test]
fn a_list_that_names_what_the_history_never_knew_is_refused() {
    let dir = tempfile::TempDir::new().unwrap();
    let backup = dir.path().join("chain.backup");
    let run = |words: &[&str]| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_EMNetChain")).args(words).env_clear().output();
        let output = output.unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
    };
    let mut old = Service::start(&dir.path().join("old"), &[]);
    eventually("it serves", || (old.get("/readyz").0 == 200).then_some(()));
    old.stop();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    run(&["backup", &text(&backup), "--data-dir", &text(&dir.path().join("old"))]);
    let addresses: Vec<_> = (0..3).map(|_| free_address()).collect();
    let members = (11..).zip(&addresses).map(|(id, at): (u64, _)| format!("{id}={at}"));
    let list = members.collect::<Vec<_>>().join(",");
    for (id, address) in ["11", "12", "13"].iter().zip(&addresses) {
        let data = dir.path().join(id);
        run(&["restore", &text(&backup), "--data-dir", &text(&data), "--node-id", id]);
        let address = address.to_string();
        let arguments = ["--node-id", id, "--raft-addr", &address, "--initial-cluster", &list];
        let arguments = arguments.map(str::to_owned).to_vec();
        let (code, log) = match Service::try_start(&data, arguments) {
            Ok(mut service) => (service.wait().code(), service.log()),
            Err((status, log)) => (status.code(), log),
        };
        assert_eq!(code, Some(78), "{id}: {log}");
        assert!(log.contains("which this history never knew"), "{log}");
    }
}
