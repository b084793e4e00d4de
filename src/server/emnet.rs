//! EMNet's conversations: ADD_PEER and ASK_IP. Request and answer take turns on a connection that
//! stays open; nothing is read while an answer is on its way, so the network makes a hasty client
//! wait. The registry keeps nothing of such a connection, and hears nothing of its end.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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
    limits::{PEER_GUESS_INTERVAL, PEER_GUESSES_BURST},
    metrics::Metrics,
    queue::Claim,
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

/// Decides when a source may ask for an id: wrong ones cost it, and its IPv6 site, their next
/// turns, right ones nothing.
///
/// A client that asks for wrong ids in a row waits, for what it takes if it guesses is another's.
/// Those behind one address cannot be told apart before the registry is asked, so a right id of a
/// guesser's neighbour waits as well. It is never failed for that: turns are given in the order in
/// which they are asked for, one to each connection at a time, so a neighbour waits no longer than
/// there are connections before it. Turns of those that went away are given back.
#[derive(Debug)]
pub(super) struct Guesses {
    clocks: Mutex<Clocks>,
    rate: Rate,
    metrics: Metrics,
}

/// The turn of a connection. When it is dropped it is given back, unless it costs something.
struct Turn<'a> {
    of: &'a Guesses,
    source: Source,
    costs: bool,
}

impl Guesses {
    pub(super) fn new(metrics: Metrics) -> Self {
        let rate = Rate::every(PEER_GUESS_INTERVAL, PEER_GUESSES_BURST);
        Self { clocks: Mutex::new(Clocks::new(clock::now())), rate, metrics }
    }

    /// Takes the next turn of a source, and returns how long it is until then.
    fn reserve(&self, source: Source) -> (Turn<'_>, Duration) {
        let now = clock::now();
        let mut clocks = self.clocks();
        let wait = clocks.wait(source, &(), self.rate, now);
        clocks.charge(source, &(), self.rate, now);
        if !wait.is_zero() {
            self.count("limited");
        }
        (Turn { of: self, source, costs: false }, wait)
    }

    fn count(&self, outcome: &str) {
        self.metrics.emnet_asks.with_label_values(&[outcome]).inc();
    }

    fn clocks(&self) -> MutexGuard<'_, Clocks> {
        self.clocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn<'_> {
    /// The registry is asked; until it answers, the id counts as wrong.
    fn ask(&mut self) {
        self.costs = true;
    }

    /// What the registry said.
    fn learn(&mut self, was_found: bool) {
        self.costs = !was_found;
        self.of.count(if was_found { "found" } else { "missed" });
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.costs {
            self.of.clocks().refund(self.source, &(), self.of.rate);
        }
    }
}

impl Session {
    /// Request and answer take turns, until the client has had enough or says no more.
    pub(super) async fn run_by_turns(&mut self) {
        let (edge, mut ear) = (Arc::clone(&self.edge), Ear::new(self.protocol));
        let mut deadline = edge.options.borrow().first_message_deadline;
        while let Some(request) = self.hear(&mut ear, deadline).await {
            consume_budget().await; // requests in one packet take turns with other clients'
            if !self.permit.heard() {
                return;
            }
            deadline = edge.options.borrow().idle_deadline;
            let (mut turn, claim) = (None, Claim::default());
            match request {
                Request::Command(command) => {
                    if let Command::AskIp { .. } = command {
                        let (taken, wait) = edge.guesses.reserve(Source::of(self.peer.ip()));
                        if !wait.is_zero() && !self.waited(wait).await {
                            return;
                        }
                        turn = Some(taken);
                    }
                    turn.iter_mut().for_each(Turn::ask);
                    if !self.submit(claim.on(command)).await {
                        return;
                    }
                }
                Request::Answer(message) => self.say(&message),
            }
            match timeout(deadline, self.answered(turn)).await {
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

    /// Waits for a turn; whether the session goes on.
    async fn waited(&self, wait: Duration) -> bool {
        select! {
            biased;
            _ = self.line.next_order() => false, // the instance stops, and nothing was asked
            () = self.line.stream().broken() => false,
            () = sleep(wait) => true,
        }
    }

    /// Waits until the request in flight is answered.
    async fn answered(&self, turn: Option<Turn<'_>>) -> Course {
        select! {
            biased;
            order = self.line.next_order() => match order {
                Order::Refused => Course::On,
                Order::Told(Then::Stay) => {
                    let was_found = !self.line.take_missed();
                    if let Some(mut turn) = turn {
                        turn.learn(was_found);
                    }
                    self.obey(order).await
                }
                Order::Told(_)
                | Order::Release
                | Order::Broken
                | Order::Stop
                | Order::Yield => self.obey(order).await,
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

    /// The source of this number in a /48.
    fn of_site(number: usize) -> Source {
        Source::of(format!("2001:db8:7:{number:x}::1").parse().unwrap())
    }

    /// Asks for a wrong id; whether that was possible at once.
    fn guess(guesses: &Guesses, source: Source) -> bool {
        let (mut turn, wait) = guesses.reserve(source);
        if wait.is_zero() {
            turn.ask();
            turn.learn(false);
        }
        wait.is_zero()
    }

    /// One customer has a /48, and so 65,536 sources.
    #[test]
    fn one_ipv6_site_guesses_as_sixteen_sources_do() {
        let (guesses, began) = (Guesses::new(Metrics::new()), clock::now());
        let at_once = (0..10_000).filter(|n| guess(&guesses, of_site(*n))).count() as u64;
        let more = 16 * (clock::now() - began).as_secs() / PEER_GUESS_INTERVAL.as_secs() + 9;
        assert!((320..320 + more).contains(&at_once), "{at_once}");
        assert!(guess(&guesses, Source::of("2001:db8:8::1".parse().unwrap())), "another site");
    }

    /// However many wait for a turn at one address, one more waits behind them and gets its own.
    #[test]
    fn a_neighbour_of_guessers_waits_for_its_turn_and_for_those_that_left_it_does_not() {
        let (guesses, source) = (Guesses::new(Metrics::new()), of_site(1));
        while guess(&guesses, source) {}
        let waiting: Vec<_> = (0..100).map(|_| guesses.reserve(source)).collect();
        let of_turns = |turns: u32| {
            let (_given_back, wait) = guesses.reserve(source);
            let most = turns * PEER_GUESS_INTERVAL;
            assert!(
                wait <= most && wait >= most.saturating_sub(Duration::from_secs(60)),
                "{turns}: {wait:?}"
            );
        };
        of_turns(101);
        of_turns(101);
        drop(waiting);
        of_turns(1);
    }

    /// A right id costs its source nothing, but one that is not yet known to be right does.
    #[test]
    fn right_ids_cost_no_turns() {
        let (guesses, source) = (Guesses::new(Metrics::new()), of_site(1));
        let asked = |is_known: bool| {
            let (mut turn, wait) = guesses.reserve(source);
            turn.ask();
            if is_known {
                turn.learn(true);
            }
            wait.is_zero()
        };
        assert!((0..1000).all(|_| asked(true)));
        assert!((0..PEER_GUESSES_BURST).all(|_| asked(false)));
        assert!(!asked(true));
    }

    #[test]
    fn random_ids_stay_below_a_million_and_differ() {
        let ids: std::collections::BTreeSet<_> = (0..64).map(|_| random_peer_id()).collect();
        assert!(ids.len() > 32 && ids.iter().all(|id| id.0 < PEER_IDS));
    }
}
