//! Backups over real connections, to readers of every kind.

use super::*;
use crate::ops::Backup;

/// More than the kernel keeps for a reader that does not read.
const BYTES: u64 = 24 * 1024 * 1024 + 77;

/// The header that opens the instance.
const SECRET: &str = "authorization: Bearer secret\r\n";

/// Returns a file in which every byte tells its place.
pub(super) fn backup() -> Backup {
    let read_at = |piece: &mut [u8], at: u64| {
        for (byte, place) in piece.iter_mut().zip(at..) {
            *byte = byte_at(place);
        }
        Ok(())
    };
    Backup { bytes: BYTES, entry: 7, records: 3, read_at: Arc::new(read_at) }
}

fn byte_at(place: u64) -> u8 {
    (place % 251) as u8
}

/// Asks for a backup, and reads the head of the answer.
async fn ask(bench: &Bench, headers: &str) -> (TcpStream, String) {
    let mut stream = bench.connect().await;
    let request =
        format!("GET /api/v1/backup HTTP/1.1\r\nhost: localhost\r\n{SECRET}{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    (stream, String::from_utf8(head).unwrap())
}

/// Reads until the server closes; how much was right.
async fn take(stream: &mut TcpStream, pause: Duration) -> u64 {
    let mut taken = 0;
    let mut buffer = vec![0; 1024 * 1024];
    loop {
        let read = time::timeout(Duration::from_secs(10), stream.read(&mut buffer));
        let Ok(count @ 1..) = read.await.expect("the server goes on or closes") else {
            return taken;
        };
        for (byte, place) in buffer[..count].iter().zip(taken..) {
            assert_eq!(*byte, byte_at(place));
        }
        taken += count as u64;
        time::sleep(pause).await;
    }
}

#[tokio::test]
async fn a_backup_is_handed_out_whole_and_told_when_it_is_kept() {
    let bench = Bench::start(HttpOptions::default());
    let (mut stream, head) = ask(&bench, "").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    for header in ["content-length: 25165901", "emnetchain-entry: 7", "emnetchain-records: 3"] {
        assert!(head.contains(&format!("{header}\r\n")), "{head}");
    }
    assert_eq!(take(&mut stream, Duration::ZERO).await, BYTES);
    let kept = &bench.metrics.backup_timestamp;
    assert_eq!(kept.get(), 0, "no operator has said that it is on a disk");
    let post = async |headers: &str| {
        let mut stream = bench.connect().await;
        let request = format!(
            "POST /api/v1/backup/kept HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
             content-type: application/json\r\n{headers}content-length: 2\r\n\r\n{{}}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        rest(&mut stream).await
    };
    let denied = post("authorization: Bearer wrong\r\n").await;
    assert!(denied.starts_with("HTTP/1.1 403 ") && kept.get() == 0, "{denied}");
    let told = post(SECRET).await;
    assert!(told.starts_with("HTTP/1.1 200 ") && kept.get() > 1_600_000_000, "{told}");
}

#[tokio::test]
async fn one_backup_at_a_time_and_a_reader_that_goes_away_makes_room() {
    let bench = Bench::start(HttpOptions::default());
    let (first, _) = ask(&bench, "").await;
    let (mut second, head) = ask(&bench, "connection: close\r\n").await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert!(rest(&mut second).await.contains("another backup"));
    drop(first);
    let mut third = ask_until_free(&bench).await;
    assert_eq!(take(&mut third, Duration::ZERO).await, BYTES);
}

/// Asks for a backup until no other one is handed out.
async fn ask_until_free(bench: &Bench) -> TcpStream {
    let asking = async {
        loop {
            let (stream, head) = ask(bench, "connection: close\r\n").await;
            if head.starts_with("HTTP/1.1 200 ") {
                return stream;
            }
            yield_now().await;
        }
    };
    time::timeout(Duration::from_secs(10), asking).await.expect("no reader holds it for ever")
}

#[tokio::test]
async fn a_reader_may_be_slow() {
    let life = Duration::from_secs(3);
    let options = HttpOptions { connection_life_max: life, ..HttpOptions::default() };
    let bench = Bench::start(options);
    let began = crate::clock::now();
    let (mut slow, _) = ask(&bench, "").await;
    assert_eq!(take(&mut slow, Duration::from_millis(150)).await, BYTES);
    assert!(crate::clock::now() - began > life, "it was not slow");
}

#[tokio::test]
async fn a_reader_that_stops_is_cut_off() {
    let life = Duration::from_millis(300);
    let options = HttpOptions { connection_life_max: life, ..HttpOptions::default() };
    let bench = Bench::start(options);
    let (mut stopped, _) = ask(&bench, "").await;
    drop(ask_until_free(&bench).await);
    assert!(take(&mut stopped, Duration::ZERO).await < BYTES);
}

#[tokio::test]
async fn a_backup_does_not_give_way_to_a_flood() {
    let options = HttpOptions { connections_max: 3, ..HttpOptions::default() };
    let bench = Bench::start(options);
    let (mut stream, _) = ask(&bench, "").await;
    let mut idle = Vec::new();
    for _ in 0..10 {
        idle.push(bench.connect().await);
    }
    assert!(bench.ask("GET /livez").await.starts_with("HTTP/1.1 200 "));
    assert_eq!(take(&mut stream, Duration::ZERO).await, BYTES);
}
