//! Frames: the form of messages in a connection's bytes. All numbers are little-endian:
//!
//! ```text
//! length u32 | crc32 u32 | id u64 | body          length and crc32 cover id and body
//! ```
//!
//! The body is one message, by [`crate::codec`]. An answer carries the id of its request. The
//! length is checked against [`RPC_FRAME_BYTES_MAX`] before memory is taken for the frame, and
//! memory is taken as the bytes arrive, so an announcement costs its receiver nothing.

use std::io;

use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::{
    codec::{self, Newer, Undecodable},
    limits::RPC_FRAME_BYTES_MAX,
};

/// Length, checksum and id.
const HEADER_BYTES: usize = 16;

/// The bytes that the length counts beside the body.
const ID_BYTES: usize = 8;

/// Where the bytes begin that length and checksum cover.
const COVERED_FROM: usize = HEADER_BYTES - ID_BYTES;

/// The bytes that one read of the connection asks for.
const READ_BYTES: usize = 64 * 1024;

/// A buffer that has grown beyond this is given back once it is empty.
const BUFFER_BYTES_KEPT: usize = 1024 * 1024;

/// One message, not yet decoded.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    /// Which request this is, or which one it answers.
    pub id: u64,
    /// The contents.
    pub body: Vec<u8>,
}

/// Why bytes are no frame of ours.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The checksum is not that of the bytes.
    #[error("the checksum of a frame does not match")]
    Checksum,
    /// The connection failed, or ended within a frame.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// Longer than a frame may be, or shorter than it can be.
    #[error("a frame of {0} bytes; at most {RPC_FRAME_BYTES_MAX} are taken")]
    Length(usize),
    /// The body does not decode, or is not what may come here.
    #[error("the body of a frame cannot be decoded")]
    Malformed,
    /// The body is of a rules version that this binary does not know.
    #[error("the body of a frame was {0}")]
    Newer(Newer),
}

/// Encodes a message as a frame.
///
/// # Errors
/// If it is longer than a frame may be.
pub(in crate::cluster) fn encode<T: Serialize>(
    id: u64,
    message: &T,
) -> Result<Vec<u8>, FrameError> {
    let frame = vec![0; HEADER_BYTES];
    seal(id, codec::append(message, frame))
}

/// Fills in the header of a frame whose body is in place behind [`HEADER_BYTES`] bytes.
fn seal(id: u64, mut frame: Vec<u8>) -> Result<Vec<u8>, FrameError> {
    let length = frame.len() - COVERED_FROM;
    if length > RPC_FRAME_BYTES_MAX {
        return Err(FrameError::Length(length));
    }
    let prefix = u32::try_from(length).expect("the limit is below 4 GiB");
    frame[COVERED_FROM..HEADER_BYTES].copy_from_slice(&id.to_le_bytes());
    let check = crc32fast::hash(&frame[COVERED_FROM..]);
    frame[..4].copy_from_slice(&prefix.to_le_bytes());
    frame[4..COVERED_FROM].copy_from_slice(&check.to_le_bytes());
    Ok(frame)
}

/// Makes a frame of bytes as they are, read by `fill` into the place of the body.
///
/// # Errors
/// If reading fails, or the frame is longer than one may be.
pub(in crate::cluster) fn encode_raw(
    id: u64,
    length: usize,
    fill: impl FnOnce(&mut [u8]) -> io::Result<()>,
) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; HEADER_BYTES + length];
    fill(&mut frame[HEADER_BYTES..])?;
    seal(id, frame)
}

/// Decodes the body of a frame.
///
/// # Errors
/// If it is not one `T` and nothing else.
pub(in crate::cluster) fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    codec::decode(body).map_err(|error| match error {
        Undecodable::Newer(newer) => FrameError::Newer(newer),
        Undecodable::Malformed => FrameError::Malformed,
    })
}

/// Cuts frames out of a connection.
#[derive(Debug)]
pub struct FrameReader<R> {
    input: R,
    buffer: Vec<u8>,
    /// The start of the bytes that are not yet given out.
    from: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads from the beginning of a frame.
    pub fn new(input: R) -> Self {
        Self { input, buffer: Vec::new(), from: 0 }
    }

