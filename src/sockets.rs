//! The one way to open a listener. Every listener, for clients, operators or other instances,
//! takes IPv4 on `[::]` as well, with any `net.ipv6.bindv6only`, may bind while
//! connections of an earlier process end, and has the same backlog.
//!
//! A datagram is answered from the address that it was sent to ([`Datagrams`]): a host has many,
//! and a client that asked one of them drops what comes from another (RFC 8489, 6.3.1).

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
};

use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::Interest,
    net::{TcpListener, UdpSocket},
};

use crate::platform;

/// Connections that the kernel completes before they are accepted.
const BACKLOG: i32 = 4096;

/// The most that the kernel hands over at once: one datagram, or several of one sender in a row.
const RECEIVED_BYTES_MAX: usize = 1 << 16;

/// Binds a TCP listener. What `prepare` sets on it is inherited by the connections that it accepts.
/// Must be called within a tokio runtime.
///
/// # Errors
/// If the address is taken, not ours or forbidden.
pub fn listen(
    address: SocketAddr,
    prepare: impl FnOnce(&Socket) -> io::Result<()>,
) -> io::Result<TcpListener> {
    let socket = open(address, Type::STREAM, Protocol::TCP)?;
    // Else the connections of the last process keep the next one out until they are forgotten.
    platform::sockets::reuse_address(&socket)?;
    prepare(&socket)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn open(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// A socket for datagrams that knows to which address of the host each of them was sent.
#[derive(Debug)]
pub struct Datagrams {
    socket: UdpSocket,
    /// `None` if the system does not tell where a datagram was sent to.
    state: Option<UdpSocketState>,
    address: SocketAddr,
}

/// The two ends of a datagram that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Where it came from.
    pub from: SocketAddr,
    /// The address of this host that it was sent to; `None` if the system does not tell.
    pub to: Option<IpAddr>,
}

/// Datagrams that the kernel handed over at once: all of one sender, and to one address.
#[derive(Debug)]
pub struct Received {
    buffer: Box<[u8]>,
    bytes: usize,
    stride: usize,
}

impl Received {
    /// Room for what may come.
    pub fn new() -> Self {
        Self { buffer: vec![0; RECEIVED_BYTES_MAX].into(), bytes: 0, stride: 1 }
    }

    /// Returns the payload of each datagram; one may be empty.
    pub fn payloads(&self) -> impl Iterator<Item = &[u8]> {
        let empty = (self.bytes == 0).then_some(&[][..]);
        empty.into_iter().chain(self.buffer[..self.bytes].chunks(self.stride))
    }
}

impl Default for Received {
    fn default() -> Self {
        Self::new()
    }
}

impl Datagrams {
    /// Binds a socket. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// If the address is taken, not ours or forbidden.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = open(address, Type::DGRAM, Protocol::UDP)?;
        socket.bind(&address.into())?;
        let socket = UdpSocket::from_std(socket.into())?;
        let state = platform::sockets::packet_info((&socket).into())?;
        Ok(Self { address: socket.local_addr()?, state, socket })
    }

    /// Returns where it is bound; port 0 has become the port picked.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits for datagrams. A future that is dropped loses none.
    ///
    /// # Errors
    /// The system's error; the next call may succeed.
    pub async fn receive(&self, into: &mut Received) -> io::Result<Ends> {
        let Some(state) = &self.state else {
            let (bytes, from) = self.socket.recv_from(&mut into.buffer).await?;
            (into.bytes, into.stride) = (bytes, bytes.max(1));
            return Ok(Ends { from, to: None });
        };
        let mut meta = RecvMeta::default();
        let receive = || {
            let mut slices = [IoSliceMut::new(&mut into.buffer)];
            let meta = std::slice::from_mut(&mut meta);
            state.recv((&self.socket).into(), &mut slices, meta)
        };
        self.socket.async_io(Interest::READABLE, receive).await?;
        into.bytes = meta.len;
        into.stride = meta.stride.max(1);
        Ok(Ends { from: meta.addr, to: meta.dst_ip })
    }

    /// Sends an answer back the way that a datagram came, unless the kernel has no room for it.
    /// One that was sent to an address of many hosts (broadcast, multicast) is answered from the
    /// one that the kernel chooses.
    ///
    /// # Errors
    /// The system's error.
    pub fn answer(&self, ends: Ends, contents: &[u8]) -> io::Result<()> {
        let Some(state) = &self.state else {
            return self.socket.try_send_to(contents, ends.from).map(drop);
        };
        let send = |src_ip| {
            let destination = ends.from;
            let transmit =
                Transmit { destination, ecn: None, contents, segment_size: None, src_ip };
            self.socket
                .try_io(Interest::WRITABLE, || state.try_send((&self.socket).into(), &transmit))
        };
        match send(ends.to) {
            Err(error) if ends.to.is_some() && error.kind() != io::ErrorKind::WouldBlock => {
                send(None)
            }
            sent => sent,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket as Client, time::Duration};

    use tokio::{net::TcpStream, time::timeout};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn the_unspecified_ipv6_address_serves_both_families() {
        let listener = listen(at("[::]:0"), |_| Ok(())).unwrap();
        let port = listener.local_addr().unwrap().port();
        let _four = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let _six = TcpStream::connect(("::1", port)).await.unwrap();
    }

    /// A client's connected socket hears only what comes from the address that it asked.
    #[tokio::test]
    async fn answers_leave_from_the_address_that_was_asked() {
        for (bound, asked, own) in [
            ("0.0.0.0:0", "127.0.0.1", "127.0.0.1:0"),
            ("0.0.0.0:0", "127.0.0.2", "127.0.0.1:0"),
            ("127.0.0.3:0", "127.0.0.3", "127.0.0.1:0"),
            ("[::]:0", "127.0.0.2", "127.0.0.1:0"),
            ("[::]:0", "::1", "[::1]:0"),
            ("[::1]:0", "::1", "[::1]:0"),
        ] {
            let datagrams = Datagrams::bind(at(bound)).unwrap();
            let client = Client::bind(own).unwrap();
            client.connect((asked, datagrams.address().port())).unwrap();
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut received = Received::new();
            for payload in [&b"x"[..], b""] {
                client.send(payload).unwrap();
                let ends = timeout(PATIENCE, datagrams.receive(&mut received)).await.unwrap();
                let ends = ends.unwrap();
                assert_eq!(received.payloads().collect::<Vec<_>>(), [payload]);
                assert_eq!(ends.from.port(), client.local_addr().unwrap().port());
                assert_eq!(ends.to.unwrap().to_canonical(), asked.parse::<IpAddr>().unwrap());
                datagrams.answer(ends, b"answer").unwrap();
                let mut answer = [0; 16];
                let bytes = client.recv(&mut answer).unwrap_or_else(|error| {
                    panic!("{bound} asked at {asked}: {error}");
                });
                assert_eq!(&answer[..bytes], b"answer");
            }
        }
    }

    #[tokio::test]
    async fn what_was_sent_to_many_hosts_is_answered() {
        for asked in ["127.255.255.255", "224.0.0.1"] {
            let datagrams = Datagrams::bind(at("0.0.0.0:0")).unwrap();
            let client = Client::bind("127.0.0.1:0").unwrap();
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            client.send_to(b"x", ("127.0.0.1", datagrams.address().port())).unwrap();
            let mut received = Received::new();
            let ends = timeout(PATIENCE, datagrams.receive(&mut received)).await.unwrap().unwrap();
            let ends = Ends { to: asked.parse().ok(), ..ends };
            datagrams.answer(ends, b"answer").unwrap();
            let mut answer = [0; 16];
            assert_eq!(client.recv(&mut answer).unwrap(), 6, "{asked}");
        }
    }

    #[test]
    fn what_came_at_once_is_told_apart() {
        let mut received = Received::new();
        received.buffer[..5].copy_from_slice(b"aabbc");
        (received.bytes, received.stride) = (5, 2);
        assert_eq!(received.payloads().collect::<Vec<_>>(), [&b"aa"[..], b"bb", b"c"]);
    }
}
