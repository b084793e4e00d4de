//! The bytes of a snapshot. All numbers are little-endian:
//!
//! ```text
//! "EMNETSNP" | version u32 | frame...
//! frame: length u32 | crc32 u32 | kind u8 | body          length and crc32 cover kind and body
//!   H    postcard: cluster id, log position and members, values beside the records
//!   R    postcard: a list of (serial, record), by rising serial, at most 1 MiB
//!   E    postcard: number of records, crc32 of every byte before this frame
//! ```
//!
//! One `H`, any number of `R`, one `E`, and nothing after it.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

use crate::{
    raft::SnapshotMeta,
    registry::{Meta, Record, Serial, Table},
    storage::{error::Unusable, identity::ClusterId},
};

const MAGIC: &[u8; 8] = b"EMNETSNP";
const VERSION: u32 = 2;

/// A frame of records is closed once it has this size, so that reading and sending go in steps.
const FRAME_BYTES_TARGET: usize = 256 * 1024;

/// A longer frame is damage, found before memory is taken for it.
const FRAME_BYTES_MAX: usize = 1024 * 1024;

const HEADER: u8 = b'H';
const RECORDS: u8 = b'R';
const END: u8 = b'E';

/// What a snapshot says of itself.
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
struct End {
    records: u64,
    check: u32,
}

/// Writes a whole snapshot; returns the checksum that its last frame holds.
pub(in crate::storage) fn write(
    out: &mut impl Write,
    header: &Header,
    records: &Table<Record>,
) -> io::Result<u32> {
    let mut out = Checked::new(out);
    out.write_all(MAGIC)?;
    out.write_all(&VERSION.to_le_bytes())?;
    write_frame(&mut out, HEADER, &encode(header))?;
    let mut body = Vec::with_capacity(FRAME_BYTES_TARGET);
    let mut in_frame = 0_u64;
    for pair in records.iter() {
        body.extend(encode(&pair));
        in_frame += 1;
        if body.len() >= FRAME_BYTES_TARGET {
            write_records(&mut out, in_frame, &mut body)?;
            in_frame = 0;
        }
    }
    write_records(&mut out, in_frame, &mut body)?;
    let records = u64::try_from(records.len()).expect("a table's length fits 64 bits");
    let check = out.check();
    write_frame(&mut out, END, &encode(&End { records, check }))?;
    Ok(check)
}

/// Postcard writes a list as its length and then its items, so the items can be gathered first.
fn write_records(out: &mut impl Write, count: u64, items: &mut Vec<u8>) -> io::Result<()> {
    let mut body = encode(&count);
    body.append(items);
    write_frame(out, RECORDS, &body)
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

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("plain values encode into memory")
}

/// What a snapshot that is whole holds, beside its records.
#[derive(Debug)]
pub(in crate::storage) struct Contents {
    /// What it says of itself.
    pub(in crate::storage) header: Header,
    /// How many records it holds.
    pub(in crate::storage) records: u64,
    /// The checksum over all of it.
    pub(in crate::storage) check: u32,
}

/// Reads a whole snapshot, checks everything that can be checked about it, and hands its records
/// over on the way, many at a time. They count for nothing if an error follows. Without a cluster,
/// anybody's snapshot will do.
pub(in crate::storage) fn read(
    input: &mut impl Read,
    cluster: Option<ClusterId>,
    mut take: impl FnMut(Vec<(Serial, Record)>),
) -> Result<Contents, Unusable> {
    let mut input = Checked::new(input);
    let header = read_header(&mut input)?;
    if let Some(expected) = cluster.filter(|cluster| *cluster != header.cluster) {
        return Err(Unusable::Foreign { found: header.cluster, expected });
    }
    let mut records = 0;
    loop {
        let check = input.check();
        let (kind, body) = read_frame(&mut input)?;
        match kind {
            RECORDS => {
                let some: Vec<(Serial, Record)> = decode(&body)?;
                records += u64::try_from(some.len()).expect("a frame's length fits 32 bits");
                take(some);
            }
            END => {
                let end: End = decode(&body)?;
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

fn read_header(input: &mut impl Read) -> Result<Header, Unusable> {
    let mut prologue = [0; 12];
    input.read_exact(&mut prologue).map_err(unreadable)?;
    let (magic, version) = prologue.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(damaged("it does not begin like a snapshot"));
    }
    if version != VERSION.to_le_bytes() {
        return Err(damaged("its version is not known here"));
    }
    match read_frame(input)? {
        (HEADER, body) => decode(&body),
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

fn decode<T: for<'a> Deserialize<'a>>(body: &[u8]) -> Result<T, Unusable> {
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        Ok(_) | Err(_) => Err(damaged("a frame is unreadable though its checksum matches")),
    }
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
