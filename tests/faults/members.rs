//! What operators do to a cluster under load: they take a new instance in, and an old one out.

use std::process::Command;

use super::{
    fleet::{Fleet, RAFT_PORT},
    support::{Finish as _, eventually},
};

impl Fleet {
    /// Takes a new instance in, which votes in the end. Returns its number.
    pub(crate) fn grow(&mut self) -> u8 {
        let id = self.new_id();
        let address = format!("{id}={}:{RAFT_PORT}", self.net.ip(id));
        let said = self.insist(&["add", &address], "");
        let flags = said.lines().last().expect("it says how to start it").split_whitespace();
        let mut arguments: Vec<String> = flags.map(str::to_owned).collect();
        arguments.push("--insecure-cluster".to_owned());
        self.put(id, arguments);
        self.start_one(id);
        self.insist(&["promote", &id.to_string()], "");
        self.wait_ready();
        self.name_all();
        id
    }

    /// Takes an instance out for good, which runs or not.
    pub(crate) fn shrink(&mut self, id: u8) {
        self.insist(&["remove", &id.to_string()], "is not a member");
        if let Some(mut gone) = self.drop_one(id) {
            let status = gone.stop();
            assert_eq!(status.code(), Some(0), "{}", gone.log());
        }
    }

    /// Repeats a command until it is done; or until it is refused with these words, which tell that
    /// it was done before, when its answer was lost.
    fn insist(&self, words: &[&str], done_before: &str) -> String {
        eventually(&format!("`cluster {}` is done", words.join(" ")), || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_EMNetChain"));
            command.arg("cluster").args(words).args(["--admin-token-file", &self.token()]);
            command.arg("--http-addr").arg(self.any().address("HTTP").to_string()).env_clear();
            let output = command.finish();
            let said =
                String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            let was_done = !done_before.is_empty() && said.contains(done_before);
            (output.status.success() || was_done).then_some(said)
        })
    }
}
