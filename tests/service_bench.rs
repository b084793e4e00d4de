//! The load generator of `benches/service` judges what it measures, so it must be able to say
//! "wrong": here it meets servers with bugs on purpose. (A benchmark has a `main` of its own and
//! so cannot hold tests itself.)

#[path = "../benches/service/ledger.rs"]
#[expect(dead_code, reason = "the benchmark uses all of it")]
mod ledger;
#[path = "../benches/service/load.rs"]
#[expect(dead_code, reason = "the benchmark uses all of it")]
mod load;
#[path = "../benches/service/null.rs"]
#[expect(dead_code, reason = "the benchmark uses all of it")]
mod null;
#[path = "../benches/service/protocol.rs"]
mod protocol;

use std::time::Duration;

use ledger::{Ledger, Wrong, Wrongs};
use load::{Doors, Extent, Outcome, Plan};
use null::Defect;
use protocol::{
    Part::{self, Head, Tail},
    read_link,
};
use tokio::task::LocalSet;

#[test]
fn an_honest_server_is_found_right() {
    for outcome in links_and_repairs(None) {
        assert_eq!(outcome.wrongs, Wrongs::default());
        assert!(outcome.per_second > 0.0 && outcome.p99_ms >= outcome.p50_ms);
    }
}

#[test]
fn a_server_that_swaps_sockets_is_found_wrong() {
    for outcome in links_and_repairs(Some(Defect::Swap)) {
        assert!(found(&outcome.wrongs, Wrong::Bytes), "{}", outcome.wrongs);
    }
}

#[test]
fn a_server_that_drops_answers_is_found_wrong() {
    for outcome in links_and_repairs(Some(Defect::Drop)) {
        assert!(outcome.wrongs.total() > 0);
    }
}

#[test]
fn a_link_message_is_read_to_the_byte() {
    let head = r#"{"msg":"CONNECT","part":"head","ip":"10.1.2.3:2000"}"#;
    assert_eq!(read_link(head.as_bytes()), Some((Head, 0x01_02_03)));
    for wrong in [
        r#"{"msg":"CONNECT","part":"head","ip":"10.1.2.3:1000"}"#, // heads are told tails
        r#"{"msg":"CONNECT","part":"head","ip":"11.1.2.3:2000"}"#,
        r#"{"msg":"CONNECT","part":"head","ip":"10.1.2.3:02000"}"#,
        r#"{"msg":"CONNECT","part":"head", "ip":"10.1.2.3:2000"}"#,
        r#"{"msg":"CONNECT","part":"both","ip":"10.1.2.3:2000"}"#,
        r#"{"part":"head","msg":"CONNECT","ip":"10.1.2.3:2000"}"#,
        "\n{\"msg\":\"CONNECT\",\"part\":\"head\",\"ip\":\"10.1.2.3:2000\"}",
    ] {
        assert_eq!(read_link(wrong.as_bytes()), None, "{wrong}");
    }
}

#[test]
fn one_path_is_right() {
    let path = [(0, Head, 1), (1, Tail, 0), (2, Tail, 1), (1, Head, 2)];
    assert_eq!(ledger_of(3, &path).judge(), Wrongs::default());
}

#[test]
fn every_broken_promise_is_found() {
    assert_found(Wrong::Untold, &[(0, Head, 1), (1, Tail, 0)]);
    assert_found(Wrong::Twice, &[(0, Head, 1), (0, Head, 2)]);
    assert_found(Wrong::Contradiction, &[(1, Tail, 0), (0, Head, 2)]);
    assert_found(Wrong::Contradiction, &[(0, Head, 1), (2, Tail, 0)]);
    assert_found(Wrong::Contradiction, &[(0, Head, 1), (1, Tail, 0), (2, Tail, 0)]);
    assert_found(Wrong::Itself, &[(0, Head, 0)]);
    assert_found(Wrong::Unknown, &[(0, Head, 7)]);
    // A cycle beside client 0.
    assert_found(Wrong::NotOnePath, &[(1, Head, 2), (2, Tail, 1), (2, Head, 1), (1, Tail, 2)]);
}

#[test]
fn the_newest_client_must_stay_connected() {
    let mut ledger = ledger_of(2, &[(0, Head, 1), (1, Tail, 0)]);
    ledger.closed(1);
    assert!(found(&ledger.judge(), Wrong::ClosedEarly));
}

/// Three clients that were `told` this must be found `wrong`.
fn assert_found(wrong: Wrong, told: &[(usize, Part, usize)]) {
    let wrongs = ledger_of(3, told).judge();
    assert!(found(&wrongs, wrong), "{wrong:?} is not in: {wrongs}");
}

fn found(wrongs: &Wrongs, wrong: Wrong) -> bool {
    wrongs.to_string().contains(&wrong.to_string())
}

/// What the generator finds of a null server with `defect`.
fn links_and_repairs(defect: Option<Defect>) -> [Outcome; 2] {
    let patience = match defect {
        None => Duration::from_secs(30), // never spent by an honest server
        Some(_) => Duration::from_millis(300),
    };
    let plan = Plan { clients: 8, extent: Extent::Count(300), patience };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("the kernel has room for one more");
    LocalSet::new().block_on(&runtime, async {
        let (chain, repair) = null::start(defect).expect("a port is free");
        let [chain, repair] = [chain, repair].map(|address| Doors::from_iter([address]));
        let (links, _) = load::links(&plan, &chain, &mut || ()).await;
        [links, load::repairs(&plan, &repair, &mut || ()).await]
    })
}

/// A ledger of `clients` clients after they were `told`; one that was told its head is closed.
fn ledger_of(clients: usize, told: &[(usize, Part, usize)]) -> Ledger {
    let now = emnetchain::clock::now();
    let mut ledger = Ledger::default();
    for _ in 0..clients {
        let number = ledger.enter(None);
        ledger.sent(number, now);
    }
    for (number, part, partner) in told {
        ledger.told(*number, *part, *partner, now);
        if *part == Head {
            ledger.closed(*number);
        }
    }
    ledger
}
