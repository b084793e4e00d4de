//! The program in the boxes that `deploy/` makes for it: with no file but its own, and with no
//! system call that the unit forbids.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use tempfile::TempDir;

use super::support::{
    Client, Member, Service, chain, eventually, privileged::may_run, reconnect, repaired,
};

/// The most that `systemd-analyze security` may say, on its scale from 0 to 10.
const EXPOSURE_MAX: f64 = 1.5;

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    said
}

#[test]
fn privileged_the_unit_exposes_little() {
    if !may_run("privileged_the_unit_exposes_little", "packages", &["systemd-analyze"]) {
        return;
    }
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd/emnetchain.service");
    let arguments = ["security", "--offline=true", "--no-pager", unit.to_str().unwrap()];
    let said = output("systemd-analyze", &arguments);
    let level = said.split("Overall exposure level for emnetchain.service: ").nth(1).unwrap();
    let level: f64 = level.split(' ').next().unwrap().parse().unwrap();
    assert!(level <= EXPOSURE_MAX, "{said}");
}

/// A link, a repair, metrics, an orderly end.
fn use_it(service: &Service) {
    let [a, b, c] = [1, 2, 3].map(Member);
    let _tip = chain(service, &[a, b, c]);
    let mut left = Client::say(service.repair(), reconnect("x", &a.head()));
    let mut right = Client::say(service.repair(), reconnect("y", &c.tail()));
    assert_eq!(left.object(), repaired(&c.tail()));
    assert_eq!(right.object(), repaired(&a.head()));
    assert_eq!(service.metric("emnetchain_ready"), 1.0);
    assert!(service.metric("process_start_time_seconds") > 0.0, "it sees its own process");
    eventually("it knows the disk", || {
        (service.metric("emnetchain_disk_free_bytes") > 0.0).then_some(())
    });
}

/// What the image of `deploy/docker/Dockerfile` holds: the program and what it loads.
#[test]
fn privileged_the_program_needs_no_file_but_its_own() {
    if !may_run("privileged_the_program_needs_no_file_but_its_own", "packages", &["bwrap", "ldd"]) {
        return;
    }
    let (program, data) = (env!("CARGO_BIN_EXE_EMNetChain"), TempDir::new().unwrap());
    let loaded = output("ldd", &[program]);
    let loaded = loaded.split_whitespace().filter(|word| word.starts_with('/'));
    let mut wrapper: Vec<&str> = "bwrap --unshare-user --unshare-ipc --unshare-uts --uid 65532 \
        --gid 65532 --cap-drop ALL --new-session --die-with-parent --proc /proc"
        .split_whitespace()
        .collect();
    for file in loaded.chain([program]) {
        wrapper.extend(["--ro-bind", file, file]);
    }
    let path = data.path().to_str().unwrap();
    wrapper.extend(["--bind", path, path, "--remount-ro", "/", "--"]);
    let dir = data.path().join("data");
    let service = Service::try_start_through(&wrapper, &dir, Vec::new()).unwrap();
    use_it(&service);
    // bwrap waits for the program, which is its only child.
    let bwrap = service.pid();
    let children = fs::read_to_string(format!("/proc/{bwrap}/task/{bwrap}/children")).unwrap();
    output("kill", &["-TERM", children.trim()]);
    let mut service = service;
    assert!(service.wait().success(), "{}", service.log());
}

#[test]
fn privileged_the_unit_allows_every_system_call_it_makes() {
    let test = "privileged_the_unit_allows_every_system_call_it_makes";
    if !may_run(test, "packages", &["systemd-analyze", "strace"]) {
        return;
    }
    let dir = TempDir::new().unwrap();
    let trace = dir.path().join("trace");
    let trace_name = trace.to_str().unwrap();
    let wrapper = ["strace", "-D", "-f", "-qq", "-o", trace_name];
    let arguments = ["--udp-addr", "127.0.0.1:0"].map(str::to_owned).to_vec();
    let data = dir.path().join("data");
    let mut service = Service::try_start_through(&wrapper, &data, arguments).unwrap();
    use_it(&service);
    service.signal("HUP");
    assert!(service.stop().success());
    let text = eventually("the trace is complete", || {
        let text = fs::read_to_string(&trace).unwrap();
        text.contains(" exit_group(").then_some(text)
    });
    let call = |line: &str| {
        let call = line.split_whitespace().nth(1)?.split_once('(')?.0;
        call.chars().all(|c| c.is_ascii_alphanumeric() || c == '_').then(|| call.to_owned())
    };
    let made: BTreeSet<String> = text.lines().filter_map(call).collect();
    assert!(made.len() > 30 && made.contains("fdatasync"), "{made:?}");
    let sets = sets_of_calls();
    let (mut allowed, mut denied) = (BTreeSet::new(), BTreeSet::new());
    expand(&sets, "@system-service", &mut allowed);
    expand(&sets, "@privileged", &mut denied);
    expand(&sets, "@resources", &mut denied);
    let forbidden: Vec<_> =
        made.iter().filter(|it| !allowed.contains(*it) || denied.contains(*it)).collect();
    assert!(forbidden.is_empty(), "the unit forbids {forbidden:?}");
}

/// The sets of system calls that systemd knows, with what each lists.
fn sets_of_calls() -> BTreeMap<String, Vec<String>> {
    let mut sets: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut current = String::new();
    for line in output("systemd-analyze", &["syscall-filter", "--no-pager"]).lines() {
        if line.starts_with('@') {
            line.clone_into(&mut current);
        } else if line.starts_with(' ') && !line.trim().starts_with('#') {
            sets.entry(current.clone()).or_default().push(line.trim().to_owned());
        }
    }
    sets
}

fn expand(sets: &BTreeMap<String, Vec<String>>, name: &str, into: &mut BTreeSet<String>) {
    for member in &sets[name] {
        if member.starts_with('@') {
            expand(sets, member, into);
        } else {
            into.insert(member.clone());
        }
    }
}
