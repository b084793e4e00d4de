//! The real program as a child process, and clients that are plain sockets: what all tests of the
//! whole service are made of. Ports are picked by the system, data lives in temporary folders,
//! every wait has a bound, and every process is ended by the handle that started it.

#![allow(dead_code, unreachable_pub, reason = "each test program uses its own part")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says why"
)]

mod chance;
mod finish;
pub mod operator;
pub mod privileged;

#[allow(unused_imports, reason = "not every test program leaves something to chance")]
pub use chance::Chance;
#[allow(unused_imports, reason = "not every test program runs others to their end")]
pub use finish::Finish;

use std::{
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use emnetchain::clock;

/// The longest that anything may take before a test gives up; long, for machines can be busy.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How long to listen before concluding that nothing is said.
pub const SILENCE: Duration = Duration::from_millis(300);

/// An address that no process has, for an instance that keeps it over its restarts: out of the
/// range from which the system gives ports to others.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let tried = || {
        let number = NEXT.fetch_add(1, Ordering::Relaxed) + std::process::id() * 37;
        let port = u16::try_from(10_000 + number % 20_000).expect("in range");
        TcpListener::bind(("127.0.0.1", port)).ok()?.local_addr().ok()
    };
    std::iter::repeat_with(tried).take(20_000).flatten().next().expect("a port is free")
}

/// The service as a child process with its data in a folder.
#[derive(Debug)]
pub struct Service {
    child: Child,
    data_dir: PathBuf,
    arguments: Vec<String>,
    banners: Vec<(String, SocketAddr)>,
    log: Arc<Mutex<String>>,
    log_reader: thread::JoinHandle<()>,
}

impl Service {
    /// Starts the service on free ports and waits for its banner lines.
    pub fn start(data_dir: &Path, arguments: &[&str]) -> Self {
        let arguments: Vec<String> = arguments.iter().map(|text| (*text).to_owned()).collect();
        Self::try_start(data_dir, arguments).unwrap_or_else(|(status, log)| {
            panic!("the service ended at once with {status}:\n{log}");
        })
    }

