//! The command line from outside: the real binary, its bytes and its exit codes.

#![expect(clippy::unwrap_used, reason = "a helper that cannot go on fails its test")]

#[path = "support/finish.rs"]
mod finish;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use emnetchain::config::{Config, Preset};
use finish::{Finish as _, output_of};
use tempfile::TempDir;

/// How long a started process may take for its next line; a bound, not a wait.
const PATIENCE: Duration = Duration::from_secs(20);

const PROMPTS: &str =
    "insert ipv4:port for emdisi server :\ninsert ipv4:port for emnetchain server \n";

/// The binary in an empty directory, with none of its variables in the environment.
fn program(home: &Path) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_EMNetChain"));
    program.env_clear().current_dir(home).stdin(Stdio::null());
    program
}

/// Runs the binary to its end with these arguments and standard input.
fn run_with(input: &str, arguments: &[&str]) -> Output {
    let home = TempDir::new().unwrap();
    let mut program = program(home.path());
    let mut child = program
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    output_of(child)
}

fn run(arguments: &[&str]) -> Output {
    run_with("", arguments)
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Asserts that the command line is refused with this one line and nothing on standard output.
#[track_caller]
fn assert_refused(arguments: &[&str], line: &str) {
    let output = run(arguments);
    assert_eq!(text(&output.stderr), format!("EMNetChain: {line}\n"), "{arguments:?}");
    assert_eq!(text(&output.stdout), "", "{arguments:?}");
    assert_eq!(output.status.code(), Some(2), "{arguments:?}");
}

/// A process that serves; it is killed when it goes out of scope.
struct Serving {
    child: Child,
    lines: mpsc::Receiver<String>,
    _home: TempDir,
}

impl Serving {
    fn start(arguments: &[&str], input: &str, prepare: impl Fn(&mut Command)) -> Self {
        let home = TempDir::new().unwrap();
        let mut program = program(home.path());
        prepare(&mut program);
        let mut child = program
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let lines = read_lines(child.stdout.take().unwrap());
        Self { child, lines, _home: home }
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("the next line on standard output")
    }

    /// The address in the next line, which must be that server's banner.
    fn banner(&self, server: &str) -> String {
        let line = self.line();
        let address = line.strip_prefix(&format!("{server} Server listening on "));
        let address = address.unwrap_or_else(|| panic!("{line:?} is not {server}'s banner"));
        let port = address.parse::<std::net::SocketAddr>().unwrap().port();
        assert_ne!(port, 0, "the bound address is told");
        address.to_owned()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn read_lines(stdout: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8(line).unwrap()).is_err() {
                break;
            }
        }
    });
    lines
}

#[test]
fn the_line_of_the_seed_starts_both_servers() {
    let flags = ["-dis-addr", "127.0.0.1:0", "-chain-addr", "127.0.0.1:0", "-http-addr", "[::1]:0"];
    let serving = Serving::start(&flags, "", |_| {});
    for (server, host) in
        [("EMNetChain", "127.0.0.1:"), ("EMDisi", "127.0.0.1:"), ("HTTP", "[::1]:")]
    {
        let address = serving.banner(server);
        assert!(address.starts_with(host), "{address}");
        TcpStream::connect(address).unwrap();
    }
}

#[test]
fn every_spelling_of_a_flag_is_understood() {
    let spellings: [&[&str]; 4] = [
        &["-chain-addr=127.0.0.1:0", "-dis-addr", "127.0.0.1:0", "--http-addr=off"],
        &[
            "serve",
            "--dis-addr",
            "127.0.0.1:0",
            "--chain-addr",
            "127.0.0.1:0",
            "--http-addr",
            "off",
        ],
        &["--http-addr", "off", "-dis-addr=127.0.0.1:0", "serve", "--chain-addr=127.0.0.1:0"],
        &["-http-addr=off", "--chain-addr", " 127.0.0.1:0 ", "-dis-addr", "127.0.0.1:0"],
    ];
    for flags in spellings {
        let serving = Serving::start(flags, "", |_| {});
        serving.banner("EMNetChain");
        serving.banner("EMDisi");
    }
}

