//! Debian's nginx and haproxy in front of an instance, set up as `deploy/README.md` says: what a
//! stranger gets behind them, and what an operator with the token.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

use super::{
    read,
    support::{Client, Member, Service, chain, eventually, privileged::may_run, reconnect},
};

const TOKEN: &str = "open; \"sesame\"";

/// A repair id that waits.
const WAITING: &str = "a-waiting-id";

/// A program in front; it ends with the test.
struct Proxy {
    child: Child,
    address: SocketAddr,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Proxy {
    /// Starts the program on a free port, with a configuration that is made for that port.
    fn start(dir: &Path, words: &[&str], configuration: impl Fn(SocketAddr) -> String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let file = dir.join(format!("{}.conf", words[0]));
        fs::write(&file, configuration(address)).unwrap();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(&file).stdout(Stdio::null());
        let mut proxy = Self { child: command.spawn().unwrap(), address };
        eventually("the proxy listens", || {
            assert_eq!(proxy.child.try_wait().unwrap(), None, "{} ended", words[0]);
            TcpStream::connect(address).is_ok().then_some(())
        });
        proxy
    }

    /// Asks as a browser or a program on another machine does; the code, and the whole answer.
    fn ask(&self, method: &str, path: &str, headers: &[&str], body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(super::support::PATIENCE)).unwrap();
        let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: ops.example\r\n{headers}\
             content-length: {length}\r\nconnection: close\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        (answer[9..12].parse().unwrap(), answer)
    }

    fn code(&self, method: &str, path: &str, headers: &[&str]) -> u16 {
        let body = if method == "POST" { "{}" } else { "" };
        self.ask(method, path, headers, body).0
    }
}

/// The block of `deploy/README.md` in this language, leading to this instance.
fn recipe(language: &str, behind: SocketAddr) -> String {
    let page = read("README.md");
    let block = page.split(&format!("```{language}\n")).nth(1).expect("there is a recipe");
    let block = block.split("```").next().unwrap();
    assert!(block.contains("127.0.0.1:9180"), "{block}");
    block.replace("127.0.0.1:9180", &behind.to_string())
}

/// An instance with a token, and a socket that waits.
fn begin(dir: &TempDir) -> (Service, Vec<Client>) {
    let token = dir.path().join("token");
    fs::write(&token, TOKEN).unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    let data = dir.path().join("data");
    let service = Service::start(&data, &["--admin-token-file", token.to_str().unwrap()]);
    let members = [1, 2].map(Member);
    let tip = chain(&service, &members);
    let waiting = Client::say(service.repair(), reconnect(WAITING, &members[0].head()));
    eventually("it waits", || (service.metric("emnetchain_repairs_pending") > 0.0).then_some(()));
    (service, vec![tip, waiting])
}

