//! What an operator does with a running cluster: commands, and looks at an instance.

#![allow(dead_code, unreachable_pub, reason = "each test program uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, and says why")]

use std::process::Command;

use serde_json::Value;

use super::{Finish as _, Service};

/// `EMNetChain cluster WORDS`, asked of this instance: the exit code, and what it says.
pub fn operate(service: &Service, words: &[&str]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_EMNetChain"));
    command.arg("cluster").args(words).env_clear();
    command.arg("--http-addr").arg(service.address("HTTP").to_string());
    let output = command.finish();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(said).unwrap())
}

/// As [`operate`]; it must be done. Returns what it says.
#[track_caller]
pub fn done(service: &Service, words: &[&str]) -> String {
    let (code, said) = operate(service, words);
    assert_eq!(code, 0, "{words:?}: {said}");
    said
}

/// As [`operate`]; it must be refused with all of these words.
#[track_caller]
pub fn refused(service: &Service, words: &[&str], expected: &[&str]) {
    let (code, said) = operate(service, words);
    let is_told = expected.iter().all(|part| said.contains(part));
    assert!(code == 69 && is_told, "{words:?}: {code} {said}");
}

/// `/status` or a variant of it.
pub fn read_status(service: &Service, path: &str) -> Value {
    serde_json::from_str(&service.get(path).1).expect("status is JSON")
}

/// Whether an instance serves clients, for waiting until it does.
pub fn is_ready(service: &Service) -> Option<()> {
    (service.get("/readyz").0 == 200).then_some(())
}
