//! The command line: what the operator asked for, and how the process answers with its exit code.
//!
//! The seed's own line, `EMNetChain -dis-addr A -chain-addr B`, and its two prompts are served as
//! ever. Each fault is said in one line for each fault on standard error, and nothing
//! has started then. Arguments that the seed would have ignored are refused, because they are
//! slips.

mod backup;
mod call;
mod cluster;
mod line;
mod table;
mod view;

use std::{
    ffi::{OsStr, OsString},
    io::{self, BufRead as _, Read as _},
    path::PathBuf,
};

use clap::ArgMatches;

use self::cluster::Failure;

use crate::{
    cluster::{tcp::check_files, transport::NodeName},
    config::{Config, Faults, Sources},
    console::{Exit, Unsaid, complain, say, try_say},
    ids::InstanceId,
};

/// The task that is left when the command line is read.
#[derive(Debug)]
pub enum Task {
    /// Write the registry of a stopped instance into a new file.
    Backup {
        /// Its data directory.
        data_dir: PathBuf,
        /// The file.
        file: PathBuf,
    },
    /// Check the data directory.
    Check {
        /// Which one.
        data_dir: PathBuf,
    },
    /// Nothing: it is done.
    Nothing(Exit),
    /// Found a new cluster with the registry of a backup.
    Restore {
        /// The backup.
        file: PathBuf,
        /// The new data directory.
        data_dir: PathBuf,
        /// The number of the instance in it.
        node: InstanceId,
    },
    /// Serve.
    Serve {
        /// The configuration.
        config: Box<Config>,
        /// Where it came from, to read it again.
        sources: Sources,
    },
}

/// Reads the command line of this process and does what can be done at once.
pub fn start() -> Task {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let is_bare = arguments.len() <= 1;
    match line::command().try_get_matches_from(line::with_two_dashes(arguments)) {
        Ok(matches) => match carry_out(&matches, is_bare) {
            Ok(task) => task,
            Err(line) => refuse(&line),
        },
        Err(error) if !error.use_stderr() => Task::Nothing(say(&error.render().to_string())),
        Err(error) => refuse(&line::fault(&error)),
    }
}

fn carry_out(matches: &ArgMatches, is_bare: bool) -> Result<Task, String> {
    let mut sources = Sources::default();
    sources.give_environment(|name| std::env::var_os(name));
    let mut file = std::env::var_os("EMNETCHAIN_CONFIG").filter(|path| !path.is_empty());
    let by_environment = file.clone();
    let words = collect_flags(matches, &mut sources, &mut file)?;
    // A command that is told which instance to ask needs no file. The service's own, which the
    // environment names to all, may be one that its caller cannot read.
    let is_told = sources.gives(Config::key("http_addr").expect("it is a key"));
    let is_asking = words.first().is_some_and(|word| ASKING.contains(&word.as_str()));
    let is_dispensable = is_told && is_asking && file == by_environment;
    let is_there = |file: &OsString| std::fs::File::open(file).is_ok();
    if let Some(file) = file.filter(|file| !is_dispensable || is_there(file)) {
        sources.give_file(file.into());
    }
    let operand = line::operand(matches);
    let file = || operand.clone().map(PathBuf::from).expect("it is refused without");
    let faults = |faults: Faults| faults.to_string();
    match words.join(" ").as_str() {
        "backup" if !sources.is_flag(Config::key("data_dir").expect("it is a key")) => {
            Ok(Task::Nothing(backup::run(&file(), &sources)))
        }
        "backup" => {
            let data_dir = sources.read_key("data_dir").map_err(faults)?;
            Ok(Task::Backup { data_dir, file: file() })
        }
        "check" => Ok(Task::Check { data_dir: sources.read_key("data_dir").map_err(faults)? }),
        "config check" => {
            let names: Vec<OsString> = std::env::vars_os().map(|(name, _)| name).collect();
            let names = names.iter().filter_map(|name| name.to_str());
            let config = sources.check(names).map_err(faults)?;
            if let Some(files) = config.tls_files() {
                let name = |cluster| NodeName { cluster, node: config.node_id };
                let me = config.founded_cluster().map(name);
                check_files(&files, me).map_err(|error| error.to_string())?;
            }
            Ok(Task::Nothing(say("the configuration is good\n")))
        }
        "config print" => Ok(Task::Nothing(say(&sources.page().map_err(faults)?))),
        "restore" => {
            let data_dir = sources.read_key("data_dir").map_err(faults)?;
            let node = sources.read_key("node_id").map_err(faults)?;
            Ok(Task::Restore { file: file(), data_dir, node })
        }
        "id" => Ok(Task::Nothing(say(&format!("{:032x}\n", random_id()?)))),
        command if command.starts_with("cluster ") => {
            let command = command.trim_start_matches("cluster ");
            let operand = operand.as_ref().and_then(|text| text.to_str()).map(str::trim);
            answered(cluster::run(command, operand, line::wants_json(matches), &sources))
        }
        command @ ("chain list" | "chain show" | "explain") => {
            answered(view::run(command, matches, &sources))
        }
        _ => {
            if is_bare {
                ask_for_addresses(&mut sources)?;
            }
            let config = Box::new(sources.read().map_err(faults)?);
            Ok(Task::Serve { config, sources })
        }
    }
}

