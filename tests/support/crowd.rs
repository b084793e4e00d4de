//! Many clients at once that come back until they are told: they join, come back, repair, and ask
//! about old repairs, while the service may be killed at any time. An answer that does not come is
//! forgiven only if the service was really down.

#![allow(dead_code, reason = "each test program uses its own part")]

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering},
    thread,
};

use emnetchain::limits::PROPOSALS_IN_FLIGHT_MAX;

use super::{
    history::{Gap, History, Repair},
    random::Random,
    site::{Door, Lost, Place},
    support::{Client, Member, Service, eventually, reconnect, repaired, told},
};

/// Deadlines that do not pass during a test, however busy the machine is.
pub(crate) const UNHURRIED: [&str; 4] = ["--gather", "10min", "--resume-grace", "10min"];

/// Has the service serve EMNet as well.
pub(crate) const EMNET: [&str; 2] = ["--emnet-addr", "127.0.0.1:0"];

/// How many clients act at once. With fewer than two, none would meet.
const WORKERS: usize = 6;

/// How often the service may end between the two words to a client.
const WITHOUT_TAIL_MAX: usize = 3;

/// How many ask again at once when all is over.
const ASKING_AGAIN: usize = 24;

/// Lengthens the raft log by about `entries` that leave nothing behind. The service must have
/// been started with [`EMNET`].
pub(crate) fn lengthen_log(service: &Service, entries: usize) {
    thread::scope(|scope| {
        // As many as the proposer has in flight, so that each has its own entry.
        for _ in 0..PROPOSALS_IN_FLIGHT_MAX {
            scope.spawn(|| {
                let mut client = Client::connect(service.address("EMNet"));
                // What is added is asked for at once: wrong ids have to wait their turn.
                for _ in 0..entries.div_ceil(2 * PROPOSALS_IN_FLIGHT_MAX) {
                    client.send(r#"{"msg":"ADD_PEER","IP_Peer":"a"}"#);
                    let added: serde_json::Value = serde_json::from_str(&client.object()).unwrap();
                    client.send(format!(r#"{{"msg":"ASK_IP","id":{}}}"#, added["id"]));
                    let found: serde_json::Value = serde_json::from_str(&client.object()).unwrap();
                    assert_eq!(found["IP"], "a");
                }
            });
        }
    });
}

/// Which of the two servers to ask.
#[derive(Clone, Copy, Debug)]
enum Server {
    Chain,
    Repair,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Talk<'a> {
    door: &'a dyn Door,
    place: Place,
    request: String,
    stream: TcpStream,
    read: Vec<u8>,
}

impl<'a> Talk<'a> {
    fn open(door: &'a dyn Door, server: Server, request: String) -> Result<Self, Lost> {
        let place = door.find();
        let address = match server {
            Server::Chain => place.chain,
            Server::Repair => place.repair,
        };
        let (connecting, waiting) = door.patience();
        let open = || {
            let mut stream = TcpStream::connect_timeout(&address, connecting)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(waiting))?;
            stream.write_all(request.as_bytes())?;
            Ok::<_, std::io::Error>(stream)
        };
        let stream = open().map_err(|error| door.lost(place, &format!("{request}: {error}")))?;
        Ok(Self { door, place, request, stream, read: Vec::new() })
    }

    /// The next object; `None` when the service closes.
    fn object(&mut self) -> Result<Option<String>, Lost> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'}') {
                let rest = self.read.split_off(end + 1);
                let object = std::mem::replace(&mut self.read, rest);
                return Ok(Some(String::from_utf8(object).expect("answers are text")));
            }
            let mut buffer = [0; 512];
            match self.stream.read(&mut buffer) {
                Ok(0) if self.read.is_empty() => return Ok(None),
                Ok(0) => return Err(self.lost("closed within an answer")),
                Ok(count) => self.read.extend_from_slice(&buffer[..count]),
                Err(error) => return Err(self.lost(&error.to_string())),
            }
        }
    }

    /// Everything until the service closes.
    fn rest(&mut self) -> Result<String, Lost> {
        let mut all = String::new();
        while let Some(object) = self.object()? {
            all.push_str(&object);
        }
        Ok(all)
    }

    fn lost(&self, what: &str) -> Lost {
        self.door.lost(self.place, &format!("{}: {what}", self.request))
    }
}

/// The clients.
#[derive(Debug)]
pub(crate) struct Crowd<'a> {
    /// Where they go.
    pub(crate) door: &'a dyn Door,
    /// What they were told.
    pub(crate) history: &'a History,
    next_member: AtomicU16,
    next_repair: AtomicU16,
    connects: AtomicUsize,
    active: AtomicUsize,
    stopping: AtomicBool,
}

/// Ends a crowd's work, even when the test fails meanwhile.
struct Stopping<'a>(&'a Crowd<'a>);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.stopping.store(true, Ordering::SeqCst);
        if thread::panicking() {
            self.0.door.abandon();
        }
    }
}

