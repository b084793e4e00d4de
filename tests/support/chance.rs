//! Chance that can be repeated.

/// A small generator of chance that its seed determines.
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// From `EMNETCHAIN_TEST_SEED`, or a new one; the seed is printed.
    pub fn new() -> Self {
        let seed = Self::given_seed().unwrap_or_else(Self::any_seed);
        eprintln!("EMNETCHAIN_TEST_SEED={seed}");
        Self(seed)
    }

    /// From a seed that the caller prints.
    pub fn from_seed(seed: u64) -> Self {
        Self(seed)
    }

    /// The seed in `EMNETCHAIN_TEST_SEED`.
    pub fn given_seed() -> Option<u64> {
        let text = std::env::var("EMNETCHAIN_TEST_SEED").ok()?;
        Some(text.parse().expect("a number"))
    }

    /// A seed that is drawn.
    pub fn any_seed() -> u64 {
        getrandom::u64().expect("the system has random numbers")
    }

    /// The next number (splitmix64).
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// The next number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("below a usize")
    }

    /// The next number from `first` to `last`.
    pub fn between(&mut self, first: u64, last: u64) -> u64 {
        first + self.next() % (last - first + 1)
    }

    /// True in `of` of 100 cases.
    pub fn percent(&mut self, of: u64) -> bool {
        self.next() % 100 < of
    }

    /// One of several.
    pub fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }

    /// Another generator that this one determines.
    pub fn fork(&mut self) -> Self {
        Self(self.next())
    }

    /// Puts them in any order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for end in (1..items.len()).rev() {
            items.swap(end, self.below(end + 1));
        }
    }
}
