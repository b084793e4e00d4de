//! The output of a process for the person or script that started it: lines on standard output and
//! standard error, where there are no logs, and the exit code.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use crate::platform::stdout;

/// The exit code of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Stopped as asked.
    Clean = 0,
    /// The command line or the configuration is at fault.
    Usage = 2,
    /// No running instance answers a command, or it refuses.
    Unavailable = 69,
    /// A fault inside.
    Internal = 70,
    /// The system does not give what is needed yet: an address, a port.
    Lacking = 71,
    /// The disk failed or is full, or the answer cannot be written.
    Disk = 74,
    /// The data directory is refused: damaged, or another instance's.
    Data = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl Exit {
    /// Returns the exit for the code of a fault in the data directory.
    pub fn of(code: u8) -> Self {
        let known = [Self::Usage, Self::Disk].into_iter();
        known.into_iter().find(|exit| *exit as u8 == code).unwrap_or(Self::Data)
    }
}

/// Writes a line to standard error, where there are no logs.
pub fn complain(line: &str) {
    // A process that cannot even complain still ends with its exit code.
    drop(writeln!(io::stderr().lock(), "EMNetChain: {line}"));
}

/// The answer was not written, which has been complained of.
#[derive(Debug)]
pub struct Unsaid;

/// Writes to standard output; a reader that closed it does not want more, and that is no fault.
///
/// # Errors
/// If it cannot be written: a full disk looks like an answer otherwise.
pub fn try_say(text: &str) -> Result<(), Unsaid> {
    match stdout::write_all(text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            complain(&format!("standard output cannot be written: {error}"));
            Err(Unsaid)
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Writes the whole answer of a command to standard output; returns how the command ends.
pub fn say(text: &str) -> Exit {
    try_say(text).map_or(Exit::Disk, |()| Exit::Clean)
}
