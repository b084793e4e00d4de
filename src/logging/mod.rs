//! Logs, on standard error: text for people or one JSON object per line for machines. What is
//! logged can be changed while the process runs. What goes to standard output passes here as well,
//! so that neither stream, if none reads it, holds the service up. A build with the feature `otlp`
//! can also send the spans of requests to a collector.

#[cfg(feature = "otlp")]
mod otlp;
mod queue;

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    io::{self, IsTerminal},
    panic,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tracing_subscriber::{
    EnvFilter, Layer, Registry, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

use self::queue::Queue;
use crate::ids::InstanceId;

/// Longest time for the last lines at the end of the process.
const LAST_LINES_MAX: Duration = Duration::from_millis(500);

/// Lines that standard error did not take.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Lines that standard output did not take.
static UNSAID: AtomicU64 = AtomicU64::new(0);

/// Returns the number of log lines dropped since the process began because standard error did not
/// take them.
pub fn lines_dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// The levels, from silence to everything.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// The format of logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// A line for people.
    Text,
}

/// The filter of logs: a level, or levels of parts as in `info,emnetchain::cluster=debug`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLevel {
    directives: String,
}

impl LogLevel {
    /// Reads a level. A single word is the level of the service itself; the libraries that it is
    /// made of then speak up only to warn, for their daily business is not the operator's; and
    /// raft's only for errors, as it warns ten times a second of an instance that is gone.
    ///
    /// # Errors
    /// The fault of the text, and the form to write instead.
    pub fn new(text: &str) -> Result<Self, String> {
        let is_good = |directive: &str| match directive.split_once('=') {
            None => LEVELS.contains(&directive),
            Some((_, level)) => LEVELS.contains(&level),
        };
        let directives = match text {
            "off" | "error" | "warn" => text.to_owned(),
            _ if LEVELS.contains(&text) => format!("warn,openraft=error,emnetchain={text}"),
            _ => text.to_owned(),
        };
        // The parser panics at white space of more than one byte, such as U+2028.
        let parses = || text.is_ascii() && EnvFilter::builder().parse(&directives).is_ok();
        if !text.split(',').all(is_good) || !parses() {
            return Err(format!(
                "{text:?} is not a level; write one of {}, or levels of parts such as \
                 info,emnetchain::cluster=debug",
                LEVELS.join(", ")
            ));
        }
        Ok(Self { directives })
    }

    fn filter(&self) -> EnvFilter {
        EnvFilter::builder().parse(&self.directives).expect("it was parsed when it was made")
    }
}

/// Where traces are sent: a collector that takes OTLP over HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtlpEndpoint(String);

impl OtlpEndpoint {
    /// Reads the address of a collector, such as `http://127.0.0.1:4318`.
    ///
    /// # Errors
    /// If this build cannot send traces, or the text is no such address.
    pub fn new(text: &str) -> Result<Self, String> {
        if !cfg!(feature = "otlp") {
            return Err("this build sends no traces; make one with `cargo build --release \
                        --features otlp`"
                .to_owned());
        }
        let is_good = text.strip_prefix("http://").is_some_and(|host| !host.is_empty());
        if !is_good || text.parse::<axum::http::Uri>().is_err() {
            return Err(format!(
                "{text:?} is not the address of a collector; write http://HOST:PORT, of one on \
                 the same host if traces go further by TLS"
            ));
        }
        Ok(Self(text.trim_end_matches('/').to_owned()))
    }
}

/// The logs and traces of this process.
#[derive(Clone, Debug)]
pub struct LogHandle {
    filter: reload::Handle<EnvFilter, Registry>,
    lines: Queue,
    output: Queue,
    #[cfg(feature = "otlp")]
    traces: Option<otlp::Traces>,
}

impl LogHandle {
    /// Logs at this level from now on.
    pub fn set_level(&self, level: &LogLevel) {
        self.filter.reload(level.filter()).expect("the logs live as long as the process");
    }

    /// Writes a line to standard output, without waiting for it.
    pub fn say(&self, line: &str) {
        self.output.put(format!("{line}\n").as_bytes());
    }

    /// Sends the traces that are still to be sent, for a few seconds at most, and writes the
    /// last lines to each stream, for half a second.
    pub fn finish(&self) {
        #[cfg(feature = "otlp")]
        self.traces.iter().for_each(otlp::Traces::finish);
        self.output.finish(LAST_LINES_MAX);
        self.lines.finish(LAST_LINES_MAX);
    }
}

/// Starts the logs and traces of this process; to be called once, within a tokio runtime.
///
/// # Errors
/// If traces cannot be sent, or there is no thread for the lines: why.
pub fn start(
    level: &LogLevel,
    format: LogFormat,
    traces: Option<(&OtlpEndpoint, InstanceId)>,
) -> Result<LogHandle, String> {
    let (filter, handle) = reload::Layer::new(level.filter());
    let no_thread = |error| format!("the process cannot have threads: {error}");
    let queue = Queue::start(io::stderr(), &DROPPED, |_| {}).map_err(no_thread)?;
    let output = Queue::start(io::stdout(), &UNSAID, tell_output_failed).map_err(no_thread)?;
    log_panics();
    let lines = fmt::layer().with_writer(queue.clone());
    let lines = match format {
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
        LogFormat::Text => lines.with_ansi(is_colourful()).boxed(),
    };
    let all = tracing_subscriber::registry().with(lines.with_filter(filter));
    #[cfg(feature = "otlp")]
    {
        let (layer, traces) = otlp::start(traces)?.unzip();
        all.with(layer).init();
        Ok(LogHandle { filter: handle, lines: queue, output, traces })
    }
    #[cfg(not(feature = "otlp"))]
    {
        // There is no endpoint in a build that cannot send to it.
        let _: Option<(&OtlpEndpoint, InstanceId)> = traces;
        all.init();
        Ok(LogHandle { filter: handle, lines: queue, output })
    }
}

/// A reader that closed standard output does not want more, and that is no fault. The instance
/// serves all the same; what reads these lines misses one.
fn tell_output_failed(error: &io::Error) {
    if error.kind() != io::ErrorKind::BrokenPipe {
        tracing::warn!(%error, "standard output cannot be written");
    }
}

/// Has panics logged. Rust's own way writes to standard error on the spot, where a task that failed
/// would wait for a reader that does not read, and the instance would not learn of its failure.
fn log_panics() {
    panic::set_hook(Box::new(|info| {
        let backtrace = Backtrace::capture();
        if backtrace.status() == BacktraceStatus::Captured {
            tracing::error!("{info}\n{backtrace}");
        } else {
            tracing::error!("{info}");
        }
    }));
}

/// Colours are for a person at a terminal, unless the environment objects (no-color.org).
fn is_colourful() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_parts_are_understood() {
        for text in LEVELS {
            assert!(LogLevel::new(text).is_ok(), "{text}");
        }
        assert!(LogLevel::new("info,emnetchain::cluster=debug,openraft=off").is_ok());
        for text in [
            "",
            "loud",
            "info,",
            "emnetchain=loud",
            "INFO,inof",
            "info;debug",
            "info,\u{2028}n=info",
        ] {
            assert!(LogLevel::new(text).unwrap_err().contains("debug"), "{text}");
        }
    }

    #[test]
    fn one_word_is_the_level_of_the_service_and_not_of_its_libraries() {
        assert_eq!(
            LogLevel::new("debug").unwrap().directives,
            "warn,openraft=error,emnetchain=debug"
        );
        assert_eq!(LogLevel::new("error").unwrap().directives, "error");
    }
}
