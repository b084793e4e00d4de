//! Requests that come through a proxy, from a web page or by another name, over connections.

use std::collections::BTreeMap;

use super::*;
use crate::ids::Holder;

const BY_A_PROXY: [&str; 5] = [
    "x-forwarded-for: 198.51.100.7\r\n",
    "x-forwarded-proto: https\r\n",
    "forwarded: for=198.51.100.7\r\n",
    "via: 1.1 proxy\r\n",
    "x-real-ip: 198.51.100.7\r\n",
];
const SECRET: &str = "authorization: Bearer secret\r\n";

/// Asks for the drain of the instance; the code, and what it says.
async fn drain(bench: &Bench, headers: &str) -> (String, String) {
    let body = "content-type: application/json\r\ncontent-length: 2\r\n";
    let host = if headers.contains("host: ") { "" } else { "host: localhost\r\n" };
    let request = format!(
        "POST /api/v1/cluster/drain HTTP/1.1\r\n{host}{headers}{body}connection: close\r\n\r\n{{}}"
    );
    let mut stream = bench.connect().await;
    stream.write_all(request.as_bytes()).await.unwrap();
    let answer = rest(&mut stream).await;
    (answer[9..12].to_owned(), answer)
}

fn code(answer: &str) -> &str {
    &answer[9..12]
}

/// Proves that no request becomes the host's own by way of a proxy.
#[tokio::test]
async fn a_proxy_lends_its_address_to_no_change() {
    let bench = Bench::start(HttpOptions::default());
    let (refused, says) = drain(&bench, "").await;
    assert!(refused == "403" && says.contains("--admin-token-file"), "{says}");
    assert_eq!(drain(&bench, SECRET).await.0, "200");
    for header in BY_A_PROXY {
        assert_eq!(drain(&bench, header).await.0, "403", "{header}");
        assert_eq!(drain(&bench, &format!("{header}{SECRET}")).await.0, "200", "{header}");
    }
    bench.secret.send_replace(AdminToken(None));
    assert_eq!(drain(&bench, "").await.0, "200", "without a token, the machine itself may");
    for header in BY_A_PROXY {
        let (refused, says) = drain(&bench, header).await;
        assert!(refused == "403" && says.contains("through a proxy"), "{header}{says}");
        let backup = bench.say("GET", "/api/v1/backup", header).await;
        assert_eq!(code(&backup), "403", "{header}");
    }
}

/// Proves that a name that leads here by a trick of a name server changes and reads nothing.
#[tokio::test]
async fn another_host_is_not_this_machine() {
    let bench = Bench::start(HttpOptions::default());
    bench.secret.send_replace(AdminToken(None));
    for host in ["203.0.113.9", "evil.example", "[2001:db8::1]:9180"] {
        let host = format!("host: {host}\r\n");
        let (refused, says) = drain(&bench, &host).await;
        assert!(refused == "403" && says.contains("`Host`"), "{host}{says}");
        for path in ["/", "/status", "/api/v1/chain", "/api/v1/explain?address=10.0.0.2:1"] {
            assert_eq!(code(&bench.say("GET", path, &host).await), "403", "{host}{path}");
        }
        for path in ["/metrics", "/livez"] {
            assert_eq!(code(&bench.say("GET", path, &host).await), "200", "{host}{path}");
        }
    }
}

/// Proves that no page of another site has a visitor's browser start a backup, or anything else.
#[tokio::test]
async fn other_sites_start_nothing() {
    let bench = Bench::start(HttpOptions::default());
    for has_token in [true, false] {
        if !has_token {
            bench.secret.send_replace(AdminToken(None));
        }
        let shown = if has_token { SECRET } else { "" };
        for site in ["origin: http://evil.example\r\n", "sec-fetch-site: cross-site\r\n"] {
            let headers = format!("{site}{shown}");
            for path in ["/api/v1/backup", "/api/v1/chain", "/status?digest"] {
                let answer = bench.say("GET", path, &headers).await;
                assert!(code(&answer) == "403" && answer.contains("another web site"), "{answer}");
            }
            assert_eq!(drain(&bench, &headers).await.0, "403");
        }
    }
}

