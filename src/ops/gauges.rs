//! The gauges that are set when `/metrics` is read, and those of the disk, which are looked at now
//! and then: a disk that hangs must not hang its readers.

use std::{collections::BTreeMap, path::Path, time::Duration};

use tokio::time::sleep;

use crate::{
    cluster::{Cluster, ClusterStatus},
    ids::{ChainName, InstanceId},
    limits::CHAIN_LABELS_MAX,
    logging,
    metrics::{Metrics, show},
    platform::disk,
    registry::{Census, ChainTotals},
    storage::ImageProgress,
};

/// Interval between questions to the disk for its free space.
const DISK_EVERY: Duration = Duration::from_secs(5);

/// The label of the chain that the seed's clients are in, which has no name.
const DEFAULT_CHAIN: &str = "default";

/// The label of all chains that have none of their own.
const OTHER_CHAINS: &str = "_other";

/// Sets the gauges that follow from the registry and from raft.
pub fn refresh(cluster: &Cluster, image: &ImageProgress, metrics: &Metrics) {
    let look = |registry: &crate::registry::Registry| {
        (registry.totals(), registry.census(CHAIN_LABELS_MAX))
    };
    let (totals, census) = cluster.view().read(look);
    metrics.clients.set(signed(totals.clients));
    metrics.chains.set(signed(totals.chains));
    metrics.asks.set(signed(totals.asks));
    metrics.links_now.set(signed(totals.links));
    metrics.broken_links.set(signed(totals.broken_links));
    metrics.cut_off.set(signed(totals.cut_off));
    metrics.repairs_pending.set(signed(totals.repairs_pending));
    metrics.peers.set(signed(totals.peers));
    let durable = image.durable().map_or(0, |entry| entry.index);
    metrics.image_lag.set((metrics.raft_applied_index.get() - signed(durable)).max(0));
    metrics.raft_has_leader.set(i64::from(cluster.trouble().is_none()));
    let lines = logging::lines_dropped();
    metrics.log_lines_dropped.inc_by(lines.saturating_sub(metrics.log_lines_dropped.get()));
    show_chains(&census, metrics);
    show_members(&cluster.status(), metrics);
}

fn show_chains(census: &Census, metrics: &Metrics) {
    let named = census.largest.iter().map(|(name, totals)| (label(name), *totals));
    let others = census.others.map(|totals| (OTHER_CHAINS, totals));
    // Clients may have named a chain like one of the two labels above: then both are added up.
    let mut chains: BTreeMap<&str, ChainTotals> = BTreeMap::new();
    for (label, totals) in named.chain(others) {
        let shown = chains.entry(label).or_default();
        *shown = shown.plus(totals);
    }
    let gauges = |of: fn(&ChainTotals) -> u64| {
        chains.iter().map(|(label, totals)| (vec![*label], signed(of(totals)))).collect()
    };
    show(&metrics.chain_clients, &gauges(|chain| chain.clients));
    show(&metrics.chain_cut_off, &gauges(|chain| chain.cut_off));
    show(&metrics.chain_waiting, &gauges(|chain| chain.asks));
    show(&metrics.chain_links, &gauges(|chain| chain.links));
    show(&metrics.chain_broken_links, &gauges(|chain| chain.broken_links));
}

fn label(ChainName(name): &ChainName) -> &str {
    if name.is_empty() { DEFAULT_CHAIN } else { name }
}

fn show_members(status: &ClusterStatus, metrics: &Metrics) {
    let voters = status.members.values().filter(|member| member.voter).count();
    let learners = status.members.len() - voters;
    for (kind, count) in [("voter", voters), ("learner", learners)] {
        metrics.raft_members.with_label_values(&[kind]).set(count as i64);
    }
    let tolerance = status.failure_tolerance().map(|tolerance| (vec![], tolerance));
    show(&metrics.raft_failure_tolerance, &tolerance.into_iter().collect());
    let others = status.members.iter().filter(|(id, _)| **id != status.node);
    let others: Vec<_> = others.map(|(InstanceId(id), member)| (id.to_string(), member)).collect();
    let lag = others.iter().filter_map(|(id, member)| Some((vec![&**id], signed(member.lag?))));
    show(&metrics.raft_peer_lag, &lag.collect());
    let silence =
        others.iter().filter_map(|(id, member)| Some((vec![&**id], member.silence?.as_secs_f64())));
    show(&metrics.raft_peer_silence, &silence.collect());
}

