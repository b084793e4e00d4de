//! The harness of the fuzz targets, which stand beside what they feed: `cargo test --lib fuzz`.
//!
//! A target has a corpus of valid inputs and words that matter to its reader. Each case takes one
//! input, changes it as damage or malice would (flips, cuts, splices, repeats, lengths, words), and
//! hands it to the target, which must neither panic nor take more memory than its bound. Each case
//! has a seed of its own, which a failure prints with the input and the command that repeats it.
//! `EMNETCHAIN_FUZZ_CASES` is how many cases a target has; by default it is a few seconds' worth.

#![allow(dead_code, reason = "the words of chance are shared with other tests")]
#![allow(clippy::print_stderr, reason = "a seed must be told before its test fails")]

#[allow(unreachable_pub, reason = "test programs share this file")]
#[path = "../../tests/support/chance.rs"]
mod chance;
mod memory;

use std::{
    fs,
    path::Path,
    pin::Pin,
    task::{Context, Poll},
};

pub(crate) use chance::Chance;
use tokio::io::{AsyncRead, ReadBuf};

use crate::clock;

/// One reader of hostile bytes.
pub(crate) struct Target {
    name: &'static str,
    corpus: Vec<Vec<u8>>,
    words: Vec<Vec<u8>>,
    /// Bytes of an input at most.
    input_max: usize,
    /// Bytes that a case may have allocated at one time.
    memory_max: usize,
}

impl Target {
    /// Makes a target with the files of `tests/fuzz/corpus/NAME`. Each line of a file `words` there
    /// is a word.
    pub(crate) fn new(name: &'static str, memory_max: usize) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
        let (mut corpus, mut words) = (Vec::new(), Vec::new());
        let mut paths: Vec<_> = fs::read_dir(folder)
            .map(|files| files.map(|file| file.unwrap().path()).collect())
            .unwrap_or_default();
        paths.sort();
        for path in paths {
            let bytes = fs::read(&path).unwrap();
            if path.file_name().is_some_and(|name| name == "words") {
                words.extend(bytes.split(|byte| *byte == b'\n').map(<[u8]>::to_vec));
            } else {
                corpus.push(bytes);
            }
        }
        Self { name, corpus, words, input_max: 8 * 1024, memory_max }
    }

    /// Adds valid inputs.
    pub(crate) fn with(mut self, inputs: impl IntoIterator<Item = Vec<u8>>) -> Self {
        self.corpus.extend(inputs);
        self
    }

    /// Sets how long an input may become.
    pub(crate) fn inputs_below(mut self, input_max: usize) -> Self {
        self.input_max = input_max;
        self
    }

    /// Runs the cases, `cases` of them by default. `one` says whether the input was taken as valid.
    pub(crate) fn run(&self, cases: u64, mut one: impl FnMut(&[u8], &mut Chance) -> bool) {
        let cases = match std::env::var("EMNETCHAIN_FUZZ_CASES") {
            Ok(text) => text.parse().expect("a number"),
            Err(_) => cases,
        };
        let seed = Chance::given_seed().unwrap_or_else(Chance::any_seed);
        let begun = clock::now();
        let (mut taken, mut memory) = (0_u64, 0);
        for number in 0..cases {
            let seed = seed.wrapping_add(number);
            let mut chance = Chance::from_seed(seed);
            let case = Case { name: self.name, seed, input: self.input(&mut chance) };
            let (valid, peak) = memory::peak_of(|| one(&case.input, &mut chance));
            assert!(peak <= self.memory_max, "{peak} bytes of memory, of {}", self.memory_max);
            taken += u64::from(valid);
            memory = memory.max(peak);
        }
        let seconds = clock::now().duration_since(begun).as_secs_f64();
        eprintln!(
            "fuzz {}: {cases} inputs from EMNETCHAIN_TEST_SEED={seed} in {seconds:.1} s, {taken} \
             taken, at most {memory} bytes of memory",
            self.name
        );
        assert!(cases < 1000 || (taken > 0 && taken < cases), "{taken} inputs were taken as valid");
    }

    fn input(&self, chance: &mut Chance) -> Vec<u8> {
        match chance.below(32) {
            0 => noise(chance, 64),
            1 => self.of_corpus(chance).to_vec(),
            _ => {
                let mut input = self.of_corpus(chance).to_vec();
                let most = 1 + chance.below(8);
                for _ in 0..=chance.below(most) {
                    self.change(&mut input, chance);
                }
                input.truncate(self.input_max);
                input
            }
        }
    }

    fn of_corpus(&self, chance: &mut Chance) -> &[u8] {
        &self.corpus[chance.below(self.corpus.len())]
    }

