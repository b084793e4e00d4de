//! The null server: the seed's protocol with nothing behind it. No disk, no replicas, no limits,
//! no care for clients that leave; one thread, and the fewest system calls that will do. Whatever
//! it takes is the price of connections on this machine, so that the rest of a real server's time
//! is the price of what the real server promises.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    future,
    io::{self, Read},
    net::SocketAddr,
    rc::Rc,
};

use serde::Deserialize;
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    task::{LocalSet, spawn_local},
};

/// How many answers a defective server gives right between two wrong ones.
const DEFECT_EVERY: u64 = 100;

/// A bug on purpose, to see that it is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Defect {
    /// Now and then an answer is not sent.
    Drop,
    /// Now and then the wrong one of two sockets is told.
    Swap,
}

/// Serves in this process, until standard input ends: the parent holds its other end, so a null
/// server does not outlive the benchmark.
///
/// # Errors
/// If it cannot bind.
#[expect(clippy::print_stdout, reason = "the banner lines are how the parent finds the ports")]
pub(crate) fn main(defect: Option<Defect>) -> io::Result<()> {
    std::thread::spawn(|| {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let (chain, repair) = start(defect)?;
        println!("EMNetChain Server listening on {chain}");
        println!("EMDisi Server listening on {repair}");
        future::pending().await
    })
}

/// Serves on this thread's [`LocalSet`]; the addresses of the chain and the repair server.
///
/// # Errors
/// If it cannot bind.
pub(crate) fn start(defect: Option<Defect>) -> io::Result<(SocketAddr, SocketAddr)> {
    let state = Rc::new(RefCell::new(State { defect, ..State::default() }));
    let (chain, repair) = (listen()?, listen()?);
    let addresses = (chain.local_addr()?, repair.local_addr()?);
    spawn_local(accept(chain, state.clone()));
    spawn_local(accept(repair, state));
    Ok(addresses)
}

/// A backlog that a thousand clients at once do not overflow; tokio's own is 1024.
fn listen() -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    socket.listen(4096)
}

async fn accept(listener: TcpListener, state: Rc<RefCell<State>>) {
    loop {
        let (stream, _) = listener.accept().await.expect("the run stays below the limit of files");
        spawn_local(serve(stream, state.clone()));
    }
}

async fn serve(stream: TcpStream, state: Rc<RefCell<State>>) {
    let mut buffer = [0; 1024];
    let mut filled = 0;
    while filled < buffer.len() && stream.readable().await.is_ok() {
        match stream.try_read(&mut buffer[filled..]) {
            Ok(0) => return,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => return,
        }
        if let Ok(request) = serde_json::from_slice::<Request<'_>>(&buffer[..filled]) {
            return state.borrow_mut().answer(request, stream);
        }
    }
}

#[derive(Deserialize)]
#[serde(tag = "msg")]
enum Request<'a> {
    #[serde(rename = "CONNECT")]
    Connect { head: &'a str, tail: &'a str },
    #[serde(rename = "RECONNECT")]
    Reconnect { id: &'a str, ip: &'a str },
}

#[derive(Default)]
struct State {
    tip: Option<Tip>,
    waiting: BTreeMap<String, (String, TcpStream)>,
    defect: Option<Defect>,
    answers: u64,
}

struct Tip {
    head: String,
    tail: String,
    stream: TcpStream,
}

impl State {
    fn answer(&mut self, request: Request<'_>, stream: TcpStream) {
        match request {
            Request::Connect { head, tail } => self.join(head, tail, stream),
            Request::Reconnect { id, ip } => self.pair(id, ip, stream),
        }
    }

    fn join(&mut self, head: &str, tail: &str, stream: TcpStream) {
        if let Some(tip) = self.tip.take() {
            let tip_head = if self.errs(Defect::Swap) { &tip.tail } else { &tip.head };
            let answer = format!(r#"{{"msg":"CONNECT","part":"head","ip":"{tail}"}}"#);
            self.send(&tip.stream, &answer);
            let answer = format!(r#"{{"msg":"CONNECT","part":"tail","ip":"{tip_head}"}}"#);
            self.send(&stream, &answer);
        }
        self.tip = Some(Tip { head: head.to_owned(), tail: tail.to_owned(), stream });
    }

    fn pair(&mut self, id: &str, ip: &str, stream: TcpStream) {
        let Some((other, other_stream)) = self.waiting.remove(id) else {
            self.waiting.insert(id.to_owned(), (ip.to_owned(), stream));
            return;
        };
        let (first, second) = if self.errs(Defect::Swap) { (ip, &*other) } else { (&*other, ip) };
        self.send(&stream, &format!(r#"{{"msg":"CONNECT","ip":"{first}"}}"#));
        self.send(&other_stream, &format!(r#"{{"msg":"CONNECT","ip":"{second}"}}"#));
    }

    /// Answers fit any socket's buffer, so this never waits; a client that is gone is not told.
    fn send(&mut self, stream: &TcpStream, answer: &str) {
        if !self.errs(Defect::Drop) {
            let _ = SockRef::from(stream).send(answer.as_bytes());
        }
    }

    fn errs(&mut self, defect: Defect) -> bool {
        if self.defect != Some(defect) {
            return false;
        }
        self.answers += 1;
        self.answers.is_multiple_of(DEFECT_EVERY)
    }
}
