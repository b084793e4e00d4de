//! The values from the sources, key by key, each with its place, and every fault that is found in
//! it.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt, fs,
    io::{self, Read},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use toml::de::{DeTable, DeValue};

use super::{Config, Fault, Key, Preset, Value, near};
use crate::secrets::read_token;

/// A configuration file, in bytes: a hundred times what all keys with their comments take.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The keys whose listeners accept connections.
const CONNECTION_LISTENERS: [&str; 5] =
    ["chain_addr", "dis_addr", "emnet_addr", "http_addr", "raft_addr"];

/// The keys that name files which must be there.
const FILES: [&str; 4] = ["admin_token_file", "raft_tls_ca", "raft_tls_cert", "raft_tls_key"];

/// Returns whether two listeners would be in each other's way: all addresses of a host are all,
/// those of IPv4 among those of IPv6.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let [first, second] = [a, b].map(|address| address.ip().to_canonical());
    let holds = |all: IpAddr, one: IpAddr| all.is_unspecified() && (all.is_ipv6() || one.is_ipv4());
    a.port() == b.port()
        && a.port() != 0
        && (first == second || holds(first, second) || holds(second, first))
}

/// Where a value stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: it is the default.
    Default(&'static Key),
    /// In the environment.
    Environment(&'static Key),
    /// In the configuration file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key.
        key: &'static Key,
    },
    /// On the command line, or typed when asked.
    Flag(&'static Key),
}

impl Place {
    pub(super) fn key(&self) -> &'static Key {
        match self {
            Self::Default(key)
            | Self::Environment(key)
            | Self::File { key, .. }
            | Self::Flag(key) => key,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment(key) => f.write_str(&key.env()),
            Self::File { path, line, key } => {
                write!(f, "{}:{line}: {}", path.display(), key.name)
            }
            Self::Default(key) | Self::Flag(key) => write!(f, "--{}", key.flag()),
        }
    }
}

/// The value given for each key, and the faults found on the way.
#[derive(Debug, Default)]
pub(super) struct Given {
    values: BTreeMap<&'static str, (Place, String)>,
    pub(super) faults: Vec<Fault>,
}

impl Given {
    /// Returns the text given for a key; `None` if its default holds.
    pub(super) fn text(&self, key: &Key) -> Option<&str> {
        self.values.get(key.name).map(|(_, text)| text.as_str())
    }

    /// Returns where a key stands.
    pub(super) fn place(&self, name: &str) -> Place {
        let given = self.values.get(name).map(|(place, _)| place.clone());
        given.unwrap_or_else(|| Place::Default(key(name)))
    }

    /// Reads one key by itself; adds a fault and returns `None` if its value is not good.
    pub(super) fn read<T>(
        &mut self,
        name: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let key = key(name);
        let (place, text) = match (self.values.get(name), key.preset) {
            (Some((place, text)), _) => (place.clone(), text.as_str()),
            (None, Preset::Default(text)) => (Place::Default(key), text),
            (None, Preset::Required(_)) => {
                self.faults.push(Fault::Missing { key });
                return None;
            }
        };
        match parse(text.trim()) {
            Ok(value) => Some(value),
            Err(why) => {
                self.faults.push(Fault::BadValue { place, why });
                None
            }
        }
    }

    /// Adds a fault for each listener whose address is already taken by another.
    pub(super) fn check_addresses(&mut self) {
        // TCP and UDP have each their own ports.
        let connections = CONNECTION_LISTENERS.iter().flat_map(|name| self.addresses(name));
        let connections: Vec<_> = connections.collect();
        for listeners in [connections, self.addresses("udp_addr").collect()] {
            let mut seen: Vec<(SocketAddr, Place)> = Vec::new();
            for (address, place) in listeners {
                match seen.iter().find(|(other, _)| overlap(*other, address)) {
                    Some((taken, other)) => self.faults.push(Fault::SameAddress {
                        place,
                        address,
                        other: other.clone(),
                        taken: *taken,
                    }),
                    None => seen.push((address, place)),
                }
            }
        }
    }

