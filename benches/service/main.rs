//! The service from outside: links, repairs and waiting clients over TCP, against a null server
//! that does nothing but speak the protocol. `benches/README.md` tells how to read the figures.
//!
//! Three processes on one machine: this one, which is the load on one thread; the null server,
//! which is this program again; and the service. Null server and service take turns, with a fresh
//! process and fresh files for every figure, so that both meet the same minute of the machine.

#![expect(clippy::print_stdout, reason = "progress is printed as it is made")]
#![expect(clippy::print_stderr, reason = "what went wrong belongs to standard error")]

mod fill;
mod hold;
mod ledger;
mod load;
mod null;
mod process;
mod protocol;
mod report;

use std::{io, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, ValueEnum};
use fill::fill;
use hold::{Held, hold};
use ledger::Wrongs;
use load::{Extent, Outcome, Plan};
use null::Defect;
use process::{Program, Server};
use report::{Table, median, milliseconds, ratio, whole};

/// Files that a server needs beside its clients' connections.
const FILES_SPARE: usize = 500;

/// Measures the service against a null server.
#[derive(Debug, Parser)]
#[command(name = "service")]
struct Options {
    /// What to measure.
    #[arg(value_enum, default_values_t = [Job::Links, Job::Repairs, Job::Hold])]
    jobs: Vec<Job>,
    /// Links or repairs under way at once; one figure for each.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 64, 1024])]
    clients: Vec<usize>,
    /// How often null server and service take turns.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How long one figure is measured, in seconds, after a warm-up of a third of that.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// How many clients the job `hold` lets wait.
    #[arg(long, value_name = "CLIENTS", default_value_t = 10_000)]
    hold: usize,
    /// How long the job `hold` watches them wait, in seconds.
    #[arg(long, default_value_t = 5.0)]
    idle_seconds: f64,
    /// How many links the job `fill` makes.
    #[arg(long, value_name = "LINKS", default_value_t = 1_000_000)]
    fill: usize,
    /// How long a standstill lasts before a run is given up, in seconds.
    #[arg(long, default_value_t = 15.0)]
    patience_seconds: f64,
    /// The server's executable, or `null` to measure the null server against itself.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_EMNetChain"))]
    server: PathBuf,
    /// A further argument for the server; may be given more than once.
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    server_argument: Vec<String>,
    /// Measures three instances as well, with clients on all of them in turn.
    #[arg(long)]
    three: bool,
    /// Gives the null server a bug, to see that it is found.
    #[arg(long, hide = true)]
    null_fault: Option<Defect>,
    /// Passed by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Job {
    /// A full registry, killed and started again (not by default: it takes minutes).
    Fill,
    /// Clients that wait.
    Hold,
    /// Newcomers to one chain.
    Links,
    /// Pairs of orphans with a common id.
    Repairs,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(process::NULL_SERVER) {
        let defect = arguments.next().and_then(|name| Defect::from_str(&name, false).ok());
        return exit_code(null::main(defect).map(|()| true));
    }
    exit_code(measure(&Options::parse()))
}

/// 0 if all was right, 1 if a server erred, 2 if measuring was not possible.
fn exit_code(all_right: io::Result<bool>) -> ExitCode {
    match all_right {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

/// Runs all jobs; whether every answer of every server was right.
fn measure(options: &Options) -> io::Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut bench = Bench { options, runtime, wrongs: Wrongs::default() };
    let timed: Vec<Job> =
        [Job::Links, Job::Repairs].into_iter().filter(|job| options.jobs.contains(job)).collect();
    if !timed.is_empty() {
        bench.timed(&timed)?.print();
    }
    if options.jobs.contains(&Job::Hold) {
        bench.held()?.print();
    }
    if options.jobs.contains(&Job::Fill) {
        bench.filled()?.print();
    }
    let all_right = bench.wrongs.total() == 0;
    println!("{}", if all_right { "all answers were right" } else { "SOME ANSWERS WERE WRONG" });
    Ok(all_right)
}

struct Bench<'a> {
    options: &'a Options,
    runtime: tokio::runtime::Runtime,
    wrongs: Wrongs,
}

