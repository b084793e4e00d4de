//! The operators' HTTP over real connections on free ports.

mod backups;
mod doors;
mod fake;
mod fuzz;
mod views;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{gate::AdminToken, *};
use fake::Fake;

/// A server on a free port, and what makes it ready.
struct Bench {
    address: SocketAddr,
    metrics: Metrics,
    readiness: watch::Sender<Readiness>,
    secret: watch::Sender<AdminToken>,
    _task: JoinSet<()>,
}

impl Bench {
    fn start(options: HttpOptions) -> Self {
        let free = HttpAddr::At((Ipv4Addr::LOCALHOST, 0).into());
        let server = HttpServer::bind(free, options).unwrap().unwrap();
        let (address, metrics) = (server.address(), Metrics::new());
        let (sources, readiness, secret) = sources(metrics.clone(), Arc::new(Fake::new()));
        let mut task = JoinSet::new();
        task.spawn(server.serve(sources));
        Self { address, metrics, readiness, secret, _task: task }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Makes one request and returns the whole answer.
    async fn ask(&self, request: &str) -> String {
        let (method, path) = request.split_once(' ').unwrap();
        self.say(method, path, "").await
    }

    /// As [`Self::ask`], with headers, each with its end of line. Without a host among them it is
    /// `localhost`.
    async fn say(&self, method: &str, path: &str, headers: &str) -> String {
        let host = if headers.contains("host: ") { "" } else { "host: localhost\r\n" };
        let request =
            format!("{method} {path} HTTP/1.1\r\n{host}{headers}connection: close\r\n\r\n");
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        rest(&mut stream).await
    }
}

/// Returns the sources of a server, and the senders that change whether it is ready and its token.
fn sources(
    metrics: Metrics,
    backend: Arc<dyn Backend>,
) -> (HttpSources, watch::Sender<Readiness>, watch::Sender<AdminToken>) {
    let (readiness, receiver) = watch::channel(Readiness::NotReady("no leader".into()));
    let (secret, token) = watch::channel(AdminToken(Some("secret".into())));
    (HttpSources { metrics, readiness: receiver, backend, token }, readiness, secret)
}

/// Returns everything until the server closes, which it must do within a bound.
async fn rest(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let read = time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer));
    // A reset closes as well as an end.
    drop(read.await.expect("the server closes the connection in time"));
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn metrics_are_prometheus_text() {
    let bench = Bench::start(HttpOptions::default());
    bench.metrics.clients.set(42);
    let answer = bench.ask("GET /metrics").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"));
    assert!(answer.contains("\nemnetchain_clients 42\n"));
    assert!(answer.contains("\nemnetchain_connections{listener=\"http\"} 1\n"));
}

#[tokio::test]
async fn readiness_follows_the_instance_and_life_does_not() {
    let bench = Bench::start(HttpOptions::default());
    let answer = bench.ask("GET /readyz").await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.ends_with("\r\n\r\nno leader\n"), "{answer}");
    assert!(bench.ask("GET /livez").await.starts_with("HTTP/1.1 200 "));
    bench.readiness.send(Readiness::Ready).unwrap();
    let answer = bench.ask("GET /readyz").await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("ready\n"), "{answer}");
}

#[tokio::test]
async fn status_is_json_of_a_fixed_shape() {
    let bench = Bench::start(HttpOptions::default());
    let answer = bench.ask("GET /status").await;
    assert!(answer.contains("content-type: application/json\r\n"), "{answer}");
    let expected = r#"{"version":"1.2.3","cluster":"c1","node":2,"role":"follower","leader":null,"#
        .to_owned()
        + r#""term":7,"last_log_index":9,"applied_index":8,"#
        + r#""trouble":"no leader","rules":2,"newest_rules":3,"#
        + r#""members":[{"node":2,"address":"","voter":true,"lag":null,"silent_ms":null,"#
        + r#""newest_rules":null}],"#
        + r#""chains":{"count":1,"clients":3,"cut_off":0,"asks":2,"links":2,"broken_links":0,"#
        + r#""repairs_pending":0},"connections":{"chain":3}}"#;
    assert!(answer.ends_with(&expected), "{answer}");
    let answer = bench.ask("GET /status?digest").await;
    let digest = r#""registry":{"applied":8,"digest":"00ff"}}"#;
    assert!(answer.ends_with(&expected.replace("}}", &format!("}},{digest}"))), "{answer}");
}

