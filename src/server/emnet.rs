//! EMNet's conversations: ADD_PEER and ASK_IP. Request and answer take turns on a connection that
//! stays open; nothing is read while an answer is on its way, so the network makes a hasty client
//! wait. The registry keeps nothing of such a connection, and hears nothing of its end.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    select,
    sync::oneshot,
    task::coop::consume_budget,
    time::{sleep, timeout},
};

use super::{
    Rejection, Request, Sender,
    ear::Ear,
    encode,
    line::Order,
    session::{Course, Session},
};
use crate::{
    clock,
    crowd::{Arrival, Crowd},
    ids::{Holder, PeerId, Source},
    limits::{
        LOCAL_RATE_FACTOR, NETWORK_SOURCES, PEER_GUESS_INTERVAL, PEER_GUESSES_BURST,
        PEER_GUESSES_WAITING_MAX,
    },
    metrics::Metrics,
    queue::Claim,
    ratelimit::{Clocks, Rate},
    registry::{Command, Message, Then},
    runtime,
    wire::{Object, emnet},
};

/// Translates a message to EMNet into a command for the registry, or answers one that asks nothing
/// of it.
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
/// A client that asks for wrong ids in a row waits, because what it takes if it guesses is
/// another's. Those behind one address cannot be told apart before the registry is asked, so a
/// right id of a guesser's neighbour waits as well. It is not failed for that: turns are given in
/// the order in which they are asked for, one to each connection at a time, and few wait at one
/// source. Of more the oldest is closed, so that a crowd of guessers costs a neighbour half a
/// minute and not all day. Turns of those that went away are given back.
#[derive(Debug)]
pub(super) struct Guesses {
    state: Mutex<State>,
    rate: Rate,
    metrics: Metrics,
}

#[derive(Debug)]
struct State {
    clocks: Clocks,
    /// Those that wait; dropping the sender has one wait no longer.
    waiting: Crowd<oneshot::Sender<Infallible>>,
}

/// Returns the most questions that may wait for their turn at one time.
fn waiting_max(holder: Holder) -> usize {
    let local = if holder.is_local() { LOCAL_RATE_FACTOR as usize } else { 1 };
    match holder {
        Holder::Source(_) => PEER_GUESSES_WAITING_MAX * local,
        Holder::Network(_) => PEER_GUESSES_WAITING_MAX * local * NETWORK_SOURCES as usize,
    }
}

/// The turn of a connection. When it is dropped it is given back, unless it costs something.
struct Turn<'a> {
    of: &'a Guesses,
    source: Source,
    wait: Option<Wait>,
    costs: bool,
}

/// A wait for a turn.
struct Wait {
    time: Duration,
    arrival: Arrival,
    /// Ready when the place in the queue is needed.
    needed: oneshot::Receiver<Infallible>,
}

impl Guesses {
    pub(super) fn new(metrics: Metrics) -> Self {
        let rate = Rate::every(PEER_GUESS_INTERVAL, PEER_GUESSES_BURST);
        let state = State { clocks: Clocks::new(clock::now()), waiting: Crowd::default() };
        Self { state: Mutex::new(state), rate, metrics }
    }

