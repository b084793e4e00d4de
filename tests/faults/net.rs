//! A network of its own: a bridge, a namespace for each machine, and a DNS server. Whatever
//! happens, it is gone at the end; what a killed run left behind is removed by the next one.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use super::support::eventually;

/// What all names of ours begin with, in front of the process id.
const PREFIX: &str = "emf";

/// The name that clients look up.
pub(crate) const SERVICE_NAME: &str = "chain.test";

/// The host numbers of the DNS server and of this process, behind those of the instances.
const DNS_HOST: u8 = 53;
const CLIENTS_HOST: u8 = 254;

/// Counts the networks of this process.
static NETWORKS: AtomicU32 = AtomicU32::new(0);

/// Machines on a bridge.
#[derive(Debug)]
pub(crate) struct Net {
    /// Begins the names of the bridge, the namespaces and their interfaces.
    name: String,
    /// The first three bytes of all addresses.
    prefix: [u8; 3],
    hosts: Vec<u8>,
    /// What the DNS server reads.
    names: PathBuf,
    dns: Option<Child>,
}

impl Net {
    /// A network with a DNS server, which has a file in a folder.
    pub(crate) fn new(dir: &Path) -> Self {
        sweep();
        let (process, count) = (std::process::id(), NETWORKS.fetch_add(1, Ordering::SeqCst));
        let [.., high, low] = process.to_be_bytes();
        let mut net = Self {
            name: format!("{PREFIX}{process}{}", char::from(b'a' + (count % 26) as u8)),
            prefix: [10, 64 + high % 64, low],
            hosts: Vec::new(),
            names: dir.join("names"),
            dns: None,
        };
        let (bridge, own) = (net.name.clone(), format!("{}/24", net.ip(CLIENTS_HOST)));
        ip(&["link", "add", &bridge, "type", "bridge"]);
        ip(&["addr", "add", &own, "dev", &bridge]);
        ip(&["link", "set", &bridge, "up"]);
        net.add(DNS_HOST);
        fs::write(&net.names, "").expect("a temporary file");
        net.serve_names();
        net
    }

    /// The address of a host.
    pub(crate) fn ip(&self, host: u8) -> IpAddr {
        let [a, b, c] = self.prefix;
        Ipv4Addr::new(a, b, c, host).into()
    }

    /// Where the DNS server listens.
    pub(crate) fn dns(&self) -> SocketAddr {
        (self.ip(DNS_HOST), 53).into()
    }

    /// What has a command run on a host.
    pub(crate) fn enter(&self, host: u8) -> [String; 4] {
        [which("ip"), "netns".to_owned(), "exec".to_owned(), self.namespace(host)]
    }

    fn namespace(&self, host: u8) -> String {
        format!("{}{host}", self.name)
    }

    /// A machine more.
    pub(crate) fn add(&mut self, host: u8) {
        let namespace = self.namespace(host);
        ip(&["netns", "add", &namespace]);
        self.hosts.push(host);
        let address = format!("{}/24", self.ip(host));
        let peer = ["peer", "name", "eth0", "netns", &namespace];
        ip(&[&["link", "add", &namespace, "type", "veth"][..], &peer].concat());
        ip(&["link", "set", &namespace, "master", &self.name, "up"]);
        for command in [
            &["link", "set", "lo", "up"][..],
            &["addr", "add", &address, "dev", "eth0"],
            &["link", "set", "eth0", "up"],
        ] {
            ip(&[&["-n", &namespace], command].concat());
        }
    }

    fn serve_names(&mut self) {
        let [program, rest @ ..] = self.enter(DNS_HOST);
        let child = Command::new(program)
            .args(rest)
            .args(["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv"])
            .args(["--no-hosts", "--user=root", "--pid-file="])
            .arg(format!("--addn-hosts={}", self.names.display()))
            .stdin(Stdio::null())
            .spawn();
        self.dns = Some(child.expect("dnsmasq starts"));
    }

    /// From now on the service's name stands for these hosts.
    pub(crate) fn name(&self, hosts: &[u8]) {
        let lines = hosts.iter().map(|host| format!("{} {SERVICE_NAME}\n", self.ip(*host)));
        fs::write(&self.names, lines.collect::<String>()).expect("a temporary file");
        let dns = self.dns.as_ref().expect("it runs").id().to_string();
        run("kill", &["-HUP", &dns]); // it reads the file again
    }

    /// Drops what comes from some hosts to one, in the words of `nft` behind `ip saddr`.
    fn drop_at(&self, host: u8, what: &str) {
        let rules = format!(
            "add table inet fault; \
             add chain inet fault in {{ type filter hook input priority 0; }}; \
             add rule inet fault in {what} drop"
        );
        let [program, rest @ ..] = self.enter(host);
        let args = rest.iter().map(String::as_str).chain(["nft", &rules]);
        run(&program, &args.collect::<Vec<_>>());
    }

    /// What `from` sends does not arrive at `to`.
    pub(crate) fn cut(&self, from: u8, to: u8) {
        self.drop_at(to, &format!("ip saddr {}", self.ip(from)));
    }

    /// Of what arrives at `to`, this share of packets in a hundred is lost.
    pub(crate) fn lose(&self, percent: u8, to: u8) {
        self.drop_at(to, &format!("iif eth0 numgen random mod 100 < {percent}"));
    }

    /// The network of a host is whole again.
    pub(crate) fn heal(&self, host: u8) {
        let [program, rest @ ..] = self.enter(host);
        let rules = "add table inet fault; delete table inet fault";
        let args = rest.iter().map(String::as_str).chain(["nft", rules]);
        run(&program, &args.collect::<Vec<_>>());
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        if let Some(mut dns) = self.dns.take() {
            let _ = dns.kill();
            let _ = dns.wait();
        }
        for host in &self.hosts {
            remove(&["netns", "del", &self.namespace(*host)]);
        }
        remove(&["link", "del", &self.name]);
    }
}

/// Removes what processes left behind that are gone.
fn sweep() {
    let left = |name: &str| {
        let pid = name.strip_prefix(PREFIX)?.split(|c: char| !c.is_ascii_digit()).next()?;
        let is_gone = !pid.is_empty() && !Path::new("/proc").join(pid).exists();
        is_gone.then_some(())
    };
    let list = |args: &[&str]| {
        let output = Command::new(which("ip")).args(args).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    for line in list(&["netns", "list"]).lines() {
        let name = line.split(' ').next().unwrap_or_default();
        if left(name).is_some() {
            remove(&["netns", "del", name]);
        }
    }
    for line in list(&["-br", "link", "show", "type", "bridge"]).lines() {
        let name = line.split(' ').next().unwrap_or_default();
        if left(name).is_some() {
            remove(&["link", "del", name]);
        }
    }
}

/// Where a program is.
pub(crate) fn which(program: &str) -> String {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output();
    String::from_utf8(found.unwrap().stdout).unwrap().trim().to_owned()
}

fn ip(args: &[&str]) {
    run("ip", args);
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {said}");
}

/// Removes something that may be gone already.
fn remove(args: &[&str]) {
    let _ = Command::new("ip").args(args).stderr(Stdio::null()).status();
}

/// Waits until the DNS server answers.
pub(crate) fn wait_for_names(look_up: impl Fn() -> usize, instances: u8) {
    eventually("the name is known", || (look_up() == usize::from(instances)).then_some(()));
}