impl<'a> Crowd<'a> {
    /// Clients of a chain that no client has joined yet.
    pub(crate) fn new(door: &'a dyn Door, history: &'a History) -> Self {
        Self {
            door,
            history,
            next_member: AtomicU16::new(0),
            next_repair: AtomicU16::new(0),
            connects: AtomicUsize::new(0),
            active: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
        }
    }

    /// Has the clients at work while `drive` runs. At its end each was told all that it waited
    /// for, except one last client, which is returned: the tip of the chain.
    pub(crate) fn work_while(
        &self,
        random: &mut Random,
        drive: impl FnOnce(),
    ) -> (Member, Talk<'a>) {
        thread::scope(|scope| {
            let stopping = Stopping(self);
            self.active.store(WORKERS, Ordering::SeqCst);
            for mut random in (0..WORKERS).map(|_| random.fork()).collect::<Vec<_>>() {
                scope.spawn(move || {
                    while !self.stopping.load(Ordering::SeqCst) {
                        self.act(&mut random);
                    }
                    self.active.fetch_sub(1, Ordering::SeqCst);
                });
            }
            drive();
            drop(stopping);
            // Only the newest client still waits, for one more to come.
            eventually("all others are told", || {
                (self.active.load(Ordering::SeqCst) <= 1).then_some(())
            });
            self.last()
        })
    }

    /// How many CONNECTs were answered in full.
    pub(crate) fn connects(&self) -> usize {
        self.connects.load(Ordering::SeqCst)
    }

    /// Does one thing.
    fn act(&self, random: &mut Random) {
        match random.below(20) {
            0..11 => self.join(),
            11..16 => {
                if let Some(member) = self.history.take_any(random) {
                    self.come_back(member);
                    self.history.release(&[member]);
                }
            }
            16..18 => {
                if let Some(gap) = self.history.take_gap(random) {
                    self.close(gap, random);
                }
            }
            18 => {
                if let Some(repair) = self.history.take_repair(random) {
                    self.ask_about(&repair);
                    self.history.release(&repair.members);
                }
            }
            _ => self.pair_strangers(random),
        }
    }

    /// A new client joins and waits until it has its neighbours.
    fn join(&self) {
        let member = Member(self.next_member.fetch_add(1, Ordering::SeqCst));
        self.history.announce(member);
        let mut without_tail = 0;
        while self.try_join(member, &mut without_tail).is_err() {
            self.doubt(&member.head());
        }
        self.connects.fetch_add(1, Ordering::SeqCst);
        self.history.settle(member);
    }

    /// While the client before it is away, the later one may be told first; and if the service ends
    /// then, that looks as if no client were before. `without_tail` counts how often it did.
    fn try_join(&self, member: Member, without_tail: &mut usize) -> Result<(), Lost> {
        let mut talk = Talk::open(self.door, Server::Chain, member.connect())?;
        let mut parts = Vec::new();
        while let Some(object) = talk.object()? {
            parts.push(self.hear(member, &object));
        }
        match parts[..] {
            ["tail", "head"] => Ok(()),
            ["head"] if *without_tail == WITHOUT_TAIL_MAX || self.history.may_be_first(member) => {
                self.history.is_first(member);
                Ok(())
            }
            ["head"] => {
                *without_tail += 1;
                Err(talk.lost("told only one part"))
            }
            _ => Err(talk.lost(&format!("closed after {parts:?}"))),
        }
    }