#[test]
fn without_arguments_the_two_addresses_are_asked_for() {
    let input = " 127.0.0.1:0 \r\n127.0.0.1:0\n";
    let serving = Serving::start(&[], input, |program| {
        program.env("EMNETCHAIN_HTTP_ADDR", "off");
    });
    assert_eq!(format!("{}\n{}\n", serving.line(), serving.line()), PROMPTS);
    serving.banner("EMNetChain");
    serving.banner("EMDisi");
}

#[test]
fn what_the_environment_says_is_not_asked_for() {
    let serving = Serving::start(&[], "127.0.0.1:0\n", |program| {
        program.env("EMNETCHAIN_DIS_ADDR", "127.0.0.1:0").env("EMNETCHAIN_HTTP_ADDR", "off");
    });
    assert_eq!(serving.line(), "insert ipv4:port for emnetchain server ");
    serving.banner("EMNetChain");
    serving.banner("EMDisi");
}

#[test]
fn answers_to_the_prompts_can_be_wrong_or_missing() {
    let address = "is not an address; write ip:port or [ip]:port, such as 127.0.0.1:8081 \
                   (names are not looked up)";
    let cases = [
        ("", "insert ipv4:port for emdisi server :\n", missing_answer("dis")),
        ("127.0.0.1:0\n", PROMPTS, missing_answer("chain")),
        ("127.0.0.1:0\n\n", PROMPTS, format!("EMNetChain: --chain-addr: \"\" {address}\n")),
        ("a:b\n127.0.0.1:0\n", PROMPTS, format!("EMNetChain: --dis-addr: \"a:b\" {address}\n")),
    ];
    for (input, stdout, stderr) in cases {
        let output = run_with(input, &[]);
        assert_eq!(text(&output.stdout), stdout, "{input:?}");
        assert_eq!(text(&output.stderr), stderr, "{input:?}");
        assert_eq!(output.status.code(), Some(2), "{input:?}");
    }
}

fn missing_answer(name: &str) -> String {
    format!(
        "EMNetChain: --{name}-addr is missing: the input ended before an address was typed; type \
         one, or give --{name}-addr ADDR\n"
    )
}

#[test]
fn a_bad_command_line_is_refused_with_one_line() {
    let address = "is not an address; write ip:port or [ip]:port, such as 127.0.0.1:8081 \
                   (names are not looked up)";
    let chain = ["-chain-addr", "127.0.0.1:0"];
    assert_refused(
        &chain,
        "--dis-addr is missing; give --dis-addr 127.0.0.1:8080, EMNETCHAIN_DIS_ADDR or dis_addr \
         in the configuration file",
    );
    assert_refused(
        &[&chain[..], &["-dis-addr", "localhost:8080"]].concat(),
        &format!("--dis-addr: \"localhost:8080\" {address}"),
    );
    assert_refused(
        &["-dis-addr", "127.0.0.1:0", "-chain-addr", "::1:8080"],
        &format!("--chain-addr: \"::1:8080\" {address}"),
    );
    let no_value = "has no value; write it after a space or `=`";
    assert_refused(&["-dis-addr", "1.1.1.1:1", "-chain-addr"], &format!("--chain-addr {no_value}"));
    assert_refused(&["-chain-addr", "-dis-addr", "1.1.1.1:1"], &format!("--chain-addr {no_value}"));
    let twice = [&chain[..], &["-dis-addr", "127.0.0.1:0", "-dis-addr", "127.0.0.1:0"]].concat();
    assert_refused(&twice, "--dis-addr is given twice");
    assert_refused(
        &[&twice[..4], &["-chain-addr", "192.0.2.1:7", "-chain-addr", "192.0.2.1:7"]].concat(),
        "--chain-addr: 192.0.2.1:7 is listed twice; leave one of them out, or give it another port",
    );
    assert_refused(
        &["-chian-addr", "x"],
        "unknown argument --chian-addr; did you mean --chain-addr?",
    );
    if !cfg!(feature = "otlp") {
        assert_refused(
            &[&chain[..], &["-dis-addr", "1.1.1.1:1", "--otlp-endpoint", "http://127.0.0.1:4318"]]
                .concat(),
            "--otlp-endpoint: this build sends no traces; make one with `cargo build --release \
             --features otlp`",
        );
    }
    assert_refused(&["frobnicate"], "unknown command frobnicate; see EMNetChain --help");
    assert_refused(&["config"], "config needs a command: `config check` or `config print`");
    assert_refused(&["id", "extra"], "unknown argument extra; see EMNetChain --help");
    assert_refused(
        &["-chain-addr", "127.0.0.1:7", "-dis-addr", "127.0.0.1:7"],
        "--dis-addr: 127.0.0.1:7 is the address of --chain-addr as well; give one of the two \
         another address or port",
    );
}

