//! The bytes of a snapshot. All numbers are little-endian:
//!
//! ```text
//! "EMNETSNP" | format u32 | frame...
//! frame: length u32 | crc32 u32 | kind u8 | body          length and crc32 cover kind and body
//!   H    coded: cluster id, log position and members, values beside the records
//!   R    (serial, record) after (serial, record), each coded, by rising serial, at most 1 MiB
//!   E    coded: number of records, crc32 of every byte before this frame
//! ```
//!
//! One `H`, any number of `R`, one `E`, and nothing after it. *Coded* is the encoding of
//! [`crate::codec`]. Format 2 is version 0.2.0's, which is read and never written ([`v2`]).

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

use super::v2;
use crate::{
    codec::{self, Newer},
    raft::SnapshotMeta,
    registry::{Meta, Record, Rules, Serial, Table},
    storage::{error::Unusable, identity::ClusterId},
};

const MAGIC: &[u8; 8] = b"EMNETSNP";

/// The form of the frames; what is in them grows by versions of the rules.
const FORMAT: u32 = 3;

/// A frame of records is closed once it has this size, so that reading and sending go in steps.
const FRAME_BYTES_TARGET: usize = 256 * 1024;

/// A longer frame is damage, found before memory is taken for it.
const FRAME_BYTES_MAX: usize = 1024 * 1024;

const HEADER: u8 = b'H';
const RECORDS: u8 = b'R';
const END: u8 = b'E';

/// The header of a snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::storage) struct Header {
    /// The cluster.
    pub(in crate::storage) cluster: ClusterId,
    /// The last entry that it covers, and the members at that entry.
    pub(in crate::storage) at: SnapshotMeta,
    /// The registry's values beside its records.
    pub(in crate::storage) meta: Meta,
}

#[derive(Serialize, Deserialize)]
pub(super) struct End {
    pub(super) records: u64,
    pub(super) check: u32,
}

/// Writes a whole snapshot; returns the checksum that its last frame holds.
pub(in crate::storage) fn write(
    out: &mut impl Write,
    header: &Header,
    records: &Table<Record>,
) -> io::Result<u32> {
    let mut out = Checked::new(out);
    out.write_all(MAGIC)?;
    out.write_all(&FORMAT.to_le_bytes())?;
    write_frame(&mut out, HEADER, &codec::encode(header))?;
    let mut body = Vec::with_capacity(FRAME_BYTES_TARGET);
    for pair in records.iter() {
        body = codec::append(&pair, body);
        if body.len() >= FRAME_BYTES_TARGET {
            write_frame(&mut out, RECORDS, &body)?;
            body.clear();
        }
    }
    write_frame(&mut out, RECORDS, &body)?;
    let records = u64::try_from(records.len()).expect("a table's length fits 64 bits");
    let check = out.check();
    write_frame(&mut out, END, &codec::encode(&End { records, check }))?;
    Ok(check)
}

fn write_frame(out: &mut impl Write, kind: u8, body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(body.len() + 1).expect("frames are cut far below 4 GiB");
    let mut check = crc32fast::Hasher::new();
    check.update(&[kind]);
    check.update(body);
    out.write_all(&length.to_le_bytes())?;
    out.write_all(&check.finalize().to_le_bytes())?;
    out.write_all(&[kind])?;
    out.write_all(body)
}

/// The contents of a whole snapshot, beside its records.
#[derive(Debug)]
pub(in crate::storage) struct Contents {
    /// The header.
    pub(in crate::storage) header: Header,
    /// The number of records.
    pub(in crate::storage) records: u64,
    /// The checksum over all of it.
    pub(in crate::storage) check: u32,
}