    /// Takes the next turn of a source.
    fn reserve(&self, source: Source) -> Turn<'_> {
        let (now, mut state) = (clock::now(), self.state());
        let State { clocks, waiting } = &mut *state;
        let mut wait = None;
        if !clocks.wait(source, &(), self.rate, now).is_zero() {
            self.count("limited");
            for holder in source.holders() {
                while waiting.len_of(holder) >= waiting_max(holder)
                    && let Some((source, _)) =
                        waiting.oldest(holder).and_then(|it| waiting.leave(it))
                {
                    clocks.refund(source, &(), self.rate);
                }
            }
            let (place, needed) = oneshot::channel();
            let arrival = waiting.enter(source, place);
            wait = Some(Wait { time: clocks.wait(source, &(), self.rate, now), arrival, needed });
        }
        clocks.charge(source, &(), self.rate, now);
        Turn { of: self, source, wait, costs: false }
    }

    fn count(&self, outcome: &str) {
        self.metrics.emnet_asks.with_label_values(&[outcome]).inc();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn<'_> {
    /// Notes that the registry is asked; until it answers, the id counts as wrong. False if the
    /// turn was lost to a later one.
    fn ask(&mut self) -> bool {
        self.costs = true;
        let wait = self.wait.take();
        wait.is_none_or(|wait| self.of.state().waiting.leave(wait.arrival).is_some())
    }

    /// Learns the registry's answer.
    fn learn(&mut self, was_found: bool) {
        self.costs = !was_found;
        self.of.count(if was_found { "found" } else { "missed" });
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.costs {
            return;
        }
        let mut state = self.of.state();
        // A turn that was lost to a later one was given back then.
        let is_lost = |wait: &Wait| state.waiting.leave(wait.arrival).is_none();
        if !self.wait.as_ref().is_some_and(is_lost) {
            state.clocks.refund(self.source, &(), self.of.rate);
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
            let (mut turn, claim) = (None, Claim::default());
            let is_asking = matches!(request, Request::Command(_));
            match request {
                Request::Command(command) => {
                    if !self.permit.heard() {
                        break;
                    }
                    deadline = edge.options.borrow().idle_deadline;
                    if let Command::AskIp { .. } = command {
                        let mut taken = edge.guesses.reserve(Source::of(self.peer.ip()));
                        if !self.waited(&mut taken).await || !taken.ask() {
                            break;
                        }
                        turn = Some(taken);
                    }
                    if !self.submit(claim.on(command)).await {
                        return;
                    }
                }
                // What asks nothing of the registry is as good as silence.
                Request::Answer(_) if !self.permit.is_held() => break,
                Request::Answer(message) => self.say(&message),
            }
            match timeout(deadline, self.answered(turn)).await {
                Ok(Course::On) if is_asking => self.permit.silent_again(),
                Ok(Course::On) => {}
                Ok(Course::Lost | Course::Over) => return,
                Err(_) => break, // no majority, perhaps: another instance may have one
            }
        }
        // It has its answers. Its own close is not waited for where its place is needed.
        if self.permit.is_held() {
            self.finish().await;
        } else {
            self.part();
        }
    }

    fn say(&self, message: &Message) {
        let told = self.line.tell(&encode(message), Then::Stay);
        told.expect("the answer before it was taken by the socket");
    }

    /// Waits for a turn; whether the session goes on.
    async fn waited(&self, turn: &mut Turn<'_>) -> bool {
        let Some(wait) = &mut turn.wait else { return true };
        select! {
            biased;
            _ = self.line.next_order() => false, // it is to end, and nothing was asked
            () = self.line.stream().broken() => false,
            _ = &mut wait.needed => {
                self.reject(Rejection::Displaced);
                false
            }
            () = sleep(wait.time) => true,
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
    PeerId(u32::try_from(random % u128::from(PeerId::COUNT)).expect("it is below a million"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the source of this number in a /48.
    fn of_site(number: usize) -> Source {
        Source::of(format!("2001:db8:7:{number:x}::1").parse().unwrap())
    }

    /// Asks for a wrong id; whether that was possible at once.
    fn guess(guesses: &Guesses, source: Source) -> bool {
        let mut turn = guesses.reserve(source);
        let is_at_once = turn.wait.is_none();
        if is_at_once {
            assert!(turn.ask());
            turn.learn(false);
        }
        is_at_once
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

    /// However many want a turn at one address, one more gets its own, behind few.
    #[test]
    fn a_neighbour_of_guessers_waits_for_its_turn_and_for_those_that_left_it_does_not() {
        let (guesses, source) = (Guesses::new(Metrics::new()), of_site(1));
        while guess(&guesses, source) {}
        let mut waiting: Vec<_> = (0..100).map(|_| guesses.reserve(source)).collect();
        let of_turns = |turns: u32| {
            let wait = guesses.reserve(source).wait.as_ref().map_or(Duration::ZERO, |it| it.time);
            let most = turns * PEER_GUESS_INTERVAL;
            assert!(
                wait <= most && wait >= most.saturating_sub(Duration::from_secs(20)),
                "{turns}: {wait:?}"
            );
        };
        assert!(!waiting[83].ask(), "its turn went to a later one");
        let is_needed = |turn: &mut Turn<'_>| turn.wait.as_mut().is_some_and(has_ended);
        assert_eq!(waiting.iter_mut().filter_map(|it| is_needed(it).then_some(())).count(), 83);
        of_turns(16);
        of_turns(16);
        assert!(waiting[99].ask(), "the latest has its turn");
        waiting[99].learn(true);
        drop(waiting);
        of_turns(1);
    }

    fn has_ended(wait: &mut Wait) -> bool {
        wait.needed.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    /// A right id costs its source nothing, but one that is not yet known to be right does.
    #[test]
    fn right_ids_cost_no_turns() {
        let (guesses, source) = (Guesses::new(Metrics::new()), of_site(1));
        let asked = |is_known: bool| {
            let mut turn = guesses.reserve(source);
            let is_at_once = turn.wait.is_none();
            assert!(turn.ask());
            if is_known {
                turn.learn(true);
            }
            is_at_once
        };
        assert!((0..1000).all(|_| asked(true)));
        assert!((0..PEER_GUESSES_BURST).all(|_| asked(false)));
        assert!(!asked(true));
    }

    #[test]
    fn random_ids_stay_below_a_million_and_differ() {
        let ids: std::collections::BTreeSet<_> = (0..64).map(|_| random_peer_id()).collect();
        assert!(ids.len() > 32 && ids.iter().all(|id| id.0 < PeerId::COUNT));
    }
}
