//! The first bytes of a connection. Whoever connected says who it is and whom it wants; the other
//! end says whether it may go on. All numbers are little-endian:
//!
//! ```text
//! hello   "EMNETRFT" | version u16 | lane u8 | cluster u128 | from u64 | to u64
//! answer  "EMNETRFT" | version u16 | refusal u8
//! ```
//!
//! The version in the hello is the highest that the sender speaks, that in the answer the one both
//! go on with: the lower of the two. A refusal of 0 is none.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::NodeName;
use crate::{cluster::transport::Lane, ids::InstanceId, storage::ClusterId};

const MAGIC: [u8; 8] = *b"EMNETRFT";

/// The highest version that is spoken here.
pub(super) const VERSION: u16 = 1;

/// The lowest version that is still understood.
const VERSION_MIN: u16 = 1;

const HELLO_BYTES: usize = 43;
const ANSWER_BYTES: usize = 11;

/// Why a connection is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is of another cluster.
    Cluster,
    /// There are too many connections.
    Crowded,
    /// Its certificate is not that of the instance that it says it is.
    Identity,
    /// It does not begin as connections between instances do.
    Preamble,
    /// It is looking for another instance.
    Target,
    /// It took too long to say who it is.
    Timeout,
    /// It did not get through TLS: no certificate, or one of another CA, or one out of time.
    Tls,
    /// There is no version that both speak.
    Version,
}

impl Refusal {
    const ALL: [Self; 8] = [
        Self::Cluster,
        Self::Crowded,
        Self::Identity,
        Self::Preamble,
        Self::Target,
        Self::Timeout,
        Self::Tls,
        Self::Version,
    ];

    /// Its name in metrics, logs and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Crowded => "crowded",
            Self::Identity => "identity",
            Self::Preamble => "preamble",
            Self::Target => "target",
            Self::Timeout => "timeout",
            Self::Tls => "tls",
            Self::Version => "version",
        }
    }

    /// Its number in an answer.
    fn code(self) -> u8 {
        match self {
            Self::Cluster => 1,
            Self::Crowded => 2,
            Self::Identity => 3,
            Self::Preamble => 4,
            Self::Target => 5,
            Self::Timeout => 6,
            Self::Tls => 7,
            Self::Version => 8,
        }
    }
}

/// What whoever connects says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) version: u16,
    pub(super) lane: Lane,
    pub(super) from: NodeName,
    pub(super) to: InstanceId,
}

impl Hello {
    pub(super) fn encode(&self) -> Vec<u8> {
        let lane = match self.lane {
            Lane::Append => 1,
            Lane::Calls => 2,
            Lane::Snapshot => 3,
        };
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.push(lane);
        bytes.extend(self.from.cluster.0.to_le_bytes());
        bytes.extend(self.from.node.0.to_le_bytes());
        bytes.extend(self.to.0.to_le_bytes());
        bytes
    }

    fn decode(bytes: [u8; HELLO_BYTES]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk()?;
        let (version, rest) = rest.split_first_chunk()?;
        let (&lane, rest) = rest.split_first()?;
        let (cluster, rest) = rest.split_first_chunk()?;
        let (from, rest) = rest.split_first_chunk()?;
        let lane = match lane {
            1 => Lane::Append,
            2 => Lane::Calls,
            3 => Lane::Snapshot,
            _ => return None,
        };
        let from = NodeName {
            cluster: ClusterId(u128::from_le_bytes(*cluster)),
            node: InstanceId(u64::from_le_bytes(*from)),
        };
        let to = InstanceId(u64::from_le_bytes(rest.try_into().ok()?));
        let hello = Self { version: u16::from_le_bytes(*version), lane, from, to };
        (*magic == MAGIC).then_some(hello)
    }

    /// Reads one from a new connection.
    pub(super) async fn read(input: &mut (impl AsyncRead + Unpin)) -> Result<Self, Refusal> {
        let mut bytes = [0; HELLO_BYTES];
        input.read_exact(&mut bytes).await.map_err(|_| Refusal::Preamble)?;
        Self::decode(bytes).ok_or(Refusal::Preamble)
    }

