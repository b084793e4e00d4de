//! Programs that run to their end, within a bound.

#![allow(dead_code, unreachable_pub, reason = "each test program uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, and says why")]

use std::{
    io::Read,
    process::{Child, Command, Output, Stdio},
    thread,
    time::Duration,
};

use emnetchain::clock;

/// The longest that a program may run; more than its own deadlines allow on a busy machine.
const RUNNING_MAX: Duration = Duration::from_secs(120);

/// As [`Command::output`], but a program that hangs is ended and fails the test.
pub trait Finish {
    /// Runs it to its end.
    fn finish(&mut self) -> Output;
}

impl Finish for Command {
    fn finish(&mut self) -> Output {
        let piped = self.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        output_of(piped.spawn().expect("the program can be started"))
    }
}

/// What a program said by its end, whose output is piped.
pub fn output_of(mut child: Child) -> Output {
    let stdout = child.stdout.take().map(read_on).expect("piped");
    let stderr = child.stderr.take().map(read_on).expect("piped");
    let deadline = clock::now() + RUNNING_MAX;
    let status = loop {
        if let Some(status) = child.try_wait().expect("it can be waited for") {
            break status;
        }
        if clock::now() > deadline {
            child.kill().expect("it runs");
            child.wait().expect("it can be waited for");
            let said = stderr.join().expect("it only reads");
            panic!("the program does not end: {}", String::from_utf8_lossy(&said));
        }
        thread::sleep(Duration::from_millis(2));
    };
    let read = |reader: thread::JoinHandle<Vec<u8>>| reader.join().expect("it only reads");
    Output { status, stdout: read(stdout), stderr: read(stderr) }
}

/// Reads to the end, so that the program never waits for a reader.
fn read_on(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        bytes
    })
}
