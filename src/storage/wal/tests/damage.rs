//! Damage to the files of a log that was closed in good order. Under every damage the log
//! is either refused, or it opens with every entry and the vote. It never opens with less.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
};

use tempfile::TempDir;

use super::*;
use crate::{
    platform::files::{read_exact_at, write_all_at},
    storage::{
        RealDisk,
        sim_disk::Rng,
        wal::frame::{FRAME_HEADER_BYTES, SEGMENT_HEADER_BYTES},
    },
};

/// Segments of 16 KiB, so that 4 KiB in the middle of one are several frames.
const MEDIUM: Sizes =
    Sizes { segment_bytes: 16 << 10, drain_bytes: 4 << 10, frame_bytes: 1 << 10, ..SMALL };

/// A closed log in a temporary directory, and what it holds.
struct Fixture {
    root: TempDir,
    model: Model,
    segments: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Refused,
    Whole,
}

impl Fixture {
    /// Five segments, the first ones purged, with a truncation in the last and across two, and a
    /// vote as the last thing acknowledged.
    async fn new() -> Self {
        let root = TempDir::new().unwrap();
        let dir = root.path().join("raft");
        let options = options(&dir, false).0;
        let mut store = LogStore::open_on(Arc::new(RealDisk), options, MEDIUM).unwrap();
        let mut model = Model::default();
        let grow = async |store: &mut LogStore, model: &mut Model, term, count: u64| {
            for number in 0..count {
                let size = 100 + 7 * usize::try_from(number % 40).unwrap();
                let new = vec![entry(term, model.end(), size), entry(term, model.end() + 1, 9)];
                append(store, new.clone()).await.unwrap();
                model.entries.extend(new);
            }
        };
        grow(&mut store, &mut model, 1, 180).await;
        let purged = model.entries[150].log_id;
        store.purge(purged).await.unwrap();
        model.purge(purged);
        model.truncate(model.end() - 70);
        store.truncate_after(model.last()).await.unwrap();
        grow(&mut store, &mut model, 2, 130).await;
        model.truncate(model.end() - 2);
        store.truncate_after(model.last()).await.unwrap();
        grow(&mut store, &mut model, 3, 4).await;
        model.vote = Some(Vote::new(4, 1));
        store.save_vote(&model.vote.unwrap()).await.unwrap();
        grow(&mut store, &mut model, 3, 3).await;
        model.vote = Some(Vote::new_committed(9, 1));
        store.save_vote(&model.vote.unwrap()).await.unwrap();
        drop(store);
        let segments: Vec<_> = files(&dir).into_keys().filter(|path| is_segment(path)).collect();
        let segments: Vec<_> =
            segments.iter().map(|path| path.file_name().unwrap().into()).collect();
        assert!(segments.len() >= 4, "{segments:?}");
        Self { root, model, segments }
    }

    /// Returns a copy of the log's directory, to be damaged.
    fn copy(&self) -> TempDir {
        let copy = TempDir::new_in(self.root.path()).unwrap();
        for (path, bytes) in files(&self.root.path().join("raft")) {
            fs::write(copy.path().join(path.file_name().unwrap()), bytes).unwrap();
        }
        copy
    }

