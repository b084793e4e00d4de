//! The configuration file as the service itself writes it: every key with its meaning, those that
//! were given set, the others as comments that show their defaults.

use std::fmt::Write as _;

use super::{Config, Key, Preset, given::Given};

const HEAD: &str = "\
# The configuration of an EMNetChain instance, as `EMNetChain config print` writes it.
#
# Every key is also a flag and an environment variable: chain_addr is --chain-addr and
# EMNETCHAIN_CHAIN_ADDR. A flag wins over the environment, and that over this file. A line such as
# `#key = value` shows the default; take its # away to change it. Times are a whole number and ms,
# s, min, h or d. `EMNetChain config check --config FILE` says whether a file is good.
";

/// Writes the file.
pub(super) fn page(given: &Given) -> String {
    let mut text = HEAD.to_owned();
    let mut section = "";
    for key in Config::KEYS {
        if key.section != section {
            section = key.section;
            write!(text, "\n\n## {section}\n").expect(MEMORY);
        }
        text.push('\n');
        for line in key.meaning() {
            writeln!(text, "# {line}").expect(MEMORY);
        }
        text.push_str(&line(key, given));
    }
    text
}

/// Why writing into a string is taken for granted.
const MEMORY: &str = "a string takes any text";

fn line(key: &Key, given: &Given) -> String {
    match (given.text(key), key.preset) {
        (Some(text), _) => format!("{} = {}\n", key.name, quoted(text.trim())),
        (None, Preset::Default(text)) => format!("#{} = {}\n", key.name, quoted(text)),
        (None, Preset::Required(text)) => {
            format!("# Required, for example:\n#{} = {}\n", key.name, quoted(text))
        }
    }
}

/// Returns a TOML value: a whole number and a truth stand by themselves, anything else is a string.
fn quoted(text: &str) -> String {
    let is_number = text.parse::<u32>().is_ok_and(|number| number.to_string() == text);
    if is_number || text.parse::<bool>().is_ok() {
        return text.to_owned();
    }
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => write!(quoted, "\\u{:04X}", u32::from(c)).expect(MEMORY),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    #[test]
    fn any_text_survives_the_file() {
        for text in ["a b", "say \"hi\"", "C:\\dir", "tab\there", "ümlaut", "007", "7"] {
            let file = tempfile::NamedTempFile::new().unwrap();
            let mut written = Sources::default();
            written.give_flag(Config::key("data_dir").unwrap(), text.into());
            std::fs::write(file.path(), page(&written.collect())).unwrap();
            let mut read = Sources::default();
            read.give_file(file.path().to_owned());
            let read = read.collect();
            assert_eq!(read.text(Config::key("data_dir").unwrap()), Some(text));
            assert_eq!(page(&read), page(&written.collect()));
        }
    }
}
