//! Logs, on standard error: text for people or one JSON object per line for machines. What is
//! logged can be changed while the process runs.

use std::io::{self, IsTerminal};

use tracing_subscriber::{
    EnvFilter, Layer, Registry, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

/// The levels, from silence to everything.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// A line for people.
    Text,
}

/// What is logged: a level, or levels of parts as in `info,emnetchain::cluster=debug`.
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
    /// What the text is not, and what to write instead.
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
        let parsed = EnvFilter::builder().parse(&directives).is_ok();
        if !parsed || !text.split(',').all(is_good) {
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

/// Changes what is logged.
#[derive(Clone, Debug)]
pub struct LogHandle {
    filter: reload::Handle<EnvFilter, Registry>,
}

impl LogHandle {
    /// Logs at this level from now on.
    pub fn set_level(&self, level: &LogLevel) {
        self.filter.reload(level.filter()).expect("the logs live as long as the process");
    }
}

/// Starts the logs of this process; to be called once.
pub fn start(level: &LogLevel, format: LogFormat) -> LogHandle {
    let (filter, handle) = reload::Layer::new(level.filter());
    let lines = fmt::layer().with_writer(io::stderr);
    let lines = match format {
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
        LogFormat::Text => lines.with_ansi(is_colourful()).boxed(),
    };
    tracing_subscriber::registry().with(filter).with(lines).init();
    LogHandle { filter: handle }
}

/// Colours are for a person at a terminal who does not object (no-color.org).
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
        for text in ["", "loud", "info,", "emnetchain=loud", "INFO,inof", "info;debug"] {
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
