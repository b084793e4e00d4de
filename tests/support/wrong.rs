//! Gives an instance that is stopped a registry that its log does not say, with all checksums
//! right: as a fault of its memory or of the program leaves it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, and says why")]

use std::{fs, net::IpAddr, path::Path};

use emnetchain::{
    ids::{InstanceId, Source},
    metrics::Metrics,
    raft::Entry,
    registry::Command,
    storage::{Stores, fault},
};
use futures_util::stream;
use openraft::{
    EntryPayload, RaftLogReader as _,
    storage::{RaftLogStorage as _, RaftStateMachine as _},
};
use tokio::sync::mpsc;

/// Applies the whole log of a stopped instance to a new registry, with the first client's source
/// altered on the way. The log must still have its first entry.
#[tokio::main(flavor = "current_thread")]
pub(crate) async fn make_registry_wrong(data_dir: &Path, id: usize, source: IpAddr) {
    fs::remove_dir_all(data_dir.join("registry")).unwrap();
    fs::remove_dir_all(data_dir.join("snapshot")).unwrap();
    let (effects, mut applied) = mpsc::channel(16);
    let heard = tokio::spawn(async move { while applied.recv().await.is_some() {} });
    let (reporter, _) = fault::channel();
    let (id, metrics) = (InstanceId(id as u64), Metrics::new());
    let stores = Stores::open(data_dir, id, None, effects, &metrics, &reporter).unwrap();
    let Stores { mut log, mut machine, mut image, .. } = stores;
    let entries = log.get_log_reader().await.try_get_log_entries(..).await.unwrap();
    let mut is_wrong = false;
    let entries: Vec<Entry> =
        entries.into_iter().map(|entry| alter(entry, source, &mut is_wrong)).collect();
    assert!(is_wrong, "no client is in the log");
    machine.apply(stream::iter(entries.into_iter().map(|entry| Ok((entry, None))))).await.unwrap();
    drop(machine);
    image.ended().await;
    heard.await.unwrap();
}

fn alter(mut entry: Entry, wrong: IpAddr, is_wrong: &mut bool) -> Entry {
    if let EntryPayload::Normal(proposal) = &mut entry.payload {
        for command in &mut proposal.commands {
            if let Command::Connect { source, .. } = command
                && !std::mem::replace(is_wrong, true)
            {
                *source = Source::of(wrong);
            }
        }
    }
    entry
}
