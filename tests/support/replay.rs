//! Replays a transcript against servers, wherever they are.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use socket2::SockRef;

use crate::{
    support::{PATIENCE, SILENCE},
    transcript::{Piece, Script, Server, Step},
};

/// Where the servers are, and what else can be done with them.
pub(crate) trait Host {
    /// The address of a server.
    fn address(&self, server: Server) -> SocketAddr;
    /// Waits until a figure has this value.
    fn wait(&self, figure: &str, value: u32);
    /// Ends the process as kill -9 does, and starts it over the same data.
    fn restart(&mut self);
}

/// Plays the clients' part, and says what was not so, with its line.
pub(crate) fn replay(script: &Script, host: &mut impl Host) -> Result<(), String> {
    let mut clients = Clients::default();
    for (number, step) in &script.steps {
        clients.play(step, host).map_err(|why| format!("line {number}: {why}"))?;
    }
    clients.expect_nothing_more().map_err(|why| format!("at the end: {why}"))
}

/// The clients' side of all that is open, and what names stand for.
#[derive(Default)]
struct Clients {
    open: BTreeMap<String, Connection>,
    names: BTreeMap<String, Vec<u8>>,
}

impl Clients {
    fn play(&mut self, step: &Step, host: &mut impl Host) -> Result<(), String> {
        match step {
            Step::Open { name, server } => self.open(name, *server, host.address(*server))?,
            Step::Send { name, bytes } => {
                let bytes = self.spell(bytes)?;
                self.get(name)?.send(&bytes).map_err(|error| error.to_string())?;
            }
            Step::Hear { name, bytes } => {
                let connection = self.open.get_mut(name).ok_or(format!("{name} is not open"))?;
                connection.hear(bytes, &mut self.names)?;
            }
            Step::HearEnd { name } => self.get(name)?.hear_end()?,
            Step::Silence { names } => {
                let mut wait = SILENCE;
                for name in names {
                    let connection = self.get(name)?;
                    connection.expect_silence(wait).map_err(|why| format!("{name}: {why}"))?;
                    wait = AT_ONCE; // they were silent while the first was listened to
                }
            }
            Step::HalfClose { name } => self.get(name)?.half_close()?,
            Step::Exit { name } => drop(self.close(name)?),
            Step::Reset { name } => self.close(name)?.reset(),
            Step::Wait { figure, value } => host.wait(figure, *value),
            Step::Restart => {
                self.expect_nothing_more()?;
                self.open.clear();
                host.restart();
            }
        }
        Ok(())
    }

    fn open(&mut self, name: &str, server: Server, address: SocketAddr) -> Result<(), String> {
        let failed = |error: io::Error| format!("{name}: {error}");
        let stream = match server {
            Server::Udp => {
                let local = if address.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
                let local = if address.ip().is_loopback() { local } else { "0.0.0.0:0" };
                let socket = UdpSocket::bind(local).map_err(failed)?;
                socket.connect(address).map_err(failed)?;
                let seen = socket.local_addr().map_err(failed)?;
                self.names.insert(name.to_owned(), seen.to_string().into());
                self.names.insert(format!("{name}.xor"), xor(seen));
                Stream::Udp(socket)
            }
            Server::Chain | Server::Repair | Server::Emnet => {
                let stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(failed)?;
                stream.set_nodelay(true).map_err(failed)?; // each write its own packet
                Stream::Tcp(stream)
            }
        };
        let connection = Connection { stream, unheard: Vec::new(), ended: false };
        match self.open.insert(name.to_owned(), connection) {
            Some(before) if !before.ended => Err(format!("{name} is open already")),
            Some(_) | None => Ok(()),
        }
    }

    fn get(&mut self, name: &str) -> Result<&mut Connection, String> {
        self.open.get_mut(name).ok_or_else(|| format!("{name} is not open"))
    }

    fn close(&mut self, name: &str) -> Result<Connection, String> {
        self.open.remove(name).ok_or_else(|| format!("{name} is not open"))
    }

    fn spell(&self, pieces: &[Piece]) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        for piece in pieces {
            bytes.extend_from_slice(match piece {
                Piece::Bytes(bytes) => bytes,
                Piece::Name(name) => {
                    self.names.get(name).ok_or(format!("nothing is called {name}"))?
                }
            });
        }
        Ok(bytes)
    }

    /// All that was said has been heard, and each that closed was expected to.
    fn expect_nothing_more(&mut self) -> Result<(), String> {
        for (name, connection) in &mut self.open {
            let looked = if connection.ended { Ok(()) } else { connection.expect_silence(AT_ONCE) };
            looked.map_err(|why| format!("{name}: was told more: {why}"))?;
        }
        Ok(())
    }
}

/// No wait at all, as far as sockets can do that.
const AT_ONCE: Duration = Duration::from_millis(1);

/// A connection or a UDP socket.
struct Connection {
    stream: Stream,
    /// What has come and was not asked for yet.
    unheard: Vec<u8>,
    /// The server's FIN was heard.
    ended: bool,
}

