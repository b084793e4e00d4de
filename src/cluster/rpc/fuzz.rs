//! Hostile bytes for the port of instances: what is read of a connection before it has proven
//! whose it is, and frames.

use futures_util::FutureExt as _;
use serde::{Serialize, de::DeserializeOwned};

use super::{
    FrameReader, Request, Response, frame,
    hello::{Facts, Hello, Known, VERSION, receive},
};
use crate::{
    cluster::{
        progress::Progress,
        service::check_author,
        transport::{Lane, NodeName},
    },
    codec,
    fuzz::{Arriving, Chance, Target},
    ids::{HistoryId, InstanceId, StoreId},
    limits::RPC_FRAME_BYTES_MAX,
    raft::Vote,
    registry::Rules,
    storage::ClusterId,
};

fn hello(lane: Lane, known: Known) -> Vec<u8> {
    let progress = Progress::of_vote(Vote::new(3, 2));
    let facts = Facts {
        history: Some(HistoryId(7)),
        store: StoreId(8),
        run: 1,
        progress,
        acknowledged: Some(progress),
        rules: Rules::NEWEST,
        known,
        remembered: None,
    };
    let from = NodeName { cluster: ClusterId(5), node: InstanceId(2) };
    Hello { lane, from, to: InstanceId(1), facts }.encode()
}

#[test]
fn hello_of_a_stranger() {
    let named = Known::Named { store: Some(StoreId(9)), lived: true };
    let corpus = [
        hello(Lane::Append, Known::Unknown),
        hello(Lane::Calls, named),
        hello(Lane::Snapshot, Known::Removed(12)),
        [b"EMNETRFT".as_slice(), &1_u16.to_le_bytes(), &[2; 33]].concat(),
    ];
    let target = Target::new("hello", 8 * 1024).with(corpus);
    target.run(30_000, |input, chance| {
        let mut arriving = Arriving::new(input, chance);
        let read = Hello::read(&mut arriving).now_or_never().expect("all bytes are there");
        let mut arriving = Arriving::new(input, chance);
        drop(receive(&mut arriving).now_or_never().expect("all bytes are there"));
        let Ok((version, hello)) = read else { return false };
        assert!(version >= VERSION);
        let again = hello.encode();
        let again = Hello::read(&mut again.as_slice()).now_or_never().expect("it is there");
        assert_eq!(again, Ok((VERSION, hello)));
        true
    });
}

/// Checks that a decoded body has one encoding of its own, which decodes to the same.
fn decodes<T: Serialize + DeserializeOwned>(body: &[u8]) -> Option<T> {
    let message: T = frame::decode(body).ok()?;
    let encoded = codec::encode(&message);
    let again: T = frame::decode(&encoded).expect("what was encoded decodes");
    assert!(codec::encode(&again) == encoded, "the encoding stays the same");
    Some(message)
}

/// Bytes of frames: as they are, or with this body and a checksum that is right.
fn framed(input: &[u8], chance: &mut Chance) -> Vec<u8> {
    if chance.percent(30) {
        return input.to_vec();
    }
    let fill = |place: &mut [u8]| {
        place.copy_from_slice(input);
        Ok(())
    };
    let framed = frame::encode_raw(chance.next(), input.len(), fill).expect("short");
    if chance.percent(50) { [framed.as_slice(), input].concat() } else { framed }
}

#[test]
fn frames() {
    let bodies = ["requests.txt", "responses.txt"].map(codec::golden::all_of).concat();
    let framed_bodies: Vec<_> =
        bodies.iter().map(|body| frame::encode(7, &body.as_slice()).expect("short")).collect();
    // A list is made with room for 1 MiB at most before its items are seen (serde).
    let target = Target::new("frames", 2 << 20).with(bodies).with(framed_bodies);
    target.run(20_000, |input, chance| {
        let bytes = framed(input, chance);
        let mut reader = FrameReader::new(Arriving::new(&bytes, chance));
        let (mut taken, mut covered) = (false, 0);
        while let Ok(Some(frame)) = reader.next().now_or_never().expect("all bytes are there") {
            covered += 16 + frame.body.len();
            assert!(covered <= bytes.len() && frame.body.len() < RPC_FRAME_BYTES_MAX);
            if let Some(request) = decodes::<Request>(&frame.body) {
                taken = true;
                let is_own = check_author(&request, InstanceId(2)).is_ok();
                assert!(!is_own || request.author().is_none_or(|author| author.0 == 2));
            }
            taken |= decodes::<Response>(&frame.body).is_some();
        }
        taken
    });
}