    /// Does damage to a copy, and judges what becomes of it.
    async fn judge(&self, what: &str, damage: impl FnOnce(&Path)) -> Verdict {
        let copy = self.copy();
        damage(copy.path());
        let before = files(copy.path());
        let checked = LogStore::check(copy.path(), CLUSTER);
        assert_eq!(files(copy.path()), before, "{what}: checking changes nothing");
        let opened = LogStore::open_on(Arc::new(RealDisk), options(copy.path(), true).0, MEDIUM);
        assert_eq!(checked.is_ok(), opened.is_ok(), "{what}: {checked:?} {opened:?}");
        let mut store = match opened {
            Ok(store) => store,
            Err(error @ LogError::Damaged { .. }) => {
                assert_eq!(files(copy.path()), before, "{what}: a refused log is left alone");
                assert!(error.to_string().contains("new node id"), "the way out is named");
                return Verdict::Refused;
            }
            Err(error @ LogError::Io(_)) => panic!("{what}: {error}"),
        };
        let mut model = self.model.clone();
        assert_eq!(Model::of(&mut store).await.unwrap(), model, "{what}");
        // What was repaired must carry on, and hold after another start.
        let new = entry(10, model.end(), 100);
        append(&mut store, vec![new.clone()]).await.unwrap();
        model.entries.push(new);
        drop(store);
        let healed = LogStore::check(copy.path(), CLUSTER).unwrap();
        assert!(!healed.one_state_copy_stale && healed.torn_bytes == 0, "{what}: {healed:?}");
        let mut store =
            LogStore::open_on(Arc::new(RealDisk), options(copy.path(), true).0, MEDIUM).unwrap();
        assert_eq!(Model::of(&mut store).await.unwrap(), model, "{what}, healed");
        Verdict::Whole
    }

    async fn assert_verdict(&self, verdict: Verdict, what: &str, damage: impl FnOnce(&Path)) {
        assert_eq!(self.judge(what, damage).await, verdict, "{what}");
    }
}

fn is_segment(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "wal")
}

fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let paths = fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    paths.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

fn flip(path: &Path, byte: u64, mask: u8) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut old = [0];
    read_exact_at(&file, &mut old, byte).unwrap();
    write_all_at(&file, &[old[0] ^ mask], byte).unwrap();
}

fn overwrite(path: &Path, offset: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    write_all_at(&file, bytes, offset).unwrap();
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len()
}

fn cut(path: &Path, new_size: u64) {
    OpenOptions::new().write(true).open(path).unwrap().set_len(new_size).unwrap();
}

fn add(path: &Path, bytes: &[u8]) {
    overwrite(path, size(path), bytes);
}

fn last_frame(path: &Path) -> u64 {
    *frame_starts(path).last().unwrap()
}

fn frame_starts(path: &Path) -> Vec<u64> {
    let bytes = fs::read(path).unwrap();
    let mut starts = vec![SEGMENT_HEADER_BYTES];
    loop {
        let start = starts[starts.len() - 1];
        let length: [u8; 4] = bytes[start + 4..start + 8].try_into().unwrap();
        let next = start + FRAME_HEADER_BYTES + u32::from_le_bytes(length) as usize;
        if next == bytes.len() {
            return starts.iter().map(|start| *start as u64).collect();
        }
        starts.push(next);
    }
}

#[tokio::test]
async fn an_undamaged_log_is_whole() {
    let fixture = Fixture::new().await;
    fixture.assert_verdict(Verdict::Whole, "nothing", |_| {}).await;
}

#[tokio::test]
async fn damage_inside_any_segment_is_refused() {
    use Verdict::Refused;
    let fixture = Fixture::new().await;
    let first_frame = SEGMENT_HEADER_BYTES as u64;
    for name in &fixture.segments {
        let at = |dir: &Path| dir.join(name);
        let what = |damage: &str| format!("{}: {damage}", name.display());
        for byte in [0, 8, 12, 28, 44, 52, 60] {
            let damage = |dir: &Path| flip(&at(dir), byte, 1);
            fixture.assert_verdict(Refused, &what(&format!("segment header {byte}")), damage).await;
        }
        for frame in [false, true] {
            let offset = |path: &Path| if frame { last_frame(path) } else { first_frame };
            for byte in 4..8 {
                let damage = |dir: &Path| flip(&at(dir), offset(&at(dir)) + byte, 0x80);
                fixture
                    .assert_verdict(Refused, &what(&format!("length byte {byte}")), damage)
                    .await;
            }
            let damage = |dir: &Path| flip(&at(dir), offset(&at(dir)) + 60, 4);
            fixture.assert_verdict(Refused, &what("payload"), damage).await;
            let damage = |dir: &Path| flip(&at(dir), offset(&at(dir)) + 38, 4);
            fixture.assert_verdict(Refused, &what("header checksum"), damage).await;
        }
        let zero = |dir: &Path| {
            let length = size(&at(dir)).min(4096);
            overwrite(&at(dir), (size(&at(dir)) - length) / 2, &vec![0; length as usize]);
        };
        fixture.assert_verdict(Refused, &what("4 KiB zeroed"), zero).await;
        let cut_tail =
            |bytes: u64| move |dir: &Path| cut(&dir.join(name), size(&dir.join(name)) - bytes);
        fixture.assert_verdict(Refused, &what("1 B cut"), cut_tail(1)).await;
        fixture.assert_verdict(Refused, &what("1000 B cut"), cut_tail(1000)).await;
        let cut_frame = |dir: &Path| cut(&at(dir), last_frame(&at(dir)));
        fixture.assert_verdict(Refused, &what("last frame cut"), cut_frame).await;
        let halve = |dir: &Path| cut(&at(dir), size(&at(dir)) / 2);
        fixture.assert_verdict(Refused, &what("cut in half"), halve).await;
        let empty = |dir: &Path| cut(&at(dir), 0);
        fixture.assert_verdict(Refused, &what("emptied"), empty).await;
        let delete = |dir: &Path| fs::remove_file(at(dir)).unwrap();
        fixture.assert_verdict(Refused, &what("deleted"), delete).await;
    }
}

