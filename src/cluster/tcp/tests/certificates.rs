//! The protection of a connection, and its renewal.

use std::fs;

use super::*;
use crate::{
    cluster::tcp::{Security, TlsError, certs, check_files},
    platform::files::set_mode,
};

#[tokio::test]
async fn certificates_are_renewed_while_instances_run() {
    let (world, dir) = (World::new(2), tempfile::tempdir().unwrap());
    let node = world.start(1, dir.path()).await;
    // A second CA, and what the second instance will show after the change.
    let later = tempfile::tempdir().unwrap();
    make_certs(later.path(), CLUSTER, &[(InstanceId(1), vec![]), (InstanceId(2), vec![])]).unwrap();
    let files = world.files(2);
    let tls = Arc::new(Tls::load(files.clone(), name(2)).unwrap());
    let transport = world.greeted(2, Security::Tls(Arc::clone(&tls)), &node.view);
    let connect = || transport.connect(node.id, &Member::default(), Lane::Calls);
    let mut open = connect().await.unwrap();

    // What is broken is not taken, and what was there before goes on.
    let certificate = fs::read(&files.certificate).unwrap();
    for broken in [&b""[..], b"no certificate", &certificate[..100]] {
        fs::write(&files.certificate, broken).unwrap();
        assert!(tls.reload().is_err());
    }
    connect().await.unwrap();

    // A new certificate of a CA that the first instance does not know is refused by it, until
    // the old one is back.
    let both = |ca: &str| {
        [fs::read(world.certs.path().join(ca)), fs::read(later.path().join(ca))]
            .map(Result::unwrap)
            .concat()
    };
    fs::write(&files.ca, both("ca.pem")).unwrap();
    fs::copy(later.path().join("node-2.pem"), &files.certificate).unwrap();
    fs::copy(later.path().join("node-2.key"), &files.key).unwrap();
    tls.reload().unwrap();
    assert!(connect().await.is_err());
    until("it is refused", || node.refused("tls") == 1).await;

    // The open connection did not care, for as long as no other took its place.
    use tokio::io::AsyncReadExt as _;
    let end = tokio::time::timeout(PATIENCE, open.read(&mut [0])).await;
    assert!(end.is_ok(), "another took its place, further up");

    // Once the first instance knows both, all is well.
    let Security::Tls(first) = &node.security else { unreachable!() };
    first.reload().unwrap();
    connect().await.unwrap();
}

#[tokio::test]
async fn certificates_that_are_out_of_date_are_told_and_not_taken() {
    let (world, dir) = (World::new(2), tempfile::tempdir().unwrap());
    let node = world.start(1, dir.path()).await;
    let Security::Tls(tls) = &node.security else { unreachable!() };
    assert!(tls.good_until() > 60_000_000_000, "those that we make end in a distant century");
    assert!(check_files(&world.files(1), None).is_ok());
    // The files of an instance whose certificate ended in 2001.
    let (certificate, key) = certs::forge::make(world.certs.path(), CLUSTER, name(1), true);
    let files = TlsFiles { certificate, key, ..world.files(1) };
    let told = check_files(&files, None).unwrap_err().to_string();
    assert!(told.contains("has expired"), "{told}");
    let old = Tls::load(files.clone(), name(1)).unwrap();
    assert_eq!(old.good_until(), 978_307_200);
    fs::copy(&files.certificate, world.files(1).certificate).unwrap();
    fs::copy(&files.key, world.files(1).key).unwrap();
    assert!(tls.reload().unwrap_err().to_string().contains("has expired"));
    assert!(tls.good_until() > 60_000_000_000, "what was there goes on");
}

/// A connection that a CA let in ends with that CA.
#[tokio::test]
async fn another_ca_ends_what_the_old_one_let_in() {
    use tokio::io::AsyncReadExt as _;
    let (world, dir) = (World::new(2), tempfile::tempdir().unwrap());
    let node = world.start(1, dir.path()).await;
    let transport = world.greeted(2, world.security(2), &node.view);
    let mut open = transport.connect(node.id, &Member::default(), Lane::Calls).await.unwrap();
    let Security::Tls(tls) = &node.security else { unreachable!() };
    // Read again, and nothing is another.
    tls.reload().unwrap();
    let quiet = tokio::time::timeout(Duration::from_millis(300), open.read(&mut [0])).await;
    assert!(quiet.is_err(), "it goes on");
    let later = tempfile::tempdir().unwrap();
    make_certs(later.path(), CLUSTER, &[(InstanceId(1), vec![])]).unwrap();
    let files = world.files(1);
    fs::copy(later.path().join("ca.pem"), &files.ca).unwrap();
    fs::copy(later.path().join("node-1.pem"), &files.certificate).unwrap();
    fs::copy(later.path().join("node-1.key"), &files.key).unwrap();
    tls.reload().unwrap();
    let ended = within("it is ended", open.read(&mut [0])).await;
    assert!(!matches!(ended, Ok(1..)), "nothing more is said on it");
}

