//! The bytes of a segment: one segment header, then frames. All integers are little-endian.
//!
//! ```text
//! segment header, 64 bytes        frame header, 40 bytes          frame body
//!  0  magic "EMNETWAL"             0  magic "EMFR"                 entries: for each
//!  8  format version u32           4  body length u32                length u32, coded
//! 12  cluster id, 16 bytes         8  first index u64              restart (count 0):
//! 28  store id, 16 bytes          16  entry count u32                coded Option<LogId>
//! 44  first index u64             20  CRC-32 of the body
//! 52  chain u32                   24  durable up to, offset u64
//! 56  zero u32                    32  chain u32
//! 60  CRC-32 of bytes 0..60       36  CRC-32 of bytes 0..36
//! ```
//!
//! *Coded* is the encoding of [`crate::codec`], which can grow while the format stays as it is.
//! *Chain* is the CRC that stands in the header before this one, so that headers follow each other
//! in one order only. Every CRC starts from the cluster's and the store's id (see [`Seal`]): bytes
//! of another log never pass as a frame of this one, nor do bytes that a client made us store.
//! *Durable up to* is the length that was synced when the frame was written. A bad frame that lies
//! below it was acknowledged once, and is damage; a bad frame that no later frame vouches for is
//! the torn end of a write that was never acknowledged.

/// The version that this code writes and reads.
const FORMAT_VERSION: u32 = 2;
const SEGMENT_MAGIC: &[u8; 8] = b"EMNETWAL";
const FRAME_MAGIC: &[u8; 4] = b"EMFR";

/// Length of a segment's header, which is where its first frame starts.
pub(super) const SEGMENT_HEADER_BYTES: usize = 64;
/// Length of a frame's header.
pub(super) const FRAME_HEADER_BYTES: usize = 40;

/// 16 random bytes.
pub(super) type Id = [u8; 16];

/// CRC-32 that starts from the ids of the cluster and of the store.
#[derive(Clone, Debug)]
pub(in crate::storage) struct Seal(crc32fast::Hasher);

impl Seal {
    pub(super) fn new(cluster: &Id, store: &Id) -> Self {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(cluster);
        hasher.update(store);
        Self(hasher)
    }

    pub(super) fn sum(&self, bytes: &[u8]) -> u32 {
        let mut hasher = self.0.clone();
        hasher.update(bytes);
        hasher.finalize()
    }
}

/// The header of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) cluster: Id,
    pub(super) store: Id,
    /// Index of the first entry.
    pub(super) first: u64,
    /// CRC of the last frame header of the segment before; zero in the first one.
    pub(super) chain: u32,
}

impl SegmentHeader {
    /// Returns the bytes, and the CRC that the first frame is chained to.
    pub(super) fn encode(&self) -> ([u8; SEGMENT_HEADER_BYTES], u32) {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        bytes[0..8].copy_from_slice(SEGMENT_MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[12..28].copy_from_slice(&self.cluster);
        bytes[28..44].copy_from_slice(&self.store);
        bytes[44..52].copy_from_slice(&self.first.to_le_bytes());
        bytes[52..56].copy_from_slice(&self.chain.to_le_bytes());
        let sum = Seal::new(&self.cluster, &self.store).sum(&bytes[..60]);
        bytes[60..64].copy_from_slice(&sum.to_le_bytes());
        (bytes, sum)
    }

    /// Returns the header and its CRC, or what is wrong with it.
    pub(super) fn decode(bytes: &[u8; SEGMENT_HEADER_BYTES]) -> Result<(Self, u32), &'static str> {
        if &bytes[0..8] != SEGMENT_MAGIC {
            return Err("this is not a segment of a raft log");
        }
        let mut header = Self {
            cluster: [0; 16],
            store: [0; 16],
            first: u64_at(bytes, 44),
            chain: u32_at(bytes, 52),
        };
        header.cluster.copy_from_slice(&bytes[12..28]);
        header.store.copy_from_slice(&bytes[28..44]);
        let sum = u32_at(bytes, 60);
        if Seal::new(&header.cluster, &header.store).sum(&bytes[..60]) != sum {
            return Err("the segment's header is damaged");
        }
        if u32_at(bytes, 8) != FORMAT_VERSION {
            return Err("the segment has a format that this version does not know");
        }
        Ok((header, sum))
    }
}

