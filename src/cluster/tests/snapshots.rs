//! A snapshot on its way: its frames, what is refused of them, and the answers.

use openraft::raft::SnapshotResponse;
use tokio::io::AsyncWriteExt as _;

use super::*;
use crate::{
    cluster::{
        greeted::Greeted,
        rpc::{CallError, FrameReader, Request, Response, frame, snapshot},
    },
    limits::SNAPSHOT_BYTES_MAX,
    raft::Vote,
    storage::SnapshotFile,
};

const KIB: usize = 1024;

/// Returns the bytes of a snapshot as they are in its file.
fn bytes_of(file: &SnapshotFile) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.bytes()).unwrap()];
    file.read_at(&mut bytes, 0).unwrap();
    bytes
}

/// One instance with so much in it that its snapshot takes several frames.
async fn one() -> (Instance, SnapshotFile) {
    let one = Instance::start(&Wires::default(), Given::alone(1)).await;
    until("it serves", || one.serves()).await;
    for batch in 0..40 {
        one.write((0..100).map(|n| add_peer(batch * 100 + n)).collect()).await;
    }
    let file = one.backup().await.unwrap();
    (one, file)
}

#[tokio::test(start_paused = true)]
async fn a_file_is_sent_in_frames_of_a_quarter_of_a_mebibyte_and_the_answer_is_handed_on() {
    runtime::follow_seed(61);
    let (_one, file) = one().await;
    let (bytes, vote) = (bytes_of(&file), Vote::new_committed(7, 1));
    assert!(bytes.len() > 600 * KIB);
    let installed = SnapshotResponse::new(vote);
    for (answer, expected) in [
        (Some(Response::Snapshot(installed.clone())), Ok(installed)),
        (Some(Response::Failed("no".to_owned())), Err(CallError::Failed("no".to_owned()))),
        (Some(Response::Changed("what".to_owned())), Err(CallError::Mismatched)),
        (None, Err(CallError::Lost)),
    ] {
        let (near, far) = tokio::io::duplex(64 * KIB);
        let sending = snapshot::send(Box::new(near), vote, &file);
        let taking = async {
            let (input, mut output) = tokio::io::split(far);
            let mut frames = FrameReader::new(input);
            let first = frames.next().await.unwrap().unwrap();
            let Request::Snapshot { vote: said, bytes: length } =
                frame::decode(&first.body).unwrap()
            else {
                panic!("it is announced")
            };
            assert_eq!((said, length), (vote, file.bytes()));
            let mut taken = Vec::new();
            while taken.len() < bytes.len() {
                let chunk = frames.next().await.unwrap().unwrap().body;
                assert_eq!(chunk.len(), (256 * KIB).min(bytes.len() - taken.len()));
                taken.extend(chunk);
            }
            assert!(taken == bytes, "it arrives as it is in the file");
            if let Some(answer) = answer {
                output.write_all(&frame::encode(first.id, &answer).unwrap()).await.unwrap();
            }
        };
        let (sent, ()) = tokio::join!(sending, taking);
        assert_eq!(sent, expected);
    }
}

