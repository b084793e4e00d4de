//! EMNet's conversations: ADD_PEER and ASK_IP. Request and answer take turns on a connection that
//! stays open; nothing is read while an answer is on its way, so the network makes a hasty client
//! wait. The registry keeps nothing of such a connection, and hears nothing of its end.

use tokio::{select, task::coop::consume_budget, time::timeout};

use super::{
    Request, Sender,
    ear::Ear,
    encode,
    line::Order,
    session::{Course, Session},
};
use crate::{
    ids::{PeerId, Source},
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
            match request {
                Request::Command(command) => {
                    if !self.submit(command).await {
                        return;
                    }
                }
                Request::Answer(message) => {
                    let told = self.line.tell(&encode(&message), Then::Stay);
                    told.expect("the answer before it was taken by the socket");
                }
            }
            match timeout(deadline, self.answered()).await {
                Ok(Course::On) => {}
                Ok(Course::Lost | Course::Over) => return,
                Err(_) => break, // no majority, perhaps: another instance may have one
            }
        }
        self.finish().await;
    }

    /// Waits until the request in flight is answered.
    async fn answered(&self) -> Course {
        select! {
            biased;
            order = self.line.next_order() => match order {
                Order::Refused => Course::On,
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
