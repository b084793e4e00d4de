//! What an operator sees: where `/metrics` and `/status` get their figures.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use prometheus::IntGauge;
use tokio::{sync::watch, task::JoinSet, time::sleep};

use super::{gauges, operator::Powers};
use crate::{
    clock,
    cluster::Cluster,
    metrics::Metrics,
    registry::{Asked, Cause, Ended, Forgotten, LinkedBy, Look, Note, Totals, What},
    server::{
        Phase,
        http::{Chains, Digest, HttpSources, Member, Readiness, Status},
    },
    storage::{ImageProgress, Point},
};

/// How often it is looked whether clients can be answered.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The listeners whose connections `/status` tells.
const LISTENERS: [&str; 4] = ["chain", "repair", "emnet", "http"];

/// What an instance says that an operator had leave service.
const DRAINED: &str = "an operator drained this instance (`EMNetChain cluster drain`), so it takes \
                       no new clients: restart it to have it serve again";

/// Counts what entries brought about.
pub(super) fn count(notes: &[Note], metrics: &Metrics) {
    let seconds = |ms: u64| ms as f64 / 1000.0;
    let expired = |what: &str| metrics.expired.with_label_values(&[what]).inc();
    let made_room = |what: &str| metrics.made_room.with_label_values(&[what]).inc();
    let repairs = |end: &str| metrics.repairs.with_label_values(&[end]).inc();
    for note in notes {
        match note.what {
            What::Ended(Ended::Expired(Asked::Connect)) => expired("ask"),
            What::Ended(Ended::Expired(Asked::Reconnect)) => {
                expired("repair");
                repairs("expired");
            }
            What::Forgotten(Forgotten::Answer) => expired("answer"),
            What::Forgotten(Forgotten::Client) => expired("client"),
            What::Forgotten(Forgotten::Peer) => expired("peer"),
            What::Linked { by, waited_ms } => {
                metrics.links.with_label_values(&[by.as_str()]).inc();
                metrics.link_seconds.observe(seconds(waited_ms));
                if by != LinkedBy::Join {
                    repairs("linked");
                    metrics.repair_seconds.observe(seconds(waited_ms));
                }
            }
            What::Paired { waited_ms } => {
                repairs("paired");
                metrics.repair_seconds.observe(seconds(waited_ms));
            }
            What::CutOff { clients, .. } => metrics.clients_cut_off.inc_by(clients),
            What::Returned { clients } => metrics.clients_returned.inc_by(clients),
            What::Ended(Ended::MadeRoom) => made_room("wait"),
            What::MadeRoom(Forgotten::Answer) => made_room("answer"),
            What::MadeRoom(Forgotten::Client) | What::TakenOut(Cause::MadeRoom) => {
                made_room("client");
            }
            What::MadeRoom(Forgotten::Peer) => made_room("peer"),
            What::TakenOut(Cause::Forgotten | Cause::Lost | Cause::Replaced | Cause::Silent) => {
                metrics.taken_out.inc();
            }
            // Sessions count what they are told, and no figure counts the others.
            What::Asked(_)
            | What::CameBack
            | What::CountsAsFirst
            | What::Detached
            | What::Ended(Ended::HungUp | Ended::Superseded)
            | What::Joined
            | What::Parted
            | What::Refused(_) => {}
        }
    }
}

/// Tells what runs.
pub(super) fn tell_build(metrics: &Metrics) {
    let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
    let platform = format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS);
    metrics.build_info.with_label_values(&[env!("CARGO_PKG_VERSION"), profile, &platform]).set(1);
}

/// What readiness follows from.
pub(super) struct Watching {
    cluster: Cluster,
    phase: watch::Receiver<Phase>,
    progress: watch::Receiver<String>,
    /// Since when a leader is heard, while this instance does not serve yet.
    led_since: Option<Instant>,
}

impl Watching {
    /// What is watched; `progress` tells what is waited for at the start.
    pub(super) fn new(
        cluster: &Cluster,
        phase: &watch::Receiver<Phase>,
        progress: watch::Receiver<String>,
    ) -> Self {
        Self { cluster: cluster.clone(), phase: phase.clone(), progress, led_since: None }
    }

    /// Tells from now on whether clients can be answered; a task keeps it true.
    pub(super) fn begin(
        mut self,
        metrics: &Metrics,
        tasks: &mut JoinSet<String>,
    ) -> watch::Receiver<Readiness> {
        let (readiness, watch) = watch::channel(self.judge());
        tasks.spawn(self.show(readiness, metrics.ready.clone()));
        watch
    }

