//! Ten thousand connections that come and go in every way there is.

use std::{net::SocketAddr, thread};

use tempfile::TempDir;

use super::{
    honest::{Honest, expect_metric},
    kernel::{Cost, crowd_turn},
};
use crate::support::{Client, Member, Service, eventually, reconnect};

/// Connections of the whole test.
const CLIENTS: u16 = 10_000;

/// Those of them that come before memory is measured for the first time.
const WARMING: u16 = 2_000;

/// How many come and go at a time.
const THREADS: u16 = 8;

/// What resident memory may have grown by, in KiB: what allocators and the log keep.
const GROWTH_KIB_MAX: u64 = 24 * 1024;

/// Proves that clients that come and go, in the midst of messages, with and without requests, leave
/// neither descriptors nor memory nor records behind, and hold up no other.
#[test]
fn ten_thousand_comings_and_goings_leave_nothing_behind() {
    let _turn = crowd_turn();
    let seed = 0x5eed_0001;
    println!("seed {seed:#x}");
    let dir = TempDir::new().unwrap();
    // A linked client is remembered for as long as it may come back, and one that exited as long as
    // it may be a legal half-close: here both are short.
    let times = ["--client-retention", "2s", "--retention", "1s", "--ask-max", "5s"];
    let service = Service::start(dir.path(), &times);
    let descriptors = service.descriptors();
    let mut honest = Honest::pairs(&service);
    honest.rounds(5);

    honest.beside("churn, to warm up", || churn(&service, seed, 0..WARMING));
    all_gone(&service, descriptors);
    let cost = Cost::begin(&service);
    honest.beside("churn", || churn(&service, seed, WARMING..CLIENTS));
    all_gone(&service, descriptors);
    cost.expect_kib(&service, "churn", GROWTH_KIB_MAX);
    honest.rounds(1);
}

fn all_gone(service: &Service, descriptors: usize) {
    for gauge in [
        "emnetchain_connections{listener=\"chain\"}",
        "emnetchain_connections{listener=\"repair\"}",
        "emnetchain_asks",
        "emnetchain_repairs_pending",
        "emnetchain_links",
        "emnetchain_clients",
        "emnetchain_chains",
    ] {
        expect_metric(service, gauge, 0.0);
    }
    eventually("the descriptors are back", || (service.descriptors() == descriptors).then_some(()));
}

fn churn(service: &Service, seed: u64, numbers: std::ops::Range<u16>) {
    let (chain, repair) = (service.chain(), service.repair());
    thread::scope(|scope| {
        for first in numbers.start..numbers.start + THREADS {
            let end = numbers.end;
            scope.spawn(move || {
                for number in (first..end).step_by(usize::from(THREADS)) {
                    come_and_go(chain, repair, number, Chance(seed ^ u64::from(number) << 32));
                }
            });
        }
    });
}

/// One client: says part of something or all of it, to one of the servers, and goes somehow.
fn come_and_go(chain: SocketAddr, repair: SocketAddr, number: u16, mut chance: Chance) {
    let (server, request) = match chance.below(2) {
        0 => (chain, Member(number).connect()),
        _ => (repair, reconnect(&format!("id {}", number / 2), &Member(number).head())),
    };
    let mut client = Client::connect(server);
    match chance.below(4) {
        0 => {}
        1 => client.send(&request[..chance.below(request.len())]),
        2 => client.send("junk and more junk"),
        _ => client.send(&request),
    }
    match chance.below(4) {
        0 => drop(client),
        1 => client.reset(),
        2 => {
            client.half_close();
            drop(client);
        }
        _ => {
            client.half_close();
            client.reset();
        }
    }
}

/// A small generator of random numbers (SplitMix64), which a seed decides.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) as usize % bound
    }
}