/// As above, seen by the side that opened the connection and whose CA changes.
#[tokio::test]
async fn another_ca_ends_what_was_opened_under_the_old_one() {
    use tokio::io::AsyncReadExt as _;
    let (world, dir) = (World::new(2), tempfile::tempdir().unwrap());
    let node = world.start(1, dir.path()).await;
    let tls = Arc::new(Tls::load(world.files(2), name(2)).unwrap());
    let transport = world.greeted(2, Security::Tls(Arc::clone(&tls)), &node.view);
    let connect = || transport.connect(node.id, &Member::default(), Lane::Calls);
    let mut open = connect().await.unwrap();
    assert!(!tls.reload().unwrap(), "they are the same");
    let quiet = tokio::time::timeout(Duration::from_millis(300), open.read(&mut [0])).await;
    assert!(quiet.is_err(), "it goes on");
    // A second CA beside the first: both ends can still prove themselves.
    let later = tempfile::tempdir().unwrap();
    make_certs(later.path(), CLUSTER, &[(InstanceId(2), vec![])]).unwrap();
    let ca = world.files(2).ca;
    let both = [&ca, &later.path().join("ca.pem")].map(|path| fs::read(path).unwrap()).concat();
    fs::write(&ca, both).unwrap();
    let reading = tokio::spawn(async move { open.read(&mut [0]).await });
    tokio::task::yield_now().await;
    assert!(tls.reload().unwrap(), "they are others");
    let ended = within("it is ended", reading).await.unwrap();
    assert!(ended.unwrap_err().to_string().contains("the CA has changed"));
    assert!(connect().await.is_ok(), "it is opened again");
}

/// An instance announces the end of its certificates, each stage once.
#[test]
fn the_end_of_certificates_is_told_in_time() {
    let world = World::new(1);
    let (certificate, key) = certs::forge::make(world.certs.path(), CLUSTER, name(1), true);
    let files = TlsFiles { certificate, key, ..world.files(1) };
    let tls = Tls::load(files.clone(), name(1)).unwrap();
    let (day, until) = (86_400, tls.good_until());
    let told = |tls: &Tls| {
        // Every hour from 40 days before to 3 days after.
        let hours = (-40 * 24..3 * 24).filter_map(|hour| tls.due(until + hour * 3600));
        hours.map(|stage| stage.to_string()).collect::<Vec<_>>()
    };
    let lines = told(&tls);
    assert_eq!(lines.len(), 1 + 7 + 1, "{lines:#?}");
    assert!(lines[0].contains("within 30 days") && lines[1].contains("in 6 days"), "{lines:#?}");
    assert!(lines[7].contains("within a day") && lines[8].contains("have expired"), "{lines:#?}");
    assert!(lines.iter().all(|line| line.contains("SIGHUP")), "{lines:#?}");
    // What was told at the start is not told again by the watch.
    let tls = Tls::load(files, name(1)).unwrap();
    assert!(tls.due(until - 3 * day).is_some() && tls.due(until - 3 * day).is_none());
}

#[test]
fn files_that_do_not_protect_are_refused() {
    let world = World::new(2);
    let files = world.files(1);
    assert!(Tls::load(files.clone(), name(1)).is_ok());
    assert!(matches!(Tls::load(files.clone(), name(2)), Err(TlsError::Foreign { .. })));
    let elsewhere = NodeName { cluster: ClusterId(1), ..name(1) };
    assert!(matches!(Tls::load(files.clone(), elsewhere), Err(TlsError::Foreign { .. })));
    let mixed = TlsFiles { key: world.files(2).key, ..files.clone() };
    assert!(matches!(Tls::load(mixed, name(1)), Err(TlsError::Unusable { .. })));
    // The CA of another cluster, alone and beside our own.
    let other = tempfile::tempdir().unwrap();
    make_certs(other.path(), CLUSTER, &[(InstanceId(1), vec![])]).unwrap();
    let strange = TlsFiles { ca: other.path().join("ca.pem"), ..files.clone() };
    let told = Tls::load(strange.clone(), name(1)).unwrap_err().to_string();
    assert!(told.contains("it is not of the CA in"), "{told}");
    assert!(check_files(&strange, Some(name(1))).is_err());
    let both = [&strange.ca, &files.ca].map(|path| fs::read(path).unwrap()).concat();
    fs::write(&strange.ca, both).unwrap();
    assert!(Tls::load(strange, name(1)).is_ok());
    for mode in [0o644, 0o604, 0o660] {
        set_mode(&files.key, mode);
        let error = Tls::load(files.clone(), name(1)).unwrap_err();
        assert!(matches!(error, TlsError::Exposed { .. }) && error.to_string().contains("chmod"));
    }
}

#[tokio::test]
async fn without_tls_nothing_leaves_this_machine_unless_that_is_wanted() {
    let address = |text: &str| text.parse().unwrap();
    for loopback in ["127.0.0.1:7000", "[::1]:7000", "[::ffff:127.0.0.1]:7000"] {
        let chosen = Security::choose(address(loopback), None, false).unwrap();
        assert!(matches!(chosen, Security::Loopback), "{loopback}");
    }
    for outside in ["0.0.0.0:7000", "[::]:7000", "192.0.2.7:7000"] {
        let error = Security::choose(address(outside), None, false).unwrap_err().to_string();
        assert!(error.contains("--raft-tls-cert") && error.contains("--insecure-cluster"));
        let chosen = Security::choose(address(outside), None, true).unwrap();
        assert!(matches!(chosen, Security::Insecure), "{outside}");
    }
    let transport = TcpTransport::new(name(1), Security::Loopback, Metrics::new());
    let member = Member::at("192.0.2.7:7000");
    let error = transport.connect(InstanceId(2), &member, Lane::Calls).await.err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
}