    /// Starts the service in a process that may open this number of files at most.
    pub fn start_with_files_max(data_dir: &Path, files_max: usize, arguments: &[&str]) -> Self {
        let arguments: Vec<String> = arguments.iter().map(|text| (*text).to_owned()).collect();
        let files_max = files_max.to_string();
        let limited = ["/bin/sh", "-c", r#"ulimit -n "$1"; shift; exec "$@""#, "sh", &files_max];
        Self::try_start_through(&limited, data_dir, arguments).unwrap_or_else(|(status, log)| {
            panic!("the service ended at once with {status}:\n{log}");
        })
    }

    /// Starts the service; its exit status and log if it ends before it serves.
    pub fn try_start(
        data_dir: &Path,
        arguments: Vec<String>,
    ) -> Result<Self, (ExitStatus, String)> {
        Self::try_start_through(&[], data_dir, arguments)
    }

    /// As [`Self::try_start`], through a program that takes the service's command line as its last
    /// arguments and becomes the service (`exec`), so that signals and exit codes are still its.
    pub fn try_start_through(
        wrapper: &[&str],
        data_dir: &Path,
        arguments: Vec<String>,
    ) -> Result<Self, (ExitStatus, String)> {
        Self::try_start_at(ANYWHERE, wrapper, data_dir, arguments)
    }

    /// As [`Self::try_start_through`], with the addresses of the chain server, the repair server
    /// and HTTP.
    pub fn try_start_at(
        addresses: [&str; 3],
        wrapper: &[&str],
        data_dir: &Path,
        arguments: Vec<String>,
    ) -> Result<Self, (ExitStatus, String)> {
        let command = command_at(addresses, wrapper, data_dir, &arguments);
        Self::try_start_as(command, data_dir, arguments)
    }

    /// Starts the service by a command of the test's own. It can be started again only if the
    /// arguments are those of [`Self::try_start`].
    pub fn try_start_as(
        mut command: Command,
        data_dir: &Path,
        arguments: Vec<String>,
    ) -> Result<Self, (ExitStatus, String)> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program can be started");
        let log = Arc::new(Mutex::new(String::new()));
        let log_reader = follow(child.stderr.take().expect("piped"), Arc::clone(&log));
        let lines = lines_of(child.stdout.take().expect("piped"));
        let mut banners = Vec::new();
        // The HTTP line is the last one.
        while banners.last().is_none_or(|(name, _)| name != "HTTP") {
            let line = match lines.recv_timeout(PATIENCE) {
                Ok(line) => line,
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    let status = child.wait().expect("it can be waited for");
                    log_reader.join().expect("the reader does not panic");
                    return Err((status, log.lock().unwrap().clone()));
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    let _ = child.kill();
                    let _ = child.wait();
                    panic!("neither serves nor ends:\n{}", log.lock().unwrap());
                }
            };
            let (name, address) = line.split_once(" Server listening on ").expect("a banner");
            banners.push((name.to_owned(), address.parse().expect("a bound address")));
        }
        let data_dir = data_dir.to_owned();
        Ok(Self { child, data_dir, arguments, banners, log, log_reader })
    }

    /// The address in a banner line, by the server's name.
    pub fn address(&self, server: &str) -> SocketAddr {
        self.banners.iter().find(|(name, _)| name == server).expect("it is announced").1
    }

    /// Whether it told where this server listens.
    pub fn announces(&self, server: &str) -> bool {
        self.banners.iter().any(|(name, _)| name == server)
    }

    /// Where clients send CONNECT.
    pub fn chain(&self) -> SocketAddr {
        self.address("EMNetChain")
    }

    /// Where clients send RECONNECT.
    pub fn repair(&self) -> SocketAddr {
        self.address("EMDisi")
    }

    /// The process id, for looking into `/proc`.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Ends it as `kill -9` does.
    pub fn kill(&mut self) {
        self.child.kill().expect("it runs");
        let status = self.child.wait().expect("it can be waited for");
        self.hear_out();
        assert_eq!(status.signal(), Some(9), "it ended by itself:\n{}", self.log());
    }

    /// Ends it as [`Self::kill`] does, or finds that it has ended by itself.
    pub fn end(&mut self) -> ExitStatus {
        let _ = self.child.kill();
        let status = self.child.wait().expect("it can be waited for");
        self.hear_out();
        status
    }

    /// Kills it and starts it again over the same data.
    pub fn kill_and_restart(mut self) -> Self {
        self.kill();
        self.start_again()
    }

    /// Starts it again over the same data, once it has ended.
    pub fn start_again(&self) -> Self {
        Self::try_start(&self.data_dir, self.arguments.clone())
            .unwrap_or_else(|(status, log)| panic!("it does not start again: {status}\n{log}"))
    }

    /// Sends SIGTERM and waits for the end.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.wait()
    }

    /// Sends a signal by name.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([format!("-{name}"), self.pid().to_string()])
            .status()
            .expect("kill is there");
        assert!(status.success());
    }

    /// Waits for it to end by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let ended = || self.child.try_wait().expect("it can be waited for");
        let status = eventually("the service ends", ended);
        self.hear_out();
        status
    }

    /// Waits until all is read that an ended process has logged. What it was started through may
    /// hold the pipe open for longer, and has nothing to say.
    fn hear_out(&self) {
        let deadline = clock::now() + Duration::from_secs(2);
        while !self.log_reader.is_finished() && clock::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Its exit status, if it ends by itself within a time.
    pub fn wait_within(&mut self, time: Duration) -> Option<ExitStatus> {
        let deadline = clock::now() + time;
        loop {
            let status = self.child.try_wait().expect("it can be waited for");
            if status.is_some() || clock::now() >= deadline {
                return status;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The body of a GET from its HTTP server, and the status code.
    pub fn get(&self, path: &str) -> (u16, String) {
        let mut client = Client::connect(self.address("HTTP"));
        client.send(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"));
        let answer = client.rest();
        let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
        let code = head.split(' ').nth(1).expect("a status line").parse().expect("a code");
        (code, body.to_owned())
    }

    /// One sample of `/metrics`, by its name with labels; 0 if it is not there yet.
    pub fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.get("/metrics");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// Resident memory, in KiB.
    pub fn resident_kib(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Open file descriptors.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- log of the service\n{}", self.log());
        }
    }
}

/// Free ports on loopback.
const ANYWHERE: [&str; 3] = ["127.0.0.1:0"; 3];

/// The command that starts the service, through a wrapper if there is one.
pub fn command(wrapper: &[&str], data_dir: &Path, arguments: &[String]) -> Command {
    command_at(ANYWHERE, wrapper, data_dir, arguments)
}

fn command_at(
    [chain, repair, http]: [&str; 3],
    wrapper: &[&str],
    data_dir: &Path,
    arguments: &[String],
) -> Command {
    let program = env!("CARGO_BIN_EXE_EMNetChain");
    let mut command = match wrapper.split_first() {
        Some((first, rest)) => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
        None => Command::new(program),
    };
    command
        .args(["-dis-addr", repair, "-chain-addr", chain])
        .args(["--http-addr", http, "--data-dir"])
        .arg(data_dir)
        .args(arguments)
        .env_clear();
    command
}

/// The lines of a stream, as they come.
fn lines_of(stream: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    lines
}

fn follow(
    mut stream: impl Read + Send + 'static,
    into: Arc<Mutex<String>>,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            into.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    })
}

/// A client with nothing but a socket.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Client {
    /// Connects, and says nothing.
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&address, PATIENCE).expect("it can be reached");
        stream.set_nodelay(true).unwrap();
        Self { stream, read: Vec::new() }
    }

    /// Connects and sends a text.
    pub fn say(address: SocketAddr, text: impl AsRef<[u8]>) -> Self {
        let mut client = Self::connect(address);
        client.send(text);
        client
    }

    /// Its own side's address.
    pub fn local_address(&self) -> SocketAddr {
        self.stream.local_addr().expect("it is connected")
    }

    /// Sends bytes.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("it can be written to");
    }

    /// Closes the sending side.
    pub fn half_close(&self) {
        self.stream.shutdown(std::net::Shutdown::Write).expect("it is open");
    }

    /// Resets the connection, as a crashed machine that comes back does.
    pub fn reset(self) {
        let socket = socket2::SockRef::from(&self.stream);
        socket.set_linger(Some(Duration::ZERO)).expect("an option of every socket");
    }

    /// The next JSON object; panics at the end of the stream, a reset, or after [`PATIENCE`].
    pub fn object(&mut self) -> String {
        let deadline = clock::now() + PATIENCE;
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'}') {
                let rest = self.read.split_off(end + 1);
                let object = std::mem::replace(&mut self.read, rest);
                return String::from_utf8(object).expect("answers are text");
            }
            assert!(self.fill(deadline) > 0, "the connection was closed instead of an answer");
        }
    }

    /// The next JSON object, or `None` if the other side closes or resets instead.
    pub fn object_or_end(&mut self) -> Option<String> {
        let closed = |client: &Self| matches!(client.stream.peek(&mut [0]), Ok(0) | Err(_));
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        if self.read.is_empty() && closed(self) { None } else { Some(self.object()) }
    }

    /// Everything until the other side closes; panics on a reset, or after [`PATIENCE`].
    pub fn rest(&mut self) -> String {
        let deadline = clock::now() + PATIENCE;
        while self.fill(deadline) > 0 {}
        String::from_utf8(std::mem::take(&mut self.read)).expect("answers are text")
    }

    /// Everything that comes until the other side closes or resets, or the time is over.
    pub fn hear_for(&mut self, time: Duration) -> String {
        let deadline = clock::now() + time;
        let mut buffer = [0; 4096];
        loop {
            let left = deadline.saturating_duration_since(clock::now());
            self.stream.set_read_timeout(Some(left.max(Duration::from_millis(1)))).unwrap();
            match self.stream.read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => break,
                Ok(count) => self.read.extend_from_slice(&buffer[..count]),
            }
        }
        String::from_utf8_lossy(&std::mem::take(&mut self.read)).into_owned()
    }

    /// Asserts that the other side closes without a further byte.
    pub fn expect_end(&mut self) {
        assert_eq!(self.rest(), "", "nothing more was expected");
    }

    /// Asserts that nothing comes and the connection stays open.
    pub fn expect_silence(&mut self) {
        self.stream.set_read_timeout(Some(SILENCE)).unwrap();
        let mut buffer = [0; 64];
        match self.stream.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => self.expect_silence(),
            Ok(count) => panic!("silence was expected, not {:?}", &buffer[..count]),
            Err(error) => assert!(
                matches!(error.kind(), ErrorKind::WouldBlock),
                "silence was expected, not {error}"
            ),
        }
    }

    /// Watches two connections until both have something to read; whether this one was first. The
    /// one that has to be first is looked at last, so that what arrives in between does not count.
    pub fn hears_before(&mut self, later: &mut Self) -> bool {
        let deadline = clock::now() + PATIENCE;
        loop {
            let (later, first) = (later.has_bytes(), self.has_bytes());
            if first || later {
                return first;
            }
            assert!(clock::now() < deadline, "neither was told anything");
        }
    }

    fn has_bytes(&self) -> bool {
        self.stream.set_nonblocking(true).unwrap();
        let has = self.stream.peek(&mut [0]).is_ok_and(|count| count > 0);
        self.stream.set_nonblocking(false).unwrap();
        has
    }

    /// Reads once, and returns how much came.
    fn fill(&mut self, deadline: Instant) -> usize {
        let mut buffer = [0; 4096];
        loop {
            let left = deadline.saturating_duration_since(clock::now());
            self.stream.set_read_timeout(Some(left.max(Duration::from_millis(1)))).unwrap();
            match self.stream.read(&mut buffer) {
                Ok(count) => {
                    self.read.extend_from_slice(&buffer[..count]);
                    return count;
                }
                // A machine that sleeps, or is frozen, interrupts a read that has a timeout.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    panic!("{error} after {:?}", String::from_utf8_lossy(&self.read));
                }
            }
        }
    }
}

