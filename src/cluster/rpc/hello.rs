//! The first bytes of a connection, the same over every transport. The side that connected says
//! which instance it is and which one it wants; the other side answers; then the first gives its
//! verdict, because it may be the one that remembers more. All numbers are little-endian, and all
//! three messages have one form:
//!
//! ```text
//! "EMNETRFT" | version u16 | refusal u8 | length u16 | body, in postcard
//! ```
//!
//! The body of the first is a [`Hello`], that of the others [`Facts`]. The version in the first is
//! the highest that the sender speaks, that in the answer the lower of both ends' highest, which
//! both go on with. A refusal of 0 is none; after another one nothing follows. A body may end in
//! fields that its reader does not know, so later versions can add some.
//!
//! Only the hello itself is checked here; [`Greeter`](crate::cluster::greeter::Greeter) holds it
//! against what this instance knows.

use std::io;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::{
    cluster::{
        progress::Progress,
        transport::{Lane, NodeName},
    },
    ids::{HistoryId, InstanceId, StoreId},
    registry::Rules,
    storage::ClusterId,
};

const MAGIC: [u8; 8] = *b"EMNETRFT";

/// The highest version that is spoken here.
pub const VERSION: u16 = 2;

/// The lowest version that is still understood.
const VERSION_MIN: u16 = 2;

/// Magic, version, refusal and length.
const HEAD_BYTES: usize = 13;

/// The longest body; a hello of today has about 120 bytes.
const BODY_BYTES_MAX: usize = 1024;

/// Why a connection is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// It is of another cluster.
    Cluster,
    /// There are too many connections.
    Crowded,
    /// Its history is another one.
    History,
    /// Its certificate is not that of the instance that it says it is.
    Identity,
    /// It does not begin as connections between instances do.
    Preamble,
    /// It was removed from the cluster.
    Removed,
    /// Its store has forgotten what it acknowledged.
    RolledBack,
    /// Its number belongs to another store.
    Store,
    /// It is looking for another instance.
    Target,
    /// It took too long to introduce itself.
    Timeout,
    /// It did not get through TLS: no certificate, or one of another CA, or one out of time.
    Tls,
    /// There is no version that both speak.
    Version,
}

impl Refusal {
    const ALL: [Self; 12] = [
        Self::Cluster,
        Self::Crowded,
        Self::History,
        Self::Identity,
        Self::Preamble,
        Self::Removed,
        Self::RolledBack,
        Self::Store,
        Self::Target,
        Self::Timeout,
        Self::Tls,
        Self::Version,
    ];

    /// Returns its name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Crowded => "crowded",
            Self::History => "history",
            Self::Identity => "identity",
            Self::Preamble => "preamble",
            Self::Removed => "removed",
            Self::RolledBack => "rolled-back",
            Self::Store => "store",
            Self::Target => "target",
            Self::Timeout => "timeout",
            Self::Tls => "tls",
            Self::Version => "version",
        }
    }

    /// Returns the fault of the one that is refused, as the end of a sentence about it.
    pub fn words(self) -> &'static str {
        match self {
            Self::Cluster => "it belongs to another cluster",
            Self::Crowded => "too many connections are open",
            Self::History => "it has another history under the same cluster id",
            Self::Identity => "its certificate is not that of its number",
            Self::Preamble => "it does not speak as an instance does",
            Self::Removed => "it was removed from the cluster",
            Self::RolledBack => "its data directory is an older copy",
            Self::Store => "its number belongs to another store: the disk was lost or replaced",
            Self::Target => "it looks for another instance at this address",
            Self::Timeout => "it did not introduce itself in time",
            Self::Tls => "it has no certificate that is valid here",
            Self::Version => "it speaks another version",
        }
    }

    /// Returns its number in an answer.
    pub fn code(self) -> u8 {
        match self {
            Self::Cluster => 1,
            Self::Crowded => 2,
            Self::Identity => 3,
            Self::Preamble => 4,
            Self::Target => 5,
            Self::Timeout => 6,
            Self::Tls => 7,
            Self::Version => 8,
            Self::History => 9,
            Self::Store => 10,
            Self::RolledBack => 11,
            Self::Removed => 12,
        }
    }

    fn of(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|refusal| refusal.code() == code)
    }
}

/// The knowledge of an instance about the number of another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Known {
    /// No entry ever named it.
    #[default]
    Unknown,
    /// The membership names it.
    Named {
        /// The store that bears it, if one is recorded.
        store: Option<StoreId>,
        /// Whether an instance under this number has served clients.
        lived: bool,
    },
    /// This entry took it out of the cluster.
    Removed(u64),
}

/// The statements of an instance about itself and the one that it speaks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The history that it has; `None` if it knows of none yet.
    pub history: Option<HistoryId>,
    /// Its store.
    pub store: StoreId,
    /// The run of its process: drawn at random when it starts.
    pub run: u64,
    /// The progress that it vouches for: the highest of what its log held at its start and of what
    /// it has acknowledged since.
    pub progress: Progress,
    /// The progress that it has acknowledged since its start.
    pub acknowledged: Option<Progress>,
    /// The newest rules that it can apply.
    pub rules: Rules,
    /// Its knowledge of the number of the other one.
    pub known: Known,
    /// The progress that, as it remembers, the other one's store has acknowledged.
    pub remembered: Option<Progress>,
}

