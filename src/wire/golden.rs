//! The clients' protocols as scripts that a person can read.
//!
//! A script in `testscripts/` shows what connections send and what comes of it. Each server of a
//! script has one connection, open from its first command to the end:
//!
//! - `chain: send 'a' 'b'` sends two packets to the chain server; `repair:` and `emnet:` likewise.
//!   `times=N` sends them N times, `source=IP` and `policy=WORD` say which source sends and what it
//!   may announce. A character up to `\xff` is one byte.
//! - `chain: tell head IP:PORT`, `repair: tell IP:PORT`, `emnet: added N`, `emnet: found TEXT` and
//!   `emnet: failed` show the bytes of a reply.
//! - `udp: datagram 'bytes' source=IP:PORT` shows the reflector's answer, `hex=true` in hex.
//!
//! `UPDATE_GOLDENFILES=1 cargo test --lib wire::` writes the expected parts again.

use std::{collections::BTreeMap, error::Error, fmt::Write as _};

use goldenscript::Context;

use super::{
    AddressPolicy, Decoder, Dialect, Object, WireError, chain::ConnectRequest, emnet, reflector,
    repair::ReconnectRequest,
};
use crate::ids::{Part, PeerId, Socket};

/// One test for each script, so that its name tells what broke.
macro_rules! scripts {
    ($($name:ident)+) => {
        $(#[test]
        fn $name() -> std::io::Result<()> {
            goldenscript::run(
                &mut Connections::default(),
                concat!(env!("CARGO_MANIFEST_DIR"), "/src/wire/testscripts/", stringify!($name)),
            )
        })+

        #[test]
        fn every_script_is_run() {
            let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/wire/testscripts");
            let mut found: Vec<_> = std::fs::read_dir(folder)
                .expect("the folder is there")
                .map(|entry| entry.expect("readable").file_name().into_string().expect("ASCII"))
                .collect();
            found.sort();
            assert_eq!(found, [$(stringify!($name)),+]);
        }
    };
}

scripts! {
    a_broken_message_costs_at_most_the_next_one
    a_message_is_heard_however_it_is_cut
    announced_sockets_are_checked
    emnet_answers_every_json_object
    http_is_never_listened_to
    json_means_what_json_says
    limits_are_kept_and_the_next_message_is_heard
    repairs_carry_any_text_as_their_id
    replies_have_the_bytes_of_the_seed
    the_leniency_of_the_seed_is_kept
    the_reflector_answers_clients_only
    what_is_not_a_request_meets_silence
}

type Outcome<T> = Result<T, Box<dyn Error>>;

/// The connections of one script, by the server they are open to.
#[derive(Default)]
struct Connections(BTreeMap<String, Decoder>);

impl goldenscript::Runner for Connections {
    type Command = goldenscript::Command;

