//! `deploy/RUNBOOK.md`, executed: every command of its `shell` blocks is run as it stands on the
//! page, against real instances, by the scenario of its section. A command that no scenario runs
//! fails the test, as does one that a scenario runs and the page does not have.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod causes;
mod page;
#[path = "../support/cluster.rs"]
mod replicas;
mod scenarios;
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/wrong.rs"]
mod wrong;

use page::{Section, sections_with_commands};

/// A test for each section that has commands.
macro_rules! scenarios {
    ($($name:ident = $section:literal;)+) => {
        const SECTIONS: &[&str] = &[$($section),+];

        $(#[test]
        fn $name() {
            let section = Section::open($section);
            scenarios::$name(&section);
            section.finish();
        })+
    };
}

scenarios! {
    start_and_stop = "Runbook";
    first_look = "First look";
    look_at_chains = "What a socket is linked to";
    back_up = "Back up";
    restore = "Restore";
    add = "Add an instance";
    replace = "Replace a lost instance";
    remove = "Remove an instance";
    restart = "Restart one after the other";
    upgrade = "Upgrade";
    certificates = "Certificates";
    majority_lost = "When a majority is lost";
    replicas_differ = "When replicas differ";
    disk_full = "The disk is full";
    directory_refused = "When a data directory is refused";
    stop_all = "Stop and start all";
}

#[test]
fn every_section_with_commands_has_a_scenario() {
    assert_eq!(sections_with_commands(), SECTIONS);
}
