//! A Prometheus of its own for a test, and questions to it.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    cluster::Cluster,
    read,
    support::{Client, eventually},
};

/// How long to wait for an alert: Prometheus looks twice a second, and the rules wait 2 s.
const ALERT_PATIENCE_S: u64 = 60;

/// A Prometheus that watches a cluster with this repository's rules, in quick motion.
pub(crate) struct Prometheus {
    dir: TempDir,
    child: Child,
    address: SocketAddr,
}

impl Prometheus {
    /// Starts it; it knows no instance yet.
    pub(crate) fn start() -> Self {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("rules.yml"), quick(&read("prometheus/rules.yml"))).unwrap();
        fs::write(
            dir.path().join("prometheus.yml"),
            "global: {scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms}\n\
             rule_files: [rules.yml]\n\
             scrape_configs:\n\
             - job_name: emnetchain\n  \
               file_sd_configs: [{files: [targets.json], refresh_interval: 1s}]\n",
        )
        .unwrap();
        fs::write(dir.path().join("targets.json"), "[]").unwrap();
        let mut child = Command::new("prometheus")
            .arg(format!("--config.file={}", dir.path().join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .args(["--web.listen-address=127.0.0.1:0", "--log.level=info"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let (sender, found) = mpsc::channel();
        thread::spawn(move || {
            for line in lines {
                if let Some((_, rest)) = line.split_once("\"Listening on\" address=") {
                    let _ = sender.send(rest.split(' ').next().unwrap().parse().unwrap());
                }
            }
        });
        let address = found.recv_timeout(Duration::from_secs(60)).expect("it listens");
        let prometheus = Self { dir, child, address };
        eventually("Prometheus is ready", || {
            prometheus.get("/-/ready").starts_with("HTTP/1.0 200").then_some(())
        });
        prometheus
    }

    /// Tells it where the instances are; one that is down is looked for where it was.
    pub(crate) fn watch(&self, cluster: &Cluster, known: &mut [Option<SocketAddr>; 3]) {
        for id in cluster.running() {
            known[id - 1] = Some(cluster.at(id).address("HTTP"));
        }
        let targets = (1..).zip(known).filter_map(|(id, at)| {
            let labels = json!({ "instance": format!("node{id}") });
            at.as_ref().map(|at| json!({ "targets": [at.to_string()], "labels": labels }))
        });
        let draft = self.dir.path().join("targets.new");
        fs::write(&draft, Value::from_iter(targets).to_string()).unwrap();
        fs::rename(draft, self.dir.path().join("targets.json")).unwrap();
    }

    /// The numbers that a query gives now.
    pub(crate) fn ask(&self, query: &str) -> Vec<f64> {
        let answer = self.api(&format!("/api/v1/query?query={}", escaped(query)));
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        let samples = answer["data"]["result"].as_array().unwrap();
        samples.iter().map(|it| it["value"][1].as_str().unwrap().parse().unwrap()).collect()
    }

    /// The names of the alerts that fire.
    pub(crate) fn firing(&self) -> Vec<String> {
        let answer = self.api("/api/v1/alerts");
        let alerts = answer["data"]["alerts"].as_array().unwrap();
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        firing.map(|alert| alert["labels"]["alertname"].as_str().unwrap().to_owned()).collect()
    }

    /// Waits until these alerts fire.
    pub(crate) fn expect_firing(&self, alerts: &[&str]) {
        self.until(|firing| alerts.iter().all(|alert| firing.iter().any(|it| it == alert)), alerts);
    }

    /// Waits until none of these alerts fires.
    pub(crate) fn expect_clear(&self, alerts: &[&str]) {
        self.until(
            |firing| !alerts.iter().any(|alert| firing.iter().any(|it| it == alert)),
            alerts,
        );
    }

    fn until(&self, holds: impl Fn(&[String]) -> bool, alerts: &[&str]) {
        let deadline = emnetchain::clock::now() + Duration::from_secs(ALERT_PATIENCE_S);
        loop {
            let firing = self.firing();
            if holds(&firing) {
                return;
            }
            assert!(emnetchain::clock::now() < deadline, "{alerts:?}; these fire: {firing:?}");
            thread::sleep(Duration::from_millis(200));
        }
    }

    fn get(&self, path: &str) -> String {
        // HTTP/1.0, so that the answer comes in one piece.
        Client::say(self.address, format!("GET {path} HTTP/1.0\r\nhost: prometheus\r\n\r\n")).rest()
    }

    fn api(&self, path: &str) -> Value {
        let answer = self.get(path);
        let (_, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{path}: {error}: {answer}"))
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The rules with two seconds of patience instead of minutes.
fn quick(rules: &str) -> String {
    let shorten = |line: &str| match line.trim_start().starts_with("for: ") {
        true => format!("{}for: 2s\n", &line[..line.len() - line.trim_start().len()]),
        false => format!("{line}\n"),
    };
    rules.lines().map(shorten).collect()
}

fn escaped(query: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    query.bytes().map(escape).collect()
}

/// Runs `promtool` on this repository's files and returns what it says.
pub(crate) fn promtool(arguments: &[&str], input: Option<&Path>) -> String {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus");
    let stdin = input.map_or_else(Stdio::null, |path| fs::File::open(path).unwrap().into());
    let output =
        Command::new("promtool").args(arguments).current_dir(deploy).stdin(stdin).output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "promtool {arguments:?}: {}\n{said}", output.status);
    said
}

/// Waits until all three instances are scraped.
pub(crate) fn wait_for_all(prometheus: &Prometheus) {
    eventually("Prometheus reaches all three", || {
        (prometheus.ask("sum(up)") == [3.0]).then_some(())
    });
}