    /// Changes an input at one place.
    pub(crate) fn change(&self, input: &mut Vec<u8>, chance: &mut Chance) {
        let at = chance.below(input.len() + 1);
        let reach = 1 << chance.below(12);
        let end = at + chance.below(1 + reach.min(input.len() - at));
        match chance.below(10) {
            0 | 1 if at < input.len() => input[at] ^= 1 << chance.below(8),
            2 if at < input.len() => input[at] = chance.next().to_le_bytes()[0],
            3 => drop(input.drain(at..end)),
            4 => input.truncate(at),
            5 => {
                let piece = input[at..end].to_vec();
                let most = 1 << chance.below(10);
                let times = 1 + chance.below(most);
                let room = self.input_max.saturating_sub(input.len()) / piece.len().max(1);
                let copies = piece.repeat(times.min(room));
                drop(input.splice(at..at, copies));
            }
            6 => {
                let other = self.of_corpus(chance);
                let from = chance.below(other.len() + 1);
                let to = from + chance.below(other.len() - from + 1);
                drop(input.splice(at..end, other[from..to].iter().copied()));
            }
            7 => {
                let number = edge(chance).to_le_bytes();
                let mut number = number[..1 << chance.below(4)].to_vec();
                if chance.percent(50) {
                    number.reverse();
                }
                let end = (at + number.len()).min(input.len());
                drop(input.splice(at..end, number));
            }
            _ if self.words.is_empty() => drop(input.splice(at..end, noise(chance, 8))),
            place => {
                let word = chance.pick(&self.words);
                let end = if place == 8 { at } else { end };
                drop(input.splice(at..end, word));
            }
        }
    }
}

/// Returns a number at an edge of its type, or a small one.
fn edge(chance: &mut Chance) -> u64 {
    let base: u64 = chance.pick(&[0, 1 << 7, 1 << 8, 1 << 15, 1 << 16, 1 << 31, 1 << 32, 1 << 63]);
    base.wrapping_add(chance.next() % 4).wrapping_sub(chance.next() % 4)
}

fn noise(chance: &mut Chance, most: usize) -> Vec<u8> {
    (0..chance.below(most + 1)).map(|_| chance.next().to_le_bytes()[0]).collect()
}

/// Prints what repeats a case that panics.
struct Case {
    name: &'static str,
    seed: u64,
    input: Vec<u8>,
}

impl Drop for Case {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self { name, seed, input } = self;
            eprintln!(
                "fuzz {name} fails on {} bytes: {}\nrepeat with\n  EMNETCHAIN_TEST_SEED={seed} \
                 EMNETCHAIN_FUZZ_CASES=1 cargo test --lib fuzz::{name}",
                input.len(),
                input.escape_ascii()
            );
        }
    }
}

/// Cuts bytes at a few places of chance.
pub(crate) fn pieces<'a>(bytes: &'a [u8], chance: &mut Chance) -> Vec<&'a [u8]> {
    let (mut rest, mut pieces) = (bytes, Vec::new());
    let most = 1 + bytes.len() / (1 + chance.below(8));
    while !rest.is_empty() && pieces.len() < 100 {
        let (piece, behind) = rest.split_at(chance.below(most + 1).min(rest.len()));
        pieces.push(piece);
        rest = behind;
    }
    pieces.push(rest);
    pieces
}

/// A connection that brings these pieces, one a read, and then ends. It is always ready.
#[derive(Debug)]
pub(crate) struct Arriving<'a>(std::vec::IntoIter<&'a [u8]>, &'a [u8]);

impl<'a> Arriving<'a> {
    /// Makes one.
    pub(crate) fn new(bytes: &'a [u8], chance: &mut Chance) -> Self {
        Self(pieces(bytes, chance).into_iter(), &[])
    }
}

impl AsyncRead for Arriving<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        while self.1.is_empty() {
            let Some(next) = self.0.next() else { return Poll::Ready(Ok(())) };
            self.1 = next;
        }
        let (taken, rest) = self.1.split_at(self.1.len().min(buffer.remaining()));
        buffer.put_slice(taken);
        self.1 = rest;
        Poll::Ready(Ok(()))
    }
}

/// Shows that the harness can fail.
#[test]
fn fuzz_finds_a_planted_fault_and_names_its_seed() {
    let target = Target::new("chain", 1 << 20);
    let found = |one: fn(&[u8]) -> bool| {
        let run = || target.run(20_000, |input, _| one(input));
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err()
    };
    let is_object = |input: &[u8]| input.starts_with(b"{");
    assert!(!found(is_object));
    assert!(found(|input| input.len() != 42 && input[0] == b'{'), "a panic");
    assert!(found(|input| Vec::<u8>::with_capacity(input.len() * 1000).is_empty()), "memory");
    assert!(found(|_| true), "nothing is ever refused");
}
