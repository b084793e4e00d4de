//! EMUDP and STUN over real datagrams.

use std::net::UdpSocket as StdUdp;

use super::*;

/// Two reflectors and one datagram that seems to come from the other one.
#[tokio::test]
async fn two_reflectors_cannot_be_made_to_talk_to_each_other() {
    let (one, two) =
        (Bench::start(ServerOptions::default()), Bench::start(ServerOptions::default()));
    let (at_one, at_two) = (one.addresses.reflectors[0], two.addresses.reflectors[0]);
    // The first answer of the loop, as the second reflector would see it arrive.
    for payload in [&b"x"[..], at_two.to_string().as_bytes()] {
        let sender = StdUdp::bind("127.0.0.1:0").unwrap();
        sender.send_to(payload, at_one).unwrap();
    }
    let dropped = one.metrics.udp_dropped.with_label_values(&["reflection"]);
    let answered = one.metrics.udp_answered.with_label_values(&["text"]);
    eventually("both were looked at", || dropped.get() == 1 && answered.get() == 1).await;
}

#[tokio::test]
async fn the_reflector_tells_text_and_stun() {
    let bench = Bench::start(ServerOptions::default());
    let reflector = bench.addresses.reflectors[0];
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut answer = [0; 64];
    client.send_to(b"", reflector).await.unwrap();
    let length = timeout(PATIENCE, client.recv(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer[..length], client.local_addr().unwrap().to_string().as_bytes());
    let mut request = [0; 20];
    request[1] = 1;
    request[4..8].copy_from_slice(&0x2112_A442_u32.to_be_bytes());
    client.send_to(&request, reflector).await.unwrap();
    let length = timeout(PATIENCE, client.recv(&mut answer)).await.unwrap().unwrap();
    assert_eq!((length, &answer[..2]), (32, &[1, 1][..]));
    assert_eq!(bench.metrics.udp_answered.with_label_values(&["stun"]).get(), 1);
}
