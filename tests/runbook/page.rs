//! The page: its sections, their commands, and how one is run.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tempfile::TempDir;

use super::{
    replicas::Cluster,
    support::{Service, eventually},
};

fn text() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/RUNBOOK.md");
    fs::read_to_string(path).unwrap()
}

/// The commands of each section, in the order of the page. What continues on the next line is one.
fn commands() -> Vec<(String, Vec<String>)> {
    let mut sections: Vec<(String, Vec<String>)> = Vec::new();
    let (mut in_block, mut continued) = (false, None::<String>);
    for line in text().lines() {
        if let Some(heading) = line.strip_prefix("# ").or_else(|| line.strip_prefix("## ")) {
            assert!(!in_block, "comments have no place in a block: {line}");
            sections.push((heading.to_owned(), Vec::new()));
        } else if let Some(kind) = line.strip_prefix("```") {
            assert!(in_block || kind == "shell", "a block that is not executed: {line}");
            in_block = !in_block;
        } else if in_block {
            let line = line.trim();
            let line = continued.take().map_or_else(|| line.to_owned(), |before| before + line);
            match line.strip_suffix('\\') {
                Some(before) => continued = Some(before.to_owned()),
                None => sections.last_mut().expect("a heading").1.push(line),
            }
        }
    }
    assert!(!in_block && continued.is_none());
    sections
}

/// The sections that have commands.
pub(crate) fn sections_with_commands() -> Vec<String> {
    let sections = commands().into_iter();
    sections.filter(|(_, commands)| !commands.is_empty()).map(|(heading, _)| heading).collect()
}

/// The words that stand for something else, by the table at the top of the page.
fn placeholders() -> Vec<String> {
    let page = text();
    let rows = page.lines().take_while(|line| !line.starts_with("```"));
    let cells = rows.filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    cells.flat_map(|cell| cell.split("`, `")).map(|word| word.trim_matches('`').into()).collect()
}

/// What words of the page stand for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Words(BTreeMap<String, String>);

impl Words {
    /// Those that name the instances of a cluster, as far as they run.
    pub(crate) fn of(cluster: &Cluster) -> Self {
        let mut words = Self::default();
        for (id, name) in cluster.ids().zip(["A", "B", "C"]) {
            words.0.insert(format!("{name}:7000"), cluster.raft(id).to_string());
            if cluster.running().contains(&id) {
                let http = cluster.at(id).address("HTTP").to_string();
                words.0.insert(format!("{name}:9180"), http);
                let status = cluster.status(id)["cluster"].clone();
                words.0.insert("CLUSTER".to_owned(), status.as_str().unwrap().to_owned());
            }
        }
        words
    }

    /// And this one.
    pub(crate) fn and(mut self, word: &str, meaning: impl std::fmt::Display) -> Self {
        self.0.insert(word.to_owned(), meaning.to_string());
        self
    }

    /// And a path.
    pub(crate) fn at(self, word: &str, path: &Path) -> Self {
        self.and(word, path.display())
    }

    pub(crate) fn put_into(&self, command: &str) -> String {
        let mut command = command.to_owned();
        for word in placeholders().iter().filter(|word| *word != "emnetchain.toml") {
            if command.contains(word.as_str()) {
                let meaning = self.0.get(word);
                let meaning = meaning.unwrap_or_else(|| panic!("{word} in {command}"));
                command = command.replace(word.as_str(), meaning);
            }
        }
        command
    }
}

/// One section while its commands are executed, in a directory of its own.
pub(crate) struct Section {
    name: &'static str,
    commands: BTreeSet<String>,
    executed: RefCell<BTreeSet<String>>,
    room: TempDir,
}

impl Section {
    /// The section under this heading.
    pub(crate) fn open(name: &'static str) -> Self {
        let mut found = commands().into_iter().filter(|(heading, _)| heading == name);
        let commands = found.next().unwrap_or_else(|| panic!("no section {name}")).1;
        assert!(found.next().is_none(), "two sections are {name}");
        let (commands, executed) = (commands.into_iter().collect(), RefCell::default());
        Self { name, commands, executed, room: TempDir::new().unwrap() }
    }

    /// Its heading.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Fails if a command was not executed.
    pub(crate) fn finish(self) {
        let executed = self.executed.into_inner();
        let left: Vec<_> = self.commands.difference(&executed).collect();
        assert!(left.is_empty(), "{}: not executed: {left:#?}", self.name);
    }

    /// A path in the directory where commands are executed.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.room.path().join(name)
    }

    /// Runs a command of the page to its end, which must be a good one; what it said.
    #[track_caller]
    pub(crate) fn run(&self, command: &str, words: &Words) -> String {
        let output = self.try_run(command, words);
        assert!(output.status.success(), "{command}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command of the page until it ends well.
    pub(crate) fn run_until_done(&self, command: &str, words: &Words) {
        eventually(command, || self.try_run(command, words).status.success().then_some(()));
    }

    /// Runs a command of the page to its end.
    #[track_caller]
    pub(crate) fn try_run(&self, command: &str, words: &Words) -> Output {
        let mut shell = self.shell(command, words, "");
        if let Some(first) = words.0.get("A:9180") {
            shell.env("EMNETCHAIN_HTTP_ADDR", first);
        }
        shell.output().unwrap()
    }

    /// Starts an instance by a command of the page, with this configuration.
    #[track_caller]
    pub(crate) fn start(&self, command: &str, words: &Words, config: &[String]) -> Service {
        fs::write(self.path("emnetchain.toml"), print_config(config)).unwrap();
        // The shell becomes the service, so that signals are for it.
        let shell = self.shell(command, words, "exec ");
        Service::try_start_as(shell, self.room.path(), Vec::new())
            .unwrap_or_else(|(status, log)| panic!("{command}: {status}\n{log}"))
    }

    #[track_caller]
    fn shell(&self, command: &str, words: &Words, before: &str) -> Command {
        assert!(self.commands.contains(command), "{}: the page lacks {command}", self.name);
        self.executed.borrow_mut().insert(command.to_owned());
        let programs = Path::new(env!("CARGO_BIN_EXE_EMNetChain")).parent().unwrap();
        let mut shell = Command::new("/bin/sh");
        shell.arg("-ec").arg(before.to_owned() + &words.put_into(command)).env_clear();
        shell.env("PATH", format!("{}:/usr/bin:/bin", programs.display()));
        shell.current_dir(self.room.path());
        shell
    }
}

/// The configuration file that says the same as these flags, on free ports.
fn print_config(flags: &[String]) -> Vec<u8> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_EMNetChain"));
    command.args(["config", "print"]).env_clear();
    for address in ["--chain-addr", "--dis-addr", "--http-addr"] {
        command.args([address, "127.0.0.1:0"]);
    }
    let output = command.args(flags).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}