/// Keeps telling how much of the disk is free.
pub async fn watch_disk(data_dir: impl AsRef<Path>, metrics: Metrics) -> String {
    loop {
        let dir = data_dir.as_ref().to_owned();
        let asked = tokio::task::spawn_blocking(move || disk::size(&dir));
        match asked.await {
            Ok(Ok(disk)) => {
                metrics.disk_free.set(signed(disk.free));
                metrics.disk_size.set(signed(disk.all));
            }
            Ok(Err(error)) => tracing::debug!(%error, "the size of the disk is unknown"),
            Err(panic) => return panic.to_string(),
        }
        sleep(DISK_EVERY).await;
    }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{cluster::ClusterMember, raft::Member, registry::Rules, storage::ClusterId};

    fn chain(clients: u64) -> ChainTotals {
        ChainTotals { clients, asks: 1, links: clients - 1, ..ChainTotals::default() }
    }

    #[test]
    fn a_chain_that_goes_takes_its_label_along() {
        let metrics = Metrics::new();
        let named = |name: &str, clients| (ChainName(name.into()), chain(clients));
        let others = Some(chain(9));
        let largest = vec![named("", 5), named("blue", 3), named("_other", 1)];
        show_chains(&Census { largest, others }, &metrics);
        let text = metrics.render();
        for line in ["{chain=\"default\"} 5", "{chain=\"blue\"} 3", "{chain=\"_other\"} 10"] {
            assert!(text.contains(&format!("emnetchain_chain_clients{line}")), "{line} in {text}");
        }
        show_chains(&Census { largest: vec![named("blue", 4)], others: None }, &metrics);
        let text = metrics.render();
        assert!(text.contains("emnetchain_chain_links{chain=\"blue\"} 3"), "{text}");
        assert!(
            !text.contains("chain=\"default\"") && !text.contains("chain=\"_other\""),
            "{text}"
        );
    }

    #[test]
    fn a_leader_tells_of_the_others_and_a_former_leader_does_not() {
        let metrics = Metrics::new();
        let member = |lag, silence: Option<u64>| ClusterMember {
            member: Member::default(),
            voter: true,
            lag,
            silence: silence.map(Duration::from_secs),
            newest_rules: None,
        };
        let mut status = ClusterStatus {
            cluster: ClusterId(1),
            node: InstanceId(1),
            role: "leader",
            leader: Some(InstanceId(1)),
            term: 1,
            last_log_index: 9,
            applied_index: 9,
            rules: Rules::FIRST,
            newest_rules: Rules::FIRST,
            members: BTreeMap::from([
                (InstanceId(1), member(Some(0), Some(0))),
                (InstanceId(2), member(Some(7), Some(0))),
                (InstanceId(3), member(None, Some(60))),
            ]),
        };
        show_members(&status, &metrics);
        let text = metrics.render();
        for line in [
            "emnetchain_raft_members{kind=\"voter\"} 3",
            "emnetchain_raft_failure_tolerance 0",
            "emnetchain_raft_peer_lag_entries{peer=\"2\"} 7",
            "emnetchain_raft_peer_silence_seconds{peer=\"3\"} 60",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert!(!text.contains("peer=\"1\""), "it is no peer of its own");
        status.role = "follower";
        for member in status.members.values_mut() {
            (member.lag, member.silence) = (None, None);
        }
        show_members(&status, &metrics);
        let text = metrics.render();
        assert!(!text.contains("peer=") && !text.contains("emnetchain_raft_failure_tolerance 0"));
    }
}
