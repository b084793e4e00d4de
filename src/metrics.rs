//! All metrics on one page: the doc line of each is its HELP text. Names follow Prometheus: base
//! units, `_total` for counters, no client address as a label. What is counted while entries are
//! applied is counted by every instance alike (take `max`, not `sum`, over instances), and not
//! counted again when a start applies what its log had already; what is counted at a connection, a
//! disk or a datagram is the instance's own.

use std::collections::BTreeMap;

use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, TextEncoder,
    core::{Atomic, Collector, GenericGaugeVec},
};

use crate::platform;

/// The documentation of one metric.
#[derive(Clone, Copy, Debug)]
pub struct Declaration {
    /// Its name.
    pub name: &'static str,
    /// The type of its field.
    pub kind: &'static str,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// Its help text, in one sentence or more.
    pub help: &'static str,
}

/// Declares the struct, its registration and the table for the documentation from one list.
macro_rules! metrics {
    ($(
        $(#[doc = $help:literal])+
        $field:ident: $kind:ident = $name:literal $([$($label:literal),*])?;
    )+) => {
        /// Every metric of one instance.
        #[derive(Clone, Debug)]
        pub struct Metrics {
            registry: prometheus::Registry,
            $($(#[doc = $help])+ pub $field: $kind,)+
        }

        impl Metrics {
            /// Returns all metrics at zero, registered.
            pub fn new() -> Self {
                Self::registered().with_known_labels()
            }

            fn registered() -> Self {
                let registry = prometheus::Registry::new();
                Self {
                    $($field: declare::<$kind>(
                        &registry, $name, concat!($($help),+).trim(), &[$($($label),*)?]),)+
                    registry,
                }
            }

            /// Every metric, in the order of declaration.
            pub const TABLE: &'static [Declaration] = &[$(Declaration {
                name: $name,
                kind: stringify!($kind),
                labels: &[$($($label),*)?],
                help: concat!($($help),+),
            },)+];
        }
    };
}