/// A member of a chain: two sockets, by convention `127.0.0.1:2n+1024` and the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member(pub u16);

impl Member {
    /// Its head.
    pub fn head(self) -> String {
        format!("127.0.0.1:{}", 1024 + 2 * self.0)
    }

    /// Its tail.
    pub fn tail(self) -> String {
        format!("127.0.0.1:{}", 1025 + 2 * self.0)
    }

    /// Its CONNECT.
    pub fn connect(self) -> String {
        format!(r#"{{"msg":"CONNECT","head":"{}","tail":"{}"}}"#, self.head(), self.tail())
    }
}

/// A RECONNECT.
pub fn reconnect(id: &str, ip: &str) -> String {
    format!(r#"{{"msg":"RECONNECT","id":"{id}","ip":"{ip}"}}"#)
}

/// The chain server's answer.
pub fn told(part: &str, ip: &str) -> String {
    format!(r#"{{"msg":"CONNECT","part":"{part}","ip":"{ip}"}}"#)
}

/// The repair server's answer.
pub fn repaired(ip: &str) -> String {
    format!(r#"{{"msg":"CONNECT","ip":"{ip}"}}"#)
}

/// Connects members one after the other and reads what they are told, so that every member but the
/// last is linked and done. Returns the last one's connection.
pub fn chain(service: &Service, members: &[Member]) -> Client {
    let mut tip: Option<(Member, Client)> = None;
    for member in members {
        let registered = service.metric("emnetchain_clients");
        let mut client = Client::say(service.chain(), member.connect());
        match tip.take() {
            Some((before, mut waiting)) => {
                assert_eq!(client.object(), told("tail", &before.head()));
                assert_eq!(waiting.rest(), told("head", &member.tail()));
            }
            // Nothing tells the first that it has arrived before the second does.
            None => eventually("it is registered", || {
                (service.metric("emnetchain_clients") > registered).then_some(())
            }),
        }
        tip = Some((*member, client));
    }
    tip.expect("at least one member").1
}

/// Polls until there is an answer; panics after [`PATIENCE`].
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = clock::now() + PATIENCE;
    let mut pause = Duration::from_millis(2);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(clock::now() < deadline, "it never came true that {what}");
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50)); // to look costs the service time
    }
}
