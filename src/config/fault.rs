//! The faults of a configuration, each with what to do.

use std::{fmt, io, net::SocketAddr, path::PathBuf};

use super::{Key, Place, Preset};

/// One fault. Its text is one line and begins with the place to mend.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The value is not one that the key can have.
    #[error("{place}: {why}")]
    BadValue {
        /// Where the value stands.
        place: Place,
        /// The fault, and what the value must be.
        why: String,
    },
    /// A key without a default was given nowhere.
    #[error(
        "--{} is missing; give --{} {}, {} or {} in the configuration file",
        key.flag(), key.flag(), example(key), key.env(), key.name
    )]
    Missing {
        /// Which one.
        key: &'static Key,
    },
    /// The configuration file is not TOML.
    #[error("{}:{line}: {why}", path.display())]
    NotToml {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The parser's message.
        why: String,
    },
    /// Two listeners cannot have the same address.
    #[error("{}", same_address(place, *address, other, *taken))]
    SameAddress {
        /// The later one.
        place: Place,
        /// Its address.
        address: SocketAddr,
        /// The earlier one.
        other: Place,
        /// The address of that one: the same, or one of the two is all addresses of the host.
        taken: SocketAddr,
    },
    /// The configuration file has a key that does not exist.
    #[error("{}:{line}: there is no key {name}{hint}", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key.
        name: String,
        /// The key that was perhaps meant.
        hint: Hint,
    },
    /// A variable of the environment looks like a key and is none.
    #[error("{name}: there is no such variable{hint}")]
    UnknownVariable {
        /// Its name.
        name: String,
        /// The one that was perhaps meant.
        hint: Hint,
    },
    /// The configuration file cannot be read.
    #[error("{}: the configuration file cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Names both listeners, and says what to change.
fn same_address(place: &Place, address: SocketAddr, other: &Place, taken: SocketAddr) -> String {
    if place == other {
        let clash = match address == taken {
            true => format!("{address} is listed twice"),
            false => format!("{address} and {taken} of the same list overlap"),
        };
        return format!("{place}: {clash}; leave one of them out, or give it another port");
    }
    let clash = match address == taken {
        true => format!("{address} is the address of {other} as well"),
        false => format!("{address} overlaps with {taken} of {other}"),
    };
    format!("{place}: {clash}; give one of the two another address or port")
}

fn example(key: &Key) -> &'static str {
    match key.preset {
        Preset::Default(text) | Preset::Required(text) => text,
    }
}

/// All faults of a configuration, one line each.
#[derive(Debug, thiserror::Error)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

/// The name that was perhaps meant, as the end of a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hint(Option<String>);

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(name) => write!(f, "; did you mean {name}?"),
            None => Ok(()),
        }
    }
}

/// Looks for the name that is most like `word`, and like enough to be worth a question.
pub fn near<'a>(word: &str, names: impl IntoIterator<Item = &'a str>) -> Hint {
    let best = names
        .into_iter()
        .map(|name| (strsim::jaro_winkler(word, name), name))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(likeness, _)| *likeness > 0.85);
    Hint(best.map(|(_, name)| name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_recognised_and_a_stranger_is_not() {
        let names = ["chain_addr", "data_dir"];
        assert_eq!(near("chian_addr", names).to_string(), "; did you mean chain_addr?");
        assert_eq!(near("data-dir", names).to_string(), "; did you mean data_dir?");
        assert_eq!(near("zookeeper", names).to_string(), "");
    }
}
