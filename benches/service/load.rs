//! The load: a window of clients on one thread, each over its own connection, each answer checked.
//!
//! The window is closed: a new client comes when an earlier one's place is free, which it is once
//! both ends of its link know of it. A client that errs keeps its place, so a broken server comes
//! to a halt instead of being flooded.

use std::{
    cell::{Cell, RefCell},
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use emnetchain::clock;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{LocalSet, spawn_local},
    time::{sleep, timeout},
};

use super::{
    ledger::{Ledger, Wrong, Wrongs},
    protocol,
};

/// Where a server answers: one address for each of its instances, which take turns as they do
/// behind one name.
#[derive(Clone, Debug)]
pub(crate) struct Doors(Arc<[SocketAddr]>);

impl Doors {
    /// The address for the client of this number.
    pub(crate) fn at(&self, number: usize) -> SocketAddr {
        self.0[number % self.0.len()]
    }
}

impl FromIterator<SocketAddr> for Doors {
    fn from_iter<T: IntoIterator<Item = SocketAddr>>(addresses: T) -> Self {
        Self(addresses.into_iter().collect())
    }
}

/// How a run goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Links, or repairs, under way at once.
    pub(crate) clients: usize,
    /// When it ends.
    pub(crate) extent: Extent,
    /// How long a standstill lasts before the run is given up.
    pub(crate) patience: Duration,
}

/// When a run ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Extent {
    /// After this number of links or repairs, all of them measured.
    Count(usize),
    /// When the time is up; what happens before `measured` begins is not measured.
    Time {
        /// Before it is measured.
        warm_up: Duration,
        /// While it is measured.
        measured: Duration,
    },
}

/// What a run measured and found.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// Links or repairs that both ends knew of, per second.
    pub(crate) per_second: f64,
    /// From the later client's request until both ends knew: the median, in milliseconds.
    pub(crate) p50_ms: f64,
    /// The same: what 99 of 100 do not exceed.
    pub(crate) p99_ms: f64,
    /// What was wrong.
    pub(crate) wrongs: Wrongs,
}

/// Links clients into one chain. `edge` is called when measuring begins and when it ends. The
/// ledger tells which clients were linked.
pub(crate) async fn links(plan: &Plan, chain: &Doors, edge: &mut dyn FnMut()) -> (Outcome, Ledger) {
    LocalSet::new().run_until(link_all(plan, chain, edge)).await
}

/// Pairs orphans, two by two under fresh ids. `edge` is as for [`links`].
pub(crate) async fn repairs(plan: &Plan, repair: &Doors, edge: &mut dyn FnMut()) -> Outcome {
    LocalSet::new().run_until(repair_all(plan, repair, edge)).await
}
/// One connection, and the answers that come over it.
#[derive(Debug)]
pub(crate) struct Line {
    stream: TcpStream,
    buffer: [u8; 256],
    filled: usize,
}

impl Line {
    /// Connects.
    ///
    /// # Errors
    /// If the server does not take the connection.
    pub(crate) async fn open(server: SocketAddr) -> Result<Self, Wrong> {
        let stream = TcpStream::connect(server).await.map_err(|_| Wrong::NoConnection)?;
        Ok(Self { stream, buffer: [0; 256], filled: 0 })
    }

    /// Sends a request.
    ///
    /// # Errors
    /// If the server does not take it.
    pub(crate) async fn send(&mut self, request: &str) -> Result<(), Wrong> {
        self.stream.write_all(request.as_bytes()).await.map_err(|_| Wrong::NoConnection)
    }

