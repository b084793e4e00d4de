//! The clients: programs with two sockets each that join a chain, wait, die, miss each other and
//! ask again. They know what they were told and nothing else, as clients do; the death of a
//! neighbour is told to their partners by silence, after a while.

use std::net::{IpAddr, Ipv4Addr};

use emnetchain::{
    ids::{Endpoint, Part, RepairId, Socket},
    server::Protocol,
};

use crate::visit::Visit;

/// A client.
#[derive(Clone, Debug)]
pub(crate) struct Person {
    pub(crate) number: usize,
    pub(crate) alive: bool,
    /// Whether it is of the chain; else it only repairs, with a socket that no chain knows.
    pub(crate) is_client: bool,
    pub(crate) head: Socket,
    pub(crate) tail: Socket,
    /// What its head and its tail were told last.
    pub(crate) told_head: Option<Endpoint>,
    pub(crate) told_tail: Option<Endpoint>,
    /// What it asks for, be it connected or about to connect again.
    pub(crate) asks: Vec<Ask>,
    /// The sockets whose partner was found to be busy with another one when it last looked.
    pub(crate) doubts: Vec<Part>,
    /// How often it has looked and found a repair unanswered.
    pub(crate) waits: u32,
}

/// What a client asks over a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    Connect,
    Repair(Part, RepairId),
}

impl Ask {
    /// Whether its answer may be about this socket.
    fn covers(&self, part: Part) -> bool {
        match self {
            Self::Connect => true,
            Self::Repair(of, _) => *of == part,
        }
    }
}

/// A connection to an instance.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) person: usize,
    pub(crate) ask: Ask,
    pub(crate) visit: Visit,
    /// What was heard and is no whole message yet.
    pub(crate) heard: Vec<u8>,
}

impl Person {
    /// A client with sockets of its own.
    pub(crate) fn new(number: usize, is_client: bool) -> Self {
        let socket = |port| {
            let text = format!("198.51.{}.{}:{port}", number / 250, number % 250 + 1);
            Socket::parse(&text).expect("a socket")
        };
        let (head, tail) = (socket(2000), socket(1000));
        let (told_head, told_tail, asks, doubts) = (None, None, Vec::new(), Vec::new());
        Self {
            number,
            alive: true,
            is_client,
            head,
            tail,
            told_head,
            told_tail,
            asks,
            doubts,
            waits: 0,
        }
    }

    /// What a socket was told last.
    pub(crate) fn told(&mut self, part: Part) -> &mut Option<Endpoint> {
        match part {
            Part::Head => &mut self.told_head,
            Part::Tail => &mut self.told_tail,
        }
    }

    pub(crate) fn socket(&self, part: Part) -> &Socket {
        match part {
            Part::Head => &self.head,
            Part::Tail => &self.tail,
        }
    }

    /// Whether it asks for this socket.
    pub(crate) fn is_asking(&self, part: Part) -> bool {
        self.asks.iter().any(|ask| ask.covers(part))
    }

    /// Whether both its sockets have a partner.
    pub(crate) fn knows_both(&self) -> bool {
        self.told_head.is_some() && self.told_tail.is_some()
    }

    pub(crate) fn owns(&self, endpoint: Endpoint) -> bool {
        self.head.endpoint() == endpoint || self.tail.endpoint() == endpoint
    }

    /// Where it connects from.
    pub(crate) fn source(&self) -> IpAddr {
        let number = u32::try_from(self.number).expect("few people");
        IpAddr::V4(Ipv4Addr::from(0x0a00_0001 + number))
    }

    /// Which server an ask goes to, and in which words.
    pub(crate) fn request(&self, ask: &Ask) -> (Protocol, String) {
        match ask {
            Ask::Connect => {
                let (head, tail) = (&self.head, &self.tail);
                let text = format!(r#"{{"msg":"CONNECT","head":"{head}","tail":"{tail}"}}"#);
                (Protocol::Chain, text)
            }
            Ask::Repair(part, id) => {
                let (id, ip) = (&id.0, self.socket(*part));
                let text = format!(r#"{{"msg":"RECONNECT","id":"{id}","ip":"{ip}"}}"#);
                (Protocol::Repair, text)
            }
        }
    }
}