#[tokio::test]
async fn changes_are_made_by_post_with_json() {
    let bench = Bench::start(HttpOptions::default());
    let post = async |path: &str, headers: &str, body: &str| {
        let mut stream = bench.connect().await;
        let length = body.len();
        let request = format!(
            "POST /api/v1/cluster/{path} HTTP/1.1\r\nhost: ops.example\r\nconnection: close\r\n\
             content-length: {length}\r\n{headers}\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = rest(&mut stream).await;
        let status = answer.split(' ').nth(1).unwrap().to_owned();
        (status, answer.split("\r\n\r\n").nth(1).unwrap().to_owned())
    };
    let json = "content-type: application/json\r\nauthorization: Bearer secret\r\n";
    let told = |status: &str, body: &str| (status.to_owned(), body.to_owned());
    assert_eq!(post("drain", json, "{}").await, told("200", r#"{"done":"drained"}"#));
    let refused = told("409", r#"{"error":"no such member"}"#);
    assert_eq!(post("remove", json, r#"{"id":7}"#).await, refused);
    let (status, body) = post("add", json, r#"{"id":4,"address":"h:1"}"#).await;
    assert!(status == "503" && body.contains("h:1"), "{status} {body}");
    let (status, body) = post("transfer-leader", json, "{}").await;
    assert!(status == "503" && body.contains("TransferLeader(None)"), "{status} {body}");

    // What a browser could be made to send, what is no request, and a wrong token.
    assert_eq!(post("drain", &json.replace("application/json", "text/plain"), "{}").await.0, "415");
    assert_eq!(post("promote", json, "{}").await.0, "422");
    assert_eq!(post("promote", json, "{").await.0, "400");
    let wrong = json.replace("secret", "wrong");
    assert_eq!(post("drain", &wrong, "{}").await.0, "403");
    bench.secret.send_replace(AdminToken(Some("another".into())));
    assert_eq!(post("drain", json, "{}").await.0, "403", "it was changed meanwhile");
}

#[tokio::test]
async fn only_reading_is_allowed_and_other_paths_are_told_the_right_ones() {
    let bench = Bench::start(HttpOptions::default());
    bench.secret.send_replace(AdminToken(None));
    for path in ["/", "/livez", "/metrics", "/readyz", "/status"] {
        let answer = bench.ask(&format!("POST {path}")).await;
        assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
        assert!(answer.contains("allow: GET,HEAD\r\n"), "{answer}");
        assert!(error(&answer).contains("`Allow`"), "{answer}");
        let head = bench.ask(&format!("HEAD {path}")).await;
        assert!(head.contains("content-length: ") && head.ends_with("\r\n\r\n"), "{head}");
        assert!(path == "/" || bench.ask("GET /").await.contains(&format!(">{path}</a>")));
    }
    let answer = bench.ask("GET /nothing").await;
    assert!(answer.starts_with("HTTP/1.1 404 ") && error(&answer).contains("/readyz"), "{answer}");
}

/// Returns the sentence of an error, which is all of its body.
fn error(answer: &str) -> String {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("content-type: application/json"), "{answer}");
    assert!(head.contains("cache-control: no-store"), "{answer}");
    let body: serde_json::Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("{answer}"));
    assert_eq!(body.as_object().map(serde_json::Map::len), Some(1), "{answer}");
    body["error"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

/// A program reads one form of error for every refusal.
#[tokio::test]
async fn every_error_has_one_form() {
    let bench = Bench::start(HttpOptions::default());
    let ask = async |line: &str, headers: &str, body: &str| {
        let mut stream = bench.connect().await;
        let length = body.len();
        let request = format!(
            "{line} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
             content-length: {length}\r\n{headers}\r\n{body}"
        );
        drop(stream.write_all(request.as_bytes()).await);
        rest(&mut stream).await
    };
    let token = "authorization: Bearer secret\r\n";
    let json = "authorization: Bearer secret\r\ncontent-type: application/json\r\n";
    let form = "x".repeat(64 * 1024);
    let long = format!(r#"{{"id":1,"address":"{}"}}"#, "x".repeat(3 * 1024 * 1024));
    for (line, headers, body, code) in [
        ("GET /nothing", token, "", 404),
        ("GET /api/v1/nothing", token, "", 404),
        ("GET /api/v1/chain?name=nothing", token, "", 404),
        ("GET /api/v1/chain?limit=many", token, "", 400),
        ("GET /api/v1/explain", token, "", 400),
        ("GET /api/v1/cluster/add", token, "", 405),
        ("DELETE /api/v1/chain", token, "", 405),
        ("POST /readyz", token, "", 405),
        ("OPTIONS /", token, "", 405),
        ("POST /api/v1/cluster/add", json, "{", 400),
        ("POST /api/v1/cluster/add", json, "{}", 422),
        ("POST /api/v1/cluster/add", token, "{}", 415),
        ("POST /api/v1/cluster/add", json, &long, 413),
        ("POST /api/v1/cluster/add", "", "{}", 403),
        ("POST /sign-in", "", &form, 413),
    ] {
        let answer = ask(line, headers, body).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {code} ")), "{line}: {answer}");
        assert!(!error(&answer).is_empty(), "{line}: {answer}");
    }
}

#[tokio::test]
async fn the_page_may_run_nothing_but_its_own_scripts() {
    let bench = Bench::start(HttpOptions::default());
    let page = bench.ask("GET /").await;
    assert!(page.contains("content-type: text/html; charset=utf-8\r\n"), "{page}");
    let parts = page.split('"').filter(|word| word.starts_with("page/"));
    let paths: Vec<String> = parts.map(|part| format!("/{part}")).collect();
    assert!(paths.len() >= 2, "{paths:?}");
    for path in paths.iter().map(String::as_str).chain(["/", "/page/draw.js", "/page/words.js"]) {
        let part = bench.ask(&format!("GET {path}")).await;
        assert!(part.starts_with("HTTP/1.1 200 "), "{path}: {part}");
        let policy = "content-security-policy: default-src 'none'; script-src 'self'; ";
        for header in [policy, "x-content-type-options: nosniff\r\n", "cache-control: no-store"] {
            assert!(part.contains(header), "{path} without {header}");
        }
        for markup in ["innerHTML", "outerHTML", "insertAdjacentHTML", "<style", " style=\""] {
            assert!(!part.contains(markup), "{path} has {markup}");
        }
    }
}

#[tokio::test]
async fn a_request_that_does_not_arrive_in_time_is_cut_off() {
    let request_deadline = Duration::from_millis(200);
    let bench = Bench::start(HttpOptions { request_deadline, ..HttpOptions::default() });
    let mut silent = bench.connect().await;
    let mut slow = bench.connect().await;
    slow.write_all(b"GET /livez HTTP/1.1\r\nx-slow: ").await.unwrap();
    let (mut lines, mut drip) = slow.into_split();
    let drip = tokio::spawn(async move {
        while drip.write_all(b"y").await.is_ok() {
            time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert_eq!(rest(&mut silent).await, "");
    let mut answer = Vec::new();
    let read = time::timeout(Duration::from_secs(10), lines.read_to_end(&mut answer));
    drop(read.await.expect("dripping bytes do not prolong the deadline"));
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
    drip.await.unwrap();
}

#[tokio::test]
async fn a_reader_that_never_reads_is_cut_off() {
    let life = Duration::from_millis(300);
    let options = HttpOptions { connection_life_max: life, ..HttpOptions::default() };
    let bench = Bench::start(options);
    let mut stream = bench.connect().await;
    let request = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n";
    // Writing succeeds until the server, stuck on its answers, has stopped reading; then it
    // must end by itself, with an error because the server has closed.
    let flood = async { while stream.write_all(&request.repeat(100)).await.is_ok() {} };
    time::timeout(Duration::from_secs(10), flood).await.expect("the connection has a life");
}

#[tokio::test]
async fn the_oldest_connection_gives_way() {
    let options = HttpOptions { connections_max: 3, ..HttpOptions::default() };
    let bench = Bench::start(options);
    let mut idle = Vec::new();
    for _ in 0..10 {
        idle.push(bench.connect().await);
    }
    assert!(bench.ask("GET /livez").await.starts_with("HTTP/1.1 200 "));
    assert_eq!(rest(&mut idle[0]).await, "");
    let open = bench.metrics.connections.with_label_values(&["http"]);
    for _ in 0..1000 {
        if open.get() <= 3 {
            return;
        }
        yield_now().await;
    }
    panic!("{} connections are open", open.get());
}

#[tokio::test]
async fn long_heads_and_bodies_are_not_taken_in() {
    let bench = Bench::start(HttpOptions::default());
    let mut stream = bench.connect().await;
    let head = format!("GET /livez HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(HEAD_BYTES_MAX));
    drop(stream.write_all(head.as_bytes()).await);
    let answer = rest(&mut stream).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
    let mut stream = bench.connect().await;
    let head = b"GET /livez HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n\r\n";
    stream.write_all(head).await.unwrap();
    // The answer comes at once, and the body is not waited for.
    assert!(rest(&mut stream).await.ends_with("alive\n"));
}

#[tokio::test]
async fn the_default_address_may_be_taken() {
    let free = HttpAddr::Auto;
    let first = HttpServer::bind(free, HttpOptions::default()).unwrap().unwrap();
    let second = HttpServer::bind(free, HttpOptions::default()).unwrap().unwrap();
    assert_ne!(first.address(), second.address());
    assert!(second.address().ip().is_loopback());
    let taken = HttpAddr::At(first.address());
    let error = HttpServer::bind(taken, HttpOptions::default()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert!(HttpServer::bind(HttpAddr::Off, HttpOptions::default()).unwrap().is_none());
}