#[tokio::test]
async fn missing_foreign_and_duplicate_files_are_refused() {
    use Verdict::Refused;
    let fixture = Fixture::new().await;
    let other = Fixture::new().await;
    let [first, .., last] = &fixture.segments[..] else { panic!() };
    let delete_segments = |dir: &Path| {
        for name in &fixture.segments {
            fs::remove_file(dir.join(name)).unwrap();
        }
    };
    fixture.assert_verdict(Refused, "all segments deleted", delete_segments).await;
    let delete_all = |dir: &Path| {
        delete_segments(dir);
        fs::remove_file(dir.join("state")).unwrap();
    };
    fixture.assert_verdict(Refused, "everything deleted", delete_all).await;
    let no_state = |dir: &Path| fs::remove_file(dir.join("state")).unwrap();
    fixture.assert_verdict(Refused, "state deleted", no_state).await;

    for name in &fixture.segments {
        let stranger = other.root.path().join("raft").join(name);
        assert!(stranger.exists(), "both stores have been through the same");
        let swap = |dir: &Path| fs::copy(&stranger, dir.join(name)).map(drop).unwrap();
        fixture.assert_verdict(Refused, "segment of another store", swap).await;
    }
    let stranger = other.root.path().join("raft/state");
    let swap = |dir: &Path| fs::copy(&stranger, dir.join("state")).map(drop).unwrap();
    fixture.assert_verdict(Refused, "state of another store", swap).await;
    let exchange = |dir: &Path| {
        let bytes = fs::read(dir.join(first)).unwrap();
        fs::copy(dir.join(last), dir.join(first)).unwrap();
        fs::write(dir.join(last), bytes).unwrap();
    };
    fixture.assert_verdict(Refused, "two segments exchanged", exchange).await;
    for name in ["00000000000000099999.wal", "00000000000000000003.wal", "7.wal", "copy of 7.wal"] {
        let copy = |dir: &Path| fs::copy(dir.join(last), dir.join(name)).map(drop).unwrap();
        fixture.assert_verdict(Refused, &format!("copied as {name}"), copy).await;
    }
}

