//! Whether an instance can answer clients now, and if not, why.

use std::time::{Duration, Instant};

use prometheus::IntGauge;
use tokio::{sync::watch, task::JoinSet, time::sleep};

use crate::{clock, cluster::Cluster, metrics::Metrics, server::Phase};

/// Interval between looks at whether clients can be answered.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The reason of an instance that an operator had leave service.
const DRAINED: &str = "an operator drained this instance (`EMNetChain cluster drain`), so it takes \
                       no new clients: restart it to have it serve again";

/// Whether the instance can answer clients now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Not now, and this is why: half a sentence.
    NotReady(String),
    /// Yes.
    Ready,
}

/// The causes of readiness.
#[derive(Debug)]
pub struct Watching {
    cluster: Cluster,
    phase: watch::Receiver<Phase>,
    progress: watch::Receiver<String>,
    /// Since when a leader is heard, while this instance does not serve yet.
    led_since: Option<Instant>,
}

impl Watching {
    /// Watches these; `progress` tells what is waited for at the start.
    pub fn new(
        cluster: &Cluster,
        phase: &watch::Receiver<Phase>,
        progress: watch::Receiver<String>,
    ) -> Self {
        Self { cluster: cluster.clone(), phase: phase.clone(), progress, led_since: None }
    }

    /// Tells from now on whether clients can be answered; a task keeps it true.
    pub fn begin(
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

    /// Returns the thing that is waited for at the start.
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

    /// Returns why this instance cannot answer clients, whether it may take them or not.
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

/// Returns the cause alone: for how many seconds it has been so is not news each second.
fn without_times(why: &str) -> String {
    let words: Vec<&str> = why.split(' ').collect();
    let is_number = |word: &str| word.bytes().all(|byte| byte.is_ascii_digit());
    let counts = |at: usize| is_number(words[at]) && words.get(at + 1) == Some(&"s");
    (0..words.len()).filter(|at| !counts(*at)).map(|at| words[at]).collect()
}