/// One figure of one server, with the processor time of both sides in percent of one core.
struct Figure {
    outcome: Outcome,
    load_percent: f64,
    server_percent: f64,
}

impl Bench<'_> {
    /// Null server first.
    fn programs(&self) -> Vec<(&'static str, Program)> {
        let options = self.options;
        let null = Program::Null(options.null_fault);
        if options.server.as_os_str() == "null" {
            return vec![("null", null.clone()), ("null again", null)];
        }
        let (path, arguments) = (options.server.clone(), options.server_argument.clone());
        let service = Program::Service { path: path.clone(), arguments: arguments.clone() };
        let mut programs = vec![("null", null), ("service", service)];
        if options.three {
            programs.push(("three", Program::Cluster { path, arguments }));
        }
        programs
    }

    fn patience(&self) -> Duration {
        Duration::from_secs_f64(self.options.patience_seconds)
    }

    /// Adds to what was wrong, and says so at once.
    fn note(&mut self, name: &str, wrongs: &Wrongs) {
        if wrongs.total() > 0 {
            eprintln!("  {name} was wrong: {wrongs}");
            self.wrongs.merge(wrongs);
        }
    }

    fn timed(&mut self, jobs: &[Job]) -> io::Result<Table> {
        let mut table = Table::new(&[
            "job",
            "server",
            "clients",
            "per s",
            "p50 ms",
            "p99 ms",
            "CPU load",
            "CPU server",
            "wrong",
            "null/it",
        ]);
        for job in jobs {
            for clients in &self.options.clients {
                self.timed_rows(*job, *clients, &mut table)?;
            }
        }
        Ok(table)
    }

    /// The rows of one job at one size of the window.
    fn timed_rows(&mut self, job: Job, clients: usize, table: &mut Table) -> io::Result<()> {
        check_files(2 * clients)?;
        let label = if job == Job::Links { "links" } else { "repairs" };
        let programs = self.programs();
        let mut figures: Vec<Vec<Figure>> = programs.iter().map(|_| Vec::new()).collect();
        for round in 1..=self.options.rounds {
            for ((name, program), figures) in programs.iter().zip(&mut figures) {
                let figure = self.figure(job, clients, program)?;
                let per_second = whole(figure.outcome.per_second);
                println!(
                    "{label} {clients:>5} clients, round {round}: {name:10} {per_second:>8}/s"
                );
                self.note(name, &figure.outcome.wrongs);
                figures.push(figure);
            }
        }
        let null: Vec<f64> = figures[0].iter().map(|figure| figure.outcome.per_second).collect();
        for (place, ((name, _), figures)) in programs.iter().zip(&figures).enumerate() {
            let rates = null.iter().zip(figures);
            let slower: Vec<f64> = rates.map(|(null, it)| null / it.outcome.per_second).collect();
            let ratio = if place == 0 { "1".to_owned() } else { ratio(&slower) };
            let middle =
                |of: fn(&Figure) -> f64| median(figures.iter().map(of).collect::<Vec<_>>());
            let wrong: u64 = figures.iter().map(|figure| figure.outcome.wrongs.total()).sum();
            table.row(vec![
                label.to_owned(),
                (*name).to_owned(),
                clients.to_string(),
                whole(middle(|figure| figure.outcome.per_second)),
                milliseconds(middle(|figure| figure.outcome.p50_ms)),
                milliseconds(middle(|figure| figure.outcome.p99_ms)),
                whole(middle(|figure| figure.load_percent)),
                whole(middle(|figure| figure.server_percent)),
                wrong.to_string(),
                ratio,
            ]);
        }
        Ok(())
    }

    /// One figure, of a fresh server.
    fn figure(&self, job: Job, clients: usize, program: &Program) -> io::Result<Figure> {
        let measured = Duration::from_secs_f64(self.options.seconds);
        let extent = Extent::Time { warm_up: measured / 3, measured };
        let plan = Plan { clients, extent, patience: self.patience() };
        let directory = process::fresh_directory()?;
        let server = Server::start(program, directory.path())?;
        let mut cpu = Vec::new();
        let mut edge = || cpu.push((process::own_cpu(), server.cpu()));
        let outcome = self.runtime.block_on(async {
            if job == Job::Links {
                load::links(&plan, &server.chain, &mut edge).await.0
            } else {
                load::repairs(&plan, &server.repair, &mut edge).await
            }
        });
        let (mut load_percent, mut server_percent) = (0.0, 0.0);
        for (sign, (load, server)) in [-1.0, 1.0].into_iter().zip(cpu) {
            let percent = |cpu: Duration| sign * 100.0 * cpu.as_secs_f64() / self.options.seconds;
            load_percent += percent(load?);
            server_percent += percent(server?);
        }
        Ok(Figure { outcome, load_percent, server_percent })
    }

    fn held(&mut self) -> io::Result<Table> {
        let options = self.options;
        check_files(options.hold)?;
        let idle = Duration::from_secs_f64(options.idle_seconds);
        let mut table = Table::new(&[
            "job",
            "server",
            "waiting",
            "MB before",
            "bytes each",
            "CPU idle",
            "wrong",
        ]);
        for (name, program) in self.programs() {
            let mut rounds = Vec::new();
            for _ in 0..options.rounds {
                let directory = process::fresh_directory()?;
                let server = Server::start(&program, directory.path())?;
                let run = hold(&server, options.hold, idle, self.patience());
                let held = self.runtime.block_on(run)?;
                self.note(name, &held.wrongs);
                rounds.push(held);
            }
            let middle = |of: fn(&Held) -> f64| median(rounds.iter().map(of).collect::<Vec<_>>());
            table.row(vec![
                "hold".to_owned(),
                name.to_owned(),
                whole(options.hold as f64),
                format!("{:.1}", middle(|held| held.bytes_before) / 1e6),
                whole(middle(|held| held.bytes_each)),
                format!("{:.1}", middle(|held| held.idle_percent)),
                rounds.iter().map(|held| held.wrongs.total()).sum::<u64>().to_string(),
            ]);
        }
        Ok(table)
    }

    /// The null server has no part in this: it forgets everything.
    fn filled(&mut self) -> io::Result<Table> {
        let (name, program) = self.programs().swap_remove(1);
        if matches!(program, Program::Null(_)) {
            return Err(io::Error::other("a null server keeps nothing: `fill` needs the service"));
        }
        let filled = self.runtime.block_on(fill(&program, self.options.fill, self.patience()))?;
        self.note(name, &filled.wrongs);
        let mut table = Table::new(&[
            "job",
            "server",
            "links",
            "per s",
            "RSS MB",
            "disk MB",
            "ms to listen",
            "ms to answer",
            "RSS MB again",
            "wrong",
        ]);
        table.row(vec![
            "fill".to_owned(),
            name.to_owned(),
            whole(self.options.fill as f64),
            whole(filled.per_second),
            whole(filled.resident_bytes as f64 / 1e6),
            whole(filled.disk_bytes as f64 / 1e6),
            whole(filled.until_listening.as_secs_f64() * 1000.0),
            whole(filled.until_answer.as_secs_f64() * 1000.0),
            whole(filled.resident_bytes_again as f64 / 1e6),
            filled.wrongs.total().to_string(),
        ]);
        Ok(table)
    }
}

/// Refuses a run that would meet the limit of open files half-way.
fn check_files(connections: usize) -> io::Result<()> {
    let (needed, allowed) = (connections + FILES_SPARE, process::files_max()?);
    if needed <= allowed {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "{connections} connections need {needed} files but only {allowed} may be open: \
         raise the limit (ulimit -n {needed}) or ask for less"
    )))
}