    /// Whether `me` may go on with it, as far as the hello says.
    pub(super) fn check(&self, me: NodeName) -> Result<(), Refusal> {
        if self.version < VERSION_MIN {
            Err(Refusal::Version)
        } else if self.from.cluster != me.cluster {
            Err(Refusal::Cluster)
        } else if self.to != me.node {
            Err(Refusal::Target)
        } else if self.from.node == me.node {
            Err(Refusal::Identity) // nobody else has this name
        } else {
            Ok(())
        }
    }
}

/// Answers a hello of the given version.
pub(super) async fn answer(
    output: &mut (impl AsyncWrite + Unpin),
    version: u16,
    refusal: Option<Refusal>,
) -> io::Result<()> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(version.min(VERSION).to_le_bytes());
    bytes.push(refusal.map_or(0, Refusal::code));
    output.write_all(&bytes).await?;
    output.flush().await
}

/// Says hello, and hears whether we are welcome.
pub(super) async fn introduce(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    hello: &Hello,
) -> io::Result<()> {
    stream.write_all(&hello.encode()).await?;
    stream.flush().await?;
    let mut bytes = [0; ANSWER_BYTES];
    stream.read_exact(&mut bytes).await?;
    let [magic @ .., v0, v1, code] = bytes;
    let version = u16::from_le_bytes([v0, v1]);
    let refused = |why: &str| Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    if magic != MAGIC {
        return refused("no instance of ours answers there");
    }
    match (code, Refusal::ALL.into_iter().find(|refusal| refusal.code() == code)) {
        (0, _) if (VERSION_MIN..=VERSION).contains(&version) => Ok(()),
        (0, _) => refused("it speaks another version"),
        (_, Some(refusal)) => refused(&format!("it refuses us: {}", refusal.as_str())),
        (_, None) => refused("it refuses us"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(cluster: u128, node: u64) -> NodeName {
        NodeName { cluster: ClusterId(cluster), node: InstanceId(node) }
    }

    proptest! {
        #[test]
        fn a_hello_comes_out_as_it_went_in(
            version: u16, lane in 1_u8..4, cluster: u128, from: u64, to: u64,
        ) {
            let lane = [Lane::Append, Lane::Calls, Lane::Snapshot][usize::from(lane) - 1];
            let hello = Hello { version, lane, from: name(cluster, from), to: InstanceId(to) };
            let bytes = hello.encode().try_into().unwrap();
            prop_assert_eq!(Hello::decode(bytes), Some(hello));
        }

        #[test]
        fn other_beginnings_are_refused(bytes: [u8; 32], rest: [u8; 11]) {
            let bytes = [bytes.as_slice(), &rest].concat().try_into().unwrap();
            prop_assert_eq!(Hello::decode(bytes), None);
        }
    }

    #[test]
    fn a_hello_is_for_one_instance_of_one_cluster() {
        let hello = |version, cluster, from, to| {
            let lane = Lane::Calls;
            Hello { version, lane, from: name(cluster, from), to: InstanceId(to) }.check(name(5, 1))
        };
        assert_eq!(hello(1, 5, 2, 1), Ok(()));
        assert_eq!(hello(9, 5, 2, 1), Ok(()), "a later version goes on with ours");
        assert_eq!(hello(0, 5, 2, 1), Err(Refusal::Version));
        assert_eq!(hello(1, 6, 2, 1), Err(Refusal::Cluster));
        assert_eq!(hello(1, 5, 2, 3), Err(Refusal::Target));
        assert_eq!(hello(1, 5, 1, 1), Err(Refusal::Identity));
    }

    #[tokio::test]
    async fn an_answer_says_the_lower_version_and_the_reason() {
        let hello = Hello { version: 1, lane: Lane::Calls, from: name(5, 2), to: InstanceId(1) };
        for (version, refusal, expected) in [
            (1, None, None),
            (7, None, None),
            (0, None, Some("it speaks another version")),
            (1, Some(Refusal::Cluster), Some("it refuses us: cluster")),
        ] {
            let (mut near, mut far) = tokio::io::duplex(100);
            let (heard, said) =
                tokio::join!(introduce(&mut near, &hello), answer(&mut far, version, refusal));
            said.unwrap();
            assert_eq!(heard.err().map(|error| error.to_string()).as_deref(), expected);
        }
    }
}