    async fn show(mut self, readiness: watch::Sender<Readiness>, ready: IntGauge) -> String {
        let mut told = None;
        loop {
            let now = self.judge();
            ready.set(i64::from(now == Readiness::Ready));
            let cause = match &now {
                Readiness::NotReady(why) => Some(without_times(why)),
                Readiness::Ready => None,
            };
            if let Readiness::NotReady(why) = &now
                && cause != told
            {
                tracing::warn!("not ready: {why}");
            }
            told = cause;
            readiness.send_if_modified(|shown| {
                let is_new = *shown != now;
                *shown = now;
                is_new
            });
            tokio::select! {
                changed = self.phase.changed() => if changed.is_err() {
                    return "the instance is gone".to_owned();
                },
                () = sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// What is waited for at the start.
    fn starting(&mut self) -> String {
        let progress = self.progress.borrow().clone();
        let trouble = if progress.is_empty() { self.cluster.trouble() } else { Some(progress) };
        if let Some(why) = trouble {
            self.led_since = None;
            return why;
        }
        let now = clock::now();
        let waited = now.saturating_duration_since(*self.led_since.get_or_insert(now));
        self.cluster.unwritten(waited).unwrap_or_else(|| "it begins to serve".to_owned())
    }

    fn judge(&mut self) -> Readiness {
        let phase = *self.phase.borrow();
        if phase >= Phase::Draining {
            return Readiness::NotReady("it is being stopped".to_owned());
        }
        match (self.cause(phase), phase == Phase::Drained) {
            (None, false) => Readiness::Ready,
            (None, true) => Readiness::NotReady(DRAINED.to_owned()),
            (Some(why), false) => Readiness::NotReady(why),
            // The operator that drained it may wait for what is missing besides.
            (Some(why), true) => Readiness::NotReady(format!("{DRAINED}; besides, {why}")),
        }
    }

    /// Why this instance cannot answer clients, whether it may take them or not.
    fn cause(&mut self, phase: Phase) -> Option<String> {
        let accord = self.cluster.accord().borrow().trouble();
        if accord.is_some() {
            return accord;
        }
        let hang = self.cluster.hang();
        if phase == Phase::Starting {
            return Some(hang.unwrap_or_else(|| self.starting()));
        }
        let between = || Some(self.progress.borrow().clone()).filter(|why| !why.is_empty());
        let trouble = hang.or_else(|| self.cluster.trouble());
        trouble.or_else(|| self.cluster.stall()).or_else(between)
    }
}

/// The cause alone: for how many seconds it has been so is not news each second.
fn without_times(why: &str) -> String {
    let words: Vec<&str> = why.split(' ').collect();
    let is_number = |word: &str| word.bytes().all(|byte| byte.is_ascii_digit());
    let counts = |at: usize| is_number(words[at]) && words.get(at + 1) == Some(&"s");
    (0..words.len()).filter(|at| !counts(*at)).map(|at| words[at]).collect()
}

/// Where the HTTP server gets its answers.
pub(super) fn http_sources(
    cluster: &Cluster,
    image: &ImageProgress,
    metrics: &Metrics,
    readiness: watch::Receiver<Readiness>,
    Powers { actor, backup, token }: Powers,
) -> HttpSources {
    let refresh = {
        let (cluster, image, metrics) = (cluster.clone(), image.clone(), metrics.clone());
        move || gauges::refresh(&cluster, &image, &metrics)
    };
    let status = {
        let (cluster, metrics) = (cluster.clone(), metrics.clone());
        move || status(&cluster, &metrics)
    };
    let digest = {
        let view = cluster.view().clone();
        move || {
            let Point { entry: applied, digest } = view.digest();
            Digest { applied, digest: format!("{digest:016x}") }
        }
    };
    let look = {
        let view = cluster.view().clone();
        move |show: &mut dyn FnMut(Look<'_>)| view.look(show)
    };
    HttpSources {
        metrics: metrics.clone(),
        refresh: Arc::new(refresh),
        readiness,
        status: Arc::new(status),
        digest: Arc::new(digest),
        look: Arc::new(look),
        actor,
        backup,
        token,
    }
}

fn status(cluster: &Cluster, metrics: &Metrics) -> Status {
    let now = cluster.status();
    let totals = totals(cluster);
    let connections = LISTENERS.map(|listener| {
        let open = metrics.connections.with_label_values(&[listener]).get();
        (listener, u64::try_from(open).unwrap_or(0))
    });
    let members = now.members.into_iter().map(|(node, known)| Member {
        node,
        address: known.member.raft_addr,
        voter: known.voter,
        lag: known.lag,
        silent_ms: known.silence.map(|silence| silence.as_millis() as u64),
        newest_rules: known.newest_rules.map(|rules| rules.0),
    });
    Status {
        version: env!("CARGO_PKG_VERSION"),
        cluster: now.cluster.to_string(),
        node: now.node,
        role: now.role,
        leader: now.leader,
        term: now.term,
        last_log_index: now.last_log_index,
        applied_index: now.applied_index,
        trouble: None,
        rules: now.rules.0,
        newest_rules: now.newest_rules.0,
        members: members.collect(),
        chains: Chains {
            count: totals.chains,
            clients: totals.clients,
            asks: totals.asks,
            links: totals.links,
            broken_links: totals.broken_links,
            cut_off: totals.cut_off,
            repairs_pending: totals.repairs_pending,
        },
        connections: BTreeMap::from(connections),
        registry: None,
    }
}

fn totals(cluster: &Cluster) -> Totals {
    cluster.view().read(crate::registry::Registry::totals)
}
