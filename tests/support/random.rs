//! Choices that can be repeated.

#![allow(dead_code, reason = "each test program uses its own part")]

/// A stream of numbers that its seed determines.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// The seed is `EMNETCHAIN_SEED` if it is set; it is printed.
    pub(crate) fn new(test: &str) -> Self {
        let program = env!("CARGO_CRATE_NAME");
        let seed = match std::env::var("EMNETCHAIN_SEED") {
            Ok(text) => text.parse().expect("a number"),
            Err(_) => getrandom::u64().expect("the system has random bits"),
        };
        eprintln!("repeat with EMNETCHAIN_SEED={seed} cargo test --test {program} {test}");
        Self(seed)
    }

    /// Another stream that this one determines.
    pub(crate) fn fork(&mut self) -> Self {
        Self(self.next())
    }

    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below a bound.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// One of several.
    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        if from.is_empty() { None } else { Some(&from[self.below(from.len())]) }
    }

    /// The same in any order.
    pub(crate) fn shuffled<T: Clone>(&mut self, all: &[T]) -> Vec<T> {
        let mut all = all.to_vec();
        for end in (1..all.len()).rev() {
            all.swap(end, self.below(end + 1));
        }
        all
    }
}
