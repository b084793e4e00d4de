//! What happens in each section of the page.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command, time::Duration};

use super::{
    page::{Section, Words},
    replicas::{Cluster, chain_through, tls_flags},
    support::{
        Client, Member, Service, chain, eventually, free_address,
        operator::{operate, read_status},
        reconnect, told,
    },
    wrong::make_registry_wrong,
};

const START: &str = "EMNetChain --config emnetchain.toml";
const STOP: &str = "kill -TERM PID";

fn members(count: u16) -> Vec<Member> {
    (0..count).map(Member).collect()
}

/// Asserts that those in the middle of a chain are told what they were told before.
fn assert_told_the_same(service: &Service, members: &[Member]) {
    for three in members.windows(3) {
        let mut again = Client::say(service.chain(), three[1].connect());
        assert_eq!(again.rest(), told("tail", &three[0].head()) + &told("head", &three[2].tail()));
    }
}

fn wait_ready(service: &Service) {
    eventually("it is ready", || (service.get("/readyz").0 == 200).then_some(()));
}

fn flags<const N: usize>(flags: [&str; N]) -> Vec<String> {
    flags.map(str::to_owned).to_vec()
}

fn data_dir(path: &Path) -> Vec<String> {
    flags(["--data-dir", path.to_str().unwrap()])
}

fn pid(words: Words, service: &Service) -> Words {
    words.and("PID", service.pid())
}

/// The configuration of an instance of a cluster.
fn config(cluster: &Cluster, id: usize) -> Vec<String> {
    [cluster.arguments(id), data_dir(&cluster.data_dir(id))].concat()
}

/// Stops an instance by the page.
fn stop(section: &Section, words: &Words, mut service: Service) {
    section.run(STOP, &pid(words.clone(), &service));
    assert_eq!(service.wait().code(), Some(0), "{}", service.log());
}

/// What the page needs to begin a new cluster with a backup.
fn new_cluster(section: &Section) -> Words {
    Words::default().at("NEW", &section.path("new")).and("A:7000", free_address())
}

pub(crate) fn start_and_stop(section: &Section) {
    let (dir, words) = (section.path("data"), Words::default());
    let service = section.start(START, &words, &data_dir(&dir));
    wait_ready(&service);
    stop(section, &words, service);
}

pub(crate) fn first_look(section: &Section) {
    let cluster = Cluster::start(&[]);
    let words = Words::of(&cluster);
    let status = section.run("EMNetChain cluster status", &words);
    assert!(status.contains("\nleader") && status.contains("0 broken"), "{status}");
    let members = section.run("EMNetChain cluster members --http-addr B:9180", &words);
    assert!(members.starts_with("NODE") && members.lines().count() == 4, "{members}");
    let json = section.run("EMNetChain cluster status --json", &words);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["node"], 1);
    assert!(status.starts_with(&format!("cluster   {}\n", json["cluster"].as_str().unwrap())));
}

pub(crate) fn look_at_chains(section: &Section) {
    let members = members(5);
    let cluster = Cluster::start(&[]);
    let _tip = chain_through(&members, || cluster.at(2));
    let mut orphan = Client::say(cluster.at(1).repair(), reconnect("7", &members[1].head()));
    orphan.expect_silence();
    let words = Words::of(&cluster).and("IP:PORT", members[1].head());
    let list = section.run("EMNetChain chain list --broken", &words);
    assert!(list.contains("\ndefault  5        0        3      1       2"), "{list}");
    let show = section.run("EMNetChain chain show", &words);
    assert!(show.contains("BROKEN: asks for") && show.contains(&members[4].head()), "{show}");
    let around = section.run("EMNetChain chain show --at IP:PORT --limit 5", &words);
    assert!(around.contains("*  ") && around.contains(&members[0].tail()), "{around}");
    let explained = section.run("EMNetChain explain IP:PORT", &words);
    assert!(explained.contains("RECONNECT with an id") && explained.contains("REQUEST"));
}

pub(crate) fn back_up(section: &Section) {
    let token = section.path("token");
    fs::write(&token, "open sesame").unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    fs::create_dir(section.path("backups")).unwrap();
    let mut cluster = Cluster::start(&["--admin-token-file", token.to_str().unwrap()]);
    drop(chain(cluster.at(1), &members(3)));
    let words = Words::of(&cluster)
        .at("TOKEN", &token)
        .at("BACKUPS", &section.path("backups"))
        .at("DIR", &cluster.data_dir(3));
    let held = ", 3 clients, 2 links, checksum ";
    let first = "EMNetChain backup chain.backup --admin-token-file TOKEN";
    assert!(section.run(first, &words).contains(held));
    let daily = "EMNetChain backup \"BACKUPS/chain-$(date +%F).backup\" --http-addr B:9180 \
                 --admin-token-file TOKEN";
    assert!(section.run(daily, &words).contains(held));
    assert_eq!(fs::read_dir(section.path("backups")).unwrap().count(), 1);
    assert!(cluster.at(2).metric("emnetchain_backup_timestamp_seconds") > 0.0);
    cluster.take(3).stop();
    let stopped = section.run("EMNetChain backup stopped.backup --data-dir DIR", &words);
    assert!(stopped.contains(held), "{stopped}");
}

