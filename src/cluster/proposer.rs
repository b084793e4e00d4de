//! The proposer turns the commands of this instance's clients into raft entries.
//!
//! While earlier batches are on their way, arriving commands gather, and go out as one entry as
//! soon as there is room: no timer, so a lone command leaves at once and a crowd shares its syncs.
//! Batches are numbered, and the registry applies them in that order, each once. If one fails, its
//! outcome is unknown; it and all after it are proposed again under their old numbers.
//!
//! A request whose client has hung up is left out, each time that its batch is proposed. That is
//! safe, though the batch may be in the log with that request in it: of each number the registry
//! applies what comes first and nothing else, and the end of the session comes behind both. A batch
//! of which nothing is left is still proposed, because numbers have no gaps. What has gone to a
//! leader cannot be taken back.
//!
//! A proposer serves one life of its instance. What the sessions of an earlier life still had in
//! the queue is dropped: they were closed, and the registry would not listen.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesOrdered};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::{
    clock,
    ids::{Incarnation, InstanceId},
    limits::{ENTRY_COMMANDS_MAX, PROPOSALS_IN_FLIGHT_MAX},
    metrics::Metrics,
    queue::Queued,
    registry::{BatchId, Command, Verdict},
    storage::{Beat, Pulse},
};

/// Something that commands can be written to: raft, or a double of it.
pub trait Writer: Send + Sync + 'static {
    /// Writes one entry; returns once it is on a majority's disks and applied.
    fn write(
        &self,
        batch: Option<BatchId>,
        commands: Vec<Command>,
    ) -> BoxFuture<'static, Result<Written, WriteError>>;

    /// Waits until there is a leader, and it is heard.
    fn led(&self) -> BoxFuture<'static, ()> {
        std::future::ready(()).boxed()
    }
}

/// An entry that is on a majority's disks and applied where it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// Its place in the log.
    pub index: u64,
    /// The outcome of its commands.
    pub verdict: Verdict,
}

/// Why an entry was not written, as far as is known.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// No leader, or leadership was lost: the outcome is unknown, and it may be tried again.
    #[error("try again: {0}")]
    Again(String),
    /// Raft has stopped.
    #[error("raft has stopped: {0}")]
    Stopped(String),
}

/// Why the proposer ended.
#[derive(Debug, thiserror::Error)]
pub enum ProposerError {
    /// The registry knows a later life of this instance.
    #[error("this life of the instance is over")]
    Over,
    /// Raft has stopped.
    #[error(transparent)]
    Stopped(#[from] WriteError),
}

/// Batches the commands of one life of one instance.
pub struct Proposer<W> {
    writer: Arc<W>,
    instance: InstanceId,
    incarnation: Incarnation,
    metrics: Metrics,
    pulse: Pulse,
    /// Batches that are not known to be applied, the oldest first.
    unacknowledged: VecDeque<(BatchId, Arc<[Queued]>, Beat)>,
    /// Their outcomes, in the same order, and how many commands were left out of each.
    in_flight: FuturesOrdered<BoxFuture<'static, (Result<Written, WriteError>, usize)>>,
    last_number: u64,
    failures: u32,
}

impl<W> std::fmt::Debug for Proposer<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proposer").field("unacknowledged", &self.unacknowledged.len()).finish()
    }
}

impl<W: Writer> Proposer<W> {
    /// Creates a proposer for the given life of the instance. Batches are marked in `pulse` until
    /// they are applied.
    pub fn new(
        writer: W,
        instance: InstanceId,
        incarnation: Incarnation,
        metrics: Metrics,
        pulse: Pulse,
    ) -> Self {
        Self {
            writer: Arc::new(writer),
            instance,
            incarnation,
            metrics,
            pulse,
            unacknowledged: VecDeque::new(),
            in_flight: FuturesOrdered::new(),
            last_number: 0,
            failures: 0,
        }
    }

