//! The encoding of everything that is kept or sent: log entries, records, snapshots, the state of
//! the raft log, and messages between instances. It can gain fields and variants, and what older
//! versions wrote stays readable.
//!
//! ```text
//! version | postcard of the value as that version has it
//! ```
//!
//! *Version* is a version of the rules (a varint, one byte below 128). One struct describes all
//! versions: a field that came later says so, and takes no bytes in earlier versions.
//!
//! ```ignore
//! struct Peer {
//!     until: Timestamp,
//!     #[serde(with = "crate::codec::Since::<3>")] // absent in version 2, and then the default
//!     note: Option<Note>,
//! }
//! enum Command {
//!     Tick,
//!     #[serde(with = "crate::codec::Only::<3>")] // a variant with one value; none in version 2
//!     Mark(Mark),
//! }
//! ```
//!
//! A value is written at the *lowest version that can hold it*. So its bytes follow from the value
//! alone, not from the binary that writes them: digests of replicas agree while their binaries
//! differ, and nothing of a new version is written before something uses it, which the rules in
//! force decide. A version above [`NEWEST`] is refused as [`Newer`].
//!
//! The version in work is kept per thread while postcard runs, because serde hands no context to
//! the fields of a struct. Both run to their end without a pause, so calls cannot mix.

#[cfg(test)]
pub(crate) mod golden;

use std::cell::Cell;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeOwned, Error as _},
};

/// The first version that has a number.
pub const FIRST: u32 = 2;

/// The newest version that this binary can read, write and apply.
pub const NEWEST: u32 = if cfg!(feature = "rules-3") { 3 } else { 2 };

/// Something of a version that this binary does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "written by rules version {found}, but this binary ({binary}) knows rules versions up to \
     {newest}: install a newer EMNetChain here; nothing was changed",
    binary = env!("CARGO_PKG_VERSION")
)]
pub struct Newer {
    /// The version that was found.
    pub found: u32,
    /// The newest version that is known here.
    pub newest: u32,
}

/// Why bytes are no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Undecodable {
    /// A later version wrote them.
    #[error(transparent)]
    Newer(#[from] Newer),
    /// No version writes such bytes.
    #[error("the bytes cannot be decoded")]
    Malformed,
}

/// One pass of postcard over a value.
#[derive(Clone, Copy)]
struct Pass {
    /// The version that is written or read.
    version: u32,
    /// The lowest version that holds all that was met so far.
    needed: u32,
}

thread_local! {
    /// Outside of this module's functions everything is written, and read, as the newest version.
    static PASS: Cell<Pass> = const { Cell::new(Pass { version: NEWEST, needed: FIRST }) };
}

/// Runs postcard at a version; returns its result and the version that the value needs.
fn at<T>(version: u32, run: impl FnOnce() -> T) -> (T, u32) {
    let outer = PASS.replace(Pass { version, needed: FIRST });
    let result = run();
    let pass = PASS.replace(outer);
    (result, pass.needed)
}

/// Encodes a value.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    append(value, Vec::new())
}

/// Encodes a value behind the bytes that are there.
///
/// # Panics
/// If the value cannot be encoded at all, which no type of ours can bring about.
pub fn append<T: Serialize + ?Sized>(value: &T, mut bytes: Vec<u8>) -> Vec<u8> {
    let start = bytes.len();
    let mut version = FIRST;
    loop {
        let (encoded, needed) = at(version, || {
            let bytes = postcard::to_extend(&version, bytes)?;
            postcard::to_extend(value, bytes)
        });
        bytes = encoded.expect("plain values encode into memory");
        if needed <= version {
            return bytes;
        }
        // Few values need more than the version before; they are encoded twice.
        bytes.truncate(start);
        version = needed;
    }
}

/// Decodes a value that fills the bytes exactly.
///
/// # Errors
/// If a later version wrote them, or they are no such value.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Undecodable> {
    match take(bytes)? {
        (value, []) => Ok(value),
        (_, _) => Err(Undecodable::Malformed),
    }
}

/// Decodes a value that others may follow; also returns what follows.
///
/// # Errors
/// If a later version wrote it, or it is no such value.
pub fn take<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, &[u8]), Undecodable> {
    let (version, rest) =
        postcard::take_from_bytes::<u32>(bytes).map_err(|_| Undecodable::Malformed)?;
    if version > NEWEST {
        return Err(Newer { found: version, newest: NEWEST }.into());
    }
    if version < FIRST {
        return Err(Undecodable::Malformed);
    }
    let (decoded, _) = at(version, || postcard::take_from_bytes(rest));
    decoded.map_err(|_| Undecodable::Malformed)
}

/// Marks a field that came with version `N`. Earlier versions have no bytes for it, and reading
/// them gives the default.
#[derive(Debug)]
pub struct Since<const N: u32>;