const BEGIN: &str = "EMNetChain --config emnetchain.toml --data-dir NEW --node-id 11 \
                     --raft-addr A:7000 --initial-cluster 11=A:7000";

pub(crate) fn restore(section: &Section) {
    let members = members(5);
    let old = Cluster::start(&[]);
    drop(chain_through(&members, || old.at(2)));
    let mut backup = Command::new(env!("CARGO_BIN_EXE_EMNetChain"));
    backup.arg("backup").arg(section.path("chain.backup")).env_clear();
    backup.args(["--http-addr", &old.at(3).address("HTTP").to_string()]);
    let made = String::from_utf8(backup.output().unwrap().stdout).unwrap();
    let (_, held) = made.split_once(": ").expect("a name and what it holds");
    drop(old);
    let words = new_cluster(section);
    let said = section.run("EMNetChain restore chain.backup --data-dir NEW --node-id 11", &words);
    assert!(said.ends_with(held), "{said}{held}");
    let new = section.start(BEGIN, &words, &[]);
    wait_ready(&new);
    assert_told_the_same(&new, &members);
}

pub(crate) fn add(section: &Section) {
    let mut cluster = Cluster::new(&[]);
    cluster.make_certificates();
    cluster.start_these(&[1, 2, 3]);
    cluster.wait_ready();
    let certs = cluster.certificates();
    let words = Words::of(&cluster)
        .at("CERTS", &certs)
        .at("NEW", &section.path("new"))
        .and("D:7000", free_address());
    let made = "EMNetChain cluster certs CERTS --initial-cluster 4=D:7000 --cluster-id CLUSTER";
    section.run(made, &words);
    let said = section.run("EMNetChain cluster add 4=D:7000", &words);
    let start = "--node-id 4 --raft-addr D:7000 --cluster-id CLUSTER \
                 --initial-cluster 1=A:7000,2=B:7000,3=C:7000";
    let flags = said.lines().last().unwrap().trim();
    assert_eq!(flags, words.put_into(start), "the page says what the command says");
    let start = format!("EMNetChain --config emnetchain.toml --data-dir NEW {start}");
    let fourth = section.start(&start, &words, &tls_flags(&certs, 4));
    section.run_until_done("EMNetChain cluster promote 4", &words);
    wait_ready(&fourth);
    let status = read_status(&fourth, "/status");
    let voters = status["members"].as_array().unwrap().iter().filter(|one| one["voter"] == true);
    assert_eq!(voters.count(), 4);
}

pub(crate) fn replace(section: &Section) {
    let mut cluster = Cluster::start(&[]);
    drop(chain(cluster.at(1), &members(3)));
    cluster.kill(3);
    fs::remove_dir_all(cluster.data_dir(3)).unwrap();
    // With the directory it has lost its votes.
    let (status, log) = match cluster.try_start(3) {
        Ok(mut service) => (service.wait(), service.log()),
        Err(ended) => ended,
    };
    assert!(status.code() == Some(78) && log.contains("cluster remove 3"), "{log}");
    let words = Words::of(&cluster);
    let operate = |words: &[&str]| {
        let (code, said) = operate(cluster.at(1), words);
        (code == 0).then_some(said)
    };
    let fourth = format!("4={}", free_address());
    let said = eventually("it is taken in", || operate(&["add", &fourth]));
    let start: Vec<&str> = said.lines().last().unwrap().split_whitespace().collect();
    let fourth = Service::start(&section.path("fourth"), &start);
    eventually("it votes", || operate(&["promote", "4"]));
    section.run("EMNetChain cluster remove 3", &words);
    let members = section.run("EMNetChain cluster members", &words);
    let nodes: Vec<&str> = members.lines().skip(1).map(|line| &line[..1]).collect();
    assert_eq!(nodes, ["1", "2", "4"], "{members}");
    wait_ready(&fourth);
    assert_eq!(read_status(&fourth, "/status")["chains"]["clients"], 3);
}

pub(crate) fn remove(section: &Section) {
    let mut cluster = Cluster::start(&[]);
    let words = Words::of(&cluster);
    section.run("EMNetChain cluster drain --http-addr C:9180", &words);
    assert!(!cluster.is_ready(3));
    section.run("EMNetChain cluster remove 3", &words);
    stop(section, &words, cluster.take(3));
    cluster.wait_ready();
    assert_eq!(cluster.status(1)["members"].as_array().unwrap().len(), 2);
}

