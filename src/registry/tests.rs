//! Golden scripts: each file in `testscripts/` shows one behaviour. A script speaks of clients by
//! name; `a` owns the sockets `a.head` and `a.tail`. After each line stand the effects, and the
//! chain as it then is: `a=b` are linked, `a b` are not, `?` marks a socket that asks.
//!
//! `UPDATE_GOLDENFILES=1 cargo test registry` writes the outputs again; read the difference.

use std::{collections::BTreeMap, error::Error, fmt::Write};

use goldenscript::{ArgumentConsumer, Block, Command as Line, Context};

use super::*;
use crate::{ids::*, registry::path::Chain};

struct Script {
    registry: Registry,
    sockets: BTreeMap<Endpoint, String>,
    sessions: BTreeMap<SessionId, String>,
    connections: u64,
    incarnation: u64,
}

impl Script {
    fn new() -> Self {
        let mut script = Self {
            registry: Registry::default(),
            sockets: BTreeMap::new(),
            sessions: BTreeMap::new(),
            connections: 0,
            incarnation: 0,
        };
        script.start();
        script
    }

    fn start(&mut self) -> Applied {
        self.incarnation += 1;
        let incarnation = Incarnation(self.incarnation);
        self.apply(Command::Start { instance: InstanceId(1), incarnation })
    }

    fn apply(&mut self, command: Command) -> Applied {
        let at = self.registry.now();
        self.registry.apply(&Proposal { at, batch: None, commands: vec![command] })
    }

    /// `a.head` is 10.0.0.1:2 and `a.tail` is 10.0.0.1:1; `b` has 10.0.0.2, and so on.
    fn socket(&mut self, name: &str) -> Socket {
        let (client, part) = name.split_once('.').unwrap_or((name, "x"));
        let number = client.bytes().fold(0_u32, |sum, byte| sum * 26 + u32::from(byte - b'a') + 1);
        let port = match part {
            "tail" => 1,
            "head" => 2,
            _ => 3,
        };
        let socket = Socket::parse(&format!("10.0.{}.{}:{port}", number / 256, number % 256));
        let socket = socket.expect("made to be well-formed");
        self.sockets.insert(socket.endpoint(), name.to_owned());
        socket
    }

    /// Returns the session named by `on=`, or a new one with the client's name.
    fn session(&mut self, args: &mut ArgumentConsumer<'_>, name: &str) -> SessionId {
        let name = args.take_key("on").unwrap_or(name).to_owned();
        let known = self.sessions.iter().find(|(_, known)| **known == name).map(|(id, _)| *id);
        known.unwrap_or_else(|| {
            self.connections += 1;
            let session = SessionId {
                instance: InstanceId(1),
                incarnation: Incarnation(self.incarnation),
                connection: self.connections,
            };
            self.sessions.insert(session, name);
            session
        })
    }

    fn name(&self, ip: &Socket) -> String {
        self.sockets.get(&ip.endpoint()).cloned().unwrap_or_else(|| ip.to_string())
    }

    fn effect(&self, effect: &Effect) -> String {
        let session = &self.sessions[&effect.session()];
        match effect {
            Effect::Tell { message, then, .. } => {
                let what = match message {
                    Message::Link { part, ip } => {
                        format!("CONNECT part={} ip={}", part.as_str(), self.name(ip))
                    }
                    Message::Repair { ip } => format!("CONNECT ip={}", self.name(ip)),
                    Message::PeerAdded { id } => format!("SUCCESS id={}", id.0),
                    Message::PeerFound { address } => format!("SUCCESS IP={address}"),
                    Message::PeerFailed => "FAILED".to_owned(),
                };
                let then = match then {
                    Then::Close => ", close",
                    Then::Confirm => ", confirm",
                    Then::Stay => "",
                };
                format!("→ {session}: {what}{then}")
            }
            Effect::Release { why, .. } => format!("→ {session}: close ({why:?})"),
            Effect::Refuse { why, .. } => format!("→ {session}: silence ({why:?})"),
        }
    }

