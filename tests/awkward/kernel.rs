//! What the kernel knows of the service and of its connections, and how many of them there is
//! room for.

use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpStream},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use emnetchain::clock;

use crate::support::{Service, eventually};

/// Ticks per second in `/proc/PID/stat`, on every Linux.
const TICKS: u64 = 100;

/// Processor time that the service has used since its start.
pub(super) fn cpu_time(service: &Service) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{}/stat", service.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = [11, 12].map(|at: usize| fields[at].parse::<u64>().unwrap()).iter().sum();
    Duration::from_millis(ticks * 1000 / TICKS)
}

/// Waits until the service has accepted every connection to this server, and read every byte that
/// was sent on them.
pub(super) fn expect_read(server: SocketAddr) {
    let server = in_hex(server);
    eventually("the service reads what it was sent", || {
        let table = fs::read_to_string("/proc/net/tcp").unwrap();
        // A line is `number: local remote state unsent:unread …`; of a listener, connections that
        // are not accepted count as unread.
        let all_read = table.lines().all(|line| {
            let mut words = line.split_whitespace().skip(1);
            words.next() != Some(&server) || words.nth(2).unwrap().ends_with(":00000000")
        });
        all_read.then_some(())
    });
}

/// A socket as `/proc/net/tcp` spells it.
fn in_hex(socket: SocketAddr) -> String {
    let IpAddr::V4(ip) = socket.ip() else { panic!("{socket} is not IPv4") };
    format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), socket.port())
}

/// Whether the other side has closed or reset the connection; what it said is left unread.
pub(super) fn has_ended(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let ended = match stream.peek(&mut [0]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    };
    stream.set_nonblocking(false).unwrap();
    ended
}

/// Takes the turn of one crowd: two at a time would share one process's descriptors, and spoil
/// each other's measurements.
pub(super) fn crowd_turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many of the `wanted` connections this process and the service can hold at a time.
pub(super) fn room_for(wanted: usize) -> usize {
    let limits = fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let files = line.split_whitespace().nth(3).unwrap().parse().unwrap_or(usize::MAX);
    let room = wanted.min(files / 2);
    if room < wanted {
        println!("only {room} of {wanted} connections, for a process may open {files} files");
    }
    room
}

/// Memory and processor time of the service, from one point on.
pub(super) struct Cost {
    began: std::time::Instant,
    resident_kib: u64,
    cpu: Duration,
}

impl Cost {
    pub(super) fn begin(service: &Service) -> Self {
        let (resident_kib, cpu) = (service.resident_kib(), cpu_time(service));
        Self { began: clock::now(), resident_kib, cpu }
    }

    /// Prints what it cost, and asserts that resident memory grew by no more than so much.
    pub(super) fn expect_kib(&self, service: &Service, what: &str, kib_max: u64) {
        let grown = service.resident_kib().saturating_sub(self.resident_kib);
        let (cpu, took) = (self.cpu(service), clock::now() - self.began);
        println!("{what}: {grown} KiB more resident memory, {cpu:?} of the processor in {took:?}");
        assert!(grown <= kib_max, "{what}: {grown} KiB more resident memory");
    }

    /// Processor time used since.
    pub(super) fn cpu(&self, service: &Service) -> Duration {
        cpu_time(service) - self.cpu
    }
}