enum Stream {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl Connection {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.stream {
            Stream::Tcp(stream) => stream.write_all(bytes),
            Stream::Udp(socket) => socket.send(bytes).map(drop),
        }
    }

    /// Exactly this comes next; of a datagram, nothing else.
    fn hear(
        &mut self,
        pieces: &[Piece],
        names: &mut BTreeMap<String, Vec<u8>>,
    ) -> Result<(), String> {
        let is_datagram = matches!(self.stream, Stream::Udp(_));
        if is_datagram {
            self.receive()?;
        }
        for piece in pieces {
            match piece {
                Piece::Bytes(bytes) => self.hear_bytes(bytes)?,
                Piece::Name(name) => match names.get(name) {
                    Some(bytes) => self.hear_bytes(bytes)?,
                    None => drop(names.insert(name.clone(), self.hear_digits()?)),
                },
            }
        }
        match self.unheard.as_slice() {
            rest if is_datagram && !rest.is_empty() => {
                Err(format!("the datagram goes on: {}", rest.escape_ascii()))
            }
            _ => Ok(()),
        }
    }

    fn hear_bytes(&mut self, expected: &[u8]) -> Result<(), String> {
        loop {
            let known = self.unheard.len().min(expected.len());
            if self.unheard[..known] != expected[..known] {
                return Err(format!(
                    "expected {}, not {}",
                    expected.escape_ascii(),
                    self.unheard.escape_ascii()
                ));
            }
            if known == expected.len() {
                self.unheard.drain(..known);
                return Ok(());
            }
            self.receive_more()?;
        }
    }

    fn hear_digits(&mut self) -> Result<Vec<u8>, String> {
        loop {
            let end = self.unheard.iter().position(|byte| !byte.is_ascii_digit());
            match end {
                Some(0) => {
                    return Err(format!("expected digits, not {}", self.unheard.escape_ascii()));
                }
                Some(end) => return Ok(self.unheard.drain(..end).collect()),
                None => self.receive_more()?,
            }
        }
    }

    fn hear_end(&mut self) -> Result<(), String> {
        if self.unheard.is_empty() && self.receive()? == 0 {
            self.ended = true;
            return Ok(());
        }
        Err(format!("expected the end, not {}", self.unheard.escape_ascii()))
    }

    fn expect_silence(&mut self, wait: Duration) -> Result<(), String> {
        if self.unheard.is_empty() {
            match self.receive_within(wait) {
                Ok(0) if matches!(self.stream, Stream::Tcp(_)) => return Err(CLOSED.to_owned()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.to_string()),
            }
        }
        Err(format!("expected silence, not {}", self.unheard.escape_ascii()))
    }

    fn half_close(&mut self) -> Result<(), String> {
        match &self.stream {
            Stream::Tcp(stream) => {
                stream.shutdown(Shutdown::Write).map_err(|error| error.to_string())
            }
            Stream::Udp(_) => Err("a datagram socket has no half to close".to_owned()),
        }
    }

    fn reset(self) {
        if let Stream::Tcp(stream) = &self.stream {
            SockRef::from(stream).set_linger(Some(Duration::ZERO)).expect("every socket has it");
        }
    }

    /// Waits for the rest of something that has begun.
    fn receive_more(&mut self) -> Result<(), String> {
        match &self.stream {
            Stream::Udp(_) => {
                Err(format!("the datagram ends with {}", self.unheard.escape_ascii()))
            }
            Stream::Tcp(_) => match self.receive()? {
                0 => Err(format!("{CLOSED} after {:?}", self.unheard.escape_ascii().to_string())),
                _ => Ok(()),
            },
        }
    }

    fn receive(&mut self) -> Result<usize, String> {
        self.receive_within(PATIENCE).map_err(|error| {
            let is_silent = error.kind() == ErrorKind::WouldBlock;
            if is_silent { "nothing came".to_owned() } else { error.to_string() }
        })
    }

    fn receive_within(&mut self, wait: Duration) -> io::Result<usize> {
        let mut buffer = [0; 4096];
        let count = match &mut self.stream {
            Stream::Tcp(stream) => {
                stream.set_read_timeout(Some(wait))?;
                stream.read(&mut buffer)?
            }
            Stream::Udp(socket) => {
                socket.set_read_timeout(Some(wait))?;
                socket.recv(&mut buffer)?
            }
        };
        self.unheard.extend_from_slice(&buffer[..count]);
        Ok(count)
    }
}

const CLOSED: &str = "the connection was closed";

/// Port and address as STUN's XOR-MAPPED-ADDRESS has them (IPv4).
fn xor(seen: SocketAddr) -> Vec<u8> {
    let cookie = 0x2112_a442_u32.to_be_bytes();
    let ip = match seen.ip() {
        IpAddr::V4(ip) => ip,
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    };
    let plain = [seen.port().to_be_bytes().as_slice(), &ip.octets()].concat();
    let mask = cookie[..2].iter().chain(&cookie);
    plain.iter().zip(mask).map(|(byte, mask)| byte ^ mask).collect()
}
