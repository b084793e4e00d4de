//! All metrics on one page: the doc line of each is its HELP text. Names follow Prometheus: base
//! units, `_total` for counters, no client address as a label. What is counted while entries are
//! applied is counted by every instance alike (take `max`, not `sum`, over instances); what is
//! counted at a connection, a disk or a datagram is the instance's own.

use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    TextEncoder, core::Collector,
};

/// What the documentation says of one metric.
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
        $field:ident: $kind:ident = $name:literal $([$($label:literal),+])?;
    )+) => {
        /// Every metric of one instance.
        #[derive(Clone, Debug)]
        pub struct Metrics {
            registry: prometheus::Registry,
            $($(#[doc = $help])+ pub $field: $kind,)+
        }

        impl Metrics {
            /// All metrics at zero, registered.
            pub fn new() -> Self {
                let registry = prometheus::Registry::new();
                Self {
                    $($field: declare::<$kind>(
                        &registry, $name, concat!($($help),+).trim(), &[$($($label),+)?]),)+
                    registry,
                }
            }

            /// Every metric, in the order of declaration.
            pub const TABLE: &'static [Declaration] = &[$(Declaration {
                name: $name,
                kind: stringify!($kind),
                labels: &[$($($label),+)?],
                help: concat!($($help),+),
            },)+];
        }
    };
}

