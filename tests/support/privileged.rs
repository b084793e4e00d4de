//! Tests that need more than a user and a toolchain: they run when they are asked for.

use std::{io::Write, process::Command};

/// Whether a test that needs root or packages, and these tools, may run; says aloud that it does
/// not.
pub fn may_run(test: &str, needs: &str, tools: &[&str]) -> bool {
    let asked = std::env::var("EMNETCHAIN_PRIVILEGED").is_ok_and(|value| value == "1");
    let missing = tools.iter().find(|tool| {
        let found = Command::new("sh").args(["-c", &format!("command -v {tool}")]).output();
        !found.unwrap().status.success()
    });
    let reason = match (asked, missing) {
        (true, None) => return true,
        (true, Some(tool)) => format!("{tool} is not installed"),
        (false, _) => format!("it needs {needs}; run it with EMNETCHAIN_PRIVILEGED=1"),
    };
    // Past the harness, which keeps the words of passing tests to itself.
    let line = format!("SKIPPED {test}: {reason}\n");
    std::io::stderr().write_all(line.as_bytes()).expect("standard error is open");
    false
}
