//! What an operator sees: where `/metrics` and `/status` get their figures.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::watch;

use crate::{
    cluster::Cluster,
    ids::InstanceId,
    metrics::Metrics,
    registry::{LinkedBy, Note, Totals},
    server::http::{Chains, HttpSources, Member, Readiness, Status},
    storage::ImageProgress,
};

/// The listeners whose connections `/status` tells.
const LISTENERS: [&str; 4] = ["chain", "repair", "emnet", "http"];

/// Counts what entries brought about.
pub(super) fn count(notes: &[Note], metrics: &Metrics) {
    let seconds = |ms: u64| ms as f64 / 1000.0;
    for note in notes {
        match note {
            Note::Expired => metrics.expired.inc(),
            Note::Linked { by, waited_ms } => {
                let label = match by {
                    LinkedBy::Gather => "gather",
                    LinkedBy::Join => "join",
                    LinkedBy::Repair => "repair",
                };
                metrics.links.with_label_values(&[label]).inc();
                metrics.link_seconds.observe(seconds(*waited_ms));
                if *by != LinkedBy::Join {
                    metrics.repairs.with_label_values(&["linked"]).inc();
                    metrics.repair_seconds.observe(seconds(*waited_ms));
                }
            }
            Note::Paired { waited_ms } => {
                metrics.repairs.with_label_values(&["paired"]).inc();
                metrics.repair_seconds.observe(seconds(*waited_ms));
            }
            Note::TakenOut => metrics.taken_out.inc(),
        }
    }
}

/// Where the HTTP server gets its answers.
pub(super) fn http_sources(
    cluster: &Cluster,
    image: &ImageProgress,
    metrics: &Metrics,
    readiness: watch::Receiver<Readiness>,
) -> HttpSources {
    let refresh = {
        let (cluster, image, metrics) = (cluster.clone(), image.clone(), metrics.clone());
        move || refresh(&cluster, &image, &metrics)
    };
    let status = {
        let (cluster, metrics) = (cluster.clone(), metrics.clone());
        move || status(&cluster, &metrics)
    };
    HttpSources {
        metrics: metrics.clone(),
        refresh: Arc::new(refresh),
        readiness,
        status: Arc::new(status),
    }
}

/// Sets the gauges that follow from the registry.
fn refresh(cluster: &Cluster, image: &ImageProgress, metrics: &Metrics) {
    let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let totals = totals(cluster);
    metrics.clients.set(gauge(totals.clients));
    metrics.chains.set(gauge(totals.chains));
    metrics.asks.set(gauge(totals.asks));
    metrics.links_now.set(gauge(totals.links));
    metrics.broken_links.set(gauge(totals.broken_links));
    metrics.repairs_pending.set(gauge(totals.repairs_pending));
    metrics.peers.set(gauge(totals.peers));
    let durable = image.durable().map_or(0, |entry| entry.index);
    metrics.image_lag.set((metrics.raft_applied_index.get() - gauge(durable)).max(0));
}

fn status(cluster: &Cluster, metrics: &Metrics) -> Status {
    let now = cluster.status();
    let totals = totals(cluster);
    let connections = LISTENERS.map(|listener| {
        let open = metrics.connections.with_label_values(&[listener]).get();
        (listener, u64::try_from(open).unwrap_or(0))
    });
    let members = now.members.into_iter().map(|(id, known)| Member {
        node: InstanceId(id),
        address: known.member.raft_addr,
        voter: known.voter,
        lag: known.lag,
    });
    Status {
        version: env!("CARGO_PKG_VERSION"),
        node: InstanceId(now.node),
        role: now.role,
        leader: now.leader.map(InstanceId),
        term: now.term,
        members: members.collect(),
        chains: Chains {
            count: totals.chains,
            clients: totals.clients,
            asks: totals.asks,
            links: totals.links,
            broken_links: totals.broken_links,
            repairs_pending: totals.repairs_pending,
        },
        connections: BTreeMap::from(connections),
    }
}

fn totals(cluster: &Cluster) -> Totals {
    cluster.view().read(crate::registry::Registry::totals)
}