metrics! {
    /// Always 1; the labels tell what runs.
    build_info: IntGaugeVec = "emnetchain_build_info" ["version"];
    /// Clients in the registry, over all chains.
    clients: IntGauge = "emnetchain_clients";
    /// Chains with at least one client.
    chains: IntGauge = "emnetchain_chains";
    /// Sockets that wait to be told their partner.
    asks: IntGauge = "emnetchain_asks";
    /// Links in force.
    links_now: IntGauge = "emnetchain_links";
    /// Neighbours in a chain that are not linked.
    broken_links: IntGauge = "emnetchain_broken_links";
    /// Repair ids that wait for their second caller.
    repairs_pending: IntGauge = "emnetchain_repairs_pending";
    /// EMNet entries kept.
    peers: IntGauge = "emnetchain_peers";
    /// Links made, by what brought the two together: gather, join or repair.
    links: IntCounterVec = "emnetchain_links_total" ["by"];
    /// Seconds that the earlier socket of a new link had waited, in log time.
    link_seconds: Histogram = "emnetchain_link_seconds";
    /// Repairs by outcome: linked, paired (by id alone), expired.
    repairs: IntCounterVec = "emnetchain_repairs_total" ["outcome"];
    /// Seconds that the first caller of a finished repair had waited, in log time.
    repair_seconds: Histogram = "emnetchain_repair_seconds";
    /// Clients taken out of their chain because a neighbour lost them or they kept silent.
    taken_out: IntCounter = "emnetchain_clients_taken_out_total";
    /// Asks, finished repair ids, clients and EMNet entries that reached the end of their time.
    expired: IntCounter = "emnetchain_expired_total";
    /// Requests and connections turned away, by reason.
    rejected: IntCounterVec = "emnetchain_rejected_total" ["reason"];
    /// Open client connections by listener: chain, repair, emnet, http.
    connections: IntGaugeVec = "emnetchain_connections" ["listener"];
    /// Connections accepted, by listener.
    accepted: IntCounterVec = "emnetchain_accepted_total" ["listener"];
    /// Waiting clients that closed their sending side, by listener; some of them have ended.
    half_closed: IntCounterVec = "emnetchain_half_closed_total" ["listener"];
    /// Times that the accept loop had to pause, by listener: out of descriptors or of memory.
    accept_pauses: IntCounterVec = "emnetchain_accept_pauses_total" ["listener"];
    /// Seconds from a complete request to the commit of its command on a majority's disks.
    commit_seconds: Histogram = "emnetchain_commit_seconds";
    /// Datagrams answered, by kind: text or stun.
    udp_answered: IntCounterVec = "emnetchain_udp_answered_total" ["kind"];
    /// Datagrams dropped, by reason.
    udp_dropped: IntCounterVec = "emnetchain_udp_dropped_total" ["reason"];
    /// 1 while a leader is known.
    raft_has_leader: IntGauge = "emnetchain_raft_has_leader";
    /// 1 while this instance leads.
    raft_is_leader: IntGauge = "emnetchain_raft_is_leader";
    /// The raft term.
    raft_term: IntGauge = "emnetchain_raft_term";
    /// Changes of leader seen by this instance.
    raft_leader_changes: IntCounter = "emnetchain_raft_leader_changes_total";
    /// Index of the last raft entry in the log.
    raft_last_index: IntGauge = "emnetchain_raft_last_log_index";
    /// Index of the last raft entry applied to the registry.
    raft_applied_index: IntGauge = "emnetchain_raft_applied_index";
    /// Raft entries proposed by this instance and not yet committed.
    raft_proposals_pending: IntGauge = "emnetchain_raft_proposals_pending";
    /// Raft entries committed that this instance proposed.
    raft_proposals_committed: IntCounter = "emnetchain_raft_proposals_committed_total";
    /// Proposals that had to be made again: no leader, or leadership lost on the way.
    raft_proposals_retried: IntCounter = "emnetchain_raft_proposals_retried_total";
    /// Batches that arrived twice and were applied once.
    raft_duplicates: IntCounter = "emnetchain_raft_duplicate_batches_total";
    /// Connections of other instances that were refused or cut off, by reason: cluster, crowded,
    /// forged, frame, identity, preamble, target, timeout, tls, version.
    raft_refused: IntCounterVec = "emnetchain_raft_refused_total" ["reason"];
    /// Open connections of other instances by kind: append, calls, snapshot.
    raft_connections: IntGaugeVec = "emnetchain_raft_connections" ["kind"];
    /// Connections to other instances that were tried, by outcome: open, failed.
    raft_connects: IntCounterVec = "emnetchain_raft_connects_total" ["outcome"];
    /// Seconds of each sync of the raft log to the disk.
    log_sync_seconds: Histogram = "emnetchain_raft_log_fsync_seconds";
    /// Raft entries written per sync of the log.
    log_sync_entries: Histogram = "emnetchain_raft_log_fsync_entries";
    /// Bytes of the raft log on disk.
    log_bytes: IntGauge = "emnetchain_raft_log_bytes";
    /// Bytes of interrupted writes, never acknowledged, cut off the raft log at the start.
    log_torn_bytes: IntCounter = "emnetchain_raft_log_torn_bytes_total";
    /// Raft entries applied in memory and not yet in the image on disk.
    image_lag: IntGauge = "emnetchain_image_lag_entries";
    /// Seconds of each sync of the image to the disk.
    image_sync_seconds: Histogram = "emnetchain_image_fsync_seconds";
    /// Bytes of the image on disk.
    image_bytes: IntGauge = "emnetchain_store_bytes";
    /// Bytes of the last snapshot.
    snapshot_bytes: IntGauge = "emnetchain_snapshot_bytes";
    /// Seconds that building a snapshot took.
    snapshot_seconds: Histogram = "emnetchain_snapshot_seconds";
    /// 1 while the instance drains before it stops.
    draining: IntGauge = "emnetchain_draining";
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// The Prometheus text exposition of all metrics and of the process.
    pub fn render(&self) -> String {
        let mut families = self.registry.gather();
        families.extend(prometheus::process_collector::ProcessCollector::for_self().collect());
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&families, &mut text)
            .expect("well-formed metrics encode into memory");
        String::from_utf8(text).expect("the exposition format is text")
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

impl Declare for IntGaugeVec {
    fn make(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<Self> {
        Self::new(Opts::new(name, help), labels)
    }
}

impl Declare for Histogram {
    fn make(name: &str, help: &str, _: &[&str]) -> prometheus::Result<Self> {
        // From 100 µs to 13 s for times, from 1 to 1024 for counts: powers of two.
        let (start, count) = if name.ends_with("_seconds") { (0.0001, 18) } else { (1.0, 11) };
        let buckets = prometheus::exponential_buckets(start, 2.0, count)?;
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
        metrics.build_info.with_label_values(&["test"]).set(1);
        assert!(metrics.render().contains("emnetchain_build_info{version=\"test\"} 1"));
        for Declaration { name, kind, help, .. } in Metrics::TABLE {
            assert!(name.starts_with("emnetchain_") && help.trim().ends_with('.'), "{name}");
            assert_eq!(name.ends_with("_total"), kind.starts_with("IntCounter"), "{name}");
        }
    }
}
