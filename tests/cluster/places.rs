//! Members that are started at another address than the one at which the others look for them.

use std::time::Duration;

use emnetchain::clock;

use crate::{
    replicas::Cluster,
    support::{
        Service, eventually, free_address,
        operator::{done, is_ready},
    },
};

/// Starts a member again, at another address and with its old list.
fn start_elsewhere(cluster: &mut Cluster, id: usize, address: &str) {
    let raft = cluster.raft(id).to_string();
    let there = |word: String| if word == raft { address.to_owned() } else { word };
    let arguments = cluster.arguments(id).into_iter().map(there).collect();
    let service = Service::try_start(&cluster.data_dir(id), arguments).expect("it starts");
    cluster.put(id, service);
}

/// Waits until an instance that is not ready says all of these words.
fn wait_until_it_says(service: &Service, words: &[&str]) {
    eventually(&format!("it says {words:?}"), || {
        let (code, why) = service.get("/readyz");
        (code == 503 && words.iter().all(|word| why.contains(word))).then_some(())
    });
}

#[test]
fn a_member_at_another_address_says_so_does_not_lead_and_serves_once_the_cluster_is_told() {
    let mut cluster = Cluster::start(&[]);
    let leader = cluster.leader();
    let [moved, left] = cluster.followers()[..] else { panic!("there are two followers") };
    cluster.kill(moved);
    let (old, new) = (cluster.raft(moved).to_string(), free_address().to_string());
    start_elsewhere(&mut cluster, moved, &new);
    let looked_for = format!("the members look for this instance at {old}");
    let way_out = format!("EMNetChain cluster add {moved}={new}");
    wait_until_it_says(cluster.at(moved), &[&looked_for, &way_out]);
    let log = cluster.at(moved).log();
    assert!(log.contains("no member has called this instance yet"), "{log}");
    assert!(!log.contains("is reached and sends nothing"), "nor does another sentence: {log}");

    // It reaches the other voter that is left, and could win its vote.
    cluster.kill(leader);
    let unreached = format!("{moved} ({old})");
    wait_until_it_says(cluster.at(left), &["no majority", &unreached]);
    let begun = clock::now();
    while clock::now() - begun < Duration::from_secs(5) {
        let leads = cluster.status(moved)["role"] == "leader";
        assert!(
            !leads,
            "the others do not reach what leads: {}",
            cluster.at(left).get("/readyz").1
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    wait_until_it_says(cluster.at(moved), &[&looked_for]);

    cluster.start_these(&[leader]);
    eventually("two of three serve", || is_ready(cluster.at(left)));
    done(cluster.at(left), &["add", &format!("{moved}={new}")]);
    cluster.wait_ready();
}

/// The members call it, so an older list in its flags proves nothing: it votes and leads.
#[test]
fn all_that_moved_with_an_old_list_elect_a_leader() {
    let mut cluster = Cluster::start(&[]);
    let mut addresses = Vec::new();
    for id in cluster.ids() {
        let leader = cluster.leader();
        if id == leader {
            done(cluster.at(id), &["transfer-leader"]);
        }
        cluster.kill(id);
        cluster.wait_ready();
        let new = free_address().to_string();
        let asked = cluster.running()[0];
        eventually("its new address is taken", || {
            let (code, _) = crate::support::operator::operate(
                cluster.at(asked),
                &["add", &format!("{id}={new}")],
            );
            (code == 0).then_some(())
        });
        start_elsewhere(&mut cluster, id, &new);
        cluster.wait_ready();
        addresses.push(new);
    }
    cluster.ids().for_each(|id| cluster.kill(id));
    for (id, address) in (1..).zip(&addresses) {
        start_elsewhere(&mut cluster, id, address);
    }
    cluster.wait_ready();
}