    fn draw(&self) -> String {
        let mut text = String::new();
        for (name, chain) in &self.registry.index.chains {
            let _ = write!(text, "{}", if name.0.is_empty() { "chain:" } else { &name.0 });
            let path = chain.path_ends().map(|(first, _)| first);
            self.draw_run(&mut text, chain, path);
            for front in chain.sections.fronts() {
                let (first, _) = chain.ends(chain.sections.range(front).0).unwrap_or_default();
                if !chain.is_path(first) {
                    text.push_str("  cut off:");
                    self.draw_run(&mut text, chain, Some(first));
                }
            }
        }
        text
    }

    /// Draws the clients from `first` on: `=` is a link, `?` a socket that asks, `!` one that was
    /// reported, and `|` stands before a client that counts as first.
    fn draw_run(&self, text: &mut String, chain: &Chain, first: Option<Serial>) {
        let mark = |side: &Side| match side {
            Side::Asking(_) => "?",
            Side::Open(Past::Reported { .. }) => "!",
            Side::Open(_) | Side::Linked { .. } | Side::Paired { .. } => "",
        };
        let mut linked = false;
        let next = |serial: &Serial| chain.neighbour(*serial, Part::Head);
        for serial in std::iter::successors(first, next) {
            let client = self.registry.client(serial).expect("members are clients");
            let head = self.name(&client.head.0);
            let gap = match (linked, client.is_marked) {
                (true, _) => "=",
                (false, true) => " |",
                (false, false) => " ",
            };
            let short = head.split('.').next().unwrap_or_default();
            let (tail, head) = (mark(&client.tail_side), mark(&client.head_side));
            let _ = write!(text, "{gap}{tail}{short}{head}");
            linked = client.head_side.is_linked();
        }
        text.push('\n');
    }
}

impl goldenscript::Runner for Script {
    type Command = Line;

    fn run(&mut self, line: &Line, _: &Context) -> Result<String, Box<dyn Error>> {
        let mut args = line.consume_args();
        let applied = match line.name.as_str() {
            // connect NAME [on=SESSION] [chain=NAME] [from=IP] [head=SOCKET] [tail=SOCKET]
            "connect" => {
                let name = args.next_pos().ok_or("whose?")?;
                let session = self.session(&mut args, name);
                let source = Source::of(args.take_key("from").unwrap_or("10.0.0.1").parse()?);
                let chain = ChainName(args.take_key("chain").unwrap_or_default().into());
                let head = args.take_key("head").map_or(format!("{name}.head"), str::to_owned);
                let tail = args.take_key("tail").map_or(format!("{name}.tail"), str::to_owned);
                let (head, tail) = (HeadAddr(self.socket(&head)), TailAddr(self.socket(&tail)));
                self.apply(Command::Connect { session, source, chain, head, tail })
            }
            // reconnect SOCKET id=ID [on=SESSION] [from=IP]
            "reconnect" => {
                let name = args.next_pos().ok_or("which socket?")?;
                let session = self.session(&mut args, &format!("repair {name}"));
                let source = Source::of(args.take_key("from").unwrap_or("10.0.0.1").parse()?);
                let id = RepairId(args.take_key("id").ok_or("id?")?.into());
                let orphan = OrphanAddr(self.socket(name));
                self.apply(Command::Reconnect { session, source, id, orphan })
            }
            "disconnect" | "half-close" | "delivered" => {
                let name = args.next_pos().ok_or("which session?")?;
                let session = self.session(&mut args, name);
                self.apply(match line.name.as_str() {
                    "disconnect" => Command::Disconnect { session },
                    "half-close" => Command::HalfClose { session },
                    _ => Command::Delivered { session },
                })
            }
            // add-peer TEXT [candidate=ID] [from=IP]
            "add-peer" => {
                let session = self.session(&mut args, "emnet");
                let address = args.next_pos().ok_or("address?")?.to_owned();
                let source = Source::of(args.take_key("from").unwrap_or("10.0.0.1").parse()?);
                let candidate = PeerId(args.take_key("candidate").unwrap_or("7").parse()?);
                self.apply(Command::AddPeer { session, source, address, candidate })
            }
            "ask-ip" => {
                let session = self.session(&mut args, "emnet");
                let id = PeerId(args.next_pos().ok_or("id?")?.parse()?);
                self.apply(Command::AskIp { session, id })
            }
            // wait SECONDS: log time passes
            "wait" => {
                let seconds: u64 = args.next_pos().ok_or("how long?")?.parse()?;
                let at = self.registry.now().plus_ms(seconds * 1000);
                self.registry.apply(&Proposal { at, batch: None, commands: vec![Command::Tick] })
            }
            // restart: the instance was killed and started again
            "restart" => {
                let image = self.registry.image().clone();
                self.registry = Registry::from_image(image)?;
                self.start()
            }
            "policy" => {
                let policy = settings(*self.registry.policy(), &mut args)?;
                self.apply(Command::SetPolicy(policy))
            }
            name => return Err(format!("unknown command {name}").into()),
        };
        args.reject_next()?;
        self.registry.check()?;
        // Nothing is left to do, so one that begins with the records of this one finds no more.
        Registry::from_image(self.registry.image().clone())?;
        Ok(applied.effects.iter().map(|effect| self.effect(effect) + "\n").collect())
    }