    /// Proposes what comes out of `queue`, until its senders are gone and all is applied.
    ///
    /// # Errors
    /// If raft has stopped, or this life of the instance is over; then the next life's proposer
    /// goes on with the queue.
    pub async fn run(mut self, queue: &mut mpsc::Receiver<Queued>) -> Result<(), ProposerError> {
        let mut open = true;
        while open || !self.in_flight.is_empty() {
            let mut batch = Vec::new();
            let room = open && self.unacknowledged.len() < PROPOSALS_IN_FLIGHT_MAX;
            tokio::select! {
                biased;
                Some((outcome, left_out)) = self.in_flight.next() => {
                    self.acknowledge(outcome, left_out).await?;
                }
                received = queue.recv_many(&mut batch, ENTRY_COMMANDS_MAX), if room => {
                    open = received > 0;
                    batch.retain(|queued| self.is_of_this_life(&queued.command));
                    if !batch.is_empty() {
                        self.propose(batch);
                    }
                }
            }
            self.metrics.raft_proposals_pending.set(self.unacknowledged.len() as i64);
        }
        Ok(())
    }

    fn is_of_this_life(&self, command: &Command) -> bool {
        command.session().is_none_or(|session| session.incarnation == self.incarnation)
    }

    fn propose(&mut self, commands: Vec<Queued>) {
        self.last_number += 1;
        let (instance, incarnation) = (self.instance, self.incarnation);
        let batch = BatchId { instance, incarnation, number: self.last_number };
        let commands: Arc<[Queued]> = commands.into();
        self.submit(batch, Arc::clone(&commands));
        self.unacknowledged.push_back((batch, commands, self.pulse.begin()));
    }

    fn submit(&mut self, batch: BatchId, queued: Arc<[Queued]>) {
        let (writer, seconds) = (Arc::clone(&self.writer), self.metrics.commit_seconds.clone());
        let begun = clock::now();
        self.in_flight.push_back(
            async move {
                // Until then, clients may hang up.
                writer.led().await;
                let wanted = queued.iter().filter(|queued| queued.is_wanted());
                let commands: Vec<Command> = wanted.map(|queued| queued.command.clone()).collect();
                let left_out = queued.len() - commands.len();
                let outcome = writer.write(Some(batch), commands).await;
                seconds.observe(clock::now().duration_since(begun).as_secs_f64());
                (outcome, left_out)
            }
            .boxed(),
        );
    }

    /// Notes that the oldest batch has an outcome.
    async fn acknowledge(
        &mut self,
        outcome: Result<Written, WriteError>,
        left_out: usize,
    ) -> Result<(), ProposerError> {
        let reason = match outcome.map(|written| written.verdict) {
            Ok(verdict @ (Verdict::Applied | Verdict::Duplicate)) => {
                if verdict == Verdict::Duplicate {
                    self.metrics.raft_duplicates.inc();
                } else {
                    self.metrics.requests_taken_back.inc_by(left_out as u64);
                }
                self.metrics.raft_proposals_committed.inc();
                if let Some((.., beat)) = self.unacknowledged.pop_front() {
                    self.pulse.took(beat.elapsed());
                }
                self.failures = 0;
                return Ok(());
            }
            Ok(Verdict::Stale) => return Err(ProposerError::Over),
            Err(error @ WriteError::Stopped(_)) => return Err(error.into()),
            Ok(Verdict::Early) => "a batch before it is missing".to_owned(),
            Err(WriteError::Again(reason)) => reason,
        };
        self.propose_again(&reason).await;
        Ok(())
    }

