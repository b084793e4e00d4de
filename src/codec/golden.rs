//! Golden bytes: what a released version wrote, which every later version must read, and write
//! again as it was. A page is a file of lines `name hex`.
//!
//! A page is never rewritten to make a test pass: bytes that no longer fit are data that users
//! could no longer read. New names are added by running the tests with
//! `EMNETCHAIN_REWRITE_BYTES_THAT_USERS_HAVE_ON_DISK=yes`, and the difference then shows that old
//! lines stay.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{Debug, Write as _},
    fs,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

const REWRITE: &str = "EMNETCHAIN_REWRITE_BYTES_THAT_USERS_HAVE_ON_DISK";

/// Returns whether fixtures are written instead of read.
pub(crate) fn is_rewriting() -> bool {
    std::env::var_os(REWRITE).is_some_and(|value| value == "yes")
}

/// Returns where the fixtures of this rules version are.
pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/rules-2")
}

/// A file of golden bytes.
pub(crate) struct Page {
    path: PathBuf,
    lines: BTreeMap<String, String>,
    seen: BTreeSet<String>,
}

impl Page {
    /// Opens a page of the folder of fixtures.
    pub(crate) fn open(name: &str) -> Self {
        let path = folder().join(name);
        let text = if is_rewriting() { String::new() } else { fs::read_to_string(&path).unwrap() };
        let lines = text.lines().filter_map(|line| line.split_once(' '));
        let lines = lines.map(|(name, hex)| (name.to_owned(), hex.to_owned())).collect();
        Self { path, lines, seen: BTreeSet::new() }
    }

    /// Asserts that the golden bytes of that name are this value, and this value those bytes.
    #[track_caller]
    pub(crate) fn holds<T: Serialize + DeserializeOwned + Debug>(&mut self, name: &str, value: &T) {
        let bytes = super::encode(value);
        assert!(self.seen.insert(name.to_owned()), "{name} stands twice");
        if is_rewriting() {
            self.lines.insert(name.to_owned(), hex(&bytes));
        }
        let golden = self.lines.get(name).unwrap_or_else(|| panic!("{name} has no golden bytes"));
        let read: T = super::decode(&bytes_of(golden)).unwrap();
        assert_eq!(format!("{read:?}"), format!("{value:?}"), "{name} is read as it was");
        assert_eq!(hex(&bytes), *golden, "{name} is written as it was");
    }

    /// Asserts that no golden bytes were left out.
    pub(crate) fn close(self) {
        let Self { path, lines, seen } = self;
        if is_rewriting() {
            let mut text = String::new();
            for (name, hex) in &lines {
                let _ = writeln!(text, "{name} {hex}");
            }
            fs::create_dir_all(folder()).unwrap();
            fs::write(path, text).unwrap();
        }
        assert_eq!(lines.into_keys().collect::<BTreeSet<_>>(), seen, "all are looked at");
    }
}

/// Returns all golden bytes of a page.
pub(crate) fn all_of(name: &str) -> Vec<Vec<u8>> {
    Page::open(name).lines.values().map(|hex| bytes_of(hex)).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn bytes_of(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        hex.bytes().map(|digit| (digit as char).to_digit(16).unwrap() as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}
