//! What happened, for people, and a digest of it that tells whether two runs are the same.

use std::collections::VecDeque;

use serde::Serialize;

use crate::now_ms;

/// Lines that are kept, unless `EMNETCHAIN_SIM_LINES` says otherwise.
const LINES_MAX: usize = 200;

fn lines_max() -> usize {
    let given = std::env::var("EMNETCHAIN_SIM_LINES");
    given.map_or(LINES_MAX, |text| text.parse().expect("a number of lines"))
}

/// What happened.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    lines: VecDeque<String>,
    digest: u64,
}

impl Trace {
    pub(crate) fn note(&mut self, line: String) {
        let line = format!("{:>7} {line}", now_ms());
        self.digest = fold(self.digest, u64::from(crc32fast::hash(line.as_bytes())));
        if self.lines.len() == lines_max() {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// The last lines, without the words that every line would repeat.
    pub(crate) fn tail(&self) -> String {
        let words = "SessionId InstanceId Incarnation Socket ChainName RepairId HeadAddr TailAddr \
                     OrphanAddr session: instance: incarnation: connection: Tell message: 198.51.";
        let plain = |line: &String| {
            words.split_whitespace().fold(format!("{line}\n"), |text, word| text.replace(word, ""))
        };
        self.lines.iter().map(plain).collect()
    }

    pub(crate) fn digest(&self) -> u64 {
        self.digest
    }
}

/// A digest of the encoding of a value.
pub(crate) fn digest(value: &(impl Serialize + ?Sized)) -> u64 {
    let bytes = postcard::to_stdvec(value).expect("it can be encoded");
    fold(u64::from(crc32fast::hash(&bytes)), bytes.len() as u64)
}

/// One step of FNV-1a.
pub(crate) fn fold(hash: u64, word: u64) -> u64 {
    (hash ^ word).wrapping_mul(0x0000_0100_0000_01b3)
}
