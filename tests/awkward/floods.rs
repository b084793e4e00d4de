//! Floods: clients that send, or have answers sent to them, without end.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use socket2::{Domain, SockRef, Socket, Type};
use tempfile::TempDir;

use super::{
    honest::{Honest, expect_metric, waiting},
    kernel::{Cost, crowd_turn},
};
use crate::support::{Client, Member, PATIENCE, Service, eventually, told};

/// What each flood would send if it were let.
const FLOOD_BYTES: usize = 1 << 30;

/// What of it may leave the client: what is read before the cut, and what buffers hold.
const SENT_BYTES_MAX: usize = 16 << 20;

/// What resident memory may have grown by, in KiB.
const GROWTH_KIB_MAX: u64 = 8 * 1024;

/// Sends `forever` again and again, until all is sent, the other side ends the connection, or takes
/// nothing for a while. Returns how much was sent.
fn flood(stream: &TcpStream, begin: &str, forever: &str) -> usize {
    let mut stream = stream;
    stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let chunk = forever.repeat(64 * 1024 / forever.len());
    let mut sent = 0;
    let chunks = std::iter::once(begin).chain(std::iter::repeat(chunk.as_str()));
    for chunk in chunks.filter(|chunk| !chunk.is_empty()) {
        match stream.write(chunk.as_bytes()) {
            Ok(count) => sent += count,
            Err(_) => return sent,
        }
        if sent >= FLOOD_BYTES {
            return sent;
        }
    }
    sent
}

/// Proves that endless junk, outside and inside a message, of any kind, to any server, is cut off
/// early, costs no memory and little of the processor.
#[test]
fn endless_junk_is_cut_off() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &["--emnet-addr", "127.0.0.1:0"]);
    let mut honest = Honest::begin(&service);
    honest.rounds(10);
    let floods = [
        ("", "["),
        ("", "{"),
        ("", "\""),
        ("", " "),
        ("", "\0"),
        ("", "}"),
        ("", "{\"a\":"),
        ("", "{,"),
        ("GET / HTTP/1.1\r\n", "x"),
        ("{\"msg\":\"", "C"),
        ("{\"msg\":\"", "\\"),
        ("{\"msg\":", "["),
        ("{", "a:1,"),
        ("{\"a\":[", "[],"),
    ];
    let servers = ["EMNetChain", "EMDisi", "EMNet"];
    let flood_all = || {
        for server in servers {
            for (begin, forever) in floods {
                let stream = TcpStream::connect(service.address(server)).unwrap();
                let sent = flood(&stream, begin, forever);
                assert!(sent < SENT_BYTES_MAX, "{server}: {sent} bytes of {begin}{forever}...");
            }
        }
    };
    flood_all(); // what memory is used at the first time may stay
    let cost = Cost::begin(&service);
    honest.beside("endless junk", flood_all);
    cost.expect_kib(&service, "endless junk", GROWTH_KIB_MAX);
    let cut = 2.0 * (servers.len() * floods.len()) as f64;
    expect_metric(&service, "emnetchain_rejected_total{reason=\"flood\"}", cut);
    assert!(cost.cpu(&service) < PATIENCE, "{:?} of the processor", cost.cpu(&service));
}

/// Proves that a waiting client which sends without end is no longer read at some point, so that it
/// costs nothing more; that it is linked all the same; and that its reset is still noticed.
#[test]
fn an_endless_stream_behind_a_request_is_left_to_the_client() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &[]);
    let mut honest = Honest::pairs(&service);
    honest.rounds(10);
    let cost = Cost::begin(&service);
    let waiting_flood = |number| {
        let mut stream = TcpStream::connect(service.chain()).unwrap();
        stream.write_all(Member(number).connect().as_bytes()).unwrap();
        expect_metric(&service, "emnetchain_clients", 1.0);
        let sent = flood(&stream, "", "{\"msg\":\"CONNECT\"} ");
        assert!(sent < SENT_BYTES_MAX, "{sent} bytes behind a request");
        stream
    };
    honest.beside("a stream behind a request", || {
        let stream = waiting_flood(1);
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        drop(stream);
        expect_metric(&service, "emnetchain_clients", 0.0);

        let mut stream = waiting_flood(2);
        let mut next = waiting(&service, Member(3));
        assert_eq!(next.object(), told("tail", &Member(2).head()));
        let expected = told("head", &Member(3).tail());
        let mut answer = vec![0; expected.len()];
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(String::from_utf8(answer).unwrap(), expected);
    });
    cost.expect_kib(&service, "streams behind requests", GROWTH_KIB_MAX);
    expect_metric(&service, "emnetchain_connections{listener=\"chain\"}", 1.0);
}

/// Proves that EMNet clients which ask without end and never read are cut off, with no more than a
/// few answers kept for each, while another EMNet client is served.
#[test]
fn a_client_that_asks_without_end_and_never_reads_is_cut_off() {
    const CROWD: usize = 50;
    let _turn = crowd_turn();
    let dir = TempDir::new().unwrap();
    let arguments = ["--emnet-addr", "127.0.0.1:0", "--write-deadline", "500ms"];
    let service = Service::start(dir.path(), &arguments);
    let emnet = service.address("EMNet");
    let mut honest = Honest::begin(&service);
    let mut reader = Client::connect(emnet);
    honest.rounds(10);
    let cost = Cost::begin(&service);
    honest.beside("clients that ask and never read", || {
        let crowd: Vec<_> = (0..CROWD).map(|_| connect_narrow(emnet)).collect();
        thread::scope(|scope| {
            let floods = crowd.iter().map(|stream| scope.spawn(|| flood(stream, "", "{}")));
            let floods: Vec<_> = floods.collect();
            while !floods.iter().all(thread::ScopedJoinHandle::is_finished) {
                reader.send("{}");
                assert_eq!(reader.object().trim(), r#"{"msg":"FAILED"}"#);
            }
            let most = floods.into_iter().map(|flood| flood.join().unwrap()).max();
            println!("at most {most:?} bytes were sent");
            assert!(most < Some(SENT_BYTES_MAX));
        });
        eventually("they are all gone but the reader", || {
            (service.metric("emnetchain_connections{listener=\"emnet\"}") == 1.0).then_some(())
        });
    });
    cost.expect_kib(&service, "clients that ask and never read", GROWTH_KIB_MAX);
    expect_metric(&service, "emnetchain_rejected_total{reason=\"slow_reader\"}", CROWD as f64);
}

/// A connection whose own side takes very little before it is read.
fn connect_narrow(address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.set_send_buffer_size(64 * 1024).unwrap();
    socket.connect(&address.into()).unwrap();
    socket.into()
}

/// Proves that a client which asks very much, and reads, is answered to the last request.
#[test]
fn a_client_that_asks_much_and_reads_is_answered_to_the_last() {
    const REQUESTS: usize = 20_000;
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &["--emnet-addr", "127.0.0.1:0"]);
    let stream = TcpStream::connect(service.address("EMNet")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answers = String::new();
    thread::scope(|scope| {
        let mut writer = &stream;
        scope.spawn(move || {
            writer.write_all("{}".repeat(REQUESTS).as_bytes()).unwrap();
            writer.shutdown(std::net::Shutdown::Write).unwrap();
        });
        (&stream).read_to_string(&mut answers).unwrap();
    });
    assert_eq!(answers, "{\"msg\":\"FAILED\"}\n".repeat(REQUESTS));
}
