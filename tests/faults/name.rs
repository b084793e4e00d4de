//! Clients that find the service by its name: each time they ask the DNS server and go to any of
//! the addresses that it tells. A client that gets no answer asks again, most likely somewhere
//! else.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use super::{
    fleet::{CHAIN_PORT, REPAIR_PORT},
    net::SERVICE_NAME,
    random::Random,
    site::{Door, Lost, Place},
    support::eventually,
};

/// How long a connection may take.
const CONNECTING_MAX: Duration = Duration::from_millis(300);

/// How long a client waits before it tries another instance: more than an election takes.
const WAITING_MAX: Duration = Duration::from_millis(1500);

/// The pause before a client tries again.
const PAUSE: Duration = Duration::from_millis(20);

/// How long the DNS server may take.
const LOOK_UP_MAX: Duration = Duration::from_millis(500);

/// The service's name.
#[derive(Debug)]
pub(crate) struct Name {
    dns: SocketAddr,
    random: Mutex<Random>,
    abandoned: AtomicBool,
}

impl Name {
    /// The name as this DNS server knows it.
    pub(crate) fn new(dns: SocketAddr, random: Random) -> Self {
        Self { dns, random: Mutex::new(random), abandoned: AtomicBool::new(false) }
    }

    /// The addresses of the name.
    ///
    /// # Errors
    /// If the DNS server does not answer.
    pub(crate) fn look_up(&self) -> io::Result<Vec<IpAddr>> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(self.dns)?;
        socket.set_read_timeout(Some(LOOK_UP_MAX))?;
        socket.send(&question())?;
        let mut answer = [0; 512];
        let count = socket.recv(&mut answer)?;
        addresses(&answer[..count]).ok_or_else(|| io::Error::other("no answer of a DNS server"))
    }
}

impl Door for Name {
    fn find(&self) -> Place {
        let addresses = eventually("the name is resolved", || self.look_up().ok());
        let mut random = self.random.lock().unwrap();
        let address = *random.pick(&addresses).expect("the name has addresses");
        let [chain, repair] = [CHAIN_PORT, REPAIR_PORT].map(|port| (address, port).into());
        Place { life: 0, chain, repair }
    }

    fn lost(&self, _: Place, what: &str) -> Lost {
        assert!(!self.abandoned.load(Ordering::SeqCst), "the test has failed: {what}");
        thread::sleep(PAUSE);
        Lost
    }

    fn abandon(&self) {
        self.abandoned.store(true, Ordering::SeqCst);
    }

    fn may_deliver_late(&self) -> bool {
        true
    }

    fn patience(&self) -> (Duration, Duration) {
        (CONNECTING_MAX, WAITING_MAX)
    }
}

/// A query for the addresses of the name (RFC 1035, 4.1).
fn question() -> Vec<u8> {
    let mut query = vec![0x45, 0x4d, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in SERVICE_NAME.split('.') {
        query.push(label.len() as u8);
        query.extend(label.bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    query
}

/// The addresses in an answer, whose names must be compressed, as all servers do it.
fn addresses(answer: &[u8]) -> Option<Vec<IpAddr>> {
    let mut records = answer.get(question().len()..)?;
    let mut addresses = Vec::new();
    for _ in 0..*answer.get(7)? {
        let (head, rest) = records.split_at_checked(12)?;
        let (data, rest) = rest.split_at_checked(usize::from(head[11]))?;
        if head[2..4] == [0, 1] {
            addresses.push(IpAddr::from(<[u8; 4]>::try_from(data).ok()?));
        }
        records = rest;
    }
    (!addresses.is_empty()).then_some(addresses)
}