    fn run(&mut self, command: &goldenscript::Command, context: &Context) -> Outcome<String> {
        let server = context.prefix.as_deref().ok_or("which server?")?;
        let mut args = command.consume_args();
        let output = match (server, command.name.as_str()) {
            ("udp", "datagram") => {
                let source = args.take_key("source").ok_or("no source")?.parse::<Wanted>()?.0;
                let hex = args.take_key("hex").is_some();
                let payload = latin1(args.next_pos().ok_or("no payload")?);
                match reflector::answer(&payload, source.endpoint()) {
                    Ok(answer) if hex => format!("{:02x?}", answer.as_bytes()).replace(", ", ""),
                    Ok(answer) => String::from_utf8_lossy(answer.as_bytes()).into_owned(),
                    Err(why) => format!("silence: {why}"),
                }
            }
            ("chain", "tell") => {
                let part = match args.next_pos() {
                    Some("head") => Part::Head,
                    Some("tail") => Part::Tail,
                    _ => return Err("head or tail?".into()),
                };
                let ip = args.next_pos().ok_or("no ip")?.parse::<Wanted>()?.0;
                String::from_utf8(super::chain::reply(part, &ip))?
            }
            ("repair", "tell") => {
                let ip = args.next_pos().ok_or("no ip")?.parse::<Wanted>()?.0;
                String::from_utf8(super::repair::reply(&ip))?
            }
            ("emnet", "added") => {
                let id = PeerId(args.next_pos().ok_or("no id")?.parse()?);
                quoted(emnet::Reply::Added(id))
            }
            ("emnet", "found") => quoted(emnet::Reply::Found(args.next_pos().ok_or("no text")?)),
            ("emnet", "failed") => quoted(emnet::Reply::Failed),
            (_, "send") => {
                let sender = Sender {
                    policy: args
                        .take_key("policy")
                        .map_or(Ok(AddressPolicy::Auto), |a| a.parse())?,
                    source: args
                        .take_key("source")
                        .map_or(Ok([127, 0, 0, 1].into()), |a| a.parse())?,
                };
                let times: usize = args.take_key("times").map_or(Ok(1), |a| a.parse())?;
                let packets: Vec<Vec<u8>> =
                    std::iter::from_fn(|| args.next_pos()).map(latin1).collect();
                self.send(server, &sender, &packets, times)?
            }
            (_, name) => return Err(format!("unknown command {name}").into()),
        };
        args.reject_next()?;
        Ok(output)
    }
}

struct Sender {
    policy: AddressPolicy,
    source: std::net::IpAddr,
}

impl Connections {
    /// One line for each message or fault; `silence` if there is none.
    fn send(
        &mut self,
        server: &str,
        sender: &Sender,
        packets: &[Vec<u8>],
        times: usize,
    ) -> Outcome<String> {
        let dialect = if server == "emnet" { Dialect::Json } else { Dialect::Seed };
        let decoder = self.0.entry(server.to_owned()).or_insert_with(|| Decoder::new(dialect));
        let mut lines: Vec<(String, usize)> = Vec::new();
        for packet in packets.iter().cycle().take(packets.len() * times) {
            let mut input = packet.as_slice();
            while let Some(found) = decoder.next(&mut input) {
                let line = meaning(server, sender, found)?;
                match lines.last_mut() {
                    Some((last, count)) if *last == line => *count += 1,
                    _ => lines.push((line, 1)),
                }
            }
        }
        let mut output = String::new();
        for (line, count) in lines {
            let times = if count > 1 { format!(" ({count} times)") } else { String::new() };
            writeln!(output, "{line}{times}")?;
        }
        Ok(if output.is_empty() { "silence".to_owned() } else { output })
    }
}

fn meaning(server: &str, sender: &Sender, found: Result<Object, WireError>) -> Outcome<String> {
    let object = match found {
        Ok(object) => object,
        Err(fault) => return Ok(format!("silence: {fault}")),
    };
    Ok(match server {
        "chain" => match ConnectRequest::parse(&object, sender.policy, sender.source) {
            Ok(request) => format!("CONNECT head={} tail={}", request.head.0, request.tail.0),
            Err(why) => format!("silence: {why}"),
        },
        "repair" => match ReconnectRequest::parse(&object, sender.policy, sender.source) {
            Ok(request) => format!("RECONNECT id={:?} ip={}", request.id.0, request.orphan.0),
            Err(why) => format!("silence: {why}"),
        },
        "emnet" => match emnet::Request::parse(&object) {
            Ok(request) => format!("{request:?}"),
            Err(emnet::Failed) => "FAILED".to_owned(),
        },
        other => return Err(format!("no server {other}").into()),
    })
}

/// A socket as a script's argument.
struct Wanted(Socket);

impl std::str::FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Socket::parse(text).map(Wanted).ok_or_else(|| format!("{text} is not a socket"))
    }
}

fn latin1(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(u32::from(c)).expect("up to \\xff")).collect()
}

fn quoted(reply: emnet::Reply<'_>) -> String {
    format!("{:?}", String::from_utf8(reply.encode()).expect("replies are text"))
}