/// The instance that connects, the one that it wants, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The purpose of the connection.
    pub lane: Lane,
    /// The instance that connects.
    pub from: NodeName,
    /// Which instance it wants.
    pub to: InstanceId,
    /// The statements about both.
    pub facts: Facts,
}

/// A hello as it travels.
#[derive(Serialize, Deserialize)]
struct Body {
    lane: u8,
    cluster: [u8; 16],
    from: u64,
    to: u64,
    facts: Facts,
}

impl Hello {
    /// Returns whether `me` may go on with it, as far as the hello says.
    ///
    /// # Errors
    /// Its fault.
    pub fn check(&self, me: NodeName) -> Result<(), Refusal> {
        if self.from.cluster != me.cluster {
            Err(Refusal::Cluster)
        } else if self.to != me.node {
            Err(Refusal::Target)
        } else if self.from.node == me.node {
            Err(Refusal::Identity) // no other instance has this name
        } else {
            Ok(())
        }
    }

    /// Encodes it as the first message of a connection.
    pub fn encode(&self) -> Vec<u8> {
        let lane = match self.lane {
            Lane::Append => 1,
            Lane::Calls => 2,
            Lane::Snapshot => 3,
            Lane::Probe => 4,
        };
        let cluster = self.from.cluster.0.to_le_bytes();
        let (from, to, facts) = (self.from.node.0, self.to.0, self.facts);
        encode(VERSION, None, &Body { lane, cluster, from, to, facts })
    }

    fn decode(body: &[u8]) -> Option<Self> {
        let (body, _later): (Body, _) = postcard::take_from_bytes(body).ok()?;
        let lane = match body.lane {
            1 => Lane::Append,
            2 => Lane::Calls,
            3 => Lane::Snapshot,
            4 => Lane::Probe,
            _ => return None,
        };
        let cluster = ClusterId(u128::from_le_bytes(body.cluster));
        let from = NodeName { cluster, node: InstanceId(body.from) };
        Some(Self { lane, from, to: InstanceId(body.to), facts: body.facts })
    }

    /// Reads one from a new connection, and the version that its sender speaks.
    ///
    /// # Errors
    /// [`Refusal::Preamble`] if it is none, [`Refusal::Version`] if its version is too old.
    pub async fn read(input: &mut (impl AsyncRead + Unpin)) -> Result<(u16, Self), Refusal> {
        // The first bytes of a version 1 connection are the same up to the version, but it may send
        // fewer in all than a head of this one has. So the version is looked at first.
        let mut begin = [0; 10];
        input.read_exact(&mut begin).await.map_err(|_| Refusal::Preamble)?;
        let (magic, version) = begin.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(Refusal::Preamble);
        }
        let version = u16::from_le_bytes([version[0], version[1]]);
        if version < VERSION_MIN {
            return Err(Refusal::Version);
        }
        let (_, body) = read_rest(input).await.map_err(|_| Refusal::Preamble)?;
        Ok((version, Self::decode(&body).ok_or(Refusal::Preamble)?))
    }
}

/// Sends facts, with a refusal or without: an answer or a verdict.
///
/// # Errors
/// If the connection fails.
pub async fn send(
    output: &mut (impl AsyncWrite + Unpin),
    version: u16,
    refusal: Option<Refusal>,
    facts: Option<&Facts>,
) -> io::Result<()> {
    let bytes = match facts {
        Some(facts) => encode(version.min(VERSION), refusal, facts),
        None => encode(version.min(VERSION), refusal, &()),
    };
    output.write_all(&bytes).await?;
    output.flush().await
}

/// Reads an answer or a verdict: a refusal or none, and what the other end says.
///
/// # Errors
/// If the connection fails, or carries something else.
pub async fn receive(
    input: &mut (impl AsyncRead + Unpin),
) -> io::Result<(Option<Refusal>, Option<Facts>)> {
    let refused = |why: &str| io::Error::new(io::ErrorKind::PermissionDenied, why);
    let mut begin = [0; 10];
    input.read_exact(&mut begin).await?;
    let (magic, version) = begin.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(refused("no instance of EMNetChain answers there"));
    }
    let version = u16::from_le_bytes([version[0], version[1]]);
    if !(VERSION_MIN..=VERSION).contains(&version) {
        return Err(refused("it speaks another version of EMNetChain"));
    }
    let (code, body) = read_rest(input).await?;
    let facts = postcard::take_from_bytes::<Facts>(&body).ok().map(|(facts, _later)| facts);
    match (code, Refusal::of(code)) {
        (0, _) if facts.is_none() => Err(refused("it does not introduce itself")),
        (0, _) => Ok((None, facts)),
        (_, Some(refusal)) => Ok((Some(refusal), facts)),
        (_, None) => Err(refused("it refuses this instance, for a reason unknown to this version")),
    }
}

