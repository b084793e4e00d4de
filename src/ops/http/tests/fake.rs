//! An instance that is none: it shows a small registry, and counts what it is asked to change.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use futures_util::{FutureExt as _, future::BoxFuture};

use super::{
    backups::backup,
    views::{Story, story},
};
use crate::{
    cluster::admin::{Change, ChangeError},
    ids::InstanceId,
    ops::{
        Backend, Backup, NoBackup,
        api::{Chains, Digest, Member, Status},
    },
    registry::Look,
};

pub(super) struct Fake {
    story: Mutex<Story>,
    changes: AtomicUsize,
}

impl Fake {
    pub(super) fn new() -> Self {
        Self { story: Mutex::new(story()), changes: AtomicUsize::new(0) }
    }

    /// Returns how often it was changed since this was last asked.
    pub(super) fn changes(&self) -> usize {
        self.changes.swap(0, Ordering::Relaxed)
    }
}

impl Backend for Fake {
    fn refresh(&self) {}

    fn status(&self) -> Status {
        Status {
            version: "1.2.3".into(),
            cluster: "c1".to_owned(),
            node: InstanceId(2),
            role: "follower".into(),
            leader: None,
            term: 7,
            last_log_index: 9,
            applied_index: 8,
            trouble: None,
            rules: 2,
            newest_rules: 3,
            members: vec![Member {
                node: InstanceId(2),
                address: String::new(),
                voter: true,
                lag: None,
                silent_ms: None,
                newest_rules: None,
            }],
            chains: Chains { count: 1, clients: 3, asks: 2, links: 2, ..Chains::default() },
            connections: [("chain".into(), 3)].into(),
            registry: None,
        }
    }

    fn digest(&self) -> Digest {
        Digest { applied: 8, digest: "00ff".to_owned() }
    }

    /// Shows the story half a second after its end.
    fn look(&self, show: &mut dyn FnMut(Look<'_>)) {
        let story = self.story.lock().unwrap();
        let now = story.registry.now().plus_ms(500);
        let history = story.history.as_ref().unwrap();
        show(Look { registry: &story.registry, history, entry: story.entry, now });
    }

    fn change(&self, change: Change) -> BoxFuture<'_, Result<String, ChangeError>> {
        self.changes.fetch_add(1, Ordering::Relaxed);
        let outcome = match change {
            Change::Remove(_) => Err(ChangeError::Refused("no such member".to_owned())),
            Change::Add { .. }
            | Change::Promote(_)
            | Change::TransferLeader(_)
            | Change::Upgrade => Err(ChangeError::NoMajority(format!("{change:?}"))),
        };
        std::future::ready(outcome).boxed()
    }

    fn drain(&self) -> BoxFuture<'_, String> {
        self.changes.fetch_add(1, Ordering::Relaxed);
        std::future::ready("drained".to_owned()).boxed()
    }

    fn backup(&self) -> BoxFuture<'_, Result<Backup, NoBackup>> {
        std::future::ready(Ok(backup())).boxed()
    }
}