#[tokio::test]
async fn one_damaged_copy_of_the_state_is_healed_and_two_are_refused() {
    use Verdict::{Refused, Whole};
    let fixture = Fixture::new().await;
    let state = |dir: &Path| dir.join("state");
    for byte in [0, 9, 13, 16, 30, 60] {
        let one = |dir: &Path| flip(&state(dir), byte, 1);
        fixture.assert_verdict(Whole, &format!("first copy, byte {byte}"), one).await;
        let two = |dir: &Path| flip(&state(dir), 4096 + byte, 1);
        fixture.assert_verdict(Whole, &format!("second copy, byte {byte}"), two).await;
        let both = |dir: &Path| {
            one(dir);
            two(dir);
        };
        fixture.assert_verdict(Refused, &format!("both copies, byte {byte}"), both).await;
    }
    for byte in [0, 8, 17] {
        let mark = |dir: &Path| flip(&state(dir), 8192 + byte, 1);
        fixture.assert_verdict(Whole, &format!("watermark, byte {byte}"), mark).await;
    }
    let halve = |dir: &Path| cut(&state(dir), size(&state(dir)) / 2);
    fixture.assert_verdict(Whole, "state cut in half", halve).await;
    fixture.assert_verdict(Refused, "state emptied", |dir| cut(&state(dir), 0)).await;
    let zero = |dir: &Path| overwrite(&state(dir), 0, &[0; 4096]);
    fixture.assert_verdict(Whole, "first copy zeroed", zero).await;
}

#[tokio::test]
async fn the_torn_end_of_an_interrupted_write_is_cut() {
    use Verdict::Whole;
    let fixture = Fixture::new().await;
    let last = |dir: &Path| dir.join(fixture.segments.last().unwrap());
    for garbage in [&[0][..], &[0; 5000], &[0xff; 39], b"EMFR and more that looks like a header"] {
        let append = |dir: &Path| add(&last(dir), garbage);
        fixture.assert_verdict(Whole, "garbage behind the end", append).await;
    }
    // A frame as a crash leaves it: part of its bytes, or all its length and part of its contents.
    let copy = fixture.copy();
    let mut store =
        LogStore::open_on(Arc::new(RealDisk), options(copy.path(), true).0, MEDIUM).unwrap();
    let old_size = size(&last(copy.path()));
    append(&mut store, vec![entry(9, fixture.model.end(), 200)]).await.unwrap();
    drop(store);
    let frame = fs::read(last(copy.path())).unwrap().split_off(usize::try_from(old_size).unwrap());
    for there in [1, FRAME_HEADER_BYTES - 1, FRAME_HEADER_BYTES, frame.len() - 1] {
        let part = |dir: &Path| add(&last(dir), &frame[..there]);
        fixture.assert_verdict(Whole, &format!("{there} bytes of a frame"), part).await;
        let hole = |dir: &Path| {
            let mut torn = frame.clone();
            torn[there - 1] ^= 1;
            add(&last(dir), &torn);
        };
        fixture.assert_verdict(Whole, &format!("a frame torn at {there}"), hole).await;
    }
}

/// Every sync moves the watermark. After a power cut it may be old: then frames vouch for those
/// before them, and only the loss of the very last ones cannot be told from a write that was never
/// acknowledged.
#[tokio::test]
async fn the_watermark_and_later_frames_vouch_for_a_frame() {
    let fixture = Fixture::new().await;
    let copy = fixture.copy();
    let reopen = || LogStore::open_on(Arc::new(RealDisk), options(copy.path(), true).0, MEDIUM);
    let mut store = reopen().unwrap();
    let last = copy.path().join(fixture.segments.last().unwrap());
    let mut ends = vec![size(&last)];
    for number in 0..3 {
        append(&mut store, vec![entry(9, fixture.model.end() + number, 50)]).await.unwrap();
        ends.push(size(&last));
    }
    drop(store);
    // The watermark knows of the last frame, even if it is cut off.
    let whole = fs::read(&last).unwrap();
    for end in [ends[3] - 1, ends[3] - 60, ends[2], ends[1]] {
        cut(&last, end);
        assert!(matches!(reopen(), Err(LogError::Damaged { .. })), "{end}");
        fs::write(&last, &whole).unwrap();
    }
    overwrite(&copy.path().join("state"), 8192, &[0; 20]);
    for start in &ends[..2] {
        flip(&last, start + 50, 1);
        assert!(matches!(reopen(), Err(LogError::Damaged { offset, .. }) if offset == *start));
        flip(&last, start + 50, 1);
    }
    flip(&last, ends[2] + 50, 1);
    assert_eq!(reopen().unwrap().last(), Some(log_id(9, fixture.model.end() + 1)));
}