/// The commands that ask a running instance, by their first words.
const ASKING: [&str; 4] = ["backup", "chain", "cluster", "explain"];

/// Returns the end of a command that a running instance answers.
fn answered(answer: Result<(), Failure>) -> Result<Task, String> {
    Ok(Task::Nothing(match answer {
        Ok(()) => Exit::Clean,
        Err(Failure::Usage(why)) => return Err(why),
        Err(Failure::Instance(why)) => {
            complain(&why);
            Exit::Unavailable
        }
        Err(Failure::Output(Unsaid)) => Exit::Disk,
    }))
}

/// Moves the flags into the sources, from the outermost word to the innermost, and returns the
/// words of the command.
fn collect_flags(
    matches: &ArgMatches,
    sources: &mut Sources,
    file: &mut Option<OsString>,
) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut given = Vec::new();
    let mut level = Some(matches);
    while let Some(matches) = level {
        for id in matches.ids().map(clap::Id::as_str) {
            if line::OWN.contains(&id) {
                continue;
            }
            let Some(values) = matches.get_many::<OsString>(id) else { continue };
            // A list is given by one flag, or by several.
            let values: Vec<_> = values.map(OsString::as_os_str).collect();
            let value = values.join(OsStr::new(","));
            if given.contains(&id) {
                return Err(format!("--{} is given twice", id.replace('_', "-")));
            }
            given.push(id);
            match Config::key(id) {
                Some(key) => sources.give_flag(key, value),
                None => *file = Some(value),
            }
        }
        level = matches.subcommand().map(|(word, matches)| {
            words.push(word.to_owned());
            matches
        });
    }
    Ok(words)
}

/// Asks the seed's two questions, for what neither the environment nor a file answers.
fn ask_for_addresses(sources: &mut Sources) -> Result<(), String> {
    let questions = [
        ("dis_addr", "insert ipv4:port for emdisi server :"),
        ("chain_addr", "insert ipv4:port for emnetchain server "),
    ];
    for (name, question) in questions {
        let key = Config::key(name).expect("the seed's addresses are keys");
        if sources.gives(key) {
            continue;
        }
        // An answer can be typed without the question.
        drop(try_say(&format!("{question}\n")));
        let mut line = Vec::new();
        let answer = io::stdin().lock().take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
        if answer.is_err() || line.is_empty() {
            let (flag, value) = (key.flag(), key.placeholder);
            return Err(format!(
                "--{flag} is missing: the input ended before an address was typed; type one, or \
                 give --{flag} {value}"
            ));
        }
        let line = String::from_utf8_lossy(&line);
        sources.give_flag(key, line.trim().into());
    }
    Ok(())
}

/// A typed address, in bytes: many times the longest one.
const LINE_BYTES_MAX: u64 = 1024;

/// 128 random bits: unique without asking an instance.
fn random_id() -> Result<u128, String> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|error| format!("the system has no random bits: {error}"))?;
    Ok(u128::from_ne_bytes(id))
}

fn refuse(lines: &str) -> Task {
    lines.lines().for_each(complain);
    Task::Nothing(Exit::Usage)
}