pub(crate) fn restart(section: &Section) {
    let mut cluster = Cluster::start(&[]);
    let members = members(6);
    let _tip = chain_through(&members, || cluster.at(1));
    let mut order = cluster.followers();
    order.push(cluster.leader());
    for id in order {
        // The page says it of instance 1.
        let words = Words::of(&cluster);
        let words = words.and("A:9180", cluster.at(id).address("HTTP"));
        let words = words.and("A:7000", cluster.raft(id));
        let config = config(&cluster, id);
        section.run("EMNetChain cluster drain --http-addr A:9180", &words);
        stop(section, &words, cluster.take(id));
        cluster.put(id, section.start(START, &words, &config));
        section.run("EMNetChain config check --config emnetchain.toml", &words);
        cluster.wait_ready();
        let words = words.and("A:9180", cluster.at(id).address("HTTP"));
        let status = section.run("EMNetChain cluster status --http-addr A:9180", &words);
        assert!(status.contains(&format!("instance  {id} (")), "{status}");
        assert_told_the_same(cluster.at(id), &members);
    }
}

pub(crate) fn upgrade(section: &Section) {
    let service = Service::start(&section.path("data"), &[]);
    wait_ready(&service);
    let words = Words::default().and("A:9180", service.address("HTTP"));
    let version = section.run("EMNetChain --version", &words);
    assert_eq!(version, concat!("EMNetChain ", env!("CARGO_PKG_VERSION"), "\n"));
    section.run("EMNetChain backup before-upgrade.backup", &words);
    let newest = emnetchain::registry::Rules::NEWEST.0;
    let status = section.run("EMNetChain cluster status", &words);
    assert!(status.contains(&format!("versions up to {newest}")), "{status}");
    let said = section.run("EMNetChain cluster upgrade", &words);
    assert!(said.contains("rules version"), "{said}");
    assert_eq!(read_status(&service, "/status")["rules"], newest);
}

pub(crate) fn certificates(section: &Section) {
    let mut cluster = Cluster::new(&[]);
    let certs = cluster.certificates();
    let words = Words::of(&cluster).at("CERTS", &certs);
    let made = "EMNetChain cluster certs CERTS --initial-cluster 1=A:7000,2=B:7000,3=C:7000";
    section.run(made, &words);
    cluster.start_these(&[1, 2, 3]);
    cluster.wait_ready();
    let words = pid(Words::of(&cluster).at("CERTS", &certs), cluster.at(2));
    let before = fs::read(certs.join("node-2.pem")).unwrap();
    section.run("mkdir renewed && cp CERTS/ca.pem CERTS/ca.key renewed", &words);
    let made = "EMNetChain cluster certs renewed --initial-cluster 2=B:7000 --cluster-id CLUSTER";
    section.run(made, &words);
    section.run("cp renewed/node-2.pem renewed/node-2.key CERTS", &words);
    assert_ne!(fs::read(certs.join("node-2.pem")).unwrap(), before);
    section.run("kill -HUP PID", &words);
    eventually("it has read them", || {
        cluster.at(2).log().contains("the certificates were reloaded").then_some(())
    });
    // A new connection is shown the new one.
    cluster.kill(3);
    cluster.kill(1);
    cluster.start_these(&[1, 3]);
    cluster.wait_ready();
}

pub(crate) fn majority_lost(section: &Section) {
    let members = members(5);
    let mut cluster = Cluster::start(&[]);
    drop(chain_through(&members, || cluster.at(1)));
    cluster.ids().for_each(|id| {
        cluster.kill(id);
        if id < 3 {
            fs::remove_dir_all(cluster.data_dir(id)).unwrap();
        }
    });
    let words = new_cluster(section).at("DIR", &cluster.data_dir(3));
    let said = section.run("EMNetChain check --data-dir DIR", &words);
    assert!(said.contains("raft log: whole, entries "), "{said}");
    section.run("EMNetChain backup chain.backup --data-dir DIR", &words);
    section.run("EMNetChain restore chain.backup --data-dir NEW --node-id 11", &words);
    let new = section.start(BEGIN, &words, &[]);
    wait_ready(&new);
    assert_told_the_same(&new, &members);
}

