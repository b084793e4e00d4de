//! EMNet's conversations: ADD_PEER and ASK_IP. Request and answer take turns on a connection that
//! stays open; nothing is read while an answer is on its way, so the network makes a hasty client
//! wait. The registry keeps nothing of such a connection, and hears nothing of its end.

use std::{
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    select,
    task::coop::consume_budget,
    time::{sleep, timeout},
};

use super::{
    Request, Sender,
    ear::Ear,
    encode,
    line::Order,
    ratelimit::{Clocks, Rate},
    session::{Course, Session},
};
use crate::{
    clock,
    ids::{PeerId, Source},
    limits::{PEER_GUESS_INTERVAL, PEER_GUESS_WAIT_MAX, PEER_GUESSES_BURST},
    metrics::Metrics,
    registry::{Command, Message, Then},
    runtime,
    wire::{Object, emnet},
};

/// Ids are below this, as in the seed.
const PEER_IDS: u32 = 1_000_000;

/// What a message to EMNet asks of the registry, or the answer to one that asks nothing of it.
pub(super) fn request(object: &Object, sender: Sender) -> Request {
    let session = sender.session;
    match emnet::Request::parse(object) {
        Ok(emnet::Request::AddPeer(address)) => {
            let (source, candidate) = (Source::of(sender.source), random_peer_id());
            Request::Command(Command::AddPeer { session, source, address, candidate })
        }
        Ok(emnet::Request::AskIp(id)) => Request::Command(Command::AskIp { session, id }),
        Err(emnet::Failed) => Request::Answer(Message::PeerFailed),
    }
}

/// How a wait for a turn ended.
enum Turn {
    /// The registry may be asked.
    Come,
    /// It is further away than a client should wait: the question fails.
    TooFar,
    /// The session is over.
    Over,
}

/// Decides when a source may ask for an id: wrong ones cost it its next turns, right ones nothing.
#[derive(Debug)]
pub(super) struct Guesses {
    clocks: Mutex<Clocks>,
    rate: Rate,
    metrics: Metrics,
}

impl Guesses {
    pub(super) fn new(metrics: Metrics) -> Self {
        let rate = Rate::every(PEER_GUESS_INTERVAL, PEER_GUESSES_BURST);
        Self { clocks: Mutex::new(Clocks::new(clock::now())), rate, metrics }
    }

    /// Takes the next turn of a source, and returns how long it is until then; `None` if that is
    /// too long.
    fn reserve(&self, source: IpAddr) -> Option<Duration> {
        let (rate, source, now) = (self.rate.of(source), Source::of(source), clock::now());
        let mut clocks = self.clocks();
        let wait = clocks.wait(&source, rate, now);
        if wait > PEER_GUESS_WAIT_MAX {
            self.count("limited");
            return None;
        }
        clocks.charge(&source, rate, now);
        Some(wait)
    }

    /// Gives the turn back if the id was right.
    fn learn(&self, source: IpAddr, was_found: bool) {
        if was_found {
            self.clocks().refund(&Source::of(source), self.rate.of(source));
        }
        self.count(if was_found { "found" } else { "missed" });
    }

    fn count(&self, outcome: &str) {
        self.metrics.emnet_asks.with_label_values(&[outcome]).inc();
    }

    fn clocks(&self) -> MutexGuard<'_, Clocks> {
        self.clocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    /// Request and answer take turns, until the client has had enough or says no more.
    pub(super) async fn run_by_turns(&mut self) {
        let mut ear = Ear::new(self.protocol);
        let mut deadline = self.edge.options.borrow().first_message_deadline;
        while let Some(request) = self.hear(&mut ear, deadline).await {
            consume_budget().await; // requests in one packet take turns with other clients'
            if !self.permit.heard() {
                return;
            }
            deadline = self.edge.options.borrow().idle_deadline;
            let mut is_asked = false;
            match request {
                Request::Command(command) => {
                    let is_ask = matches!(command, Command::AskIp { .. });
                    match if is_ask { self.turn().await } else { Turn::Come } {
                        Turn::Come => {
                            is_asked = is_ask;
                            if !self.submit(command).await {
                                return;
                            }
                        }
                        Turn::TooFar => self.say(&Message::PeerFailed),
                        Turn::Over => return,
                    }
                }
                Request::Answer(message) => self.say(&message),
            }
            match timeout(deadline, self.answered(is_asked)).await {
                Ok(Course::On) => {}
                Ok(Course::Lost | Course::Over) => return,
                Err(_) => break, // no majority, perhaps: another instance may have one
            }
        }
        // A client whose place was needed never asked, so there is nothing that a goodbye protects.
        if self.permit.heard() {
            self.finish().await;
        }
    }

    fn say(&self, message: &Message) {
        let told = self.line.tell(&encode(message), Then::Stay);
        told.expect("the answer before it was taken by the socket");
    }

    /// Waits until this source may ask for an id. A client that asks for wrong ids in a row is
    /// slowed down, for what it takes if it guesses is another's. It sees a slow answer: the seed's
    /// failure at once would tell a client with the right id that it is wrong, and would have a
    /// guesser go on at full speed. The registry is not asked in the meantime, so that many
    /// connections of one source guess no faster than one.
    async fn turn(&self) -> Turn {
        let Some(wait) = self.edge.guesses.reserve(self.peer.ip()) else {
            return match self.waited(PEER_GUESS_WAIT_MAX).await {
                Turn::Come | Turn::TooFar => Turn::TooFar,
                Turn::Over => Turn::Over,
            };
        };
        if wait.is_zero() { Turn::Come } else { self.waited(wait).await }
    }

    async fn waited(&self, wait: Duration) -> Turn {
        select! {
            biased;
            _ = self.line.next_order() => Turn::Over, // the instance stops, and nothing was asked
            () = self.line.stream().broken() => Turn::Over,
            () = sleep(wait) => Turn::Come,
        }
    }

    /// Waits until the request in flight is answered.
    async fn answered(&self, is_ask: bool) -> Course {
        select! {
            biased;
            order = self.line.next_order() => match order {
                Order::Refused => Course::On,
                Order::Told(Then::Stay) => {
                    let was_found = !self.line.take_missed();
                    if is_ask {
                        self.edge.guesses.learn(self.peer.ip(), was_found);
                    }
                    self.obey(order).await
                }
                Order::Told(_) | Order::Release | Order::Broken | Order::Stop => {
                    self.obey(order).await
                }
            },
            () = self.line.stream().broken() => Course::Lost,
        }
    }
}

/// Chance enters here and travels through the log, so that all replicas agree.
fn random_peer_id() -> PeerId {
    let random = runtime::random().expect("the kernel's random numbers do not run out");
    PeerId(u32::try_from(random % u128::from(PEER_IDS)).expect("it is below a million"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ids_stay_below_a_million_and_differ() {
        let ids: std::collections::BTreeSet<_> = (0..64).map(|_| random_peer_id()).collect();
        assert!(ids.len() > 32 && ids.iter().all(|id| id.0 < PEER_IDS));
    }
}