    /// Returns the addresses that are given for a listener, and where they stand.
    fn addresses(&self, name: &str) -> impl Iterator<Item = (SocketAddr, Place)> {
        self.values.get(name).into_iter().flat_map(|(place, text)| {
            let addresses = text.split(',').filter_map(|text| SocketAddr::parse(text.trim()).ok());
            addresses.map(|address| (address, place.clone()))
        })
    }

    /// Adds a fault for each file with a secret or a certificate that cannot be read.
    pub(super) fn check_files(&mut self) {
        if let Some((place, path)) = self.values.get("data_dir")
            && fs::metadata(path.trim()).is_ok_and(|there| !there.is_dir())
        {
            let why = format!("{} is not a directory", path.trim());
            self.faults.push(Fault::BadValue { place: place.clone(), why });
        }
        for name in FILES {
            let Some((place, path)) = self.values.get(name) else { continue };
            let path = path.trim();
            if path.is_empty() || path == "none" {
                continue;
            }
            let readable = match name {
                "admin_token_file" => read_token(Path::new(path)).map(drop),
                _ => fs::read(path)
                    .map(drop)
                    .map_err(|error| format!("{path} cannot be read: {error}")),
            };
            if let Err(why) = readable {
                self.faults.push(Fault::BadValue { place: place.clone(), why });
            }
        }
    }

    pub(super) fn add(&mut self, place: Place, value: OsString) {
        match value.into_string() {
            Ok(text) => drop(self.values.insert(place.key().name, (place, text))),
            Err(_) => self
                .faults
                .push(Fault::BadValue { place, why: "the value is not UTF-8 text".to_owned() }),
        }
    }

    pub(super) fn add_file(&mut self, path: &Path) {
        let text = match read_text(path) {
            Ok(text) => text,
            Err(source) => {
                return self.faults.push(Fault::Unreadable { path: path.to_owned(), source });
            }
        };
        self.add_text(path, &text);
    }

    /// Adds what the text of the file at `path` gives.
    pub(super) fn add_text(&mut self, path: &Path, text: &str) {
        let line_at = |offset: usize| 1 + text[..offset].matches('\n').count();
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let line = error.span().map_or(1, |span| line_at(span.start.min(text.len())));
            let why = error.message().to_owned();
            self.faults.push(Fault::NotToml { path: path.to_owned(), line, why });
        }
        for (name, value) in table.get_ref() {
            let line = line_at(name.span().start);
            let Some(key) = Config::key(name.get_ref()) else {
                let hint = near(name.get_ref(), Config::KEYS.iter().map(|key| key.name));
                let (path, name) = (path.to_owned(), name.get_ref().to_string());
                self.faults.push(Fault::UnknownKey { path, line, name, hint });
                continue;
            };
            let place = Place::File { path: path.to_owned(), line, key };
            match text_of(value.get_ref()) {
                Some(text) => drop(self.values.insert(key.name, (place, text))),
                None => {
                    let kind = value.get_ref().type_str();
                    let why = format!(
                        "a value of type {kind}; write a string, a whole number, true or false"
                    );
                    self.faults.push(Fault::BadValue { place, why });
                }
            }
        }
    }
}

/// Returns the key of that name, which exists.
pub(super) fn key(name: &str) -> &'static Key {
    Config::key(name).expect("only names of keys are asked for")
}

/// Reads the file, or standard input for `-`, up to the limit.
fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let from: &mut dyn Read =
        if path == Path::new("-") { &mut io::stdin().lock() } else { &mut fs::File::open(path)? };
    let length = from.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if length as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    Ok(text)
}

/// Returns a string, a decimal number or a boolean as text; `None` for anything else.
fn text_of(value: &DeValue<'_>) -> Option<String> {
    if let Some(number) = value.as_integer() {
        return (number.radix() == 10).then(|| number.as_str().to_owned());
    }
    match value.as_bool() {
        Some(truth) => Some(truth.to_string()),
        None => value.as_str().map(str::to_owned),
    }
}
