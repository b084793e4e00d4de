//! The form of the command line: commands, flags and `--help`, made from the keys of the
//! configuration, and one line of complaint for what does not have that form.

use std::ffi::OsString;

use clap::{
    Arg, ArgAction, ArgMatches, Command, ValueHint,
    error::{ContextKind, ErrorKind},
    value_parser,
};

use crate::config::{Config, Key, Preset};

/// Returns the whole command line, made from the keys of the configuration.
pub(super) fn command() -> Command {
    let check = Command::new("check").about("Checks the configuration and lists every fault in it");
    let print =
        Command::new("print").about("Prints a configuration file in which every key is explained");
    let config = Command::new("config")
        .about("Checks or prints the configuration")
        .subcommand_required(true)
        .subcommand(with_settings(check))
        .subcommand(with_settings(print));
    let serve = Command::new("serve")
        .about("Runs the service until SIGTERM or SIGINT (the default command)");
    let check = Command::new("check").about("Checks the data directory of a stopped instance");
    let backup = Command::new("backup")
        .about("Saves the registry of an instance, running or stopped, to a new file")
        .long_about(BACKUP)
        .arg(operand_arg("FILE", true, "The file to write; an existing file is never overwritten"));
    let restore = Command::new("restore")
        .about("Creates a data directory for a new cluster from a backup")
        .arg(operand_arg("FILE", true, "The backup, or a .snap file from a data directory"));
    let explain = Command::new("explain")
        .about("Explains a socket: what it is linked to, since when and why, or what it waits for")
        .arg(operand_arg("IP:PORT", true, "The head or the tail socket of a client"));
    let id = Command::new("id").about("Prints a new, unique repair id");
    with_settings(Command::new("EMNetChain"))
        .bin_name("EMNetChain")
        .version(env!("CARGO_PKG_VERSION"))
        .about(ABOUT)
        .after_help(AFTER_HELP)
        .subcommand(with_settings(serve))
        .subcommand(with_keys(backup, &["http_addr", "admin_token_file", "data_dir"]))
        .subcommand(with_keys(restore, &["data_dir", "node_id"]))
        .subcommand(with_keys(check, &["data_dir"]))
        .subcommand(chain())
        .subcommand(with_keys(explain, &AT).arg(json()))
        .subcommand(cluster())
        .subcommand(config)
        .subcommand(id)
}

/// The keys of commands that a running instance answers.
const AT: [&str; 2] = ["http_addr", "admin_token_file"];

/// Returns the commands that look at chains.
fn chain() -> Command {
    let option = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).value_parser(value_parser!(OsString)).help(help)
    };
    let list = Command::new("list").about("Lists the chains, largest first");
    let broken = Arg::new("broken")
        .long("broken")
        .action(ArgAction::SetTrue)
        .help("Only chains with broken links, most broken first");
    let show = Command::new("show").about("Lists the clients of a chain, oldest first");
    let name = operand_arg("NAME", false, "The chain's name [default: the unnamed chain]");
    Command::new("chain")
        .about("Shows the chains in a running cluster")
        .subcommand_required(true)
        .subcommand(
            with_keys(list, &AT)
                .arg(broken)
                .arg(option("limit", "COUNT", "The most chains to list [default: 100]"))
                .arg(json()),
        )
        .subcommand(
            with_keys(show, &AT)
                .arg(name)
                .arg(option(
                    "at",
                    "IP:PORT",
                    "The part of the chain around the client with this socket",
                ))
                .arg(option(
                    "from",
                    "SERIAL",
                    "The serial number of the first client to list [default: the oldest]",
                ))
                .arg(option("limit", "COUNT", "The most clients to list [default: 50]"))
                .arg(json()),
        )
}