    /// Everything unacknowledged is proposed once more, in order, after a moment.
    async fn propose_again(&mut self, reason: &str) {
        let pause = Duration::from_millis(5 << self.failures.min(3));
        self.failures += 1;
        self.metrics.raft_proposals_retried.inc_by(self.unacknowledged.len() as u64);
        tracing::debug!(reason, batches = self.unacknowledged.len(), ?pause, "proposing again");
        self.in_flight = FuturesOrdered::new();
        tokio::time::sleep(pause).await;
        let all = self.unacknowledged.iter().map(|(batch, queued, _)| (*batch, Arc::clone(queued)));
        for (batch, queued) in all.collect::<Vec<_>>() {
            self.submit(batch, queued);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, sync::Mutex};

    use super::*;
    use crate::{
        ids::{
            ChainName, HeadAddr, OrphanAddr, PeerId, RepairId, SessionId, Socket, Source, TailAddr,
            Timestamp,
        },
        queue::Claim,
        registry::{Proposal, Registry},
    };

    /// A log that loses entries, or their acknowledgement, by a pattern.
    #[derive(Clone)]
    struct Flaky {
        registry: Arc<Mutex<Registry>>,
        writes: Arc<Mutex<u64>>,
        fault: fn(u64) -> Fault,
    }

    enum Fault {
        None,
        EntryLost,
        AnswerLost,
    }

    impl Writer for Flaky {
        fn write(
            &self,
            batch: Option<BatchId>,
            commands: Vec<Command>,
        ) -> BoxFuture<'static, Result<Written, WriteError>> {
            let this = self.clone();
            async move {
                let mut writes = this.writes.lock().unwrap();
                *writes += 1;
                let fault = (this.fault)(*writes);
                let again = Err(WriteError::Again("no leader".to_owned()));
                if matches!(fault, Fault::EntryLost) {
                    return again;
                }
                let proposal = Proposal { at: Timestamp(0), batch, commands };
                let applied = this.registry.lock().unwrap().apply(&proposal);
                let written = Written { index: *writes, verdict: applied.verdict };
                if matches!(fault, Fault::AnswerLost) { again } else { Ok(written) }
            }
            .boxed()
        }
    }

    /// Returns a flaky log, and a life of an instance that has begun there.
    fn flaky(life: u64, fault: fn(u64) -> Fault) -> (Flaky, InstanceId, Incarnation) {
        let writer = Flaky { registry: Arc::default(), writes: Arc::default(), fault };
        let (instance, incarnation) = (InstanceId(1), Incarnation(life));
        writer.registry.lock().unwrap().apply(&Proposal {
            at: Timestamp(0),
            batch: None,
            commands: vec![Command::Start { instance, incarnation }],
        });
        (writer, instance, incarnation)
    }

    fn add_peer(session: SessionId) -> Command {
        let source = IpAddr::from([10, 0, 0, 1]);
        let candidate = PeerId(session.connection as u32);
        let address = source.to_string();
        Command::AddPeer { session, source: Source::of(source), address, candidate }
    }

    /// Runs 1000 commands through a flaky log; returns the ids in the order of their application.
    async fn run(fault: fn(u64) -> Fault) -> u64 {
        let (writer, instance, incarnation) = flaky(1, fault);
        let (registry, writes) = (writer.registry.clone(), writer.writes.clone());
        let (sender, mut receiver) = mpsc::channel(16);
        let proposer =
            Proposer::new(writer, instance, incarnation, Metrics::new(), Pulse::default());
        let proposing = tokio::spawn(async move { proposer.run(&mut receiver).await });
        for number in 0..1000 {
            let session = SessionId { instance, incarnation, connection: number };
            sender.send(add_peer(session).into()).await.unwrap();
            let earlier = SessionId { incarnation: Incarnation(0), ..session };
            sender.send(Command::Disconnect { session: earlier }.into()).await.unwrap();
        }
        drop(sender);
        proposing.await.unwrap().unwrap();
        let registry = registry.lock().unwrap();
        assert_eq!(registry.totals().peers, 1000, "each command took effect once");
        let serials: Vec<_> = registry.image().records.iter().collect();
        assert!(serials.windows(2).all(|pair| pair[0].0 < pair[1].0));
        *writes.lock().unwrap()
    }