/// A sender that makes mistakes is refused.
#[tokio::test(start_paused = true)]
async fn what_is_no_snapshot_is_refused_at_its_first_wrong_byte() {
    runtime::follow_seed(62);
    let wires = Wires::default();
    let two = found(&wires, &[1, 2]).await;
    let greeted = Greeted::new(Arc::new(Wire(wires, two[1].id)), two[1].greeter.clone());
    let open = || greeted.connect(two[0].id, &two[0].members()[&two[0].id], Lane::Snapshot);
    let refused = |reason| two[0].metrics.raft_refused.with_label_values(&[reason]).get();
    let vote = Vote::new_committed(99, 2);
    let announce = |bytes| frame::encode(7, &Request::Snapshot { vote, bytes }).unwrap();
    let chunk = |length| {
        let fill = |body: &mut [u8]| {
            body.fill(9);
            Ok(())
        };
        frame::encode_raw(0, length, fill).unwrap()
    };
    let mib = 1024 * KIB;
    // What is said, and for what reason it is refused at once; `None` if more is waited for.
    for (bytes, chunks, reason) in [
        (SNAPSHOT_BYTES_MAX, vec![], None),
        (SNAPSHOT_BYTES_MAX + 1, vec![], Some("frame")),
        (3 * mib as u64, vec![mib, 1, mib], None),
        (3 * mib as u64, vec![mib + 1], Some("frame")),
        (3 * mib as u64, vec![10, 0], Some("frame")),
        (100, vec![40, 59], None),
        (100, vec![40, 61], Some("frame")),
    ] {
        let (mut stream, before) = (open().await.unwrap(), refused("frame"));
        let mut said = announce(bytes);
        chunks.iter().for_each(|length| said.extend(chunk(*length)));
        stream.write_all(&said).await.unwrap();
        let mut frames = FrameReader::new(stream);
        let begun = clock::now();
        let answer = tokio::time::timeout(PATIENCE, frames.next()).await.expect("it ends");
        assert!(!matches!(answer, Ok(Some(_))), "it is not answered: {answer:?}");
        let took = (clock::now() - begun).as_secs();
        // What is waited for is waited for ten seconds.
        assert_eq!(took, if reason.is_some() { 0 } else { 10 }, "{bytes} {chunks:?}");
        let count = refused("frame") - before;
        assert_eq!(count, u64::from(reason.is_some()), "{bytes} {chunks:?}");
    }
    // All of it came, and is no snapshot. It is said, and the connection has done its work.
    let mut stream = open().await.unwrap();
    let said = [announce(100), chunk(60), chunk(40)].concat();
    stream.write_all(&said).await.unwrap();
    let mut frames = FrameReader::new(stream);
    let answer = frames.next().await.unwrap().unwrap();
    assert_eq!(answer.id, 7);
    assert!(matches!(frame::decode(&answer.body), Ok(Response::Failed(_))));
    assert!(frames.next().await.unwrap().is_none());
    // In the name of another; and of something else.
    let another = Request::Snapshot { vote: Vote::new_committed(99, 1), bytes: 1 };
    for (request, reason) in [(another, "forged"), (Request::Introduce, "frame")] {
        let (mut stream, before) = (open().await.unwrap(), refused(reason));
        stream.write_all(&frame::encode(7, &request).unwrap()).await.unwrap();
        until(reason, || refused(reason) == before + 1).await;
    }
    assert!(two.iter().all(|it| it.serves() && it.view().installed() == 0));
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_is_taken_from_a_leader_of_its_term_or_a_later_one() {
    runtime::follow_seed(63);
    let wires = Wires::default();
    let two = found(&wires, &[1, 2]).await;
    lead(&two, 1).await;
    two[0].write(vec![add_peer(1)]).await;
    let (file, term) = (two[0].backup().await.unwrap(), two[0].status().term);
    let greeted = Greeted::new(Arc::new(Wire(wires, two[0].id)), two[0].greeter.clone());
    let send = async |term: u64| {
        let member = two[1].member(2).unwrap();
        let stream = greeted.connect(two[1].id, &member, Lane::Snapshot).await.unwrap();
        snapshot::send(stream, Vote::new_committed(term, 1), &file).await
    };
    let earlier = send(term - 1).await.unwrap_err().to_string();
    assert_says(&earlier, &["the snapshot is of a later term than its sender"]);
    assert_eq!(send(term).await.unwrap().vote, Vote::new_committed(term, 1));
}

#[tokio::test(start_paused = true)]
async fn one_that_lags_behind_the_log_gets_a_snapshot_and_begins_another_life() {
    runtime::follow_seed(64);
    let (wires, ids) = (Wires::default(), [1, 2, 3]);
    let bounds = LogBounds { snapshot_after_entries: 40, entries_kept: 10 };
    let mut three = Vec::new();
    for id in ids {
        let given = Given { bounds, ..Given::with(id, &ids) };
        three.push(Instance::start(&wires, given).await);
    }
    until("all serve", || three.iter().all(Instance::serves)).await;
    lead(&three, 1).await;
    let snapshot = |it: &Instance| {
        use openraft::async_runtime::WatchReceiver as _;
        let states = it.raft.metrics();
        let now = states.borrow_watched();
        (now.snapshot.map_or(0, |id| id.index), now.purged.map_or(0, |id| id.index))
    };
    seconds(3.0).await;
    assert_eq!(snapshot(&three[0]), (0, 0), "the log is short");
    wires.set_apart(3, 1, true);
    wires.set_apart(3, 2, true);
    for number in 0..60 {
        three[0].write(vec![add_peer(number)]).await;
    }
    until("the log is cut", || snapshot(&three[0]).1 > 40).await;
    let (made, cut) = snapshot(&three[0]);
    assert!((cut..=cut + 11).contains(&made), "as many entries are kept as was said: {made} {cut}");
    seconds(5.0).await;
    assert_eq!(snapshot(&three[0]).0, made, "and no other is made until the log is long again");
    wires.set_apart(3, 1, false);
    wires.set_apart(3, 2, false);
    until("it has everything", || three[2].peers() == 60).await;
    until("it begins another life", || three[2].life() > 1).await;
    assert_eq!(three[2].was_over(), "this instance was brought up to date by a snapshot");
    assert_eq!((three[2].view().installed(), three[1].view().installed()), (1, 0));
    assert_eq!((three[1].life(), three[0].life()), (1, 1));
    assert_eq!(three[2].trouble(), None);
}