/// What must be so behind every proxy; `below` is the path that the instance has there.
fn stranger_and_operator(proxy: &Proxy, below: &str) {
    let at = |path: &str| format!("{below}{path}");
    let json = "content-type: application/json";
    let bearer = format!("authorization: Bearer {TOKEN}");
    let changes = ["/api/v1/cluster/transfer-leader", "/api/v1/backup/kept"];

    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(proxy.code("GET", &at(path), &[]), 200, "{path}");
    }
    for path in ["/", "/status", "/api/v1/chains", "/api/v1/chain", "/api/v1/backup"] {
        let (code, answer) = proxy.ask("GET", &at(path), &[], "");
        assert!(code == 403 && answer.contains("token"), "{path}: {answer}");
    }
    for path in changes.into_iter().chain(["/api/v1/cluster/drain"]) {
        for claim in ["x-a: b", "host: localhost", "authorization: Bearer wrong"] {
            let code = proxy.code("POST", &at(path), &[json, claim]);
            assert!(code == 403 || code == 400, "{path}, {claim}: {code}");
        }
    }

    for path in ["/", "/status", "/api/v1/chains", "/api/v1/backup"] {
        assert_eq!(proxy.code("GET", &at(path), &[&bearer]), 200, "{path}");
    }
    assert!(proxy.ask("GET", &at("/api/v1/chain"), &[&bearer], "").1.contains(WAITING));
    assert_eq!(proxy.code("POST", &at(changes[1]), &[json, &bearer]), 200);
    // A single instance has no other leader; it says so itself.
    assert_ne!(proxy.code("POST", &at(changes[0]), &[json, &bearer]), 403);

    // A browser: the form, the cookie, the page and its parts, and no change by the cookie.
    assert!(proxy.ask("GET", &at("/"), &[], "").1.contains("action=\"sign-in\""));
    let form = "token=open%3B+%22sesame%22";
    let ours = "origin: http://ops.example";
    let (code, answer) = proxy.ask("POST", &at("/sign-in"), &[ours], form);
    let answer = answer.replace("Set-Cookie", "set-cookie").replace("Location", "location");
    assert!(code == 303 && answer.contains("location: ./\r\n"), "{answer}");
    let cookie = answer.split("set-cookie: ").nth(1).unwrap().split("\r\n").next().unwrap();
    assert!(!cookie.to_lowercase().contains("path="), "it goes with the proxy's path: {cookie}");
    let cookie = format!("cookie: {}", cookie.split(';').next().unwrap());
    let (code, page) = proxy.ask("GET", &at("/"), &[&cookie], "");
    assert_eq!(code, 200);
    let links = page.split('"').filter(|word| word.starts_with("page/") || *word == "status");
    let links: Vec<&str> = links.collect();
    assert!(links.len() > 2, "{page}");
    for link in links {
        let same_origin = "sec-fetch-site: same-origin";
        assert_eq!(proxy.code("GET", &at(&format!("/{link}")), &[&cookie, same_origin]), 200);
    }
    assert_eq!(proxy.code("POST", &at(changes[1]), &[json, &cookie]), 403);
    let evil = "origin: http://evil.example";
    assert_eq!(proxy.code("GET", &at("/api/v1/chain"), &[&cookie, evil]), 403);
    assert_eq!(proxy.code("GET", &at("/api/v1/backup"), &[&bearer, evil]), 403);
}

#[test]
fn privileged_behind_nginx_strangers_change_nothing_and_operators_do_everything() {
    let test = "privileged_behind_nginx_strangers_change_nothing_and_operators_do_everything";
    if !may_run(test, "packages", &["nginx"]) {
        return;
    }
    let dir = TempDir::new().unwrap();
    let (service, _clients) = begin(&dir);
    let behind = service.address("HTTP");
    let room = dir.path().display();
    let words = ["nginx", "-e", "stderr", "-c"];
    let proxy = Proxy::start(dir.path(), &words, |address| {
        format!(
            "daemon off; master_process off; pid {room}/nginx.pid; error_log stderr;\n\
             events {{}}\n\
             http {{ access_log off; server {{ listen {address};\n{}\n\
             location /silent/ {{ proxy_pass http://{behind}/; }} }} }}\n",
            recipe("nginx", behind)
        )
    });
    stranger_and_operator(&proxy, "/emnetchain");

    // A proxy that does not say that it is one lends no change, no backup and no id.
    let json = "content-type: application/json";
    assert_eq!(proxy.code("POST", "/silent/api/v1/cluster/drain", &[json]), 403);
    assert_eq!(proxy.code("GET", "/silent/api/v1/backup", &[]), 403);
    assert!(!proxy.ask("GET", "/silent/api/v1/chain", &[], "").1.contains(WAITING));
    assert_eq!(service.get("/readyz").0, 200, "nothing was drained");
}

#[test]
fn privileged_behind_haproxy_strangers_change_nothing_and_operators_do_everything() {
    let test = "privileged_behind_haproxy_strangers_change_nothing_and_operators_do_everything";
    if !may_run(test, "packages", &["haproxy"]) {
        return;
    }
    let dir = TempDir::new().unwrap();
    let (service, _clients) = begin(&dir);
    let proxy = Proxy::start(dir.path(), &["haproxy", "-db", "-f"], |address| {
        format!(
            "defaults\n    mode http\n    timeout connect 5s\n    timeout client 60s\n    \
             timeout server 60s\nfrontend operators\n    bind {address}\n    \
             default_backend emnetchain\n{}",
            recipe("haproxy", service.address("HTTP"))
        )
    });
    stranger_and_operator(&proxy, "");
    assert_eq!(service.get("/readyz").0, 200, "nothing was drained");
}
