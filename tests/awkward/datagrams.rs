//! Datagrams with forged senders, floods of them, and what an answer costs the host that it
//! reaches.

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use emnetchain::clock;
use tempfile::TempDir;

use super::{honest::Honest, kernel::Cost};
use crate::support::{PATIENCE, Service, eventually};

const REFLECTOR: [&str; 2] = ["--udp-addr", "127.0.0.1:0"];

/// Bytes of the headers of IPv4 and UDP.
const HEADERS: usize = 28;

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Sends a datagram until it is answered; any may be lost.
fn ask(socket: &UdpSocket, reflector: SocketAddr, datagram: &[u8]) -> Vec<u8> {
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    eventually("it is answered", || {
        socket.send_to(datagram, reflector).unwrap();
        let mut buffer = [0; 2048];
        let (length, from) = socket.recv_from(&mut buffer).ok()?;
        assert_eq!(from, reflector);
        Some(buffer[..length].to_vec())
    })
}

/// A STUN Binding request with one attribute, or none if the type is 0.
fn stun(attribute: u16, value: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    if attribute != 0 {
        body.extend_from_slice(&attribute.to_be_bytes());
        body.extend_from_slice(&u16::try_from(value.len()).unwrap().to_be_bytes());
        body.extend_from_slice(value);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    let mut request = vec![0, 1];
    request.extend_from_slice(&u16::try_from(body.len()).unwrap().to_be_bytes());
    request.extend_from_slice(&[0x21, 0x12, 0xa4, 0x42]);
    request.extend_from_slice(b"transaction.");
    request.extend_from_slice(&body);
    request
}

/// Proves that two reflectors do not keep each other busy. A forged sender needs rights that a test
/// lacks, so a relay stands between the two: each takes it for the other, as it would take the
/// other if one datagram had been forged.
#[test]
fn two_reflectors_do_not_keep_each_other_busy() {
    let dirs = [(); 2].map(|()| TempDir::new().unwrap());
    let services = dirs.each_ref().map(|dir| Service::start(dir.path(), &REFLECTOR));
    let reflectors = services.each_ref().map(|service| service.address("EMUDP"));
    let forged = [b"ping".to_vec(), stun(0, b""), stun(0x0003, &[0; 4]), Vec::new()];
    for (round, datagram) in (1..).zip(&forged) {
        let relay = [socket(), socket()];
        relay.iter().for_each(|socket| socket.set_nonblocking(true).unwrap());
        relay[0].send_to(datagram, reflectors[0]).unwrap();
        let mut relayed = 0;
        let mut buffer = [0; 2048];
        eventually("one of the two says no more", || {
            for (here, there) in [(0, 1), (1, 0)] {
                if let Ok((length, _)) = relay[here].recv_from(&mut buffer) {
                    relay[there].send_to(&buffer[..length], reflectors[there]).unwrap();
                    relayed += 1;
                    assert!(relayed <= 2, "a loop, begun by {datagram:?}");
                }
            }
            let dropped = |service: &Service| -> f64 {
                let of = |reason| format!("emnetchain_udp_dropped_total{{reason=\"{reason}\"}}");
                ["reflection", "stun"].map(|reason| service.metric(&of(reason))).iter().sum()
            };
            (services.each_ref().map(dropped).iter().sum::<f64>() == f64::from(round)).then_some(())
        });
        println!("{} bytes of {datagram:?} were relayed {relayed} times", datagram.len());
        for socket in &relay {
            assert!(socket.recv_from(&mut buffer).is_err(), "no server has anything left to say");
        }
    }
}

/// Proves that a flood of datagrams costs no memory, is answered within the limit on all answers,
/// holds up no client of the other servers, and that an honest sender is answered afterwards.
#[test]
fn a_flood_of_datagrams_costs_no_memory() {
    const FLOOD: usize = 100_000;
    const PER_SECOND: f64 = 20_000.0;
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &REFLECTOR);
    let reflector = service.address("EMUDP");
    let mut honest = Honest::begin(&service);
    honest.rounds(10);
    let flooder = socket();
    let junk: Vec<Vec<u8>> = [0, 1, 20, 100, 1400]
        .map(|length| (0..length).map(|at| (at * 151 % 256) as u8).collect())
        .into_iter()
        .chain([stun(0, b""), stun(0x0003, &[0; 4]), b"1.2.3.4:5".to_vec()])
        .collect();
    let began = clock::now();
    let cost = Cost::begin(&service);
    honest.beside("a flood of datagrams", || {
        for datagram in junk.iter().cycle().take(FLOOD) {
            // A full buffer anywhere is part of a flood.
            let _ = flooder.send_to(datagram, reflector);
        }
    });
    cost.expect_kib(&service, "a flood of datagrams", 4 * 1024);
    let honest = socket();
    let address = honest.local_addr().unwrap().to_string();
    assert_eq!(ask(&honest, reflector, b"ping"), address.as_bytes());
    let answered: f64 = ["text", "stun"]
        .map(|kind| service.metric(&format!("emnetchain_udp_answered_total{{kind=\"{kind}\"}}")))
        .iter()
        .sum();
    let elapsed = (clock::now() - began).as_secs_f64();
    println!("{answered} of {FLOOD} datagrams were answered in {elapsed:.1} s");
    assert!(answered <= PER_SECOND * (elapsed + 0.1) + 1.0, "more than may be");
}

/// Proves that an answer is hardly worth asking for in another's name: as text never more bytes on
/// the wire than a request of 21 bytes, as STUN never more than 24 beyond the request.
#[test]
fn an_answer_is_hardly_larger_than_its_request() {
    const LONGEST: usize = "255.255.255.255:65535".len();
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &REFLECTOR);
    let reflector = service.address("EMUDP");
    let client = socket();
    let address = client.local_addr().unwrap().to_string();
    println!("kind  request  answer  longest possible  factor on the wire");
    for length in [0, 1, 4, 10, 20, 21, 22, 47, 64, 100, 500, 1400] {
        let answer = ask(&client, reflector, &vec![b'x'; length]);
        assert_eq!(answer, address.as_bytes(), "its own address, and nothing else");
        let longest = answer.len() - address.len() + LONGEST;
        let factor = (longest + HEADERS) as f64 / (length + HEADERS) as f64;
        println!("text  {length:7}  {:6}  {longest:16}  {factor:.2}", answer.len());
        assert!(length < 21 || factor <= 1.0, "{factor} for {length} bytes");
        assert!(factor <= 1.75, "{factor} for {length} bytes");
    }
    for request in [
        stun(0, b""),
        stun(0x0003, &[0; 4]),
        stun(0x7fff, b""),
        stun(0x8022, b"software"),
        stun(0x8022, &[b'x'; 400]),
    ] {
        let answer = ask(&client, reflector, &request);
        let factor = (answer.len() + HEADERS) as f64 / (request.len() + HEADERS) as f64;
        let (asked, told) = (request.len(), answer.len());
        println!("stun  {asked:7}  {told:6}  {told:16}  {factor:.2}");
        assert!(told <= asked + 24, "{told} bytes for {asked}");
    }
}