/// Two logs with the same past went different ways; a segment or a frame of one is put into the
/// other.
#[tokio::test]
async fn parts_of_another_history_of_the_same_log_are_refused() {
    let fixture = Fixture::new().await;
    let ways = [fixture.copy(), fixture.copy()];
    for (number, way) in (20..).zip(&ways) {
        let options = options(way.path(), true).0;
        let mut store = LogStore::open_on(Arc::new(RealDisk), options, MEDIUM).unwrap();
        for index in fixture.model.end()..fixture.model.end() + 120 {
            append(&mut store, vec![entry(number, index, 300)]).await.unwrap();
        }
    }
    let names = |way: &TempDir| files(way.path()).into_keys().filter(|path| is_segment(path));
    let [one, other] = [&ways[0], &ways[1]].map(|way| names(way).collect::<Vec<_>>());
    let refused = |what: &str| {
        let opened = LogStore::open_on(Arc::new(RealDisk), options(ways[0].path(), true).0, MEDIUM);
        assert!(matches!(opened, Err(LogError::Damaged { .. })), "{what}");
    };
    let [.., middle, last] = &one[..] else { panic!() };
    let [.., other_middle, other_last] = &other[..] else { panic!() };
    assert_eq!(middle.file_name(), other_middle.file_name());

    let before = fs::read(middle).unwrap();
    fs::copy(other_middle, middle).unwrap();
    refused("a segment");
    fs::write(middle, before).unwrap();

    let second = frame_starts(last)[1] as usize;
    let third = frame_starts(last)[2] as usize;
    assert_eq!(frame_starts(last), frame_starts(other_last));
    overwrite(last, second as u64, &fs::read(other_last).unwrap()[second..third]);
    refused("a frame");
}

#[tokio::test]
async fn random_damage_is_refused_or_healed_and_never_silent() {
    const DAMAGES: u64 = 300;
    let only = std::env::var("EMNETCHAIN_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = only.map_or(0..DAMAGES, |seed: u64| seed..seed + 1);
    let fixture = Fixture::new().await;
    let mut verdicts = BTreeMap::new();
    for seed in seeds {
        let mut rng = Rng(seed);
        let what = format!("replay with EMNETCHAIN_SEED={seed}");
        let verdict = fixture.judge(&what, |dir| damage_at_random(dir, &mut rng)).await;
        *verdicts.entry(verdict).or_insert(0) += 1;
    }
    if only.is_none() {
        assert!(
            verdicts[&Verdict::Refused] > 150 && verdicts[&Verdict::Whole] > 20,
            "{verdicts:?}"
        );
    }
}

fn damage_at_random(dir: &Path, rng: &mut Rng) {
    let paths: Vec<_> = files(dir).into_keys().collect();
    let path = &paths[usize::try_from(rng.below(paths.len() as u64)).unwrap()];
    let length = size(path);
    match rng.below(8) {
        0 | 1 => flip(path, rng.below(length), 1 << rng.below(8)),
        2 => {
            let start = rng.below(length);
            let count = 1 + rng.below((length - start).min(4096));
            overwrite(path, start, &vec![0; usize::try_from(count).unwrap()]);
        }
        3 => cut(path, length - 1 - rng.below(length.min(2000))),
        4 => {
            let count = 1 + rng.below(16);
            let start = rng.below(length.saturating_sub(count));
            let bytes: Vec<_> = (0..count).map(|_| rng.next().to_le_bytes()[0]).collect();
            overwrite(path, start, &bytes);
        }
        5 => {
            let bytes: Vec<_> =
                (0..1 + rng.below(200)).map(|_| rng.next().to_le_bytes()[0]).collect();
            add(path, &bytes);
        }
        6 => fs::remove_file(path).unwrap(),
        _ => {
            // A page of one file ends up in another place.
            let bytes = fs::read(path).unwrap();
            let (from, to) = (rng.below(length), rng.below(length));
            let end = (from + 512).min(length);
            overwrite(
                path,
                to,
                &bytes[usize::try_from(from).unwrap()..usize::try_from(end).unwrap()],
            );
        }
    }
}
