//! Clients, strangers and neighbours in trouble: a little of everything that a cluster meets.

use std::{net::UdpSocket, time::Duration};

use super::{
    cluster::Cluster,
    support::{Client, Member, Service, reconnect, repaired, told},
};

/// How long to wait for an answer to junk, which does not come.
const MOMENT: Duration = Duration::from_millis(20);

/// One chain that grows, and the client that waits at its tip.
pub(crate) struct Crowd {
    tip: (Member, Client),
    next: u16,
    waiter: Option<Client>,
}

impl Crowd {
    /// The first client.
    pub(crate) fn new(service: &Service) -> Self {
        let first = Member(1);
        let client = Client::say(service.chain(), first.connect());
        super::support::eventually("the first is registered", || {
            (service.metric("emnetchain_clients") == 1.0).then_some(())
        });
        Self { tip: (first, client), next: 2, waiter: None }
    }

    /// One more client joins and is linked with the tip; the last tip comes back.
    pub(crate) fn join(&mut self, service: &Service) -> Member {
        let (member, before) = (Member(self.next), self.tip.0);
        self.next += 1;
        let mut client = Client::say(service.chain(), member.connect());
        assert_eq!(client.object(), told("tail", &before.head()));
        assert_eq!(self.tip.1.rest(), told("head", &member.tail()));
        self.tip = (member, client);
        before
    }

    /// A client dies between two, which both say so, one after the other.
    pub(crate) fn lose_one(&mut self, service: &Service, in_between: impl FnOnce()) {
        let left = self.join(service);
        self.join(service);
        let right = self.tip.0;
        let mut second = Client::say(service.repair(), reconnect("x", &right.tail()));
        in_between();
        let mut first = Client::say(service.repair(), reconnect("y", &left.head()));
        assert_eq!(first.object(), repaired(&right.tail()));
        assert_eq!(second.object(), repaired(&left.head()));
    }

    /// A client is lost, its neighbours find each other, and strangers send junk of all kinds.
    pub(crate) fn make_history(&mut self, cluster: &Cluster) {
        let service = cluster.at(1 + usize::from(self.next) % 3);
        self.lose_one(service, || {});

        // A client waits in vain and closes half of the connection.
        let stranger = reconnect(&format!("z{}", self.next), "127.0.0.1:1023");
        let waiter = Client::say(service.repair(), stranger);
        waiter.half_close();
        if let Some(earlier) = self.waiter.replace(waiter) {
            earlier.reset();
        }
        Client::say(service.chain(), "junk\n").hear_for(MOMENT);
        Client::say(cluster.raft(1), "junk").hear_for(MOMENT);
        for id in 1..=3 {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            let server = cluster.at(id).address("EMUDP");
            for datagram in ["who am I", "127.0.0.1:1"] {
                socket.send_to(datagram.as_bytes(), server).unwrap();
            }
        }
    }
}
