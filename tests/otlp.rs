//! Traces, as a collector receives them: the span of each request, under the id that `explain`
//! tells. `cargo test --features otlp --test otlp`.

#![expect(clippy::unwrap_used, reason = "a helper that cannot go on fails its test")]

mod support;

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    sync::mpsc,
    thread,
    time::Duration,
};

use support::{Client, Member, PATIENCE, Service, chain, told};
use tempfile::TempDir;

/// Takes one request after another, and passes on its path and its body.
fn collector() -> (String, mpsc::Receiver<(String, Vec<u8>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (sender, received) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            loop {
                let mut lines = Vec::new();
                while lines.last().is_none_or(|line: &String| !line.trim().is_empty()) {
                    let mut line = String::new();
                    if stream.read_line(&mut line).unwrap_or(0) == 0 {
                        break;
                    }
                    lines.push(line.to_lowercase());
                }
                let length = lines.iter().find_map(|line| line.strip_prefix("content-length:"));
                let Some(length) = length else { break };
                let mut body = vec![0; length.trim().parse().unwrap()];
                stream.read_exact(&mut body).unwrap();
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                stream.get_mut().write_all(answer).unwrap();
                if sender.send((lines[0].clone(), body)).is_err() {
                    return;
                }
            }
        }
    });
    (endpoint, received)
}

fn holds(body: &[u8], words: &str) -> bool {
    body.windows(words.len()).any(|part| part == words.as_bytes())
}

#[test]
fn a_collector_receives_the_span_of_a_request() {
    let (endpoint, received) = collector();
    let dir = TempDir::new().unwrap();
    let mut service = Service::start(dir.path(), &["--otlp-endpoint", &endpoint]);
    let _tip = chain(&service, &[Member(0), Member(1), Member(2)]);
    service.stop();
    let mut all = Vec::new();
    while !["1-1-1", "1-1-2", "1-1-3"].iter().all(|id| holds(&all, id)) {
        let (line, body) = received.recv_timeout(PATIENCE).expect("the rest is sent at the end");
        assert!(line.starts_with("post /v1/traces "), "{line}");
        all.extend(body);
    }
    for words in ["EMNetChain", "service.instance.id", "request", "chain", "asks", "obeys"] {
        assert!(holds(&all, words), "{words}");
    }
    assert!(!service.log().contains("asks"), "the log keeps its own level");
}

#[test]
fn a_collector_that_never_answers_holds_up_no_client() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let dir = TempDir::new().unwrap();
    let mut service = Service::start(dir.path(), &["--otlp-endpoint", &endpoint]);
    let members: Vec<Member> = (0..200).map(Member).collect();
    let _tip = chain(&service, &members);
    let mut again = Client::say(service.chain(), members[1].connect());
    let partners = told("tail", &members[0].head()) + &told("head", &members[2].tail());
    assert_eq!(again.rest(), partners);
    service.signal("TERM");
    let ended = service.wait_within(Duration::from_secs(20));
    assert!(ended.is_some_and(|status| status.success()), "{}", service.log());
}