/// The header of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FrameHeader {
    pub(super) body_bytes: u32,
    /// Index of the first entry; in a restart the index at which the log goes on.
    pub(super) first: u64,
    /// Entries in the body; zero for a restart.
    pub(super) count: u32,
    pub(super) body_sum: u32,
    /// The segment was durable up to this offset when the frame was written.
    pub(super) durable: u64,
    /// CRC of the header before this one.
    pub(super) chain: u32,
}

impl FrameHeader {
    /// Returns the bytes and their CRC.
    pub(super) fn encode(&self, seal: &Seal) -> ([u8; FRAME_HEADER_BYTES], u32) {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        bytes[0..4].copy_from_slice(FRAME_MAGIC);
        bytes[4..8].copy_from_slice(&self.body_bytes.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.first.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.count.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.body_sum.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.durable.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.chain.to_le_bytes());
        let sum = seal.sum(&bytes[..36]);
        bytes[36..40].copy_from_slice(&sum.to_le_bytes());
        (bytes, sum)
    }

    /// Returns the header and its CRC; `None` if these bytes are no intact header of this log.
    pub(super) fn decode(bytes: &[u8; FRAME_HEADER_BYTES], seal: &Seal) -> Option<(Self, u32)> {
        let sum = u32_at(bytes, 36);
        if &bytes[0..4] != FRAME_MAGIC || seal.sum(&bytes[..36]) != sum {
            return None;
        }
        let header = Self {
            body_bytes: u32_at(bytes, 4),
            first: u64_at(bytes, 8),
            count: u32_at(bytes, 16),
            body_sum: u32_at(bytes, 20),
            durable: u64_at(bytes, 24),
            chain: u32_at(bytes, 32),
        };
        Some((header, sum))
    }

    /// Bytes of the whole frame.
    pub(super) fn frame_bytes(&self) -> u64 {
        FRAME_HEADER_BYTES as u64 + u64::from(self.body_bytes)
    }

    /// Index after the frame's last entry.
    pub(super) fn end(&self) -> u64 {
        self.first.saturating_add(u64::from(self.count))
    }
}

/// Builds one frame at the end of a buffer.
#[derive(Debug)]
pub(super) struct FrameBuilder<'a> {
    buffer: &'a mut Vec<u8>,
    start: usize,
    first: u64,
    count: u32,
}

impl<'a> FrameBuilder<'a> {
    /// Begins a frame whose first entry has the given index.
    pub(super) fn new(buffer: &'a mut Vec<u8>, first: u64) -> Self {
        let start = buffer.len();
        buffer.resize(start + FRAME_HEADER_BYTES, 0);
        Self { buffer, start, first, count: 0 }
    }

    /// Adds an entry.
    pub(super) fn push(&mut self, entry: &[u8]) {
        let length = u32::try_from(entry.len()).expect("the log refuses entries over 16 MiB");
        self.buffer.extend_from_slice(&length.to_le_bytes());
        self.buffer.extend_from_slice(entry);
        self.count += 1;
    }

    /// Makes it a restart: a frame without entries, after which the log goes on at `first`. `last`
    /// is the encoded id of the entry before.
    pub(super) fn restart(&mut self, last: &[u8]) {
        self.buffer.extend_from_slice(last);
    }

    /// Bytes of entries so far.
    pub(super) fn body_bytes(&self) -> usize {
        self.buffer.len() - self.start - FRAME_HEADER_BYTES
    }

    /// Writes the header, and returns its CRC.
    pub(super) fn finish(self, seal: &Seal, durable: u64, chain: u32) -> u32 {
        let body_at = self.start + FRAME_HEADER_BYTES;
        let body_bytes = u32::try_from(self.body_bytes()).expect("a frame ends soon after 1 MiB");
        let body_sum = seal.sum(&self.buffer[body_at..]);
        let (first, count) = (self.first, self.count);
        let header = FrameHeader { body_bytes, first, count, body_sum, durable, chain };
        let (bytes, sum) = header.encode(seal);
        self.buffer[self.start..body_at].copy_from_slice(&bytes);
        sum
    }
}

