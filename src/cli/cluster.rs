//! `EMNetChain cluster ...`: looks at a running cluster and changes it, by the HTTP of one of its
//! instances; and makes certificates for a new one.

use std::{fmt::Write as _, net::SocketAddr, path::Path};

use serde_json::{Value, json};

use super::{call::Instance, table::table};
use crate::{
    cluster::{admin::START_EMPTY, tcp::certs::make_certs},
    config::{InitialCluster, Sources, parse_member},
    console::{Unsaid, try_say},
    ids::InstanceId,
    storage::ClusterId,
};

/// Why a command was not carried out: a sentence that says what to do.
pub(super) enum Failure {
    /// It cannot be meant like this.
    Usage(String),
    /// No instance answers, or it refuses.
    Instance(String),
    /// It was carried out, and its answer cannot be written.
    Output(Unsaid),
}

impl From<Unsaid> for Failure {
    fn from(unsaid: Unsaid) -> Self {
        Self::Output(unsaid)
    }
}

/// Carries out one command.
pub(super) fn run(
    command: &str,
    operand: Option<&str>,
    json: bool,
    sources: &Sources,
) -> Result<(), Failure> {
    let operand_text = operand.unwrap_or_default();
    if command == "certs" {
        return Ok(try_say(&certs(operand_text, sources).map_err(Failure::Usage)?)?);
    }
    let instance = Instance::of(sources).map_err(Failure::Usage)?;
    let get = |path: &str| instance.get(path).map_err(Failure::Instance);
    let post = |action: &str, body: Value| {
        let answer = instance.post(&format!("/api/v1/cluster/{action}"), &body);
        let done = sentence(&answer.map_err(Failure::Instance)?);
        try_say(&done)?;
        Ok(done)
    };
    let number = || match operand_text.parse::<u64>() {
        Ok(id) if id > 0 => Ok(id),
        Ok(_) | Err(_) => {
            Err(Failure::Usage(format!("{operand_text:?} is not the number of an instance")))
        }
    };
    match command {
        "status" | "members" => {
            let status = get("/status")?;
            let shown = if command == "members" { &status["members"] } else { &status };
            let page = || page(&status, command == "status");
            Ok(try_say(&if json { format!("{shown}\n") } else { page() })?)
        }
        "add" => {
            let (id, member) = parse_member(operand_text).map_err(Failure::Usage)?;
            let done = post("add", json!({"id": id.0, "address": member.raft_addr}))?;
            // A member that moved has data, and is started as it was.
            if done.contains(START_EMPTY) {
                try_say(&start_line(&get("/status")?, id, &member.raft_addr))?;
            }
            Ok(())
        }
        "transfer-leader" => {
            let id = operand.is_some().then(number).transpose()?;
            post("transfer-leader", json!({"id": id})).map(drop)
        }
        "drain" | "upgrade" => post(command, json!({})).map(drop),
        promote_or_remove => post(promote_or_remove, json!({"id": number()?})).map(drop),
    }
}

fn sentence(answer: &Value) -> String {
    format!("{}\n", answer["done"].as_str().unwrap_or_default())
}

/// Returns the status for people.
fn page(status: &Value, with_cluster: bool) -> String {
    let mut page = String::new();
    let leader = &status["leader"];
    if with_cluster {
        page.push_str(&head(status));
        page.push('\n');
    }
    let rows = status["members"].as_array().into_iter().flatten().map(|member| {
        let role = match member["voter"].as_bool() {
            Some(true) if member["node"] == *leader => "leader",
            Some(true) => "voter",
            Some(false) | None => "learner",
        };
        let heard = member["silent_ms"].as_u64().map(|ms| format!("{ms} ms ago"));
        [
            text(&member["node"]),
            role.to_owned(),
            text(&member["address"]),
            text(&member["lag"]),
            heard.unwrap_or_else(|| "-".to_owned()),
            text(&member["newest_rules"]),
        ]
    });
    page.push_str(&table(["NODE", "ROLE", "ADDRESS", "LAG", "HEARD", "RULES"], rows.collect()));
    if let Some(why) = status["trouble"].as_str() {
        let _ = writeln!(
            page,
            "\nThis instance answers no client now: {why}.\nNothing that was answered is lost."
        );
    } else if with_cluster && *leader != status["node"] {
        let _ = writeln!(page, "\nLag and silence are known to the leader; ask instance {leader}.");
    }
    page
}