fn encode(version: u16, refusal: Option<Refusal>, body: &impl Serialize) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.push(refusal.map_or(0, Refusal::code));
    bytes.extend([0; 2]);
    let mut bytes = postcard::to_extend(body, bytes).expect("it can be encoded");
    let length = u16::try_from(bytes.len() - HEAD_BYTES).expect("it is short");
    bytes[HEAD_BYTES - 2..HEAD_BYTES].copy_from_slice(&length.to_le_bytes());
    bytes
}

/// Reads what follows the version.
async fn read_rest(input: &mut (impl AsyncRead + Unpin)) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 3];
    input.read_exact(&mut head).await?;
    let [code, low, high] = head;
    let length = usize::from(u16::from_le_bytes([low, high]));
    if length > BODY_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut body = vec![0; length];
    input.read_exact(&mut body).await?;
    Ok((code, body))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::raft::Vote;

    fn name(cluster: u128, node: u64) -> NodeName {
        NodeName { cluster: ClusterId(cluster), node: InstanceId(node) }
    }

    fn facts(store: u128) -> Facts {
        Facts {
            history: Some(HistoryId(7)),
            store: StoreId(store),
            run: 1,
            progress: Progress::of_vote(Vote::new(3, 1)),
            acknowledged: None,
            rules: Rules::NEWEST,
            known: Known::Named { store: Some(StoreId(9)), lived: true },
            remembered: None,
        }
    }

    fn hello(cluster: u128, from: u64, to: u64) -> Hello {
        let (lane, from, to) = (Lane::Calls, name(cluster, from), InstanceId(to));
        Hello { lane, from, to, facts: facts(8) }
    }

    fn read(bytes: &[u8]) -> Result<(u16, Hello), Refusal> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async { Hello::read(&mut &*bytes).await })
    }

    proptest! {
        #[test]
        fn a_hello_comes_out_as_it_went_in(
            lane in 0_usize..4, cluster: u128, from: u64, to: u64, store: u128, later: Vec<u8>,
        ) {
            let lane = [Lane::Append, Lane::Calls, Lane::Snapshot, Lane::Probe][lane];
            let hello = Hello {
                lane, from: name(cluster, from), to: InstanceId(to), facts: facts(store),
            };
            prop_assert_eq!(read(&hello.encode()), Ok((VERSION, hello)));
            // A later version has more to say, and this one can do without it.
            let mut longer = hello.encode();
            let later = &later[..later.len().min(100)];
            longer.extend(later);
            let length = (longer.len() - HEAD_BYTES) as u16;
            longer[HEAD_BYTES - 2..HEAD_BYTES].copy_from_slice(&length.to_le_bytes());
            prop_assert_eq!(read(&longer), Ok((VERSION, hello)));
        }

        #[test]
        fn other_beginnings_are_refused(bytes: Vec<u8>) {
            prop_assert_eq!(read(&bytes), Err(Refusal::Preamble));
        }

        #[test]
        fn what_follows_the_magic_is_read_without_harm(rest: Vec<u8>) {
            let _ = read(&[MAGIC.as_slice(), &rest].concat());
        }
    }

    #[test]
    fn a_hello_is_for_one_instance_of_one_cluster() {
        let check = |cluster, from, to| hello(cluster, from, to).check(name(5, 1));
        assert_eq!(check(5, 2, 1), Ok(()));
        assert_eq!(check(6, 2, 1), Err(Refusal::Cluster));
        assert_eq!(check(5, 2, 3), Err(Refusal::Target));
        assert_eq!(check(5, 1, 1), Err(Refusal::Identity));
    }

    #[test]
    fn an_older_version_is_refused_by_its_first_bytes() {
        let old = [b"EMNETRFT".as_slice(), &1_u16.to_le_bytes(), &[2; 33]].concat();
        assert_eq!(read(&old), Err(Refusal::Version));
    }

    #[test]
    fn every_refusal_has_a_number_of_its_own() {
        for refusal in Refusal::ALL {
            assert_eq!(Refusal::of(refusal.code()), Some(refusal));
        }
        assert_eq!(Refusal::of(0), None);
    }

    #[tokio::test]
    async fn an_answer_says_the_lower_version_and_the_reason() {
        for (version, refusal, expected) in [
            (VERSION, None, Ok(None)),
            (VERSION + 7, None, Ok(None)),
            (1, None, Err("it speaks another version of EMNetChain")),
            (VERSION, Some(Refusal::Cluster), Ok(Some(Refusal::Cluster))),
        ] {
            let mut bytes = Vec::new();
            send(&mut bytes, version, refusal, Some(&facts(8))).await.unwrap();
            let heard = receive(&mut bytes.as_slice()).await;
            let heard = heard.map(|(refusal, _)| refusal).map_err(|error| error.to_string());
            assert_eq!(heard, expected.map_err(str::to_owned));
        }
        let mut bytes = Vec::new();
        send(&mut bytes, VERSION, None, None).await.unwrap();
        assert!(receive(&mut bytes.as_slice()).await.is_err(), "an answer has facts");
    }
}
