//! The accept loop that the TCP servers share. It outlives a shortage of descriptors or memory by
//! pausing, and everything that one connection can do to it.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Phase, Protocol, ServerError, ServerOptions, doors::Doors};
use crate::{
    clock,
    platform::sockets::{AcceptFailure, accept_failure, give_up_after, keep_alive},
    sockets,
};
use tokio::{
    net::{TcpListener, TcpStream},
    select,
    sync::watch,
    task::{JoinError, JoinSet},
    time::{sleep, timeout},
};

/// Kernel buffers of one connection, in bytes (the kernel doubles it). Messages are small; what a
/// client can make us hold should be too.
const SOCKET_BUFFER_BYTES: usize = 16 * 1024;

/// The first and the longest pause when the system is out of descriptors or memory.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(200));

/// Binds a TCP listener. Its options are inherited by the connections that it accepts.
///
/// # Errors
/// If the address is taken, not ours or forbidden.
pub(super) fn bind(address: SocketAddr, options: &ServerOptions) -> io::Result<TcpListener> {
    sockets::listen(address, |socket| {
        socket.set_tcp_nodelay(true)?;
        socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
        socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
        keep_alive(socket, options.keepalive_idle, options.keepalive_interval)?;
        give_up_after(socket, options.user_timeout)
    })
}

/// One TCP server: its listener and its sessions.
#[derive(Debug)]
pub(super) struct Acceptor {
    pub(super) listener: TcpListener,
    pub(super) protocol: Protocol,
    pub(super) doors: Arc<Doors>,
    pub(super) phase: watch::Receiver<Phase>,
}

impl Acceptor {
    /// Accepts from the time when the instance serves until it drains, and returns when it stops
    /// and the sessions are closed.
    ///
    /// # Errors
    /// If the listener breaks, or a session panics: half a service must not live on.
    pub(super) async fn run(mut self) -> Result<(), ServerError> {
        let mut sessions = JoinSet::new();
        reached(&mut self.phase, Phase::Serving).await;
        self.accept_all(&mut sessions).await?;
        let Self { listener, doors, mut phase, .. } = self;
        drop(listener); // newcomers are sent elsewhere at once
        select! {
            () = reached(&mut phase, Phase::Stopping) => {}
            result = all_ended(&mut sessions) => return result,
        }
        doors.outbox.stop_all();
        // A connection without a goodbye by then is cut off as the set is dropped.
        let deadline = doors.edge.options.borrow().stop_deadline;
        timeout(deadline, all_ended(&mut sessions)).await.unwrap_or(Ok(()))
    }

    async fn accept_all(&mut self, sessions: &mut JoinSet<()>) -> Result<(), ServerError> {
        let mut phase = self.phase.clone();
        let mut shortage = Shortage::default();
        loop {
            select! {
                biased;
                () = reached(&mut phase, Phase::Drained) => return Ok(()),
                Some(ended) = sessions.join_next() => check(ended)?,
                accepted = self.next() => match accepted {
                    Ok((stream, peer)) => {
                        shortage = Shortage { logged: shortage.logged, ..Shortage::default() };
                        let stream = Box::new(stream);
                        sessions.spawn(self.doors.enter(self.protocol, stream, peer));
                    }
                    Err(error) => match accept_failure(&error) {
                        AcceptFailure::Connection => {}
                        AcceptFailure::Shortage => self.pause(&mut shortage, &error).await,
                        AcceptFailure::Listener => return Err(self.broken(error)),
                    },
                },
            }
        }
    }

    async fn next(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.doors.admission.room().await;
        self.listener.accept().await
    }

    async fn pause(&self, shortage: &mut Shortage, error: &io::Error) {
        let name = self.protocol.as_str();
        self.doors.edge.metrics.accept_pauses.with_label_values(&[name]).inc();
        if shortage.is_worth_a_line() {
            tracing::warn!(server = name, %error, "cannot accept connections at the moment");
        }
        sleep(shortage.next_pause()).await;
    }

    fn broken(&self, source: io::Error) -> ServerError {
        ServerError::Accept { server: self.protocol.as_str(), source }
    }
}

/// Waits until the instance has come to a phase or beyond it.
pub(super) async fn reached(phase: &mut watch::Receiver<Phase>, wanted: Phase) {
    // A sender that is gone means that the instance is being torn down.
    let _ = phase.wait_for(|phase| *phase >= wanted).await;
}

async fn all_ended(sessions: &mut JoinSet<()>) -> Result<(), ServerError> {
    while let Some(ended) = sessions.join_next().await {
        check(ended)?;
    }
    Ok(())
}

fn check(ended: Result<(), JoinError>) -> Result<(), ServerError> {
    ended.map_err(|source| ServerError::Session { source })
}

/// A shortage of descriptors or memory, as the accept loop sees it.
#[derive(Debug, Default)]
struct Shortage {
    pause: Option<Duration>,
    logged: Option<Instant>,
}

impl Shortage {
    fn next_pause(&mut self) -> Duration {
        let pause = self.pause.map_or(PAUSE.0, |last| (last * 2).min(PAUSE.1));
        self.pause = Some(pause);
        pause
    }

    /// One line per second is enough.
    fn is_worth_a_line(&mut self) -> bool {
        let now = clock::now();
        let quiet = self.logged.is_none_or(|logged| now - logged >= Duration::from_secs(1));
        if quiet {
            self.logged = Some(now);
        }
        quiet
    }
}

#[cfg(test)]
mod tests {
    use socket2::SockRef;

    use super::*;

    #[test]
    fn a_shortage_pauses_longer_each_time_and_logs_once_a_second() {
        let mut shortage = Shortage::default();
        let pauses = [0; 4].map(|_| shortage.next_pause().as_millis());
        assert_eq!(pauses, [50, 100, 200, 200]);
        assert_eq!([0; 3].map(|_| shortage.is_worth_a_line()), [true, false, false]);
    }

    #[tokio::test]
    async fn connections_inherit_the_options_of_their_listener() {
        let options = ServerOptions::default();
        let listener = bind("127.0.0.1:0".parse().unwrap(), &options).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let socket = SockRef::from(&stream);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), options.keepalive_idle);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), options.keepalive_interval);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(options.user_timeout));
        assert_eq!(socket.send_buffer_size().unwrap(), 2 * SOCKET_BUFFER_BYTES);
    }
}
