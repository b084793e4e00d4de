//! The refusals, each with a way out. Each caller gets it in its own terms: a command
//! of this program takes a file, a program that speaks HTTP sends a header.

use axum::http::{HeaderMap, header};

/// The name by which a command of this program introduces itself; its version follows.
pub(crate) const COMMAND: &str = "EMNetChain/";

/// Why a request may not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    CrossSite,
    WrongToken,
    NoToken,
    NeedsToken,
    Elsewhere,
    Forwarded,
    OtherHost,
}

/// The kind of the program that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asker {
    /// The command line of this program.
    Command,
    /// Anything else that speaks HTTP.
    Program,
}

impl Asker {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let agent = headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok());
        match agent.is_some_and(|agent| agent.starts_with(COMMAND)) {
            true => Self::Command,
            false => Self::Program,
        }
    }

    /// Returns the way in which it shows the token.
    fn shows_token(self) -> &'static str {
        match self {
            Self::Command => {
                "give --admin-token-file FILE (or EMNETCHAIN_ADMIN_TOKEN_FILE, or admin_token_file \
                 in the file of --config) with the file that holds the instance's token"
            }
            Self::Program => {
                "send `Authorization: Bearer TOKEN` with the token of --admin-token-file"
            }
        }
    }

    /// Returns the way in which it asks an instance that has no token.
    fn asks_without(self) -> &'static str {
        match self {
            Self::Command => {
                "start the instance with --admin-token-file and give this command the same token, \
                 or run it on the instance's own machine, at 127.0.0.1 or localhost"
            }
            Self::Program => {
                "start the instance with --admin-token-file and send that token as `Authorization: \
                 Bearer TOKEN`, or ask on its own machine, at 127.0.0.1 or localhost"
            }
        }
    }
}

impl Refusal {
    /// Says what to do.
    pub(super) fn sentence(self, has_token: bool, asker: Asker) -> String {
        let how = match self {
            Self::CrossSite => {
                return "another web site had a browser ask this; open the status page itself, or \
                        ask with a program"
                    .to_owned();
            }
            Self::NoToken => {
                return "this instance has no operators' token; start it with --admin-token-file, \
                        or ask without a token on its own machine"
                    .to_owned();
            }
            Self::WrongToken => return format!("{NOT_IT}; {}", asker.shows_token()),
            Self::NeedsToken => return format!("{NEEDED}; {}", asker.shows_token()),
            Self::Elsewhere => "this request comes from another machine",
            Self::Forwarded => "this request came through a proxy",
            Self::OtherHost => "this request does not name this machine (`Host`)",
        };
        match (has_token, asker) {
            (false, _) => format!("{how}; {}", asker.asks_without()),
            (true, Asker::Command) => format!("{how}; {}", asker.shows_token()),
            (true, Asker::Program) => {
                format!("{how}; {}, or sign in at the status page", asker.shows_token())
            }
        }
    }
}

/// The answer to a wrong token.
const NOT_IT: &str = "this is not the operators' token";

/// The answer to a request without a token.
const NEEDED: &str = "this instance has an operators' token, and changes and backups need it, on \
                      its own machine as well";
