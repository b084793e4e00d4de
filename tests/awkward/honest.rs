//! Honest clients: a chain that grows by one, and a pair that repairs, again and again. Every byte
//! that they are told is checked.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use emnetchain::clock;

use crate::support::{Client, Member, Service, eventually, reconnect, repaired, told};

/// Honest members are numbered from here, awkward ones from 0.
const FIRST_MEMBER: u16 = 20_000;

/// Between two rounds, so that the awkward clients are what keeps the service busy.
const PACE: Duration = Duration::from_millis(20);

/// The honest clients of one service.
pub(super) struct Honest<'a> {
    service: &'a Service,
    tip: Option<(Member, Client)>,
    rounds: u16,
}

impl<'a> Honest<'a> {
    /// A chain of one member, and pairs. No other may join that chain.
    pub(super) fn begin(service: &'a Service) -> Self {
        let first = Member(FIRST_MEMBER);
        let tip = Some((first, waiting(service, first)));
        Self { service, tip, rounds: 0 }
    }

    /// Pairs only: the chain belongs to the awkward ones.
    pub(super) fn pairs(service: &'a Service) -> Self {
        Self { service, tip: None, rounds: 0 }
    }

    /// Serves this number of rounds.
    pub(super) fn rounds(&mut self, count: u16) {
        (0..count).for_each(|_| self.round());
    }

    /// Serves rounds for as long as `attack` takes, and at least one when all of it is in place.
    pub(super) fn beside<T>(&mut self, what: &str, attack: impl FnOnce() -> T) -> T {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let serving = scope.spawn(|| self.until(&over));
            let over = Flag(&over);
            let result = attack();
            drop(over);
            let (rounds, longest) = serving.join().expect("honest clients are served");
            println!("{what}: {rounds} honest rounds beside it, the longest took {longest:?}");
            result
        })
    }

    fn until(&mut self, over: &AtomicBool) -> (u32, Duration) {
        let (mut rounds, mut longest) = (0, Duration::ZERO);
        loop {
            let last = over.load(Ordering::SeqCst);
            let began = clock::now();
            self.round();
            longest = longest.max(clock::now() - began);
            rounds += 1;
            if last {
                return (rounds, longest);
            }
            thread::sleep(PACE);
        }
    }

    /// One newcomer is linked with the tip, one pair is repaired.
    fn round(&mut self) {
        self.rounds += 1;
        if let Some((before, mut waiting)) = self.tip.take() {
            let newcomer = Member(FIRST_MEMBER + self.rounds);
            let mut client = Client::say(self.service.chain(), newcomer.connect());
            assert_eq!(waiting.object(), told("head", &newcomer.tail()));
            waiting.expect_end();
            assert_eq!(client.object(), told("tail", &before.head()));
            self.tip = Some((newcomer, client));
        }
        let id = format!("honest {}", self.rounds);
        let [a, b] = [1, 2].map(|host| format!("10.0.0.{host}:{}", 1024 + self.rounds));
        let mut first = Client::say(self.service.repair(), reconnect(&id, &a));
        let mut second = Client::say(self.service.repair(), reconnect(&id, &b));
        assert_eq!(first.rest(), repaired(&b));
        assert_eq!(second.rest(), repaired(&a));
    }
}

/// Raised when dropped, so that a panic raises it too.
struct Flag<'a>(&'a AtomicBool);

impl Drop for Flag<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A member that is registered and waits for its next neighbour. The client at the tip is linked.
pub(super) fn waiting(service: &Service, member: Member) -> Client {
    let before = service.metric("emnetchain_clients");
    let client = Client::say(service.chain(), member.connect());
    eventually("it is registered", || {
        (service.metric("emnetchain_clients") > before).then_some(())
    });
    client
}

/// Two members, of which the first one waits, are linked: everything they are told is checked.
pub(super) fn expect_linked(first: (Member, &mut Client), second: (Member, &mut Client)) {
    assert_eq!(first.1.object(), told("head", &second.0.tail()));
    first.1.expect_end();
    assert_eq!(second.1.object(), told("tail", &first.0.head()));
}

/// Waits until a figure of `/metrics` is what it should be.
pub(super) fn expect_metric(service: &Service, name: &str, wanted: f64) {
    let mut seen = f64::NAN;
    eventually(&format!("{name} is {wanted}"), || {
        let now = service.metric(name);
        if now != seen {
            println!("{name} is {now}");
        }
        seen = now;
        (now == wanted).then_some(())
    });
}
