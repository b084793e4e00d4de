//! What the service does for its clients and operators, seen from outside: with plain sockets,
//! signals, and GET.

mod support;

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::UdpSocket,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    process::{Command, Stdio},
};

use serde_json::Value;
use support::{Client, Member, PATIENCE, Service, chain, eventually, reconnect, repaired, told};
use tempfile::TempDir;

fn five() -> Vec<Member> {
    (0..5).map(Member).collect()
}

#[test]
fn five_clients_are_linked_and_a_graceful_leave_is_repaired() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &[]);
    let members = five();
    let mut tip = chain(&service, &members);
    tip.expect_silence();

    let mut first = Client::say(service.repair(), reconnect("1234", &members[1].head()));
    first.expect_silence();
    let mut second = Client::say(service.repair(), reconnect("1234", &members[3].tail()));
    assert_eq!(second.rest(), repaired(&members[1].head()));
    assert_eq!(first.rest(), repaired(&members[3].tail()));
}

/// Logs that are not read cost lines, and neither clients nor a stop.
#[test]
fn a_stalled_reader_of_the_logs_holds_up_nothing() {
    let dir = TempDir::new().unwrap();
    let pipe = dir.path().join("stderr");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    // It is open at this end too, and not read.
    let stalled = fs::File::options().read(true).write(true).open(&pipe).unwrap();
    let script = r#"to=$1; shift; exec "$@" 2>"$to""#;
    let wrapper = ["/bin/sh", "-c", script, "sh", pipe.to_str().unwrap()];
    let level = ["--log-level", "trace,emnetchain=trace"].map(str::to_owned).to_vec();
    let data = dir.path().join("data");
    let mut service = Service::try_start_through(&wrapper, &data, level).unwrap();
    eventually("lines are dropped", || {
        assert_eq!(service.get("/livez").0, 200);
        (service.metric("emnetchain_log_lines_dropped_total") > 0.0).then_some(())
    });
    let mut tip = chain(&service, &five());
    tip.expect_silence();
    assert_eq!(service.stop().code(), Some(0), "SIGTERM stops it in order");
    drop(stalled);
}

/// A standard output that is not read, and full, holds up neither the service nor its end.
#[test]
fn a_stalled_reader_of_the_banner_holds_up_nothing() {
    let dir = TempDir::new().unwrap();
    let pipe = dir.path().join("stdout");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let mut stalled = fs::File::options()
        .read(true)
        .write(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(&pipe)
        .unwrap();
    while stalled.write(&[b'x'; 512]).is_ok() {}
    let out = fs::File::options().write(true).open(&pipe).unwrap();
    let at = "127.0.0.1:0";
    let mut service = Command::new(env!("CARGO_BIN_EXE_EMNetChain"))
        .args(["-chain-addr", at, "-dis-addr", at, "--http-addr", at, "--data-dir"])
        .arg(dir.path().join("data"))
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(service.stderr.take().unwrap()).lines();
    assert!(log.any(|line| line.unwrap().contains("serving")));
    let stop = Command::new("kill").arg(service.id().to_string()).status().unwrap();
    assert!(stop.success());
    let ended = eventually("it stops in order", || service.try_wait().unwrap());
    assert_eq!(ended.code(), Some(0));
    drop(stalled);
}

#[test]
fn the_figures_agree_with_what_happened() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &["--emnet-addr", "127.0.0.1:0"]);
    assert_eq!(service.get("/livez"), (200, "alive\n".to_owned()));
    assert_eq!(service.get("/readyz"), (200, "ready\n".to_owned()));
    assert_eq!(service.get("/nowhere").0, 404);

    let members = five();
    let tip = chain(&service, &members);
    let mut peer = Client::say(service.address("EMNet"), r#"{"msg":"ADD_PEER","IP_Peer":"x"}"#);
    peer.object();
    let mut careless = Client::say(service.chain(), "hello{}");
    careless.expect_silence();
    let waiting = Client::say(service.repair(), reconnect("7", &members[1].head()));
    let figures = [
        ("clients", 5.0),
        ("cut_off", 0.0), // no word from the other side of the third
        ("chains", 1.0),
        ("asks", 2.0), // the tip's head, and the second's
        ("links", 3.0),
        ("broken_links", 1.0),
        ("repairs_pending", 1.0),
        ("peers", 1.0),
        ("links_total{by=\"join\"}", 4.0),
        ("links_total{by=\"repair\"}", 0.0),
        ("clients_cut_off_total", 0.0),
        ("rejected_total{reason=\"junk\"}", 1.0),
        ("rejected_total{reason=\"unknown_message\"}", 1.0),
        ("accepted_total{listener=\"chain\"}", 6.0),
        ("connections{listener=\"chain\"}", 2.0),
        ("connections{listener=\"repair\"}", 1.0),
        ("connections{listener=\"emnet\"}", 1.0),
        ("raft_is_leader", 1.0),
    ];
    expect_figures(&service, &figures);
    let (code, status) = service.get("/status");
    let status: Value = serde_json::from_str(&status).unwrap();
    let expected = serde_json::json!({
        "count": 1, "clients": 5, "cut_off": 0, "asks": 2, "links": 3, "broken_links": 1,
        "repairs_pending": 1
    });
    assert_eq!((code, &status["chains"]), (200, &expected));
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!((&status["node"], &status["leader"]), (&1.into(), &1.into()));
    assert_eq!((&status["role"], &status["members"][0]["voter"]), (&"leader".into(), &true.into()));
    assert_eq!(status["connections"]["chain"], 2);

    let mut other = Client::say(service.repair(), reconnect("8", &members[3].tail()));
    other.object();
    drop((tip, waiting, peer, careless, other));
    let figures = [
        ("links", 3.0),
        ("cut_off", 1.0),
        ("clients_cut_off_total", 1.0),
        ("broken_links", 0.0),
        ("repairs_pending", 0.0),
        ("links_total{by=\"repair\"}", 1.0),
        ("repairs_total{outcome=\"linked\"}", 1.0),
        ("half_closed_total{listener=\"chain\"}", 1.0),
        // The tip's process has ended, but it may yet be a legal half-close.
        ("connections{listener=\"chain\"}", 1.0),
        ("connections{listener=\"repair\"}", 0.0),
        ("connections{listener=\"emnet\"}", 0.0),
    ];
    expect_figures(&service, &figures);
}

