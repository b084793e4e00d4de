//! The line format of `proto-docs/transcripts/README.md`: text into steps.

/// One transcript, read.
#[derive(Debug)]
pub(crate) struct Script {
    /// What the service is started with, on top of its addresses.
    pub flags: Vec<String>,
    /// What happens, each with the number of its line.
    pub steps: Vec<(usize, Step)>,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// `open NAME SERVER`
    Open { name: String, server: Server },
    /// `NAME > BYTES`: one write, or one datagram.
    Send { name: String, bytes: Vec<Piece> },
    /// `NAME < BYTES`: exactly these come next; a datagram has no others.
    Hear { name: String, bytes: Vec<Piece> },
    /// `NAME < FIN`: the server closes, and nothing came before.
    HearEnd { name: String },
    /// `NAME … silence`: nothing comes for a while, and all of them stay open.
    Silence { names: Vec<String> },
    /// `NAME half-close`: a FIN, and it goes on listening.
    HalfClose { name: String },
    /// `NAME exit`: closed as the system does for a process that ends.
    Exit { name: String },
    /// `NAME reset`
    Reset { name: String },
    /// `wait FIGURE VALUE`: until `emnetchain_FIGURE` has this value.
    Wait { figure: String, value: u32 },
    /// `restart`: kill -9, and start over the same data.
    Restart,
}

/// The server that is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Server {
    Chain,
    Repair,
    Emnet,
    Udp,
}

/// A part of what is sent or heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// These bytes.
    Bytes(Vec<u8>),
    /// What this name stands for; where it is heard first, the digits there.
    Name(String),
}

impl Script {
    /// Reads a transcript; the error names the line.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut script = Self { flags: Vec::new(), steps: Vec::new() };
        for (number, line) in (1..).zip(text.lines().map(str::trim)) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match line.strip_prefix("serve ") {
                Some(flags) if script.steps.is_empty() => {
                    script.flags.extend(flags.split_whitespace().map(str::to_owned));
                }
                Some(_) => {
                    return Err(format!("line {number}: serve stands before the first step"));
                }
                None => {
                    let step = step(line).map_err(|why| format!("line {number}: {why}"))?;
                    script.steps.push((number, step));
                }
            }
        }
        Ok(script)
    }

    /// Which servers it speaks to.
    pub(crate) fn servers(&self) -> Vec<Server> {
        let mut servers: Vec<Server> =
            self.steps.iter().filter_map(|(_, step)| step.server()).collect();
        servers.sort_unstable();
        servers.dedup();
        servers
    }

    /// Whether it needs more than addresses: flags of its own, or kill -9.
    pub(crate) fn needs_the_process(&self) -> bool {
        !self.flags.is_empty() || self.steps.iter().any(|(_, step)| *step == Step::Restart)
    }
}

impl Step {
    fn server(&self) -> Option<Server> {
        if let Self::Open { server, .. } = self { Some(*server) } else { None }
    }
}

fn step(line: &str) -> Result<Step, String> {
    if let Some((name, bytes)) = spoken(line, '>') {
        return Ok(Step::Send { name, bytes: pieces(bytes)? });
    }
    if let Some((name, bytes)) = spoken(line, '<') {
        return Ok(match bytes {
            "FIN" => Step::HearEnd { name },
            "" => return Err("nothing is heard; write silence".to_owned()),
            bytes => Step::Hear { name, bytes: pieces(bytes)? },
        });
    }
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["restart"] => Ok(Step::Restart),
        ["open", name, server] => {
            let server = match *server {
                "chain" => Server::Chain,
                "repair" => Server::Repair,
                "emnet" => Server::Emnet,
                "udp" => Server::Udp,
                other => return Err(format!("there is no server {other}")),
            };
            Ok(Step::Open { name: (*name).to_owned(), server })
        }
        ["wait", figure, value] => {
            let value = value.parse().map_err(|_| format!("{value} is no figure"))?;
            Ok(Step::Wait { figure: (*figure).to_owned(), value })
        }
        [name, "half-close"] => Ok(Step::HalfClose { name: (*name).to_owned() }),
        [name, "exit"] => Ok(Step::Exit { name: (*name).to_owned() }),
        [name, "reset"] => Ok(Step::Reset { name: (*name).to_owned() }),
        [names @ .., "silence"] if !names.is_empty() => {
            Ok(Step::Silence { names: names.iter().map(|name| (*name).to_owned()).collect() })
        }
        _ => Err(format!("not understood: {line}")),
    }
}

/// `NAME > REST`, if the line has this form; the rest may be empty.
fn spoken(line: &str, sign: char) -> Option<(String, &str)> {
    let (name, rest) = line.split_once(' ')?;
    let rest = rest.strip_prefix(sign)?;
    Some((name.to_owned(), rest.strip_prefix(' ').unwrap_or(rest)))
}

/// Text with escapes.
fn pieces(text: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        let escape = &rest[at + 1..];
        let kind = escape.chars().next().ok_or("a backslash stands alone at the end")?;
        let behind = &escape[kind.len_utf8()..];
        let closed_by = |end: char| behind.split_once(end).ok_or(format!("\\{kind} is not closed"));
        rest = match kind {
            '\\' => push(&mut bytes, b"\\", behind),
            'n' => push(&mut bytes, b"\n", behind),
            'r' => push(&mut bytes, b"\r", behind),
            't' => push(&mut bytes, b"\t", behind),
            'x' => {
                let digits = behind.get(..2).ok_or("\\x wants two digits")?;
                push(&mut bytes, &hex(digits)?, &behind[2..])
            }
            'h' => {
                let (digits, rest) = closed_by(')')?;
                let digits = digits.strip_prefix('(').ok_or("\\h wants (digits)")?;
                push(&mut bytes, &hex(digits)?, rest)
            }
            '(' => {
                let (inner, rest) = closed_by(')')?;
                let (count, text) = inner.split_once(' ').ok_or("\\( wants a count and a text")?;
                let count = count.parse().map_err(|_| format!("{count} is no count"))?;
                push(&mut bytes, text.repeat(count).as_bytes(), rest)
            }
            '<' => {
                let (name, rest) = closed_by('>')?;
                pieces.push(Piece::Bytes(std::mem::take(&mut bytes)));
                pieces.push(Piece::Name(name.to_owned()));
                rest
            }
            other => return Err(format!("\\{other} is no escape")),
        };
    }
    bytes.extend_from_slice(rest.as_bytes());
    pieces.push(Piece::Bytes(bytes));
    pieces.retain(|piece| *piece != Piece::Bytes(Vec::new()));
    Ok(pieces)
}

fn push<'a>(bytes: &mut Vec<u8>, more: &[u8], rest: &'a str) -> &'a str {
    bytes.extend_from_slice(more);
    rest
}

/// Pairs of hexadecimal digits; spaces between them do not count.
fn hex(text: &str) -> Result<Vec<u8>, String> {
    let digits: Vec<u32> = text
        .chars()
        .filter(|digit| *digit != ' ')
        .map(|digit| digit.to_digit(16).ok_or(format!("{digit} is no hexadecimal digit")))
        .collect::<Result<_, _>>()?;
    let pairs = digits.chunks(2).map(|pair| match pair {
        [high, low] => u8::try_from(high * 16 + low).map_err(|error| error.to_string()),
        _ => Err("hexadecimal digits come in pairs".to_owned()),
    });
    pairs.collect()
}