    /// The registry applies a batch of the present life, for every session that it names.
    /// So a command of an earlier life that slips in would ask for a client that no session speaks
    /// for.
    #[tokio::test(start_paused = true)]
    async fn commands_of_other_lives_reach_the_log_of_none() {
        let (writer, instance, incarnation) = flaky(2, |_| Fault::None);
        let (registry, writes) = (writer.registry.clone(), writer.writes.clone());
        let (sender, mut receiver) = mpsc::channel(64);
        let socket = |port: u16| Socket::parse(&format!("127.0.0.1:{port}")).unwrap();
        let connect = |life: u64, connection: u64| Command::Connect {
            session: SessionId { instance, incarnation: Incarnation(life), connection },
            source: Source::of(IpAddr::from([127, 0, 0, 1])),
            chain: ChainName::default(),
            head: HeadAddr(socket(2000 + connection as u16)),
            tail: TailAddr(socket(3000 + connection as u16)),
        };
        let of_life = |life: u64| {
            let session = SessionId { instance, incarnation: Incarnation(life), connection: 1 };
            [
                connect(life, 1),
                connect(life, 2),
                Command::Reconnect {
                    session,
                    source: Source::of(IpAddr::from([127, 0, 0, 1])),
                    id: RepairId("1".into()),
                    orphan: OrphanAddr(socket(4000)),
                },
                add_peer(session),
            ]
        };
        for stale in [of_life(0), of_life(1), of_life(3)].concat() {
            sender.send(stale.into()).await.unwrap();
        }
        let proposer =
            Proposer::new(writer.clone(), instance, incarnation, Metrics::new(), Pulse::default());
        drop(sender);
        proposer.run(&mut receiver).await.unwrap();
        let totals = registry.lock().unwrap().totals();
        assert_eq!((totals.clients, totals.repairs_pending, totals.peers), (0, 0, 0));
        assert_eq!(*writes.lock().unwrap(), 0, "nothing is left to write");
        // The next life's proposer goes on with the queue, and takes what is its own.
        let (sender, mut receiver) = mpsc::channel(64);
        for command in [vec![connect(1, 1), connect(2, 2)], vec![Command::Tick]].concat() {
            sender.send(command.into()).await.unwrap();
        }
        drop(sender);
        let proposer =
            Proposer::new(writer, instance, incarnation, Metrics::new(), Pulse::default());
        proposer.run(&mut receiver).await.unwrap();
        assert_eq!(registry.lock().unwrap().totals().clients, 1);
        assert_eq!(*writes.lock().unwrap(), 1, "one entry for both that are left");
    }

    /// Of a batch that is proposed twice, the first one in the log counts, whole.
    #[tokio::test(start_paused = true)]
    async fn what_was_taken_back_is_left_out_of_a_batch_that_is_proposed_again() {
        let first: [fn(u64) -> Fault; 2] = [
            |write| if write == 1 { Fault::EntryLost } else { Fault::None },
            |write| if write == 1 { Fault::AnswerLost } else { Fault::None },
        ];
        for (fault, kept) in first.into_iter().zip([1, 2]) {
            let (writer, instance, incarnation) = flaky(1, fault);
            let (registry, metrics) = (Arc::clone(&writer.registry), Metrics::new());
            let (sender, mut receiver) = mpsc::channel(16);
            let claims = [Claim::default(), Claim::default()];
            for (number, claim) in (0..).zip(&claims) {
                let command = add_peer(SessionId { instance, incarnation, connection: number });
                sender.send(claim.on(command)).await.unwrap();
            }
            drop(sender);
            let pulse = Pulse::default();
            let proposer = Proposer::new(writer, instance, incarnation, metrics.clone(), pulse);
            let [hangs_up, _stays] = claims;
            let hang_up = async {
                tokio::time::sleep(Duration::from_millis(1)).await;
                drop(hangs_up);
            };
            let (proposed, ()) = tokio::join!(proposer.run(&mut receiver), hang_up);
            proposed.unwrap();
            assert_eq!(registry.lock().unwrap().totals().peers, kept);
            assert_eq!(metrics.requests_taken_back.get(), 2 - kept);
            assert_eq!(metrics.raft_proposals_retried.get(), 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_command_takes_effect_once_under_all_losses() {
        let clean = run(|_| Fault::None).await;
        assert!(clean < 1000, "a crowd shares entries: {clean}");
        run(|write| if write % 3 == 0 { Fault::EntryLost } else { Fault::None }).await;
        run(|write| if write % 3 == 0 { Fault::AnswerLost } else { Fault::None }).await;
        run(|write| match write % 5 {
            1 => Fault::EntryLost,
            3 => Fault::AnswerLost,
            _ => Fault::None,
        })
        .await;
    }
}
