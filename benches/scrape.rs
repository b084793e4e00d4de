//! What a look at `/metrics` costs an instance with a million clients: for how long entries have to
//! wait while the registry is counted, and how long and how large the page is.

#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

#[path = "service/report.rs"]
#[expect(dead_code, reason = "the other benchmarks use all of it")]
mod report;

use std::{
    hint::black_box,
    net::{IpAddr, Ipv4Addr},
};

use emnetchain::{
    clock,
    ids::{
        ChainName, HeadAddr, Incarnation, InstanceId, SessionId, Socket, Source, TailAddr,
        Timestamp,
    },
    limits::{CHAIN_LABELS_MAX, ENTRY_COMMANDS_MAX},
    metrics::{Metrics, show},
    registry::{Census, Command, Policy, Proposal, Registry},
};
use report::{Table, median, whole};

const CLIENTS: u32 = 1_000_000;

/// How often each is measured.
const ROUNDS: usize = 21;

fn main() {
    let mut table = Table::new(&["clients", "chains", "links", "counted in µs"]);
    for chains in [1, 1_000, 100_000] {
        let registry = registry(chains);
        let took =
            timed(|| drop(black_box((registry.totals(), registry.census(CHAIN_LABELS_MAX)))));
        let links = registry.totals().links as f64;
        table.row(vec![whole(f64::from(CLIENTS)), whole(f64::from(chains)), whole(links), took]);
        if chains == 1_000 {
            let metrics = Metrics::new();
            let census = registry.census(CHAIN_LABELS_MAX);
            let shown = timed(|| show_chains(&metrics, &census));
            let rendered = timed(|| drop(black_box(metrics.render())));
            let bytes = metrics.render().len();
            println!("the page: {bytes} bytes, gauges in {shown} µs, text in {rendered} µs");
        }
    }
    table.print();
}

/// The median of some rounds, in microseconds.
fn timed(mut work: impl FnMut()) -> String {
    let once = |_| {
        let began = clock::now();
        work();
        (clock::now() - began).as_secs_f64() * 1e6
    };
    whole(median((0..ROUNDS).map(once).collect()))
}

/// As `ops/gauges.rs` does it.
fn show_chains(metrics: &Metrics, census: &Census) {
    for gauges in [
        &metrics.chain_clients,
        &metrics.chain_waiting,
        &metrics.chain_links,
        &metrics.chain_broken_links,
    ] {
        let chains = census.largest.iter().map(|(name, totals)| (&*name.0, totals));
        let values = chains.map(|(name, totals)| (vec![name], totals.clients as i64)).collect();
        show(gauges, &values);
    }
}

/// All clients, evenly over this number of chains.
fn registry(chains: u32) -> Registry {
    let mut registry = Registry::default();
    let mut apply = |commands| {
        registry.apply(&Proposal { at: Timestamp(1), batch: None, commands });
        registry.take_changed();
    };
    let policy = Policy { clients_per_source_max: u64::MAX, ..Policy::default() };
    apply(vec![Command::SetPolicy(policy)]);
    let names: Vec<_> = (0..chains).map(|n| ChainName(format!("chain-{n}").into())).collect();
    for first in (0..CLIENTS).step_by(ENTRY_COMMANDS_MAX) {
        let last = CLIENTS.min(first + ENTRY_COMMANDS_MAX as u32);
        let connect = |n: u32| connect(n, names[(n % chains) as usize].clone());
        apply((first..last).map(connect).collect());
    }
    registry
}

fn connect(number: u32, chain: ChainName) -> Command {
    let ip = Ipv4Addr::from(0x0a00_0000 + number);
    let socket = |port| Socket::parse(&format!("{ip}:{port}")).expect("it is well-formed");
    let connection = u64::from(number) + 1;
    Command::Connect {
        session: SessionId { instance: InstanceId(1), incarnation: Incarnation(0), connection },
        source: Source::of(IpAddr::V4(ip)),
        chain,
        head: HeadAddr(socket(1)),
        tail: TailAddr(socket(2)),
    }
}