metrics! {
    /// Always 1; the labels name the running version.
    build_info: IntGaugeVec = "emnetchain_build_info" ["version", "profile", "platform"];
    /// 1 while this instance can answer clients, as /readyz says.
    ready: IntGauge = "emnetchain_ready";
    /// Clients in the registry, over all chains.
    clients: IntGauge = "emnetchain_clients";
    /// Chains with at least one client.
    chains: IntGauge = "emnetchain_chains";
    /// Sockets that wait for a partner.
    asks: IntGauge = "emnetchain_asks";
    /// Links between neighbours in the paths of chains.
    links_now: IntGauge = "emnetchain_links";
    /// Pairs of neighbours in paths that should be linked and are not.
    broken_links: IntGauge = "emnetchain_broken_links";
    /// Clients that are cut off from the paths of their chains.
    cut_off: IntGauge = "emnetchain_cut_off";
    /// Sockets that wait for a partner by RECONNECT.
    repairs_pending: IntGauge = "emnetchain_repairs_pending";
    /// EMNet entries kept.
    peers: IntGauge = "emnetchain_peers";
    /// Clients of a chain, including those that are cut off. The largest chains are labelled by
    /// name, the unnamed chain is `default`, and `_other` is the sum of the rest.
    chain_clients: IntGaugeVec = "emnetchain_chain_clients" ["chain"];
    /// Clients of a chain that are cut off from its path.
    chain_cut_off: IntGaugeVec = "emnetchain_chain_cut_off" ["chain"];
    /// Sockets of a chain that wait for a partner.
    chain_waiting: IntGaugeVec = "emnetchain_chain_waiting" ["chain"];
    /// Links between neighbours in the path of a chain.
    chain_links: IntGaugeVec = "emnetchain_chain_links" ["chain"];
    /// Pairs of neighbours in the path of a chain that should be linked and are not.
    chain_broken_links: IntGaugeVec = "emnetchain_chain_broken_links" ["chain"];
    /// Links made, by cause: again, gather, join or repair.
    links: IntCounterVec = "emnetchain_links_total" ["by"];
    /// Seconds that the earlier socket of a new link waited, in log time.
    link_seconds: Histogram = "emnetchain_link_seconds";
    /// Repairs by outcome: linked, paired (by id alone), expired.
    repairs: IntCounterVec = "emnetchain_repairs_total" ["outcome"];
    /// Seconds that the first caller of a finished repair waited, in log time.
    repair_seconds: Histogram = "emnetchain_repair_seconds";
    /// Clients that left their chains: silent for the retention time, or replaced.
    taken_out: IntCounter = "emnetchain_clients_taken_out_total";
    /// Clients cut off from their runs, because a neighbour reported them or they stayed silent.
    clients_cut_off: IntCounter = "emnetchain_clients_cut_off_total";
    /// Clients that were cut off and have returned to the path.
    clients_returned: IntCounter = "emnetchain_clients_returned_total";
    /// Entries that reached the end of their time: ask (by CONNECT), repair (by RECONNECT), answer
    /// (kept for a caller that asks again), client, peer (EMNet).
    expired: IntCounterVec = "emnetchain_expired_total" ["what"];
    /// Entries evicted for a newer one, because a table was full or its source had its share:
    /// client, wait (for a repair id), answer (kept for a caller that asks again), peer (EMNet).
    made_room: IntCounterVec = "emnetchain_made_room_total" ["what"];
    /// Requests and connections turned away, by reason.
    rejected: IntCounterVec = "emnetchain_rejected_total" ["reason"];
    /// Ids that clients asked EMNet for, by outcome: found, missed (no such id); limited counts
    /// those that first had to wait, after too many wrong ids from their source or its /48.
    emnet_asks: IntCounterVec = "emnetchain_emnet_asks_total" ["outcome"];
    /// Requests to the operators' HTTP that were refused for their token: wrong, or rate (after
    /// too many wrong ones from the source or its /48, this one was not checked).
    http_tokens_refused: IntCounterVec = "emnetchain_http_tokens_refused_total" ["reason"];
    /// Open client connections by listener: chain, repair, emnet, http.
    connections: IntGaugeVec = "emnetchain_connections" ["listener"];
    /// Connections accepted, by listener.
    accepted: IntCounterVec = "emnetchain_accepted_total" ["listener"];
    /// Waiting clients that closed their sending side, by listener; some of them have exited.
    half_closed: IntCounterVec = "emnetchain_half_closed_total" ["listener"];
    /// Pauses of the accept loop, by listener: out of descriptors or memory.
    accept_pauses: IntCounterVec = "emnetchain_accept_pauses_total" ["listener"];
    /// Seconds from proposing a batch of requests to its commit on the disks of a majority.
    commit_seconds: Histogram = "emnetchain_commit_seconds";
    /// Datagrams answered, by kind: text or stun.
    udp_answered: IntCounterVec = "emnetchain_udp_answered_total" ["kind"];
    /// Datagrams dropped, by reason.
    udp_dropped: IntCounterVec = "emnetchain_udp_dropped_total" ["reason"];
    /// 1 while this instance hears a leader; on the leader, while it reaches a majority.
    raft_has_leader: IntGauge = "emnetchain_raft_has_leader";
    /// 1 while this instance leads.
    raft_is_leader: IntGauge = "emnetchain_raft_is_leader";
    /// The raft term.
    raft_term: IntGauge = "emnetchain_raft_term";
    /// Changes of leader seen by this instance.
    raft_leader_changes: IntCounter = "emnetchain_raft_leader_changes_total";
    /// Index of the last raft entry in the log.
    raft_last_index: IntGauge = "emnetchain_raft_last_log_index";
    /// Index of the last raft entry known to be on the disks of a majority.
    raft_committed_index: IntGauge = "emnetchain_raft_committed_index";
    /// Index of the last raft entry applied to the registry.
    raft_applied_index: IntGauge = "emnetchain_raft_applied_index";
    /// Members of the cluster by kind: voter, learner.
    raft_members: IntGaugeVec = "emnetchain_raft_members" ["kind"];
    /// Voters that may still fail without losing the majority; only the leader reports it.
    raft_failure_tolerance: IntGaugeVec = "emnetchain_raft_failure_tolerance" [];
    /// Raft entries that a member lags behind, by its node id; only the leader reports it.
    raft_peer_lag: IntGaugeVec = "emnetchain_raft_peer_lag_entries" ["peer"];
    /// Seconds since this instance heard another one, by its node id: the leader reports all other
    /// members, a follower the leader.
    raft_peer_silence: GaugeVec = "emnetchain_raft_peer_silence_seconds" ["peer"];
    /// Lives that this instance began: one at its start, and one each time that the others had
    /// given it up or a snapshot brought it up to date. Its clients then have to reconnect.
    lives: IntCounter = "emnetchain_lives_total";
    /// 1 while this instance is out of service because its registry differs from the others'.
    replicas_differ: IntGauge = "emnetchain_replicas_differ";
    /// Lives of other instances that this one ended as the leader, because they were silent.
    lives_ended: IntCounter = "emnetchain_lives_ended_total";
    /// 1 if raft connects to other machines without TLS (insecure_cluster).
    raft_insecure: IntGauge = "emnetchain_raft_insecure";
    /// Raft entries that this instance proposed and that are not yet committed.
    raft_proposals_pending: IntGauge = "emnetchain_raft_proposals_pending";
    /// Age in seconds of the oldest raft entry that this instance proposed and that is not yet
    /// committed; 0 if there is none. Clients wait for it.
    oldest_proposal: Gauge = "emnetchain_oldest_proposal_seconds";
    /// Committed raft entries that this instance proposed.
    raft_proposals_committed: IntCounter = "emnetchain_raft_proposals_committed_total";
    /// Proposals that were retried: no leader, or leadership lost on the way.
    raft_proposals_retried: IntCounter = "emnetchain_raft_proposals_retried_total";
    /// Requests dropped before they were proposed: the client hung up while there was no leader.
    requests_taken_back: IntCounter = "emnetchain_requests_taken_back_total";
    /// Batches that arrived twice and were applied once.
    raft_duplicates: IntCounter = "emnetchain_raft_duplicate_batches_total";
    /// Connections from other instances that were refused or closed, by reason: cluster, crowded,
    /// forged, frame, history, identity, preamble, removed, rolled-back, store, target, timeout,
    /// tls, version.
    raft_refused: IntCounterVec = "emnetchain_raft_refused_total" ["reason"];
    /// Open connections from other instances, by kind: append, calls, snapshot.
    raft_connections: IntGaugeVec = "emnetchain_raft_connections" ["kind"];
    /// Attempts to connect to other instances, by outcome: open, failed.
    raft_connects: IntCounterVec = "emnetchain_raft_connects_total" ["outcome"];
    /// Seconds of each sync of the raft log to the disk.
    log_sync_seconds: Histogram = "emnetchain_raft_log_fsync_seconds";
    /// Raft entries written per sync of the log.
    log_sync_entries: Histogram = "emnetchain_raft_log_fsync_entries";
    /// Bytes of the raft log on disk.
    log_bytes: IntGauge = "emnetchain_raft_log_bytes";
    /// Bytes of interrupted, never acknowledged writes that the start cut off the raft log.
    log_torn_bytes: IntCounter = "emnetchain_raft_log_torn_bytes_total";
    /// Raft entries applied in memory and not yet in the image on disk.
    image_lag: IntGauge = "emnetchain_image_lag_entries";
    /// Times that the image was given up because its writer fell behind, as on a disk that hangs;
    /// it is rewritten once the writer works.
    image_given_up: IntCounter = "emnetchain_image_given_up_total";
    /// Seconds of each sync of the image to the disk.
    image_sync_seconds: Histogram = "emnetchain_image_fsync_seconds";
    /// Bytes of the image on disk.
    image_bytes: IntGauge = "emnetchain_store_bytes";
    /// Bytes of the last snapshot.
    snapshot_bytes: IntGauge = "emnetchain_snapshot_bytes";
    /// Unix time at which the last snapshot was written; 0 while there is none.
    snapshot_timestamp: IntGauge = "emnetchain_snapshot_timestamp_seconds";
    /// Snapshots taken into use, by where they came from: built (here), received (from the leader).
    snapshots: IntCounterVec = "emnetchain_snapshots_total" ["origin"];
    /// Seconds that building a snapshot took.
    snapshot_seconds: Histogram = "emnetchain_snapshot_seconds";
    /// Unix time of the last complete `EMNetChain backup` of this instance; 0 if there was none
    /// since its start.
    backup_timestamp: IntGauge = "emnetchain_backup_timestamp_seconds";
    /// Bytes that this process may still write on the disk of the data directory.
    disk_free: IntGauge = "emnetchain_disk_free_bytes";
    /// Size in bytes of the disk or volume of the data directory.
    disk_size: IntGauge = "emnetchain_disk_size_bytes";
    /// Age in seconds of the oldest disk operation that has not finished, by target: image, log,
    /// snapshot; 0 if there is none. Beyond 30 the instance exits.
    disk_pending: GaugeVec = "emnetchain_disk_pending_seconds" ["what"];
    /// Unix time at which this instance's certificate or its CA expires, whichever is first; 0
    /// without TLS.
    raft_certificate: IntGauge = "emnetchain_raft_certificate_expiry_timestamp_seconds";
    /// Log lines dropped because standard error was not read or could not be written; the service
    /// does not wait for it.
    log_lines_dropped: IntCounter = "emnetchain_log_lines_dropped_total";
    /// 1 while the instance drains before it stops.
    draining: IntGauge = "emnetchain_draining";
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// A counter that appears with its first event hides that event from `rate()`, so what
    /// is known to come begins at zero.
    fn with_known_labels(self) -> Self {
        let known: [(&IntCounterVec, &[&str]); 12] = [
            (&self.links, &["again", "gather", "join", "repair"]),
            (&self.repairs, &["expired", "linked", "paired"]),
            (&self.expired, &["answer", "ask", "client", "peer", "repair"]),
            (&self.accepted, &["chain", "emnet", "http", "repair"]),
            (&self.accept_pauses, &["chain", "emnet", "http", "repair"]),
            (&self.udp_answered, &["stun", "text"]),
            (&self.rejected, &["not_owner"]),
            (&self.made_room, &["answer", "client", "peer", "wait"]),
            (&self.emnet_asks, &["found", "limited", "missed"]),
            (&self.http_tokens_refused, &["rate", "wrong"]),
            (&self.raft_connects, &["failed", "open"]),
            (&self.snapshots, &["built", "received"]),
        ];
        for (counters, labels) in known {
            for label in labels {
                counters.with_label_values(&[*label]);
            }
        }
        for listener in ["chain", "emnet", "http", "repair"] {
            self.connections.with_label_values(&[listener]);
        }
        self
    }

    /// Returns the Prometheus text exposition of all metrics and of the process.
    pub fn render(&self) -> String {
        let mut families = self.registry.gather();
        families.extend(platform::process::figures());
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&families, &mut text)
            .expect("well-formed metrics encode into memory");
        String::from_utf8(text).expect("the exposition format is text")
    }
}