/// Returns a value for people.
fn text(value: &Value) -> String {
    match value.as_str() {
        Some("") => "-".to_owned(),
        Some(text) => text.to_owned(),
        None if value.is_null() => "-".to_owned(),
        None => value.to_string(),
    }
}

/// Returns the cluster in a few lines.
fn head(status: &Value) -> String {
    let (mut page, leader) = (String::new(), &status["leader"]);
    let chains = &status["chains"];
    let lines = [
        ("cluster", text(&status["cluster"])),
        ("instance", format!("{} ({})", text(&status["node"]), text(&status["role"]))),
        (
            "state",
            match status["trouble"].as_str() {
                Some(why) => format!("not serving: {why}"),
                None => "serving".to_owned(),
            },
        ),
        ("leader", if leader.is_null() { "none".to_owned() } else { text(leader) }),
        ("term", text(&status["term"])),
        (
            "rules",
            format!(
                "version {}; this instance knows versions up to {}",
                status["rules"], status["newest_rules"]
            ),
        ),
        ("applied", format!("{} of {}", status["applied_index"], status["last_log_index"])),
        (
            "chains",
            format!(
                "{} with {} clients, {} links, {} broken, {} waiting, {} cut off",
                chains["count"],
                chains["clients"],
                chains["links"],
                chains["broken_links"],
                chains["asks"],
                chains["cut_off"]
            ),
        ),
    ];
    for (name, value) in lines {
        let _ = writeln!(page, "{name:9} {value}");
    }
    page
}

/// Returns the command line that starts an instance that was added.
fn start_line(status: &Value, id: InstanceId, address: &str) -> String {
    let members = status["members"].as_array().into_iter().flatten();
    let others = members.filter(|member| member["node"] != json!(id.0)).map(|member| {
        format!("{}={}", member["node"], member["address"].as_str().unwrap_or_default())
    });
    format!(
        "the flags:\n  --node-id {} --raft-addr {} --cluster-id {} --initial-cluster {}\n",
        id.0,
        listened_at(address),
        status["cluster"].as_str().unwrap_or_default(),
        others.collect::<Vec<_>>().join(",")
    )
}

/// Returns where an instance listens that others reach at this address: a name is not an address to
/// bind.
fn listened_at(address: &str) -> String {
    let port = address.rsplit_once(':').map_or("", |(_, port)| port);
    address.parse::<SocketAddr>().map_or(format!("[::]:{port}"), |address| address.to_string())
}

/// Makes certificates for the instances of a cluster.
fn certs(dir: &str, sources: &Sources) -> Result<String, String> {
    let faults = |faults: crate::config::Faults| faults.to_string();
    let members: InitialCluster = sources.read_key("initial_cluster").map_err(faults)?;
    let given: Option<ClusterId> = sources.read_key("cluster_id").map_err(faults)?;
    if members.0.is_empty() {
        return Err("--initial-cluster is missing: say for which instances, as in \
                    --initial-cluster 1=a.example:7000,2=b.example:7000,3=c.example:7000"
            .to_owned());
    }
    let cluster = given.unwrap_or_else(|| ClusterId::derived_from(&members.to_string()));
    let host = |address: &str| {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        host.trim_matches(['[', ']']).to_owned()
    };
    let nodes: Vec<_> =
        members.0.iter().map(|(id, member)| (*id, vec![host(&member.raft_addr)])).collect();
    let written = make_certs(Path::new(dir), cluster, &nodes).map_err(|error| error.to_string())?;
    let mut page: String = written.iter().map(|path| format!("{}\n", path.display())).collect();
    // A certificate of a later instance must not found a second cluster under the same id.
    let place = match given {
        Some(cluster) => format!("--cluster-id {cluster}"),
        None => format!("--initial-cluster {members}"),
    };
    let _ = writeln!(
        page,
        "They are for cluster {cluster}. Give each instance its own two and ca.pem, and start it \
         with"
    );
    for (InstanceId(node), member) in &members.0 {
        let at = |name: String| Path::new(dir).join(name).display().to_string();
        let _ = writeln!(
            page,
            "  --node-id {node} --raft-addr {} {place} --raft-tls-cert {} --raft-tls-key {} \
             --raft-tls-ca {}",
            listened_at(&member.raft_addr),
            at(format!("node-{node}.pem")),
            at(format!("node-{node}.key")),
            at("ca.pem".to_owned()),
        );
    }
    page.push_str(
        "Keep ca.key where no instance runs: it makes the certificates of later instances.\n",
    );
    Ok(page)
}