/// Waits until the figures are all so; what is told to a client is counted a moment later.
fn expect_figures(service: &Service, figures: &[(&str, f64)]) {
    for (name, value) in figures {
        let name = format!("emnetchain_{name}");
        eventually(&format!("{name} is {value}"), || {
            (service.metric(&name) == *value).then_some(())
        });
    }
}

#[test]
fn a_stop_closes_every_client_in_order_and_loses_none() {
    let dir = TempDir::new().unwrap();
    let mut service = Service::start(dir.path(), &["--emnet-addr", "127.0.0.1:0"]);
    let members = five();
    let tip = chain(&service, &members);
    let half = Client::say(service.repair(), reconnect("7", &Member(7).head()));
    eventually("it waits", || (service.metric("emnetchain_repairs_pending") == 1.0).then_some(()));
    let mut peer = Client::say(service.address("EMNet"), r#"{"msg":"ADD_PEER","IP_Peer":"x"}"#);
    let added = peer.object();
    let silent = Client::connect(service.chain());
    let unfinished = Client::say(service.repair(), "{\"msg\":");
    eventually("all are there", || {
        let open = |name| service.metric(&format!("emnetchain_connections{{listener={name:?}}}"));
        (open("chain") == 2.0 && open("repair") == 2.0).then_some(())
    });

    let status = service.stop();
    assert_eq!(status.code(), Some(0), "{}", service.log());
    assert_eq!(peer.rest(), "\n", "what was left of its answer");
    for mut client in [tip, half, silent, unfinished] {
        client.expect_end();
    }

    let service = service.start_again();
    let mut tip = Client::say(service.chain(), members[4].connect());
    assert_eq!(tip.object(), told("tail", &members[3].head()));
    tip.expect_silence();
    let mut other = Client::say(service.repair(), reconnect("7", &Member(8).tail()));
    assert_eq!(other.rest(), repaired(&Member(7).head()));
    let id = added.split(&[':', ','][..]).nth(1).unwrap();
    let mut peer =
        Client::say(service.address("EMNet"), format!(r#"{{"msg":"ASK_IP","id":{id}}}"#));
    assert_eq!(peer.object(), r#"{"IP":"x","msg":"SUCCESS"}"#);
}

#[test]
fn a_hangup_signal_reads_the_configuration_again() {
    let dir = TempDir::new().unwrap();
    let config = dir.path().join("emnetchain.toml");
    fs::write(&config, "log_level = \"info\"\n").unwrap();
    let service = Service::start(&dir.path().join("data"), &["--config", config.to_str().unwrap()]);
    let times = |text: &str| service.log().matches(text).count();
    let hang_up_until = |text: &str| {
        let before = times(text);
        service.signal("HUP");
        eventually(text, || (times(text) > before).then_some(()));
    };
    let junk = || {
        let before = service.metric("emnetchain_rejected_total{reason=\"junk\"}");
        let mut client = Client::say(service.chain(), "junk{}");
        eventually("junk is counted", || {
            (service.metric("emnetchain_rejected_total{reason=\"junk\"}") > before).then_some(())
        });
        client.expect_silence();
    };
    junk();
    assert_eq!(times("DEBUG"), 0);
    fs::write(&config, "log_level = \"debug\"\n").unwrap();
    hang_up_until("the configuration was reloaded changed=\"log_level\"");
    junk();
    eventually("more is logged", || (times("DEBUG") > 0).then_some(()));

    // Limits of the edge and settings of the registry hold from now on; others need a restart.
    let mut patient = Client::connect(service.chain());
    let text =
        "ask_max = \"77s\"\nfirst_message_deadline = \"150ms\"\nshutdown_deadline = \"1s\"\n";
    fs::write(&config, text).unwrap();
    hang_up_until("these keys have changed too, and need a restart keys=\"shutdown_deadline\"");
    assert_eq!(times("changed=\"log_level first_message_deadline ask_max\""), 1);
    let overdue = Client::connect(service.chain());
    expect_figures(&service, &[("rejected_total{reason=\"overdue\"}", 1.0)]);
    drop(overdue);
    patient.expect_silence();
    let left_ms = |member: Member| {
        let path = format!("/api/v1/explain?address={}", member.head());
        let explained: Value = serde_json::from_str(&service.get(&path).1).unwrap();
        explained["client"]["head_side"]["left_ms"].as_u64()
    };
    let mut members = (0..).map(Member);
    eventually("a newcomer may wait no longer than that", || {
        let newcomer = members.next()?;
        let _client = Client::say(service.chain(), newcomer.connect());
        let left = eventually("it waits", || left_ms(newcomer));
        (left <= 77_000).then_some(())
    });

    // A token is not in this file, and a new one in its own is a change all the same.
    let token = dir.path().join("token");
    let set_token = |text: &str| {
        fs::write(&token, text).unwrap();
        fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    };
    set_token("hunter-one");
    fs::write(&config, format!("{text}admin_token_file = {token:?}\n")).unwrap();
    hang_up_until("the configuration was reloaded changed=\"admin_token_file\"");
    set_token("hunter-two");
    hang_up_until("the configuration was reloaded changed=\"admin_token_file\"");
    hang_up_until("the configuration was reloaded; nothing has changed");
    assert_eq!(times("hunter"), 0, "no token is told");

    // A slip in the file changes nothing and ends nothing.
    fs::write(&config, "log_level = \"loud\"\n").unwrap();
    hang_up_until("the configuration was not reloaded");
    assert_eq!(service.get("/readyz").0, 200);
}

#[test]
fn udp_and_emnet_are_served_if_asked_for() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(&dir.path().join("without"), &[]);
    assert!(!service.announces("EMUDP") && !service.announces("EMNet"));

    let service = Service::start(&dir.path().join("with"), &["-udp-addr", "127.0.0.1:0"]);
    assert!(service.announces("EMUDP") && !service.announces("EMNet"));
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.send_to(b"ping", service.address("EMUDP")).unwrap();
    let mut answer = [0; 64];
    let (length, from) = client.recv_from(&mut answer).unwrap();
    assert_eq!(from, service.address("EMUDP"));
    assert_eq!(&answer[..length], client.local_addr().unwrap().to_string().as_bytes());
    expect_figures(&service, &[("udp_answered_total{kind=\"text\"}", 1.0)]);
}

#[test]
fn a_data_directory_belongs_to_one_process() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &[]);
    let (status, log) = Service::try_start(dir.path(), Vec::new()).expect_err("it is taken");
    assert_eq!(status.code(), Some(78), "{log}");
    assert!(log.contains("another process"), "{log}");
    assert_eq!(service.get("/readyz").0, 200);
}