    /// Takes an answer of the chain server down, and returns the part that it was about.
    fn hear(&self, member: Member, object: &str) -> &'static str {
        let (part, ip) = ["head", "tail"]
            .into_iter()
            .find_map(|part| Some((part, field(object, &told(part, "\0"))?)))
            .unwrap_or_else(|| panic!("client {} was told {object}", member.0));
        let socket = if part == "head" { member.head() } else { member.tail() };
        self.history.told(&socket, ip, &member.connect());
        part
    }

    /// A client that knows its neighbours comes back, and is told the same again.
    pub(crate) fn come_back(&self, member: Member) {
        let expected = self.history.expected(member);
        loop {
            let Ok(mut talk) = Talk::open(self.door, Server::Chain, member.connect()) else {
                self.doubt(&member.head());
                continue;
            };
            match talk.rest() {
                Ok(answer) if answer == expected => {
                    self.connects.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                // What was told before the service went away must be right all the same.
                Ok(answer) if expected.starts_with(&answer) => drop(talk.lost(&answer)),
                Ok(answer) => {
                    let story = self.history.story(&[&member.head(), &member.tail()]);
                    panic!("client {} was told {answer}, not {expected}{story}", member.0)
                }
                Err(Lost) => {}
            }
            self.doubt(&member.head());
        }
    }

    /// A client left, and its neighbours ask for each other: with the id that it gave them, or,
    /// if it crashed, with ids of their own.
    fn close(&self, gap: Gap, random: &mut Random) {
        let number = self.next_repair.fetch_add(1, Ordering::SeqCst);
        let ids = match random.below(3) {
            0 => [format!("a{number}"), format!("b{number}")],
            _ => [format!("c{number}"), format!("c{number}")],
        };
        let [one, other] = ids;
        let mut requests = [(one, gap.before.head()), (other, gap.after.tail())];
        if random.below(2) == 0 {
            requests.reverse();
        }
        self.repair(Repair { requests, members: vec![gap.before, gap.after] });
    }

    /// Two sockets that no chain knows find each other by an id.
    fn pair_strangers(&self, random: &mut Random) {
        let number = self.next_repair.fetch_add(1, Ordering::SeqCst);
        let id = format!("s{}", random.next());
        let requests = [0, 2].map(|port| {
            let socket = format!("127.0.0.2:{}", 1024 + 4 * (number % 16_000) + port);
            self.history.announce_stranger(&socket);
            (id.clone(), socket)
        });
        self.repair(Repair { requests, members: Vec::new() });
    }

    /// Both sides ask until both are told.
    fn repair(&self, repair: Repair) {
        let mut waiting: Vec<&(String, String)> = repair.requests.iter().collect();
        while !waiting.is_empty() {
            let ask = |(id, socket): &(String, String)| {
                Talk::open(self.door, Server::Repair, reconnect(id, socket))
            };
            let talks: Result<Vec<_>, _> = waiting.iter().map(|request| ask(request)).collect();
            // Both must be heard by the same life, for a client that is alone waits.
            let together =
                |all: &Vec<Talk<'_>>| all.iter().all(|talk| talk.place.life == all[0].place.life);
            let talks = talks.ok().filter(together);
            let sockets = waiting.iter().map(|(_, socket)| socket);
            sockets.filter(|_| talks.is_none()).for_each(|socket| self.doubt(socket));
            let Some(talks) = talks else { continue };
            let mut untold = Vec::new();
            for (request, talk) in waiting.into_iter().zip(talks) {
                if self.hear_repaired(talk, &request.1).is_err() {
                    self.doubt(&request.1);
                    untold.push(request);
                }
            }
            waiting = untold;
        }
        self.history.repaired(repair);
    }

    fn hear_repaired(&self, mut talk: Talk<'_>, socket: &str) -> Result<(), Lost> {
        let answer = talk.rest()?;
        match field(&answer, &repaired("\0")) {
            Some(ip) => {
                self.history.told(socket, ip, &talk.request);
                Ok(())
            }
            None if answer.is_empty() => Err(talk.lost("closed without an answer")),
            None => panic!("{socket} was told {answer}"),
        }
    }

    /// Both sides of a finished repair ask again, and are told the same.
    pub(crate) fn ask_about(&self, repair: &Repair) {
        for (id, socket) in &repair.requests {
            let ask = || {
                let request = reconnect(id, socket);
                self.hear_repaired(Talk::open(self.door, Server::Repair, request)?, socket)
            };
            while ask().is_err() {
                self.doubt(socket);
            }
        }
    }

    /// What was sent for this socket went astray.
    fn doubt(&self, socket: &str) {
        if self.door.may_deliver_late() {
            self.history.doubt(socket);
        }
    }

    /// The last client, whose coming ends the waiting of the one before.
    fn last(&self) -> (Member, Talk<'a>) {
        let member = Member(self.next_member.fetch_add(1, Ordering::SeqCst));
        self.history.announce(member);
        loop {
            let Ok(mut talk) = Talk::open(self.door, Server::Chain, member.connect()) else {
                continue;
            };
            if let Ok(Some(object)) = talk.object() {
                assert_eq!(self.hear(member, &object), "tail");
                return (member, talk);
            }
        }
    }
}

/// What stands in an answer in the place of the `\0` of a pattern.
fn field<'t>(answer: &'t str, pattern: &str) -> Option<&'t str> {
    let (before, after) = pattern.split_once('\0').expect("a pattern");
    answer.strip_prefix(before)?.strip_suffix(after)
}

/// Asserts that all are told the same again, that the chain is one path in the order of
/// arrival, and that the service counts as many clients and links.
pub(crate) fn assert_all_is_as_told(service: &Service, door: &dyn Door, history: &History) {
    let crowd = Crowd::new(door, history);
    let members = history.settled();
    thread::scope(|scope| {
        for share in members.chunks(members.len().div_ceil(ASKING_AGAIN).max(1)) {
            let crowd = &crowd;
            scope.spawn(move || share.iter().for_each(|member| crowd.come_back(*member)));
        }
    });
    let all = members.len() + 1;
    history.assert_one_path(all);
    assert_totals(service, history, "at the end");
}

/// Asserts the service's own figures for a chain without gaps.
pub(crate) fn assert_totals(service: &Service, history: &History, when: &str) {
    let figure = |name: &str| service.metric(&format!("emnetchain_{name}"));
    let linked = history.settled().len() + 1;
    let expected = [
        // Those that left are cut off, and remembered.
        ("clients", linked + history.gone()),
        ("cut_off", history.gone()),
        ("links", linked - 1),
        ("broken_links", 0),
        ("repairs_pending", 0),
    ];
    for (name, expected) in expected {
        assert_eq!(figure(name), expected as f64, "{when}: {name}");
    }
}
