//! A transport whose connections were introduced, and which finds members where the membership says
//! they are now.

use std::{io, net::SocketAddr, sync::Arc};

use futures_util::future::BoxFuture;
use tokio::time::timeout;

use super::{
    greeter::{GREETING_MAX, Greeter, Roster},
    transport::{Lane, Stream, Transport},
};
use crate::{ids::InstanceId, raft::Member};

/// A transport whose connections were introduced. It finds members where the membership says they
/// are now.
pub struct Greeted {
    transport: Arc<dyn Transport>,
    greeter: Greeter,
    /// Whether it looks for members where the membership says they are.
    follows: bool,
}

impl std::fmt::Debug for Greeted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Greeted").field("greeter", &self.greeter).finish()
    }
}

impl Greeted {
    /// Introduces the connections of `transport`.
    pub fn new(transport: Arc<dyn Transport>, greeter: Greeter) -> Self {
        Self { transport, greeter, follows: true }
    }

    fn current(&self, target: InstanceId, member: &Member) -> Member {
        if !self.follows {
            return member.clone();
        }
        let roster = self.greeter.roster();
        let roster = roster.borrow();
        roster.get(&target).unwrap_or(member).clone()
    }
}

impl Transport for Greeted {
    fn connect(
        &self,
        target: InstanceId,
        member: &Member,
        lane: Lane,
    ) -> BoxFuture<'static, io::Result<Box<dyn Stream>>> {
        let member = self.current(target, member);
        let connecting = self.transport.connect(target, &member, lane);
        let (greeter, follows) = (self.greeter.clone(), self.follows);
        Box::pin(async move {
            let late = || io::Error::new(io::ErrorKind::TimedOut, "no answer to the greeting");
            let opening = async {
                let mut stream = connecting.await?;
                let greeted = timeout(GREETING_MAX, greeter.greet(&mut stream, target, lane));
                greeted.await.unwrap_or_else(|_| Err(late()))?;
                Ok(stream)
            };
            let opened: io::Result<Box<dyn Stream>> = opening.await;
            if let Err(error) = &opened
                && follows
                && error.kind() != io::ErrorKind::ConnectionAborted
            {
                greeter.peers().lost(target, &error.to_string());
            }
            opened
        })
    }

    fn exactly(&self) -> Option<Arc<dyn Transport>> {
        let (transport, greeter) = (Arc::clone(&self.transport), self.greeter.clone());
        Some(Arc::new(Self { transport, greeter, follows: false }))
    }

    fn resolve(&self, address: &str) -> BoxFuture<'static, Vec<SocketAddr>> {
        self.transport.resolve(address)
    }

    fn lost(&self, target: InstanceId) {
        if !self.follows {
            return;
        }
        self.greeter.peers().lost(target, "the connection was lost");
    }

    fn moved(&self, target: InstanceId, member: &Member) -> BoxFuture<'static, ()> {
        let before = self.current(target, member);
        let mut roster = self.greeter.roster();
        Box::pin(async move {
            let is_elsewhere = |roster: &Roster| {
                roster.get(&target).is_some_and(|now| now.raft_addr != before.raft_addr)
            };
            if roster.wait_for(is_elsewhere).await.is_err() {
                std::future::pending::<()>().await; // the instance is ending
            }
        })
    }
}
