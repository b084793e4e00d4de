//! What the service does for its clients, seen from outside with plain sockets.

mod support;

use support::{Client, Member, Service, eventually, reconnect, repaired, told};
use tempfile::TempDir;

/// Connects members one after the other and reads what they are told, so that every member but
/// the last is linked and done. Returns the last one's connection.
fn chain(service: &Service, members: &[Member]) -> Client {
    let mut tip: Option<(Member, Client)> = None;
    for member in members {
        let before = service.metric("emnetchain_clients");
        let mut client = Client::say(service.chain(), member.connect());
        // Nothing tells a legacy client that it arrived before the next one does.
        eventually("it is registered", || {
            (service.metric("emnetchain_clients") > before).then_some(())
        });
        if let Some((before, mut waiting)) = tip.take() {
            assert_eq!(waiting.object(), told("head", &member.tail()));
            waiting.expect_end();
            assert_eq!(client.object(), told("tail", &before.head()));
        }
        tip = Some((*member, client));
    }
    tip.expect("at least one member").1
}

#[test]
fn five_clients_are_linked_and_a_graceful_leave_is_repaired() {
    let dir = TempDir::new().unwrap();
    let service = Service::start(dir.path(), &[]);
    let members: Vec<Member> = (0..5).map(Member).collect();
    let mut tip = chain(&service, &members);
    tip.expect_silence();

    let mut first = Client::say(service.repair(), reconnect("1234", &members[1].head()));
    first.expect_silence();
    let mut second = Client::say(service.repair(), reconnect("1234", &members[3].tail()));
    assert_eq!(second.rest(), repaired(&members[1].head()));
    assert_eq!(first.rest(), repaired(&members[3].tail()));
}