/// Returns the commands that look at a running cluster or change it.
fn cluster() -> Command {
    let named = |name, about| Command::new(name).about(about);
    let with = |command, required, placeholder, help| {
        with_keys(command, &AT).arg(operand_arg(placeholder, required, help))
    };
    let add = named("add", "Adds an instance as a learner, or changes a member's address");
    let promote = named("promote", "Makes a learner a voter, once it has caught up");
    let remove = named("remove", "Removes a member for good; its number is never used again");
    let transfer = named("transfer-leader", "Hands the leadership to another voter");
    let drain = named("drain", "Takes one instance out of service before it is stopped");
    let upgrade =
        named("upgrade", "Raises the rules version to the newest that every member knows");
    let certs =
        named("certs", "Creates a certificate authority and a certificate for each instance");
    let reached = "The instance's number, and the address of its raft listener";
    let leader = "The new leader [default: the voter that has caught up furthest]";
    Command::new("cluster")
        .about("Shows or changes a running cluster")
        .subcommand_required(true)
        .subcommand(
            with_keys(
                named("status", "Shows the state of the cluster as one instance sees it"),
                &AT,
            )
            .arg(json()),
        )
        .subcommand(
            with_keys(named("members", "Lists the members of the cluster"), &AT).arg(json()),
        )
        .subcommand(with(add, true, "ID=HOST:PORT", reached))
        .subcommand(with(promote, true, "ID", "The learner"))
        .subcommand(with(remove, true, "ID", "The instance"))
        .subcommand(with(transfer, false, "ID", leader))
        .subcommand(with_keys(drain, &AT))
        .subcommand(with_keys(upgrade, &AT))
        .subcommand(with_keys(certs, &["initial_cluster", "cluster_id"]).arg(operand_arg(
            "DIR",
            true,
            "The directory for the files; a ca.pem and ca.key in it are used again",
        )))
}

const OPERAND: &str = "operand";
const JSON: &str = "json";

/// Arguments that are no keys of the configuration.
pub(super) const OWN: [&str; 6] = [OPERAND, JSON, "at", "broken", "from", "limit"];

/// Returns the operand of the command, if it has one.
pub(super) fn operand(matches: &ArgMatches) -> Option<OsString> {
    innermost(matches).try_get_one::<OsString>(OPERAND).ok().flatten().cloned()
}

/// Returns whether the answer is to be JSON.
pub(super) fn wants_json(matches: &ArgMatches) -> bool {
    is_set(matches, JSON)
}

/// Returns the value of an option that is not a configuration key.
pub(super) fn option(matches: &ArgMatches, name: &str) -> Option<String> {
    let value = innermost(matches).try_get_one::<OsString>(name).ok().flatten();
    value.map(|value| value.to_string_lossy().into_owned())
}

/// Returns whether a switch that is not a configuration key was given.
pub(super) fn is_set(matches: &ArgMatches, name: &str) -> bool {
    innermost(matches).try_get_one::<bool>(name).ok().flatten().copied().unwrap_or(false)
}

fn innermost(matches: &ArgMatches) -> &ArgMatches {
    let mut level = matches;
    while let Some((_, inner)) = level.subcommand() {
        level = inner;
    }
    level
}

fn operand_arg(placeholder: &'static str, required: bool, help: &'static str) -> Arg {
    Arg::new(OPERAND)
        .required(required)
        .value_name(placeholder)
        .value_parser(value_parser!(OsString))
        .help(help)
}

fn json() -> Arg {
    Arg::new(JSON).long("json").action(ArgAction::SetTrue).help("Prints JSON, for scripts")
}

const ABOUT: &str = "\
EMNetChain links programs on the internet into chains: it tells each program the sockets of its
two neighbours, repairs the chain when one leaves, and keeps every link across restarts.";

const BACKUP: &str = "\
Saves the registry to a new file. The running instance at --http-addr sends it and keeps serving.
With --data-dir on the command line, the data directory of a stopped instance is read instead;
the environment variable and the configuration file do not choose this.";

const AFTER_HELP: &str = "\
A flag takes one dash or two, and its value follows a space or `=`. Every flag is also an
environment variable (--chain-addr is EMNETCHAIN_CHAIN_ADDR) and a key of the TOML file
(chain_addr). Flags win over the environment, the environment wins over the file. A TIME is a
whole number with ms, s, min, h or d. Without arguments, EMNetChain prompts for the two addresses.

Examples:
  EMNetChain -dis-addr 127.0.0.1:8080 -chain-addr 127.0.0.1:8081
      Runs one instance. Its data is kept in ./emnetchain-data.
  EMNetChain -dis-addr 0.0.0.0:8080 -chain-addr 0.0.0.0:8081 -udp-addr 0.0.0.0:3478
      Serves the internet, and tells clients the public addresses of their UDP sockets.
  EMNetChain config print -dis-addr [::]:8080 -chain-addr [::]:8081 > emnetchain.toml
  EMNetChain config check --config emnetchain.toml
  EMNetChain --config emnetchain.toml
      Writes a configuration file, checks it and runs with it.
  EMNetChain cluster status
      Shows members, leader and lag; scripts read http://127.0.0.1:9180/status.
  EMNetChain chain show
  EMNetChain explain 203.0.113.7:4000
      Show a chain, and why a socket is linked or not.
  EMNetChain backup chain.backup
  EMNetChain restore chain.backup --data-dir ./restored
      Save the registry of the running instance, and make a new data directory from it.

