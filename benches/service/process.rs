//! A server as a process of its own: started, found by its banner lines, watched from outside
//! through `/proc` (Linux), and ended by its handle and never by its name.

use std::{
    fs,
    io::{self, BufRead, BufReader},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use emnetchain::clock;
use tempfile::TempDir;

use super::{load::Doors, null::Defect};

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
    /// Three of them that are one cluster.
    Cluster {
        /// The executable.
        path: PathBuf,
        /// Arguments beyond those that every run needs.
        arguments: Vec<String>,
    },
}

/// A running server: one process, or three that are one cluster.
#[derive(Debug)]
pub(crate) struct Server {
    /// Where CONNECT is answered.
    pub(crate) chain: Doors,
    /// Where RECONNECT is answered.
    pub(crate) repair: Doors,
    /// When its first process was started.
    pub(crate) started: Instant,
    instances: Vec<Instance>,
}

impl Server {
    /// Starts `program`, whose files are in `directory`; returns once it listens.
    ///
    /// # Errors
    /// If it does not start or ends; with the last it wrote to its standard error.
    pub(crate) fn start(program: &Program, directory: &Path) -> io::Result<Self> {
        let started = clock::now();
        let spawned: Vec<Spawned> = commands(program, directory)?
            .into_iter()
            .map(|(command, log_path)| Spawned::start(command, log_path))
            .collect::<io::Result<_>>()?;
        let instances: Vec<Instance> =
            spawned.into_iter().map(Spawned::listens).collect::<io::Result<_>>()?;
        Ok(Self {
            chain: instances.iter().map(|instance| instance.chain).collect(),
            repair: instances.iter().map(|instance| instance.repair).collect(),
            started,
            instances,
        })
    }

    /// Ends it as a power failure would.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(crate) fn kill(mut self) -> io::Result<()> {
        self.instances.iter_mut().try_for_each(|Instance { child: Process(child), .. }| {
            child.kill()?;
            child.wait().map(drop)
        })
    }

    /// The processor time that it used so far.
    ///
    /// # Errors
    /// If it has ended.
    pub(crate) fn cpu(&self) -> io::Result<Duration> {
        self.instances.iter().map(|instance| cpu_of(&instance.child.0.id().to_string())).sum()
    }

    /// Its resident memory, in bytes.
    ///
    /// # Errors
    /// If it has ended.
    pub(crate) fn resident_bytes(&self) -> io::Result<u64> {
        self.instances.iter().map(|instance| resident_bytes(&instance.child.0)).sum()
    }
}

/// One process, ended by its handle.
#[derive(Debug)]
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One process of a server that listens.
#[derive(Debug)]
struct Instance {
    chain: SocketAddr,
    repair: SocketAddr,
    child: Process,
}

/// One process of a server that was started.
struct Spawned {
    command: Command,
    log_path: PathBuf,
    child: Process,
    stdout: ChildStdout,
}

impl Spawned {
    fn start(mut command: Command, log_path: PathBuf) -> io::Result<Self> {
        command.stdout(Stdio::piped()).stderr(fs::File::create(&log_path)?);
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().expect("it is piped");
        Ok(Self { command, log_path, child: Process(child), stdout })
    }

    fn listens(self) -> io::Result<Instance> {
        let Self { command, log_path, mut child, stdout } = self;
        if let Some((chain, repair)) = banner(stdout) {
            return Ok(Instance { chain, repair, child });
        }
        let _ = child.0.kill();
        let status = child.0.wait()?;
        let log = fs::read_to_string(log_path)?;
        Err(io::Error::other(format!("{command:?} does not listen ({status})\n{log}")))
    }
}

fn resident_bytes(child: &Child) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id()))?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.strip_suffix("kB"));
    let kib = kib.and_then(|kib| kib.trim().parse::<u64>().ok());
    kib.map(|kib| kib * 1024).ok_or_else(|| io::Error::other("no VmRSS"))
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

/// The command of each process, and where its standard error goes.
fn commands(program: &Program, directory: &Path) -> io::Result<Vec<(Command, PathBuf)>> {
    let log = |number: usize| directory.join(format!("stderr-{number}.log"));
    match program {
        Program::Null(defect) => {
            let mut command = Command::new(std::env::current_exe()?);
            command.arg(NULL_SERVER).stdin(Stdio::piped());
            command.args(defect.and_then(|defect| {
                Some(clap::ValueEnum::to_possible_value(&defect)?.get_name().to_owned())
            }));
            Ok(vec![(command, log(1))])
        }
        Program::Service { path, arguments } => {
            Ok(vec![(service(path, directory.join("data"), arguments), log(1))])
        }
        Program::Cluster { path, arguments } => {
            let listeners: Vec<TcpListener> =
                (0..3).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<io::Result<_>>()?;
            let addresses: Vec<String> = listeners
                .iter()
                .map(|listener| listener.local_addr().map(|address| address.to_string()))
                .collect::<io::Result<_>>()?;
            let numbered = (1..).zip(&addresses);
            let members: Vec<String> = numbered.map(|(id, at)| format!("{id}={at}")).collect();
            Ok((1..)
                .zip(&addresses)
                .map(|(id, address)| {
                    let data = directory.join(format!("data-{id}"));
                    let mut command = service(path, data, arguments);
                    command.args(["--node-id", &id.to_string(), "--raft-addr", address]);
                    command.args(["--initial-cluster", &members.join(",")]);
                    (command, log(id))
                })
                .collect())
        }
    }
}

fn service(path: &Path, data: PathBuf, arguments: &[String]) -> Command {
    let mut command = Command::new(path);
    command.args(["-chain-addr", "127.0.0.1:0", "-dis-addr", "127.0.0.1:0"]);
    command.args(["--http-addr", "127.0.0.1:0", "--data-dir"]).arg(data);
    command.args(arguments).stdin(Stdio::null());
    command
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