    /// Hands the next answer to `read`, or `None` once the server closed the connection.
    ///
    /// # Errors
    /// If the connection ends within an answer or by a reset, or the answer is endless.
    pub(crate) async fn answer<T>(
        &mut self,
        read: impl FnOnce(Option<&[u8]>) -> T,
    ) -> Result<T, Wrong> {
        loop {
            let received = &self.buffer[..self.filled];
            if let Some(end) = received.iter().position(|byte| *byte == b'}') {
                let value = read(Some(&received[..=end]));
                self.buffer.copy_within(end + 1..self.filled, 0);
                self.filled -= end + 1;
                return Ok(value);
            }
            match self.stream.read(&mut self.buffer[self.filled..]).await {
                Ok(0) if self.filled == 0 => return Ok(read(None)),
                Ok(0) => return Err(Wrong::Bytes),
                Ok(count) => self.filled += count,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(Wrong::Reset);
                }
                Err(_) => return Err(Wrong::NoConnection),
            }
        }
    }

    /// Waits for the answer to a RECONNECT: the socket of orphan `partner`.
    ///
    /// # Errors
    /// If anything else comes.
    pub(crate) async fn expect_repair(&mut self, partner: usize) -> Result<(), Wrong> {
        let right = protocol::repaired(partner);
        self.answer(|answer| match answer {
            Some(bytes) if bytes == right.as_bytes() => Ok(()),
            Some(_) => Err(Wrong::Bytes),
            None => Err(Wrong::ClosedEarly),
        })
        .await?
    }

    /// Waits for the end of the connection.
    ///
    /// # Errors
    /// If anything else comes.
    pub(crate) async fn expect_end(&mut self) -> Result<(), Wrong> {
        self.answer(|answer| answer.map_or(Ok(()), |_| Err(Wrong::Bytes))).await?
    }
}

/// Waits until `reached` or for `patience`.
pub(crate) async fn poll(patience: Duration, reached: impl Fn() -> bool) {
    let end = clock::now() + patience;
    while !reached() && clock::now() < end {
        sleep(Duration::from_millis(1)).await;
    }
}

async fn link_all(plan: &Plan, chain: &Doors, edge: &mut dyn FnMut()) -> (Outcome, Ledger) {
    let ledger = Rc::new(RefCell::new(Ledger::default()));
    let meter = Rc::new(RefCell::new(Meter::default()));
    let join = |place: Option<OwnedSemaphorePermit>| {
        let number = ledger.borrow_mut().enter(place);
        let (ledger, meter, chain) = (ledger.clone(), meter.clone(), chain.at(number));
        spawn_local(async move {
            if let Err(wrong) = member(number, chain, &ledger, &meter).await {
                ledger.borrow_mut().wrong(wrong);
            }
        })
    };
    join(None); // no client is linked with the first one until the next one comes
    run(plan, &meter, edge, |place| drop(join(Some(place)))).await;
    // The newest client stays connected; all others are closed.
    poll(plan.patience, || ledger.borrow().open() <= 1).await;
    let wrongs = ledger.borrow_mut().judge();
    (meter.borrow_mut().outcome(wrongs), ledger.take())
}

/// A client of the chain, from its connection to the end of it.
async fn member(
    number: usize,
    chain: SocketAddr,
    ledger: &RefCell<Ledger>,
    meter: &RefCell<Meter>,
) -> Result<(), Wrong> {
    let mut line = Line::open(chain).await?;
    let request = protocol::connect(number);
    ledger.borrow_mut().sent(number, clock::now());
    line.send(&request).await?;
    loop {
        let link = |bytes: &[u8]| protocol::read_link(bytes).ok_or(Wrong::Bytes);
        let Some((part, partner)) = line.answer(|answer| answer.map(link).transpose()).await??
        else {
            ledger.borrow_mut().closed(number);
            return Ok(());
        };
        if let Some(took) = ledger.borrow_mut().told(number, part, partner, clock::now()) {
            meter.borrow_mut().record(took);
        }
    }
}

async fn repair_all(plan: &Plan, repair: &Doors, edge: &mut dyn FnMut()) -> Outcome {
    let meter = Rc::new(RefCell::new(Meter::default()));
    let wrongs = Rc::new(RefCell::new(Wrongs::default()));
    let (begun, ended) = (Cell::new(0_usize), Rc::new(Cell::new(0_usize)));
    run(plan, &meter, edge, |place| {
        let number = begun.replace(begun.get() + 1);
        let (meter, wrongs, ended) = (meter.clone(), wrongs.clone(), ended.clone());
        let doors = repair.clone();
        spawn_local(async move {
            match pair(number, &doors, place, &meter).await {
                Ok(()) => ended.set(ended.get() + 1),
                Err(wrong) => wrongs.borrow_mut().add(wrong),
            }
        });
    })
    .await;
    let all_ended = || ended.get() as u64 + wrongs.borrow().total() == begun.get() as u64;
    poll(plan.patience, all_ended).await;
    let mut wrongs = wrongs.take();
    wrongs.add_many(Wrong::Untold, begun.get() as u64 - ended.get() as u64 - wrongs.total());
    meter.borrow_mut().outcome(wrongs)
}