#[test]
fn an_address_that_is_taken_ends_the_process() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().map(|address| (taken, address.to_string())).unwrap();
    for (flag, others) in [("-chain-addr", "-dis-addr"), ("-dis-addr", "-chain-addr")] {
        let output = run(&[flag, &taken.1, others, "127.0.0.1:0", "-http-addr", "off"]);
        assert_eq!(output.status.code(), Some(71));
        assert_eq!(text(&output.stdout), "", "no banner before all are bound");
        assert!(text(&output.stderr).contains(&format!("-{flag}")), "{output:?}");
    }
}

/// What `cluster certs` prints starts an instance, whether it is one of three or the only one.
#[test]
fn the_flags_that_certs_prints_start_an_instance() {
    for others in ["", ",2=127.0.0.1:7001,3=b.example:7002"] {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let list = format!("1={free}{others}");
        let home = TempDir::new().unwrap();
        let certs = home.path().join("certs");
        let certs = certs.to_str().unwrap();
        let printed = run(&["cluster", "certs", certs, "--initial-cluster", &list]);
        assert_eq!(printed.status.code(), Some(0), "{printed:?}");
        let first = text(&printed.stdout).lines().find(|line| line.starts_with("  --node-id 1 "));
        let mut flags: Vec<&str> = first.unwrap().split_whitespace().collect();
        flags.extend(["--http-addr", "127.0.0.1:0", "--chain-addr", "127.0.0.1:0"]);
        flags.extend(["--dis-addr", "127.0.0.1:0"]);
        let serving = Serving::start(&flags, "", |_| {});
        assert!(serving.line().starts_with("EMNetChain Server"), "{list}");
    }
}

/// At boot the network may be later than the service.
#[test]
fn an_address_that_the_host_does_not_have_is_waited_for() {
    let begun = emnetchain::clock::now();
    let nowhere = ["-chain-addr", "203.0.113.7:0", "-dis-addr", "127.0.0.1:0", "-http-addr", "off"];
    let output = run(&nowhere);
    assert_eq!(output.status.code(), Some(71), "{output:?}");
    assert!(text(&output.stderr).contains("waiting for it"), "{output:?}");
    assert!(begun.elapsed() >= Duration::from_secs(5), "it was waited for");
}