/// Reads a whole snapshot, checks everything that can be checked about it, and hands its records
/// over on the way, many at a time. They count for nothing if an error follows. Without a cluster,
/// the snapshot of any will do.
pub(in crate::storage) fn read(
    input: &mut impl Read,
    cluster: Option<ClusterId>,
    mut take: impl FnMut(Vec<(Serial, Record)>),
) -> Result<Contents, Unusable> {
    let mut input = Checked::new(input);
    let (header, format) = read_header(&mut input)?;
    if header.meta.rules > Rules::NEWEST {
        return Err(Newer { found: header.meta.rules.0, newest: codec::NEWEST }.into());
    }
    if let Some(expected) = cluster.filter(|cluster| *cluster != header.cluster) {
        return Err(Unusable::Foreign { found: header.cluster, expected });
    }
    let mut records = 0;
    loop {
        let check = input.check();
        let (kind, body) = read_frame(&mut input)?;
        match kind {
            RECORDS => {
                let some = format.records(&body)?;
                records += u64::try_from(some.len()).expect("a frame's length fits 32 bits");
                take(some.into_iter().flatten().collect());
            }
            END => {
                let end = format.end(&body)?;
                if (end.records, end.check) != (records, check) {
                    return Err(damaged("frames are missing from it"));
                }
                if input.read(&mut [0]).map_err(unreadable)? != 0 {
                    return Err(damaged("something follows its end"));
                }
                return Ok(Contents { header, records, check });
            }
            _ => return Err(damaged("it holds a frame of no known kind")),
        }
    }
}

/// The form in which a snapshot was written.
#[derive(Clone, Copy)]
enum Format {
    /// By version 0.2.0.
    V2,
    /// By this version.
    Coded,
}

impl Format {
    fn header(self, body: &[u8]) -> Result<Header, Unusable> {
        match self {
            Self::V2 => Ok(v2::header(body)?),
            Self::Coded => Ok(codec::decode(body)?),
        }
    }

    /// Returns the records of a frame; `None` stands for one that means nothing any more.
    fn records(self, mut body: &[u8]) -> Result<Vec<Option<(Serial, Record)>>, Unusable> {
        if let Self::V2 = self {
            return Ok(v2::records(body)?);
        }
        let mut records = Vec::new();
        while !body.is_empty() {
            let (pair, rest) = codec::take(body)?;
            records.push(Some(pair));
            body = rest;
        }
        Ok(records)
    }

    fn end(self, body: &[u8]) -> Result<End, Unusable> {
        match self {
            Self::V2 => Ok(v2::end(body)?),
            Self::Coded => Ok(codec::decode(body)?),
        }
    }
}

fn read_header(input: &mut impl Read) -> Result<(Header, Format), Unusable> {
    let mut prologue = [0; 12];
    input.read_exact(&mut prologue).map_err(unreadable)?;
    let [magic @ .., a, b, c, d] = prologue;
    if magic != *MAGIC {
        return Err(damaged("it does not begin like a snapshot"));
    }
    let format = match u32::from_le_bytes([a, b, c, d]) {
        v2::FORMAT => Format::V2,
        FORMAT => Format::Coded,
        // Like every number before the checksum, it may be damage as well as a later make.
        _ => {
            return Err(damaged(
                "its format is not known here: it is damaged, or a newer EMNetChain wrote it",
            ));
        }
    };
    match read_frame(input)? {
        (HEADER, body) => Ok((format.header(&body)?, format)),
        _ => Err(damaged("it has no header")),
    }
}

fn read_frame(input: &mut impl Read) -> Result<(u8, Vec<u8>), Unusable> {
    let mut prefix = [0; 8];
    input.read_exact(&mut prefix).map_err(unreadable)?;
    let [l0, l1, l2, l3, c0, c1, c2, c3] = prefix;
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if !(1..=FRAME_BYTES_MAX).contains(&length) {
        return Err(damaged("a frame has an impossible length"));
    }
    let mut body = vec![0; length];
    input.read_exact(&mut body).map_err(unreadable)?;
    if crc32fast::hash(&body) != u32::from_le_bytes([c0, c1, c2, c3]) {
        return Err(damaged("the checksum of a frame does not match"));
    }
    let kind = body.remove(0);
    Ok((kind, body))
}

fn unreadable(error: io::Error) -> Unusable {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        damaged("it is cut short")
    } else {
        Unusable::Io(error)
    }
}

fn damaged(what: &str) -> Unusable {
    Unusable::Damaged(what.into())
}

/// Passes bytes through and keeps the checksum of all of them.
struct Checked<T> {
    inner: T,
    hasher: crc32fast::Hasher,
}

impl<T> Checked<T> {
    fn new(inner: T) -> Self {
        Self { inner, hasher: crc32fast::Hasher::new() }
    }

    fn check(&self) -> u32 {
        self.hasher.clone().finalize()
    }
}

impl<T: Write> Write for Checked<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Read for Checked<T> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(bytes)?;
        self.hasher.update(&bytes[..read]);
        Ok(read)
    }
}