    /// Returns the next frame; `None` when the connection ends between two. May be dropped and
    /// called again at any time; nothing is lost.
    ///
    /// # Errors
    /// If the connection fails, or carries something else than frames.
    pub async fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some(frame) = self.take()? {
                return Ok(Some(frame));
            }
            self.make_room();
            if self.input.read_buf(&mut self.buffer).await? == 0 {
                let between = self.buffer.len() == self.from;
                let cut = || io::Error::from(io::ErrorKind::UnexpectedEof).into();
                return if between { Ok(None) } else { Err(cut()) };
            }
        }
    }

    /// Returns a frame that has come whole.
    fn take(&mut self) -> Result<Option<Frame>, FrameError> {
        let arrived = &self.buffer[self.from..];
        let Some((prefix, rest)) = arrived.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*prefix) as usize;
        if !(ID_BYTES..=RPC_FRAME_BYTES_MAX).contains(&length) {
            return Err(FrameError::Length(length));
        }
        let Some((check, rest)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        let Some(covered) = rest.get(..length) else { return Ok(None) };
        if crc32fast::hash(covered) != u32::from_le_bytes(*check) {
            return Err(FrameError::Checksum);
        }
        let (id, body) = covered.split_first_chunk().expect("the length was checked");
        let frame = Frame { id: u64::from_le_bytes(*id), body: body.to_vec() };
        self.from += COVERED_FROM + length;
        Ok(Some(frame))
    }

    fn make_room(&mut self) {
        self.buffer.drain(..self.from);
        self.from = 0;
        if self.buffer.is_empty() && self.buffer.capacity() > BUFFER_BYTES_KEPT {
            self.buffer = Vec::new();
        }
        self.buffer.reserve(READ_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns all frames that come out of bytes which arrive in pieces, and whether the end was an
    /// error.
    fn read(pieces: Vec<Vec<u8>>) -> (Vec<Frame>, bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut far, near) = tokio::io::duplex(1 << 20);
            let writing = async {
                for piece in pieces {
                    let _ = tokio::io::AsyncWriteExt::write_all(&mut far, &piece).await;
                    tokio::task::yield_now().await;
                }
                drop(far);
            };
            let reading = async {
                let mut frames = Vec::new();
                let mut reader = FrameReader::new(near);
                loop {
                    match reader.next().await {
                        Ok(Some(frame)) => frames.push(frame),
                        Ok(None) => return (frames, false),
                        Err(_) => return (frames, true),
                    }
                }
            };
            tokio::join!(writing, reading).1
        })
    }

    fn cut_up(bytes: &[u8], sizes: &[usize]) -> Vec<Vec<u8>> {
        let (mut rest, mut pieces) = (bytes, Vec::new());
        for size in sizes {
            let (piece, after) = rest.split_at((*size).min(rest.len()));
            pieces.push(piece.to_vec());
            rest = after;
        }
        pieces.push(rest.to_vec());
        pieces
    }

    fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(any::<u8>(), 0..most)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn frames_come_out_as_they_went_in_however_they_are_cut(
            messages in prop::collection::vec((any::<u64>(), bytes(300)), 0..8),
            sizes in prop::collection::vec(0_usize..200, 0..12),
        ) {
            let mut bytes = Vec::new();
            for (id, body) in &messages {
                bytes.extend(encode(*id, body).unwrap());
            }
            let (frames, failed) = read(cut_up(&bytes, &sizes));
            prop_assert!(!failed);
            let decoded: Vec<(u64, Vec<u8>)> =
                frames.iter().map(|frame| (frame.id, decode(&frame.body).unwrap())).collect();
            prop_assert_eq!(decoded, messages);
        }

        #[test]
        fn a_changed_byte_never_goes_through(
            body in bytes(200), at in any::<prop::sample::Index>(),
            flip in 1_u8..,
        ) {
            let mut bytes = encode(7, &body).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            let (frames, failed) = read(vec![bytes]);
            prop_assert!(frames.is_empty() && failed);
        }

        #[test]
        fn anything_at_all_is_read_without_harm(bytes in bytes(400)) {
            let _ = read(vec![bytes.clone()]);
            let _ = decode::<super::super::Request>(&bytes);
            let _ = decode::<super::super::Response>(&bytes);
        }
    }

    #[test]
    fn an_announcement_takes_no_memory() {
        let most = u32::try_from(RPC_FRAME_BYTES_MAX).unwrap().to_le_bytes();
        let mut reader = FrameReader::new(tokio::io::empty());
        reader.buffer.extend(most);
        assert!(reader.take().unwrap().is_none());
        reader.make_room();
        assert!(reader.buffer.capacity() <= 2 * READ_BYTES);
        for length in [0, 7, RPC_FRAME_BYTES_MAX as u32 + 1, u32::MAX] {
            reader.buffer = length.to_le_bytes().to_vec();
            assert!(matches!(reader.take(), Err(FrameError::Length(_))), "{length}");
        }
        assert!(matches!(
            encode_raw(0, RPC_FRAME_BYTES_MAX, |_| Ok(())),
            Err(FrameError::Length(_))
        ));
    }
}