    fn end_block(&mut self, _: &Block) -> Result<String, Box<dyn Error>> {
        Ok(self.draw())
    }
}

/// Returns the settings, with those changed that a line names.
fn settings(mut policy: Policy, args: &mut ArgumentConsumer<'_>) -> Result<Policy, Box<dyn Error>> {
    while let Some((key, value)) = args.next_key() {
        *match key {
            "clients_max" => &mut policy.clients_max,
            "clients_per_source_max" => &mut policy.clients_per_source_max,
            "repairs_max" => &mut policy.repairs_max,
            "repairs_per_source_max" => &mut policy.repairs_per_source_max,
            "peers_max" => &mut policy.peers_max,
            "peers_per_source_max" => &mut policy.peers_per_source_max,
            key => return Err(format!("unknown setting {key}").into()),
        } = value.parse()?;
    }
    Ok(policy)
}

#[test]
fn scripts() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/registry/testscripts");
    let mut count = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        goldenscript::run(&mut Script::new(), &path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        count += 1;
    }
    assert!(count > 20, "the scripts are where they belong");
}

#[test]
fn an_instances_batches_apply_once_and_in_order() {
    let mut registry = Registry::default();
    let instance = InstanceId(1);
    let mut apply = |incarnation, number, commands: &[Command]| {
        let batch = BatchId { instance, incarnation: Incarnation(incarnation), number };
        let at = Timestamp(0);
        registry.apply(&Proposal { at, batch: Some(batch), commands: commands.to_vec() }).verdict
    };
    assert_eq!(apply(1, 1, &[]), Verdict::Stale, "it was never started");
    let start = |life| Command::Start { instance, incarnation: Incarnation(life) };
    assert_eq!(apply(0, 1, &[start(1)]), Verdict::Applied);
    assert_eq!(apply(1, 2, &[]), Verdict::Early);
    assert_eq!(apply(1, 1, &[]), Verdict::Applied);
    assert_eq!(apply(1, 1, &[]), Verdict::Duplicate);
    assert_eq!(apply(1, 2, &[start(2)]), Verdict::Applied);
    assert_eq!(apply(1, 3, &[]), Verdict::Stale);
    assert_eq!(apply(2, 1, &[]), Verdict::Applied);
}

/// The leader ends the lives of these once it does not hear from them.
#[test]
fn instances_hold_asks_by_the_sessions_of_their_present_life() {
    let mut registry = Registry::default();
    let mut apply = |command| {
        let at = Timestamp(0);
        registry.apply(&Proposal { at, batch: None, commands: vec![command] });
        registry.instances_that_hold_asks()
    };
    let start =
        |id, life| Command::Start { instance: InstanceId(id), incarnation: Incarnation(life) };
    for (id, life) in [(1, 1), (2, 1), (3, 1)] {
        assert_eq!(apply(start(id, life)), []);
    }
    let socket = |port| Socket::parse(&format!("10.0.0.1:{port}")).unwrap();
    let session = SessionId { instance: InstanceId(2), incarnation: Incarnation(1), connection: 7 };
    let connect = Command::Connect {
        session,
        source: Source::of([10, 0, 0, 1].into()),
        chain: ChainName::default(),
        head: HeadAddr(socket(1)),
        tail: TailAddr(socket(2)),
    };
    // Not the one before it in the order of sessions, nor the one behind it.
    assert_eq!(apply(connect), [(InstanceId(2), Incarnation(1))]);
    assert_eq!(apply(start(2, 2)), [], "the ask is of an earlier life");
}