/// Two orphans, from their connections to the end of them.
async fn pair(
    number: usize,
    repair: &Doors,
    place: OwnedSemaphorePermit,
    meter: &RefCell<Meter>,
) -> Result<(), Wrong> {
    let (id, one, other) = (number.to_string(), 2 * number, 2 * number + 1);
    let answered = async {
        let mut waiter = Line::open(repair.at(one)).await?;
        waiter.send(&protocol::reconnect(&id, one)).await?;
        let mut second = Line::open(repair.at(other)).await?;
        let request = protocol::reconnect(&id, other);
        let sent = clock::now();
        second.send(&request).await?;
        tokio::try_join!(waiter.expect_repair(other), second.expect_repair(one))?;
        meter.borrow_mut().record(clock::now() - sent);
        Ok((waiter, second))
    };
    let (mut waiter, mut second) = match answered.await {
        Ok(lines) => lines,
        Err(wrong) => {
            place.forget();
            return Err(wrong);
        }
    };
    drop(place);
    tokio::try_join!(waiter.expect_end(), second.expect_end())?;
    Ok(())
}

/// Keeps the window full by `begin` until the plan's end, then waits until it is empty.
async fn run(
    plan: &Plan,
    meter: &RefCell<Meter>,
    edge: &mut dyn FnMut(),
    begin: impl Fn(OwnedSemaphorePermit),
) {
    let window = Arc::new(Semaphore::new(plan.clients));
    let over = Cell::new(false);
    let count_max = match plan.extent {
        Extent::Count(count) => count,
        Extent::Time { .. } => usize::MAX,
    };
    let fill = async {
        for _ in 0..count_max {
            let place = timeout(plan.patience, window.clone().acquire_owned()).await;
            match place {
                Ok(Ok(place)) if !over.get() => begin(place),
                Ok(_) => break,
                Err(_) => return,
            }
        }
        let all_clients = u32::try_from(plan.clients).expect("a window is far smaller");
        let _ = timeout(plan.patience, window.acquire_many(all_clients)).await;
    };
    match plan.extent {
        Extent::Count(_) => {
            meter.borrow_mut().begin();
            edge();
            fill.await;
            meter.borrow_mut().end();
            edge();
        }
        Extent::Time { warm_up, measured } => {
            let time = async {
                sleep(warm_up).await;
                meter.borrow_mut().begin();
                edge();
                sleep(measured).await;
                meter.borrow_mut().end();
                edge();
                over.set(true);
            };
            tokio::join!(fill, time);
        }
    }
}

/// Collects how long links and repairs took while it measures.
#[derive(Debug, Default)]
struct Meter {
    begun: Option<Instant>,
    span: Duration,
    took_us: Vec<u32>,
}

impl Meter {
    fn begin(&mut self) {
        self.begun = Some(clock::now());
    }

    fn record(&mut self, took: Duration) {
        if self.begun.is_some() {
            self.took_us.push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
        }
    }

    fn end(&mut self) {
        let begun = self.begun.take().expect("it was begun");
        self.span = clock::now() - begun;
    }

    fn outcome(&mut self, wrongs: Wrongs) -> Outcome {
        self.took_us.sort_unstable();
        let took_ms = |share: usize| {
            let at = self.took_us.len().saturating_sub(1) * share / 100;
            f64::from(self.took_us.get(at).copied().unwrap_or_default()) / 1000.0
        };
        Outcome {
            per_second: self.took_us.len() as f64 / self.span.as_secs_f64(),
            p50_ms: took_ms(50),
            p99_ms: took_ms(99),
            wrongs,
        }
    }
}
