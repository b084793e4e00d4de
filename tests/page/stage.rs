//! A proxy in front of a real service, below a path of its own. It passes on what it is asked, and
//! answers some questions itself: with chains that no client of today could make.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use serde_json::Value;

use super::support::{Client, Service};

/// How long an answer takes, as on a way to somewhere else: questions at one time would meet.
const WAY: Duration = Duration::from_millis(20);

/// The proxy; it ends with the test program.
pub(crate) struct Stage {
    address: SocketAddr,
    play: Arc<Play>,
}

/// What is played.
struct Play {
    behind: SocketAddr,
    answers: Mutex<BTreeMap<String, (u16, Value)>>,
    heard: Mutex<Heard>,
}

/// What was asked.
#[derive(Default)]
struct Heard {
    queries: Vec<String>,
    at_once: usize,
    at_once_max: usize,
}

impl Stage {
    /// A proxy that passes on everything.
    pub(crate) fn before(service: &Service) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let play = Arc::new(Play {
            behind: service.address("HTTP"),
            answers: Mutex::default(),
            heard: Mutex::default(),
        });
        let stage = Self { address, play: Arc::clone(&play) };
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let play = Arc::clone(&play);
                thread::spawn(move || play.serve(stream));
            }
        });
        stage
    }

    /// Where the page is.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/below/a/path/", self.address)
    }

    /// From now on gives this answer to a path.
    pub(crate) fn play(&self, path: &str, code: u16, answer: Value) {
        self.play.answers.lock().unwrap().insert(path.to_owned(), (code, answer));
    }

    /// What was asked for with this beginning, the latest last.
    pub(crate) fn asked(&self, beginning: &str) -> Vec<String> {
        let heard = self.play.heard.lock().unwrap();
        let queries = heard.queries.iter().filter(|query| query.starts_with(beginning));
        queries.cloned().collect()
    }

    /// How many questions of scripts were under way at one time, at most.
    pub(crate) fn at_once_max(&self) -> usize {
        self.play.heard.lock().unwrap().at_once_max
    }
}

impl Play {
    /// Answers one request; a browser that breaks off gets none.
    fn serve(&self, mut stream: TcpStream) {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
        let Some(first) = lines.next() else { return };
        while lines.next().is_some_and(|line| !line.is_empty()) {}
        let path = first.split(' ').nth(1).unwrap();
        let Some(query) = path.strip_prefix("/below/a/path/") else { return };
        let is_question = query.starts_with("status") || query.starts_with("api/");
        self.begins(query, is_question);
        thread::sleep(WAY);
        let answer = self.answer(query);
        self.heard.lock().unwrap().at_once -= usize::from(is_question);
        // The browser may have lost interest.
        let _ = stream.write_all(answer.as_bytes());
    }

    fn begins(&self, query: &str, is_question: bool) {
        let mut heard = self.heard.lock().unwrap();
        heard.queries.push(query.to_owned());
        heard.at_once += usize::from(is_question);
        heard.at_once_max = heard.at_once_max.max(heard.at_once);
    }

    fn answer(&self, query: &str) -> String {
        let path = query.split('?').next().unwrap();
        let played = self.answers.lock().unwrap().get(path).cloned();
        let Some((code, answer)) = played else {
            let request =
                format!("GET /{query} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
            return Client::say(self.behind, request).rest();
        };
        let body = answer.to_string();
        format!(
            "HTTP/1.1 {code} Played\r\ncontent-type: application/json\r\nconnection: close\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        )
    }
}