#[test]
fn a_port_that_is_given_up_in_time_is_taken() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let home = TempDir::new().unwrap();
    let mut child = program(home.path())
        .args(["-chain-addr", &address, "-dis-addr", "127.0.0.1:0", "-http-addr", "off"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = read_lines(child.stderr.take().unwrap());
    let lines = read_lines(child.stdout.take().unwrap());
    let told = std::iter::from_fn(|| log.recv_timeout(PATIENCE).ok());
    let waits = told.into_iter().any(|line| line.contains("waiting for it"));
    drop(taken);
    let banner = lines.recv_timeout(PATIENCE);
    drop((child.kill(), child.wait()));
    assert!(waits);
    assert_eq!(banner.unwrap(), format!("EMNetChain Server listening on {address}"));
}

/// Every socket of a list has its line, and answers.
#[test]
fn datagrams_are_answered_at_several_addresses() {
    let both = "127.0.0.1:0,127.0.0.2:0";
    for flags in [&["-udp-addr", both][..], &["-udp-addr", "127.0.0.1:0", "-udp-addr=127.0.0.2:0"]]
    {
        let more = ["-chain-addr", "127.0.0.1:0", "-dis-addr", "127.0.0.1:0", "-http-addr", "off"];
        let serving = Serving::start(&[&more, flags].concat(), "", |_| {});
        serving.banner("EMNetChain");
        serving.banner("EMDisi");
        for host in ["127.0.0.1:", "127.0.0.2:"] {
            let address = serving.banner("EMUDP");
            assert!(address.starts_with(host), "{address}");
            let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            client.connect(&address).unwrap();
            client.send(b"?").unwrap();
            let mut answer = [0; 64];
            let bytes = client.recv(&mut answer).unwrap();
            assert_eq!(text(&answer[..bytes]), client.local_addr().unwrap().to_string());
        }
    }
}

/// Every listener of a list has its line, and serves one and the same chain.
#[test]
fn chains_are_served_at_several_addresses() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("emnetchain.toml");
    fs::write(&file, "chain_addr = '127.0.0.1:0, 127.0.0.2:0'\n").unwrap();
    for flags in [
        &["-chain-addr", "127.0.0.1:0,127.0.0.2:0"][..],
        &["-chain-addr", "127.0.0.1:0", "-chain-addr=127.0.0.2:0"],
        &["--config", file.to_str().unwrap()],
    ] {
        let more = ["-dis-addr", "127.0.0.1:0", "-http-addr", "off"];
        let serving = Serving::start(&[&more, flags].concat(), "", |_| {});
        let both = ["127.0.0.1:", "127.0.0.2:"].map(|host| {
            let address = serving.banner("EMNetChain");
            assert!(address.starts_with(host), "{address}");
            address
        });
        serving.banner("EMDisi");
        let clients = both.iter().zip(["7001", "7003"]).map(|(address, head)| {
            let mut client = TcpStream::connect(address).unwrap();
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            let tail = head.parse::<u16>().unwrap() + 1;
            let connect = format!(
                r#"{{"msg":"CONNECT","head":"127.0.0.1:{head}","tail":"127.0.0.1:{tail}"}}"#
            );
            client.write_all(connect.as_bytes()).unwrap();
            client
        });
        for mut client in clients.collect::<Vec<_>>() {
            let mut answer = [0; 256];
            let bytes = client.read(&mut answer).unwrap();
            let answer = text(&answer[..bytes]);
            assert!(answer.starts_with(r#"{"msg":"CONNECT","part":"#), "{answer}");
        }
    }
}

#[test]
fn a_flag_wins_over_the_environment_and_that_over_the_file() {
    let home = TempDir::new().unwrap();
    let path = home.path().join("emnetchain.toml");
    fs::write(&path, "node_id = 2\nclients_max = 20\npeers_max = 200\n").unwrap();
    let mut program = program(home.path());
    program.args(["config", "print", "-node-id=4"]).env("EMNETCHAIN_CONFIG", &path);
    program.env("EMNETCHAIN_NODE_ID", "3").env("EMNETCHAIN_CLIENTS_MAX", "30");
    let output = program.finish();
    let page = text(&output.stdout);
    for line in ["\nnode_id = 4\n", "\nclients_max = 30\n", "\npeers_max = 200\n", "\n#gather = "] {
        assert!(page.contains(line), "{line:?} in {page}");
    }
    program.env("EMNETCHAIN_NODE_ID", "zero");
    assert_eq!(program.finish().status.code(), Some(0), "only what decides is looked at");
    program.env("EMNETCHAIN_CLIENTS_MAX", "0");
    let output = program.finish();
    let line = "EMNetChain: EMNETCHAIN_CLIENTS_MAX: 0 is out of range; write 1 to 1000000000\n";
    assert_eq!(text(&output.stderr), line);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn what_config_print_writes_config_check_takes() {
    let flags = ["-chain-addr", "[::]:8081", "-dis-addr=[::]:8080", "--data-dir", "a \"b\" \\c"];
    let printed = run(&[&["config", "print"], &flags[..]].concat());
    assert_eq!(printed.status.code(), Some(0), "{printed:?}");
    let page = text(&printed.stdout);
    let checked = run_with(page, &["config", "check", "--config", "-"]);
    assert_eq!(text(&checked.stdout), "the configuration is good\n", "{checked:?}");
    assert_eq!(checked.status.code(), Some(0));
    let again = run_with(page, &["config", "print", "--config", "-"]);
    assert_eq!(text(&again.stdout), page);
    // A default that is written out is taken as well.
    let written_out: Vec<&str> = page
        .lines()
        .map(|line| {
            line.strip_prefix('#').filter(|key| !key.starts_with([' ', '#'])).unwrap_or(line)
        })
        .collect();
    let checked = run_with(&written_out.join("\n"), &["config", "check", "--config", "-"]);
    assert!(written_out.contains(&"node_id = 1"));
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked.stderr));
}

#[test]
fn config_check_tells_all_faults_at_once() {
    let home = TempDir::new().unwrap();
    let path = home.path().join("bad.toml");
    let file =
        "chain_addr = 'nowhere'\nshutdown_dedline = '5s'\nlog_level = 'loud'\ngather = 1.5\n";
    fs::write(&path, file).unwrap();
    let output = program(home.path()).args(["config", "check", "--config"]).arg(&path).finish();
    assert_eq!(output.status.code(), Some(2));
    let told = text(&output.stderr);
    let place = |line: u32| format!("EMNetChain: {}:{line}: ", path.display());
    for expected in [
        format!("{}chain_addr: \"nowhere\" is not an address", place(1)),
        format!("{}there is no key shutdown_dedline; did you mean shutdown_deadline?", place(2)),
        format!("{}log_level: \"loud\" is not a level", place(3)),
        format!("{}gather: a value of type float", place(4)),
        "EMNetChain: --dis-addr is missing;".to_owned(),
    ] {
        assert!(told.contains(&expected), "{expected:?} in {told}");
    }
    assert_eq!(told.lines().count(), 5, "{told}");
}

#[test]
fn help_names_every_flag_its_default_and_the_exit_codes() {
    let output = run(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let help = text(&output.stdout);
    for key in Config::KEYS {
        let value = if key.is_switch { "[=<VALUE>]" } else { " <VALUE>" };
        let value = value.replace("VALUE", key.placeholder);
        assert!(help.contains(&format!("  --{}{value}\n", key.flag())), "{}", key.name);
        for line in key.help.lines() {
            assert!(help.contains(line.trim()), "{}", key.name);
        }
        if let Preset::Default(text) = key.preset {
            assert!(help.contains(&format!("[default: {text}]")), "{}", key.name);
        }
    }
    for code in ["   0  ", "   2  ", "  69  ", "  70  ", "  74  ", "  78  "] {
        assert!(help.contains(code), "{code:?}");
    }
    assert!(help.contains("EMNetChain -dis-addr 127.0.0.1:8080 -chain-addr 127.0.0.1:8081\n"));
    assert!(help.lines().all(|line| line.chars().count() <= 100));
    for same in ["-h", "-help", "help"] {
        assert_eq!(text(&run(&[same]).stdout), help, "{same}");
    }
}

#[test]
fn the_version_is_told() {
    for flag in ["--version", "-version", "-V"] {
        let output = run(&[flag]);
        assert_eq!(text(&output.stdout), concat!("EMNetChain ", env!("CARGO_PKG_VERSION"), "\n"));
        assert_eq!(output.status.code(), Some(0));
    }
}

#[test]
fn every_repair_id_is_new() {
    let id = || text(&run(&["id"]).stdout).to_owned();
    let (one, other) = (id(), id());
    assert_ne!(one, other);
    let digits = one.strip_suffix('\n').unwrap();
    assert_eq!(digits.len(), 32);
    assert!(digits.bytes().all(|digit| digit.is_ascii_hexdigit()), "{digits}");
}

#[test]
fn logs_are_json_on_request() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = run(&["-dis-addr=127.0.0.1:0", "-chain-addr", &address, "--log-format=json"]);
    for line in text(&output.stderr).lines() {
        let entry: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(entry["level"].is_string() && entry["message"].is_string(), "{entry}");
    }
    assert!(!output.stderr.is_empty());
}

#[test]
fn http_answers_the_prober() {
    let flags =
        ["-dis-addr", "127.0.0.1:0", "-chain-addr", "127.0.0.1:0", "-http-addr=127.0.0.1:0"];
    let serving = Serving::start(&flags, "", |_| {});
    serving.banner("EMNetChain");
    serving.banner("EMDisi");
    let mut stream = TcpStream::connect(serving.banner("HTTP")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET /livez HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
}

/// The example is what the program prints; `make fix` writes it again.
#[test]
fn the_example_configuration_is_up_to_date_and_good() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/emnetchain.example.toml");
    let flags = ["-chain-addr", "0.0.0.0:8081", "-dis-addr", "0.0.0.0:8080"];
    let printed = run(&[&["config", "print"], &flags[..]].concat());
    let example = fs::read_to_string(&path).unwrap_or_default();
    assert!(text(&printed.stdout) == example, "run `make fix` to write {} again", path.display());
    let checked = run(&["config", "check", "--config", path.to_str().unwrap()]);
    assert_eq!(checked.status.code(), Some(0), "{checked:?}");
}