/// Proves that waiting ids are told with the token, and to no other reader.
#[tokio::test]
async fn repair_ids_are_shown_with_the_token_alone() {
    let bench = Bench::start(HttpOptions::default());
    let paths = ["/api/v1/chain", "/api/v1/explain?address=10.0.0.2:2"];
    let stranger = "/api/v1/explain?address=10.0.0.77:1";
    let shows = |answer: &str| answer.contains("<b>") || answer.contains("\\\"x\\\"");
    for path in paths.into_iter().chain([stranger]) {
        let with = bench.say("GET", path, SECRET).await;
        assert!(code(&with) == "200" && shows(&with), "{path}: {with}");
        let cookie = "cookie: emnetchain-token=secret\r\n";
        assert!(shows(&bench.say("GET", path, cookie).await), "{path}");
        let without = bench.ask(&format!("GET {path}")).await;
        assert!(code(&without) == "200" && !shows(&without), "{path}: {without}");
        assert!(without.contains("RECONNECT"), "{path}: {without}");
    }
    bench.secret.send_replace(AdminToken(None));
    assert!(!shows(&bench.ask(&format!("GET {stranger}")).await));
}

/// Proves that a browser gets in by the form, reads, and changes nothing by its cookie.
#[tokio::test]
async fn a_browser_signs_in() {
    let bench = Bench::start(HttpOptions::default());
    let by_proxy = BY_A_PROXY[0];
    assert!(
        bench.ask("GET /sign-in").await.contains("<form"),
        "a form for readers of this machine"
    );
    let form = bench.say("GET", "/", by_proxy).await;
    assert!(code(&form) == "403" && form.contains("action=\"sign-in\""), "{form}");
    let sign_in = async |token: &str, headers: &str| {
        let body = format!("token={token}");
        let request = format!(
            "POST /sign-in HTTP/1.1\r\nhost: ops.example\r\n{by_proxy}{headers}\
             connection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = bench.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        rest(&mut stream).await
    };
    let wrong = sign_in("wrong", "").await;
    assert!(code(&wrong) == "403" && !wrong.contains("set-cookie"), "{wrong}");
    assert_eq!(code(&sign_in("secret", "origin: http://evil.example\r\n").await), "403");
    let right = sign_in("secret", "origin: http://ops.example\r\n").await;
    assert!(code(&right) == "303" && right.contains("location: ./\r\n"), "{right}");
    let cookie = right.split("set-cookie: ").nth(1).unwrap().split(';').next().unwrap();
    let headers = format!("host: ops.example\r\n{by_proxy}cookie: {cookie}\r\n");
    for path in ["/", "/status", "/api/v1/chains"] {
        assert_eq!(code(&bench.say("GET", path, &headers).await), "200", "{path}");
    }
    assert_eq!(drain(&bench, &headers).await.0, "403");
    assert_eq!(code(&bench.say("GET", "/api/v1/backup", &headers).await), "403");

    bench.secret.send_replace(AdminToken(None));
    let form = bench.say("GET", "/", by_proxy).await;
    assert!(form.contains("--admin-token-file") && !form.contains("<form"), "{form}");
}

/// Asks from another loopback address than all the others.
async fn ask_from_elsewhere(bench: &Bench, path: &str, headers: &str) -> String {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut stream = socket.connect(bench.address).await.unwrap();
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{headers}connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    rest(&mut stream).await
}

/// Proves that tokens cannot be tried for ever, and that this locks out no other source.
#[tokio::test]
async fn guesses_of_the_token_have_a_rate_per_source() {
    for guess in ["authorization: Bearer wrong\r\n", "cookie: emnetchain-token=wrong\r\n"] {
        let bench = Bench::start(HttpOptions::default());
        let mut codes = BTreeMap::new();
        for _ in 0..150 {
            let answer = bench.say("GET", "/status", &format!("{}{guess}", BY_A_PROXY[0])).await;
            *codes.entry(code(&answer).to_owned()).or_insert(0) += 1;
        }
        let too_many = codes["429"];
        assert!((100..=145).contains(&too_many) && codes["403"] == 150 - too_many, "{codes:?}");
        let text = bench.metrics.render();
        let counted = format!("emnetchain_http_tokens_refused_total{{reason=\"rate\"}} {too_many}");
        assert!(text.contains(&counted), "{text}");
        let same = bench.say("GET", "/status", &format!("{}{SECRET}", BY_A_PROXY[0])).await;
        assert_eq!(code(&same) == "429", guess.starts_with("authorization"), "{same}");
        // The operator behind the same proxy, the one elsewhere, and the one at the machine itself.
        let other = format!("x-forwarded-for: 198.51.100.7, 203.0.113.9\r\n{SECRET}");
        assert_eq!(code(&bench.say("GET", "/status", &other).await), "200");
        assert_eq!(code(&ask_from_elsewhere(&bench, "/status", SECRET).await), "200");
        assert_eq!(code(&bench.say("GET", "/status", SECRET).await), "200");
        let lower = "authorization: bearer secret\r\n";
        assert_eq!(code(&bench.say("GET", "/status", lower).await), "200");
        assert_eq!(code(&bench.say("GET", "/status", "").await), "200");
        let health = bench.say("GET", "/livez", &format!("{}{guess}", BY_A_PROXY[0])).await;
        assert_eq!(code(&health), "200");
    }
}

/// Proves that the form to sign in is no way around the rate of guesses.
#[tokio::test]
async fn guesses_in_the_form_have_the_same_rate() {
    let bench = Bench::start(HttpOptions::default());
    let mut last = String::new();
    for _ in 0..150 {
        let request = "POST /sign-in HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
                       content-length: 11\r\n\r\ntoken=wrong";
        let mut stream = bench.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        last = rest(&mut stream).await;
    }
    assert!(code(&last) == "429" && last.contains("retry-after: "), "{last}");
}

/// Proves that the supervisor's question is answered though readers of the page take all places.
#[tokio::test]
async fn a_probe_gets_through_while_readers_take_all_places() {
    let options = HttpOptions { connections_max: 8, ..HttpOptions::default() };
    let bench = Bench::start(options);
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut probe = socket.connect(bench.address).await.unwrap();
    let mut readers = Vec::new();
    for _ in 0..100 {
        let mut reader = bench.connect().await;
        reader.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        readers.push(reader);
    }
    let open = bench.metrics.accepted.with_label_values(&["http"]);
    let waited = time::timeout(Duration::from_secs(10), async {
        while open.get() < 101 {
            time::sleep(Duration::from_millis(1)).await;
        }
    });
    waited.await.expect("all are accepted");
    let request = b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    probe.write_all(request).await.unwrap();
    assert_eq!(code(&rest(&mut probe).await), "503", "a leader is not there yet");
}

/// Proves that a reader that is slow to ask is answered while one site floods the listener.
#[tokio::test]
async fn one_ipv6_site_takes_no_place_of_another_reader() {
    let mut connections = Connections::default();
    let mut come = async |from: String| {
        let from: IpAddr = from.parse().unwrap();
        connections.make_room(8);
        connections.add(Life::new(Duration::from_secs(3600)), from, std::future::pending());
        time::sleep(Duration::from_millis(1)).await;
        let others = Holder::Source(Source::of("2001:db8:9::1".parse().unwrap()));
        connections.crowd.oldest(others).is_some()
    };
    assert!(come("2001:db8:9::1".to_owned()).await);
    for number in 0..50 {
        assert!(come(format!("2001:db8:7:{number:x}::1")).await, "after {number} others");
    }
}

/// Proves that what is open to all readers is as the setting says.
#[tokio::test]
async fn what_is_open_can_be_chosen() {
    let by_proxy = BY_A_PROXY[0];
    let paths = ["/livez", "/readyz", "/metrics", "/status", "/api/v1/chains"];
    for (open, codes) in [
        ("livez", ["200", "403", "403", "403", "403"]),
        ("none", ["403"; 5]),
        ("readyz,views", ["403", "503", "403", "200", "200"]),
    ] {
        let open_to_all = gate::Open::parse(open).unwrap();
        let options = HttpOptions { open: open_to_all, ..HttpOptions::default() };
        let bench = Bench::start(options);
        for (path, expected) in paths.into_iter().zip(codes) {
            let answer = bench.say("GET", path, by_proxy).await;
            assert_eq!(code(&answer), expected, "{open}: {path}");
        }
    }
}
