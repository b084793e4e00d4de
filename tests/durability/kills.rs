//! `kill -9`, again and again, while clients come and go.

use std::{process::Stdio, thread, time::Duration};

use tempfile::TempDir;

use super::{
    crowd::{Crowd, UNHURRIED, assert_all_is_as_told},
    history::History,
    random::Random,
    site::Site,
    support::{Service, command, eventually},
};

const KILLS: usize = 50;

/// Answers between two kills at least, for a kill that hits nothing proves nothing.
const ANSWERS_MIN: usize = 20;

/// How many that were told something lately are asked after each kill, and how many others.
const ASKED_AGAIN: usize = 40;

#[test]
fn fifty_kills_under_load_take_nothing_back() {
    let mut random = Random::new("fifty_kills");
    let dir = TempDir::new().unwrap();
    let mut service = Service::start(dir.path(), &UNHURRIED);
    let (site, history) = (Site::of(&service), History::default());
    let crowd = Crowd::new(&site, &history);
    let mut choices = random.fork();
    let (_, _tip) = crowd.work_while(&mut random, || {
        for _ in 0..KILLS {
            let enough = history.count() + (ANSWERS_MIN + choices.below(80)) as u64;
            eventually("clients are answered", || (history.count() >= enough).then_some(()));
            // Into the middle of something else than an answer.
            thread::sleep(Duration::from_micros(choices.next() % 3000));
            site.goes_down();
            service.kill();
            assert_healthy(&service);
            if choices.below(3) == 0 {
                start_and_kill(dir.path(), Duration::from_micros(choices.next() % 600_000));
            }
            service = service.start_again();
            site.is_up(&service);
            let fresh = history.take_fresh();
            fresh.iter().take(ASKED_AGAIN).for_each(|member| crowd.come_back(*member));
            history.release(&fresh);
        }
    });
    eprintln!(
        "{KILLS} kills, {} answers, {} clients in the chain, {} left, {} entries",
        history.count(),
        history.settled().len(),
        history.gone(),
        service.metric("emnetchain_raft_applied_index"),
    );
    assert_all_is_as_told(&service, &site, &history);
    assert_healthy(&service);
}

/// Starts the service and kills it, probably before it serves.
fn start_and_kill(data_dir: &std::path::Path, after: Duration) {
    let arguments = UNHURRIED.map(str::to_owned);
    let mut command = command(&[], data_dir, &arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    thread::sleep(after);
    child.kill().unwrap();
    child.wait().unwrap();
}

/// A kill damages nothing, so nothing may have been found damaged.
fn assert_healthy(service: &Service) {
    let log = service.log();
    for sign in ["ERROR", "panicked", "is damaged", "is missing"] {
        assert!(!log.contains(sign), "{log}");
    }
}