/// Returns the encoded entries of a frame's body; `None` if they do not fill it exactly.
pub(super) fn entries_of(mut body: &[u8], count: u32) -> Option<Vec<&[u8]>> {
    let mut entries = Vec::new();
    for _ in 0..count {
        let (length, rest) = body.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        let (entry, rest) = rest.split_at_checked(length)?;
        entries.push(entry);
        body = rest;
    }
    body.is_empty().then_some(entries)
}

/// Returns whether an intact frame header lies anywhere in the bytes that says the segment was
/// durable beyond `offset`: then what stands at `offset` was acknowledged.
pub(super) fn vouched_for(bytes: &[u8], seal: &Seal, offset: u64) -> bool {
    bytes.windows(FRAME_HEADER_BYTES).filter(|window| window.starts_with(FRAME_MAGIC)).any(
        |window| {
            let header: &[u8; FRAME_HEADER_BYTES] = window.try_into().expect("windows have 40");
            FrameHeader::decode(header, seal).is_some_and(|(header, _)| header.durable > offset)
        },
    )
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: Id = [1; 16];
    const STORE: Id = [2; 16];

    #[test]
    fn a_segment_header_is_read_back_and_every_flipped_bit_is_seen() {
        let header = SegmentHeader { cluster: CLUSTER, store: STORE, first: 77, chain: 5 };
        let (bytes, sum) = header.encode();
        assert_eq!(SegmentHeader::decode(&bytes), Ok((header, sum)));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(SegmentHeader::decode(&damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_frame_is_read_back_and_every_flipped_bit_is_seen() {
        let seal = Seal::new(&CLUSTER, &STORE);
        let mut buffer = vec![9; 3];
        let mut frame = FrameBuilder::new(&mut buffer, 10);
        frame.push(b"one");
        frame.push(b"");
        frame.push(b"three");
        assert_eq!(frame.body_bytes(), 20);
        let sum = frame.finish(&seal, 64, 8);

        let bytes = buffer.split_off(3);
        let (header, body) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>().unwrap();
        let (decoded, decoded_sum) = FrameHeader::decode(header, &seal).unwrap();
        assert_eq!((decoded.first, decoded.end(), decoded_sum), (10, 13, sum));
        assert_eq!(decoded.frame_bytes(), bytes.len() as u64);
        assert_eq!((decoded.durable, decoded.chain), (64, 8));
        assert_eq!(seal.sum(body), decoded.body_sum);
        assert_eq!(entries_of(body, 3).unwrap(), [&b"one"[..], b"", b"three"]);
        assert_eq!(entries_of(body, 2), None);
        assert_eq!(entries_of(body, 4), None);

        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let (header, body) = damaged.split_first_chunk::<FRAME_HEADER_BYTES>().unwrap();
            let intact = FrameHeader::decode(header, &seal)
                .is_some_and(|(header, _)| header.body_sum == seal.sum(body));
            assert!(!intact, "bit {bit}");
        }
    }

    #[test]
    fn a_frame_of_another_store_is_no_frame_of_this_one() {
        let mut buffer = Vec::new();
        FrameBuilder::new(&mut buffer, 0).finish(&Seal::new(&CLUSTER, &[3; 16]), 64, 0);
        let header = buffer.first_chunk().unwrap();
        assert_eq!(FrameHeader::decode(header, &Seal::new(&CLUSTER, &STORE)), None);
    }

    #[test]
    fn a_later_frame_vouches_for_what_was_durable_before_it() {
        let seal = Seal::new(&CLUSTER, &STORE);
        let mut buffer = b"garbage EMFR EMF".to_vec();
        FrameBuilder::new(&mut buffer, 5).finish(&seal, 1000, 0);
        buffer.push(0);
        assert!(vouched_for(&buffer, &seal, 999));
        assert!(!vouched_for(&buffer, &seal, 1000));
        assert!(!vouched_for(b"short", &seal, 0));
    }
}
