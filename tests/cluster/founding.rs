//! How a cluster begins, and which instances are kept out.

use std::{fs, process::ExitStatus};

use crate::{
    replicas::{Cluster, chain_through, member_list},
    support::{Member, Service, eventually, free_address, operator::read_status},
};

#[test]
fn three_found_the_cluster_in_any_order_of_starts() {
    let mut cluster = Cluster::new(&[]);
    cluster.start_these(&[3, 1]);
    cluster.start_these(&[2]);
    cluster.wait_ready();
    let members = [0, 1, 2].map(Member);
    let mut at = [1, 3].iter().cycle();
    let mut tip = chain_through(&members, || cluster.at(*at.next().unwrap()));
    let status = cluster.status(2);
    let voters: Vec<_> = status["members"].as_array().unwrap().iter().collect();
    assert!(voters.len() == 3 && voters.iter().all(|member| member["voter"] == true), "{status}");
    assert_eq!(status["cluster"], cluster.status(1)["cluster"]);
    tip.expect_silence();
    cluster.assert_equal_registries();
}

#[test]
fn an_instance_of_another_cluster_is_refused_and_counted() {
    let cluster = Cluster::start(&[]);
    let dir = tempfile::TempDir::new().unwrap();
    let own = free_address();
    let list = format!("{},4={own}", member_list(&[cluster.raft(1)]));
    let arguments = ["--node-id", "4", "--raft-addr", &own.to_string(), "--initial-cluster", &list];
    let stranger = Service::start(dir.path(), &arguments);
    eventually("it is refused", || {
        let refused = "emnetchain_raft_refused_total{reason=\"cluster\"}";
        (cluster.at(1).metric(refused) > 0.0).then_some(())
    });
    let (code, why) = eventually("it says which it waits for", || {
        Some(stranger.get("/readyz")).filter(|(_, why)| why.contains("waiting for"))
    });
    assert_eq!(code, 503);
    assert!(why.contains(&format!("1 ({})", cluster.raft(1))), "{why}");
    assert_ne!(read_status(&stranger, "/status")["cluster"], cluster.status(1)["cluster"]);
    cluster.wait_ready();
}

#[test]
fn an_instance_that_lost_its_disk_is_refused_and_told_the_way_out() {
    let mut cluster = Cluster::start(&[]);
    let lost = cluster.followers()[0];
    cluster.kill(lost);
    fs::remove_dir_all(cluster.data_dir(lost)).unwrap();
    let (status, log) = match cluster.try_start(lost) {
        Ok(mut service) => (service.wait(), service.log()),
        Err(ended) => ended,
    };
    assert_eq!(status.code(), Some(78), "{log}");
    let way_out = format!("cluster remove {lost}");
    assert!(log.contains("cluster add") && log.contains(&way_out), "{log}");
    cluster.wait_ready();
}

#[test]
fn an_address_for_other_machines_needs_tls_or_the_operators_word() {
    let dir = tempfile::TempDir::new().unwrap();
    let list = "1=192.0.2.1:7000,2=192.0.2.2:7000";
    let arguments = ["--raft-addr", "192.0.2.1:7000", "--initial-cluster", list];
    let arguments = arguments.map(str::to_owned).to_vec();
    let ended: (ExitStatus, String) = Service::try_start(dir.path(), arguments).unwrap_err();
    assert_eq!(ended.0.code(), Some(2), "{}", ended.1);
    for hint in ["--raft-tls-cert", "cluster certs", "--insecure-cluster"] {
        assert!(ended.1.contains(hint), "{}", ended.1);
    }
}

#[test]
fn with_certificates_only_those_that_have_one_are_members() {
    let mut cluster = Cluster::new(&[]);
    let plain = cluster.arguments(3);
    cluster.make_certificates();
    cluster.start_these(&[1, 2, 3]);
    cluster.wait_ready();
    cluster.kill(3);
    let service = Service::try_start(&cluster.data_dir(3), plain).expect("it may listen");
    cluster.wait_ready();
    eventually("it is refused", || {
        let refused = "emnetchain_raft_refused_total{reason=\"tls\"}";
        (cluster.at(1).metric(refused) > 0.0).then_some(())
    });
    assert_eq!(service.get("/readyz").0, 503);
    drop(service);
    cluster.start_these(&[3]);
    cluster.wait_ready();
    let members = [0, 1, 2].map(Member);
    let mut at = [1, 2, 3].iter().cycle();
    let mut tip = chain_through(&members, || cluster.at(*at.next().unwrap()));
    tip.expect_silence();
    cluster.assert_equal_registries();
}