Exit codes:
   0  stopped on request, or the command succeeded
   2  the command line or the configuration is wrong
  69  no running instance answers, or it refuses the command
  70  internal error
  71  an address or a port is not available yet; start again
  74  the disk failed or is full, or the output cannot be written
  78  the data directory is damaged or belongs to another instance";

fn with_settings(command: Command) -> Command {
    let all: Vec<&str> = Config::KEYS.iter().map(|key| key.name).collect();
    with_keys(command, &all)
}

fn with_keys(command: Command, names: &[&str]) -> Command {
    let file = Arg::new("config")
        .long("config")
        .value_name("FILE")
        .value_hint(ValueHint::FilePath)
        .value_parser(value_parser!(OsString))
        .help("The configuration file (TOML); `-` reads standard input. [default: none]");
    command
        .next_line_help(true)
        .arg(file)
        .args(names.iter().map(|name| flag(Config::key(name).expect("it is a key"))))
}

fn flag(key: &'static Key) -> Arg {
    let meaning: Vec<&str> = key.meaning().collect();
    let preset = match key.preset {
        Preset::Default(text) => format!("[default: {text}]"),
        Preset::Required(text) => format!("Required. [example: {text}]"),
    };
    let arg = Arg::new(key.name);
    let arg = if key.is_switch {
        arg.num_args(0..=1).require_equals(true).default_missing_value("true")
    } else {
        arg
    };
    arg.long(key.flag())
        .value_name(key.placeholder)
        .value_parser(value_parser!(OsString))
        .action(if key.is_list { ArgAction::Append } else { ArgAction::Set })
        .help(format!("{}\n{preset}", meaning.join("\n")))
        .help_heading(key.section)
}

/// `-chain-addr` is the seed's spelling of `--chain-addr`; `-h` stays what it is.
pub(super) fn with_two_dashes(arguments: Vec<OsString>) -> Vec<OsString> {
    let lengthen = |argument: OsString| match argument.to_str().map(str::as_bytes) {
        Some([b'-', first, _, ..]) if first.is_ascii_alphabetic() => {
            let mut longer = OsString::from("-");
            longer.push(argument);
            longer
        }
        _ => argument,
    };
    arguments.into_iter().map(lengthen).collect()
}

/// One line for a command line that cannot be understood: which argument, and what to do.
pub(super) fn fault(error: &clap::Error) -> String {
    let told = |kind| {
        error.get(kind).map(|value| {
            let text = value.to_string();
            // `--chain-addr <ADDR>` is how clap names a flag; a person looks for its name.
            text.split(" <").next().unwrap_or_default().to_owned()
        })
    };
    let argument = told(ContextKind::InvalidArg).unwrap_or_default();
    let meant = told(ContextKind::SuggestedArg).or_else(|| told(ContextKind::SuggestedSubcommand));
    let hint = match meant {
        Some(name) => format!("did you mean {name}?"),
        None => "see EMNetChain --help".to_owned(),
    };
    let kind = error.kind();
    if kind == ErrorKind::UnknownArgument {
        format!("unknown argument {argument}; {hint}")
    } else if kind == ErrorKind::InvalidSubcommand {
        let word = told(ContextKind::InvalidSubcommand).unwrap_or_default();
        format!("unknown command {word}; {hint}")
    } else if kind == ErrorKind::InvalidValue {
        format!("{argument} has no value; write it after a space or `=`")
    } else if kind == ErrorKind::ArgumentConflict {
        format!("{argument} is given twice")
    } else if kind == ErrorKind::MissingRequiredArgument {
        let missing = told(ContextKind::InvalidArg).unwrap_or_default();
        format!("{} is missing; {hint}", missing.trim_matches(['<', '>']))
    } else if kind == ErrorKind::MissingSubcommand {
        let text = error.render().to_string();
        if text.contains("cluster") {
            "cluster needs a command, such as `cluster status`; EMNetChain cluster --help"
                .to_owned()
        } else if text.contains("chain <") || text.contains("EMNetChain chain") {
            "chain needs a command: `chain show` or `chain list`".to_owned()
        } else {
            "config needs a command: `config check` or `config print`".to_owned()
        }
    } else {
        let text = error.render().to_string();
        let line = text.lines().next().unwrap_or_default();
        format!("{}; {hint}", line.trim_start_matches("error: "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn one_dash_is_as_good_as_two() {
        let given = ["EMNetChain", "-chain-addr=a", "--dis-addr", "-h", "-", "-5", "x-y"];
        let expected = ["EMNetChain", "--chain-addr=a", "--dis-addr", "-h", "-", "-5", "x-y"];
        assert_eq!(with_two_dashes(given.map(OsString::from).into()), expected);
    }
}