impl<const N: u32> Since<N> {
    /// Writes the field, or nothing where the version has no such field.
    ///
    /// # Errors
    /// If the field's own encoding fails.
    pub fn serialize<T, S>(value: &T, serializer: S) -> Result<S::Ok, S::Error>
    where
        T: Serialize + Default + PartialEq,
        S: Serializer,
    {
        let pass = PASS.get();
        if *value != T::default() {
            PASS.set(Pass { needed: pass.needed.max(N), ..pass });
        }
        if pass.version >= N {
            value.serialize(serializer)
        } else {
            serializer.serialize_unit() // postcard gives a unit no bytes
        }
    }

    /// Reads the field, or takes the default where the version has no such field.
    ///
    /// # Errors
    /// If the field's own decoding fails.
    pub fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: Deserialize<'de> + Default,
        D: Deserializer<'de>,
    {
        if PASS.get().version >= N { T::deserialize(deserializer) } else { Ok(T::default()) }
    }
}

/// Marks a variant with one value that came with version `N`. Earlier versions cannot hold it.
#[derive(Debug)]
pub struct Only<const N: u32>;

impl<const N: u32> Only<N> {
    /// Writes the variant's value, and has the whole encoded at version `N` or above.
    ///
    /// # Errors
    /// If the value's own encoding fails.
    pub fn serialize<T: Serialize, S: Serializer>(
        value: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let pass = PASS.get();
        PASS.set(Pass { needed: pass.needed.max(N), ..pass });
        value.serialize(serializer)
    }

    /// Reads the variant's value.
    ///
    /// # Errors
    /// If the version in front has no such variant, or the value's own decoding fails.
    pub fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        if PASS.get().version < N {
            return Err(D::Error::custom("the version in front has no such variant"));
        }
        T::deserialize(deserializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The next version, which this binary may know or not.
    const NEXT: u32 = FIRST + 1;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Before {
        name: String,
        kinds: Vec<BeforeKind>,
        last: u8,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum BeforeKind {
        Plain,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct After {
        name: String,
        #[serde(with = "Since::<NEXT>")]
        note: Option<u32>,
        kinds: Vec<AfterKind>,
        last: u8,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum AfterKind {
        Plain,
        #[serde(with = "Only::<NEXT>")]
        Marked(u16),
    }

    fn before() -> Before {
        Before { name: "a".into(), kinds: vec![BeforeKind::Plain], last: 9 }
    }

    fn after(note: Option<u32>, kinds: Vec<AfterKind>) -> After {
        After { name: "a".into(), note, kinds, last: 9 }
    }

    /// Decodes without asking which version this binary knows.
    fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, postcard::Error> {
        let (version, rest) = postcard::take_from_bytes::<u32>(bytes)?;
        at(version, || postcard::from_bytes(rest)).0
    }

    #[test]
    fn what_uses_nothing_new_has_the_bytes_of_the_version_before() {
        let old = encode(&before());
        assert_eq!(old, [2, 1, b'a', 1, 0, 9]);
        assert_eq!(encode(&after(None, vec![AfterKind::Plain])), old);
        assert_eq!(decode(&old), Ok(after(None, vec![AfterKind::Plain])));
    }

    #[test]
    fn a_new_field_and_a_new_variant_raise_the_version_of_what_holds_them() {
        let noted = after(Some(7), vec![AfterKind::Plain]);
        assert_eq!(encode(&noted), [3, 1, b'a', 1, 7, 1, 0, 9]);
        assert_eq!(read::<After>(&encode(&noted)), Ok(noted));
        let marked = after(None, vec![AfterKind::Plain, AfterKind::Marked(300)]);
        assert_eq!(encode(&marked), [3, 1, b'a', 0, 2, 0, 1, 0xac, 2, 9]);
        assert_eq!(read::<After>(&encode(&marked)), Ok(marked));
        let behind = append(&after(Some(7), vec![]), vec![1, 2]);
        assert_eq!(behind, [1, 2, 3, 1, b'a', 1, 7, 0, 9]);
    }

    #[test]
    fn a_variant_is_refused_in_a_version_that_has_none() {
        assert_eq!(decode::<After>(&[2, 1, b'a', 1, 1, 5, 9]), Err(Undecodable::Malformed));
        assert_eq!(decode::<Before>(&[2, 1, b'a', 1, 1, 5, 9]), Err(Undecodable::Malformed));
    }

    #[test]
    fn a_later_version_is_told_from_damage_and_both_versions_are_named() {
        let mut bytes = encode(&before());
        bytes[0] = u8::try_from(NEWEST).unwrap() + 1;
        let error = decode::<Before>(&bytes).unwrap_err();
        assert_eq!(error, Newer { found: NEWEST + 1, newest: NEWEST }.into());
        let text = error.to_string();
        assert!(text.contains(&format!("rules version {}", NEWEST + 1)), "{text}");
        assert!(text.contains(&format!("up to {NEWEST}")), "{text}");
        assert!(text.contains("install a newer EMNetChain"), "{text}");
        for damaged in [&[][..], &[0], &[1, 1, b'a', 0, 9], &[2, 9], &[2, 1, b'a', 0, 9, 9]] {
            assert_eq!(decode::<Before>(damaged), Err(Undecodable::Malformed), "{damaged:?}");
        }
    }
}
