//! A long chain, made through the protocol as quickly as it goes.

use std::{
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use super::support::{Client, PATIENCE, Service};

/// Clients that wait at the same time.
const AT_ONCE: usize = 48;

/// The sockets of a client of the crowd, by its number: those of a machine of its own.
pub(crate) fn sockets(number: usize) -> (String, String) {
    let [_, a, b, c] = u32::try_from(number).unwrap().to_be_bytes();
    (format!("10.{a}.{b}.{c}:1000"), format!("10.{a}.{b}.{c}:2000"))
}

/// Joins a client.
pub(crate) fn join(service: &Service, number: usize) -> Client {
    let (head, tail) = sockets(number);
    let connect = format!(r#"{{"msg":"CONNECT","head":"{head}","tail":"{tail}"}}"#);
    Client::say(service.chain(), connect)
}

/// Makes one chain of this number of clients, in no certain order but for the last one, which is
/// returned: it waits for a newcomer.
pub(crate) fn chain_of(service: &Service, count: usize) -> Client {
    let next = AtomicUsize::new(0);
    let (sender, done) = mpsc::channel();
    thread::scope(|scope| {
        for sender in vec![sender; AT_ONCE] {
            let next = &next;
            scope.spawn(move || {
                while let number = next.fetch_add(1, Ordering::Relaxed)
                    && number < count - 1
                {
                    join(service, number).rest();
                    sender.send(()).unwrap();
                }
            });
        }
        // The client at the tip then waits for the last one.
        for _ in 0..count - 2 {
            done.recv_timeout(PATIENCE).expect("all but the tip are linked");
        }
        join(service, count - 1)
    })
}