/// Makes `gauges`, which have one label or none, say exactly these values. Those that stay are
/// never away in between, because they may be read meanwhile.
pub fn show<A: Atomic>(gauges: &GenericGaugeVec<A>, values: &BTreeMap<Vec<&str>, A::T>) {
    for family in gauges.collect() {
        for metric in family.get_metric() {
            let labels: Vec<&str> = metric.get_label().iter().map(|label| label.value()).collect();
            if !values.contains_key(&labels) {
                // Another reader may have been quicker.
                let _ = gauges.remove_label_values(&labels);
            }
        }
    }
    for (labels, value) in values {
        gauges.with_label_values(labels).set(*value);
    }
}

/// A kind of metric that can be made from its declaration.
trait Declare: Collector + Clone + Sized + 'static {
    fn make(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<Self>;
}

impl Declare for IntCounter {
    fn make(name: &str, help: &str, _: &[&str]) -> prometheus::Result<Self> {
        Self::new(name, help)
    }
}

impl Declare for IntCounterVec {
    fn make(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<Self> {
        Self::new(Opts::new(name, help), labels)
    }
}

impl Declare for IntGauge {
    fn make(name: &str, help: &str, _: &[&str]) -> prometheus::Result<Self> {
        Self::new(name, help)
    }
}

impl Declare for Gauge {
    fn make(name: &str, help: &str, _: &[&str]) -> prometheus::Result<Self> {
        Self::new(name, help)
    }
}

impl Declare for IntGaugeVec {
    fn make(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<Self> {
        Self::new(Opts::new(name, help), labels)
    }
}

impl Declare for GaugeVec {
    fn make(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<Self> {
        Self::new(Opts::new(name, help), labels)
    }
}

impl Declare for Histogram {
    fn make(name: &str, help: &str, _: &[&str]) -> prometheus::Result<Self> {
        let (start, factor, count) = match name {
            // Clients wait for others: from 1 ms to 18 hours.
            "emnetchain_link_seconds" | "emnetchain_repair_seconds" => (0.001, 4.0, 14),
            // From 100 µs to 13 s for work, from 1 to 1024 for counts.
            name if name.ends_with("_seconds") => (0.0001, 2.0, 18),
            _ => (1.0, 2.0, 11),
        };
        let buckets = prometheus::exponential_buckets(start, factor, count)?;
        Self::with_opts(HistogramOpts::new(name, help).buckets(buckets))
    }
}

fn declare<M: Declare>(
    registry: &prometheus::Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> M {
    let metric = M::make(name, help, labels).expect("the declarations above are well-formed");
    registry.register(Box::new(metric.clone())).expect("each name is declared once");
    metric
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_well_named_and_registered() {
        let metrics = Metrics::new();
        metrics.accepted.with_label_values(&["test"]).inc();
        assert!(metrics.render().contains("emnetchain_accepted_total{listener=\"test\"} 1"));
        for Declaration { name, kind, help, .. } in Metrics::TABLE {
            assert!(name.starts_with("emnetchain_") && help.trim().ends_with('.'), "{name}");
            assert_eq!(name.ends_with("_total"), kind.starts_with("IntCounter"), "{name}");
        }
    }
}