pub(crate) fn replicas_differ(section: &Section) {
    let members = members(5);
    let mut cluster = Cluster::start(&[]);
    drop(chain_through(&members, || cluster.at(1)));
    cluster.take(1).stop();
    make_registry_wrong(&cluster.data_dir(1), 1, [192, 0, 2, 1].into());
    cluster.start_these(&[1]);
    eventually("it has left service", || {
        let (status, why) = cluster.at(1).get("/readyz");
        (status == 503 && why.contains(section.name())).then_some(())
    });
    let words = Words::of(&cluster).at("DIR", &cluster.data_dir(1));
    section.run("EMNetChain backup right.backup --http-addr B:9180", &words);
    let config = config(&cluster, 1);
    stop(section, &words, cluster.take(1));
    section.run("mkdir wrong && mv DIR/registry DIR/snapshot wrong", &words);
    let copy =
        "mkdir -m 700 DIR/snapshot && cp right.backup DIR/snapshot/00000000000000000000.snap";
    section.run(copy, &words);
    section.run("EMNetChain check --data-dir DIR", &words);
    cluster.put(1, section.start(START, &words, &config));
    cluster.wait_ready();
    cluster.assert_equal_registries();
    assert_told_the_same(cluster.at(1), &members);
}

/// A process whose files cannot grow beyond a number of 512-byte blocks, as on a full disk.
const SHORT_FILES: &str = r#"trap "" XFSZ; ulimit -f "$0"; exec "$@""#;

pub(crate) fn disk_full(section: &Section) {
    let (dir, members) = (section.path("data"), members(5));
    let full = ["sh", "-c", SHORT_FILES, "100"];
    let mut service = Service::try_start_through(&full, &dir, Vec::new()).expect("it fits");
    drop(chain(&service, &members));
    let status = fill(&mut service);
    assert_eq!(status.code(), Some(74), "{}", service.log());
    let bad = dir.join("registry.bad-1");
    fs::create_dir(&bad).unwrap();
    fs::write(bad.join("db"), "damaged").unwrap();
    let words = Words::default().at("DIR", &dir);
    assert!(section.run("du -sh DIR/*", &words).contains("registry.bad-1"));
    section.run("find DIR -name '*.bad*' -prune -exec rm -r {} +", &words);
    assert!(!bad.exists() && dir.join("raft").exists());
    section.run("EMNetChain check --data-dir DIR", &words);
    let service = section.start(START, &words, &data_dir(&dir));
    wait_ready(&service);
    assert_told_the_same(&service, &members);
}

/// Has clients join until the service ends.
fn fill(service: &mut Service) -> std::process::ExitStatus {
    let mut joined = Vec::new();
    for number in 100.. {
        if let Some(status) = service.wait_within(Duration::ZERO) {
            return status;
        }
        let Ok(mut stream) = std::net::TcpStream::connect(service.chain()) else { continue };
        // It may have ended meanwhile.
        drop(std::io::Write::write_all(&mut stream, Member(number).connect().as_bytes()));
        joined.push(stream);
    }
    panic!("the disk is never full");
}

pub(crate) fn directory_refused(section: &Section) {
    let (dir, members) = (section.path("data"), members(5));
    let mut service = Service::start(&dir, &[]);
    drop(chain(&service, &members));
    // A backup makes a snapshot.
    let mut backup = Command::new(env!("CARGO_BIN_EXE_EMNetChain"));
    backup.arg("backup").arg(section.path("early.backup")).env_clear();
    backup.args(["--http-addr", &service.address("HTTP").to_string()]);
    assert!(backup.output().unwrap().status.success());
    service.stop();
    fs::remove_dir_all(dir.join("raft")).unwrap();
    let (status, log) = Service::try_start(&dir, Vec::new()).expect_err("its log is lost");
    assert_eq!(status.code(), Some(78), "{log}");
    let words = new_cluster(section).at("DIR", &dir);
    let checked = section.try_run("EMNetChain check --data-dir DIR", &words);
    assert_eq!(checked.status.code(), Some(78), "{checked:?}");
    let newest = "EMNetChain restore \"$(ls DIR/snapshot/*.snap | tail -n 1)\" --data-dir NEW \
                  --node-id 12";
    section.run(newest, &words);
    let begin = BEGIN.replace("11", "12");
    let new = section.start(&begin, &words, &[]);
    wait_ready(&new);
    assert_told_the_same(&new, &members);
}

pub(crate) fn stop_all(section: &Section) {
    let mut cluster = Cluster::start(&[]);
    let members = members(5);
    drop(chain_through(&members, || cluster.at(3)));
    for id in cluster.ids() {
        let service = cluster.take(id);
        stop(section, &Words::default(), service);
    }
    for id in cluster.ids() {
        let service = section.start(START, &Words::default(), &config(&cluster, id));
        cluster.put(id, service);
    }
    cluster.wait_ready();
    let status = section.run("EMNetChain cluster status", &Words::of(&cluster));
    assert!(status.contains("5 clients, 4 links, 0 broken"), "{status}");
    assert_told_the_same(cluster.at(2), &members);
}
