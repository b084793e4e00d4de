//! A server as a process of its own: started, found by its banner lines, watched from outside
//! through `/proc` (Linux), and ended by its handle and never by its name.

use std::{
    fs,
    io::{self, BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use emnetchain::clock;
use tempfile::TempDir;

use super::null::Defect;

/// The argument that makes this program a null server.
pub(crate) const NULL_SERVER: &str = "null-server";

/// How long a server may take until it listens; one that replays a long log takes its time.
const START_MAX: Duration = Duration::from_secs(300);

/// The kernel counts processor time for `/proc` in hundredths of a second, on every platform.
const TICK: Duration = Duration::from_millis(10);

/// What to start.
#[derive(Clone, Debug)]
pub(crate) enum Program {
    /// This very program as a null server.
    Null(Option<Defect>),
    /// A server with the command line of EMNetChain.
    Service {
        /// The executable.
        path: PathBuf,
        /// Arguments beyond those that every run needs.
        arguments: Vec<String>,
    },
}

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    /// Where CONNECT is answered.
    pub(crate) chain: SocketAddr,
    /// Where RECONNECT is answered.
    pub(crate) repair: SocketAddr,
    /// When its process was started.
    pub(crate) started: Instant,
    child: Child,
}

impl Server {
    /// Starts `program`, whose files are in `directory`; returns once it listens.
    ///
    /// # Errors
    /// If it does not start or ends; with the last it wrote to its standard error.
    pub(crate) fn start(program: &Program, directory: &Path) -> io::Result<Self> {
        let log_path = directory.join("stderr.log");
        let mut command = command(program, directory)?;
        command.stdout(Stdio::piped()).stderr(fs::File::create(&log_path)?);
        let started = clock::now();
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().expect("it is piped");
        match banner(stdout) {
            Some((chain, repair)) => Ok(Self { chain, repair, started, child }),
            None => {
                let _ = child.kill();
                let status = child.wait()?;
                let log = fs::read_to_string(log_path)?;
                Err(io::Error::other(format!("{command:?} does not listen ({status})\n{log}")))
            }
        }
    }

    /// Ends it as a power failure would.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(crate) fn kill(mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }

    /// The processor time that it used so far.
    ///
    /// # Errors
    /// If it has ended.
    pub(crate) fn cpu(&self) -> io::Result<Duration> {
        cpu_of(&self.child.id().to_string())
    }

    /// Its resident memory, in bytes.
    ///
    /// # Errors
    /// If it has ended.
    pub(crate) fn resident_bytes(&self) -> io::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.strip_suffix("kB"));
        let kib = kib.and_then(|kib| kib.trim().parse::<u64>().ok());
        kib.map(|kib| kib * 1024).ok_or_else(|| io::Error::other("no VmRSS"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A directory for the files of one server, gone with the value.
///
/// # Errors
/// If it cannot be made.
pub(crate) fn fresh_directory() -> io::Result<TempDir> {
    tempfile::Builder::new().prefix("emnetchain-bench-").tempdir()
}

/// The processor time that this process used so far.
///
/// # Errors
/// If `/proc` is not there.
pub(crate) fn own_cpu() -> io::Result<Duration> {
    cpu_of("self")
}

/// How many files this process, and so a server that it starts, may open.
///
/// # Errors
/// If `/proc` is not there.
pub(crate) fn files_max() -> io::Result<usize> {
    let limits = fs::read_to_string("/proc/self/limits")?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().next());
    match soft {
        Some("unlimited") => Ok(usize::MAX),
        Some(number) => number.parse().map_err(io::Error::other),
        None => Err(io::Error::other("no limit of open files")),
    }
}

/// The bytes of all files below `directory`.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn bytes_on_disk(directory: &Path) -> io::Result<u64> {
    fs::read_dir(directory)?.try_fold(0, |sum, entry| {
        let entry = entry?;
        let metadata = entry.metadata()?;
        let bytes = if metadata.is_dir() { bytes_on_disk(&entry.path())? } else { metadata.len() };
        Ok(sum + bytes)
    })
}

fn command(program: &Program, directory: &Path) -> io::Result<Command> {
    match program {
        Program::Null(defect) => {
            let mut command = Command::new(std::env::current_exe()?);
            command.arg(NULL_SERVER).stdin(Stdio::piped());
            command.args(defect.and_then(|defect| {
                Some(clap::ValueEnum::to_possible_value(&defect)?.get_name().to_owned())
            }));
            Ok(command)
        }
        Program::Service { path, arguments } => {
            let mut command = Command::new(path);
            command.args(["-chain-addr", "127.0.0.1:0", "-dis-addr", "127.0.0.1:0"]);
            command.args(["--http-addr", "127.0.0.1:0", "--data-dir"]);
            command.arg(directory.join("data")).args(arguments).stdin(Stdio::null());
            Ok(command)
        }
    }
}

/// The chain and the repair server's address from the two banner lines; `None` if the output ends
/// before them. The rest of the output is read and dropped, so that the server never blocks on it.
fn banner(stdout: ChildStdout) -> Option<(SocketAddr, SocketAddr)> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let (mut chain, mut repair) = (None, None);
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let address = |name| line.strip_prefix(name)?.trim().parse::<SocketAddr>().ok();
            chain = chain.or_else(|| address("EMNetChain Server listening on "));
            repair = repair.or_else(|| address("EMDisi Server listening on "));
            if let (Some(chain), Some(repair)) = (chain, repair) {
                let _ = sender.send((chain, repair));
            }
        }
    });
    receiver.recv_timeout(START_MAX).ok()
}

fn cpu_of(process: &str) -> io::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let (_, after_name) = stat.rsplit_once(')').ok_or_else(|| io::Error::other("no stat"))?;
    // proc_pid_stat(5): utime and stime are fields 14 and 15; the name is field 2.
    let ticks = after_name.split_whitespace().skip(11).take(2).flat_map(str::parse::<u32>);
    Ok(TICK * ticks.sum::<u32>())
}
