//! The rights of a request: the one place that decides.
//!
//! A request that changes something can take the cluster apart, and a backup holds all that the
//! registry knows. Both take the operators' token where there is one. Without one they take a
//! direct request from this machine that names this machine: a reverse proxy on the same host would
//! otherwise lend its loopback address to strangers, and a web page whose own name leads here, by a
//! trick of its name server (DNS rebinding), would lend a visitor's browser to its author.
//!
//! Views take the same or the token; the token may be in a cookie, for browsers. A cookie changes
//! nothing, so that no other page can use it. Repair ids that wait are told to the token alone: an
//! id is what pairs two clients, and a stranger that reads it could take the place of one.

mod facts;
mod guesses;
mod refusal;
#[cfg(test)]
mod tests;

use std::{net::IpAddr, path::Path, sync::Arc};

use axum::{
    Extension,
    extract::{MatchedPath, Request, State},
    http::{Method, StatusCode},
    middleware::Next,
    response::Response,
};
use subtle::ConstantTimeEq as _;
use tokio::sync::watch;

pub(crate) use self::refusal::COMMAND;
pub(super) use self::{
    facts::cookie,
    guesses::{Guess, Guesses, too_many},
};
use self::{
    facts::{Facts, Token, forwarded_for},
    refusal::{Asker, Refusal},
};
use super::{admin, page};
use crate::secrets::read_token;

/// The secret of the operators; without one, there are fewer ways in.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct AdminToken(pub Option<Arc<str>>);

impl std::fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("AdminToken").field(&self.0.is_some()).finish()
    }
}

impl AdminToken {
    /// Reads it from its file, if there is one.
    ///
    /// # Errors
    /// Says what is wrong with the file, and what to do.
    pub fn read(path: Option<&Path>) -> Result<Self, String> {
        let Some(path) = path else { return Ok(Self::default()) };
        let token = read_token(path).map_err(|why| format!("--admin-token-file {why}"))?;
        Ok(Self(Some(token.into())))
    }

    /// Tells whether this is the token, in a time that does not tell how much of it is right.
    pub(super) fn is(&self, carried: &str) -> bool {
        let Some(token) = &self.0 else { return false };
        carried.as_bytes().ct_eq(token.as_bytes()).into()
    }
}

/// The other end of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller(pub(super) IpAddr);

/// The pages that every reader may have without a token, from everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open([bool; 4]);

impl Open {
    /// The names, as `--http-open` takes them. `views` is what the status page shows.
    pub const NAMES: [&'static str; 4] = ["livez", "readyz", "metrics", "views"];

    /// Reads a list such as `livez,readyz`; `none` for nothing.
    ///
    /// # Errors
    /// A name that is not known.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut open = [false; 4];
        if text == "none" {
            return Ok(Self(open));
        }
        for name in text.split(',').map(str::trim) {
            let Some(place) = Self::NAMES.iter().position(|known| *known == name) else {
                let names = Self::NAMES.join(", ");
                return Err(format!("{name:?} cannot be open; write some of {names}, or none"));
            };
            open[place] = true;
        }
        Ok(Self(open))
    }

    fn has(self, name: &str) -> bool {
        Self::NAMES.iter().zip(self.0).any(|(known, is_open)| is_open && *known == name)
    }
}

impl Default for Open {
    fn default() -> Self {
        Self([true, true, true, false])
    }
}

/// The kind of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// It is open to every reader.
    Open,
    /// Shows an operator what goes on.
    View,
    /// Shows the token, to be given a cookie.
    SignIn,
    /// Changes something, or takes everything.
    Change,
}

impl Kind {
    /// Returns the kind of a route. What is not known to be harmless is a change.
    fn of(method: &Method, route: &str, open: Open) -> Self {
        let is_read = method == Method::GET || method == Method::HEAD;
        let is_open = |name: &str| if open.has(name) { Self::Open } else { Self::View };
        match route {
            // The parts of the page are the same for all, and the page to sign in needs one.
            _ if is_read && route.starts_with("/page/") => Self::Open,
            "/sign-in" => Self::SignIn,
            "/api/v1/backup" => Self::Change,
            _ if !is_read => Self::Change,
            "/livez" | "/readyz" | "/metrics" => is_open(&route[1..]),
            _ => is_open("views"),
        }
    }
}

/// The right of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reader {
    /// Whether it may see repair ids.
    pub(super) sees_ids: bool,
}

/// Decides; `has_token` says whether the instance has one.
fn decide(kind: Kind, facts: Facts, has_token: bool) -> Result<Reader, Refusal> {
    let Facts { is_local, is_forwarded, names_us, token, is_cross_site, is_followed_link } = facts;
    let sees_ids = matches!(token, Token::InCookie | Token::InHeader);
    match kind {
        Kind::Open => return Ok(Reader { sees_ids }),
        // A person that follows a link to a view reads it; the page with the link does not.
        Kind::View if is_cross_site && !is_followed_link => return Err(Refusal::CrossSite),
        Kind::Change | Kind::SignIn if is_cross_site => return Err(Refusal::CrossSite),
        Kind::SignIn => return Ok(Reader { sees_ids: false }),
        Kind::View | Kind::Change => {}
    }
    match token {
        Token::InHeader => return Ok(Reader { sees_ids }),
        Token::InCookie if kind == Kind::View => return Ok(Reader { sees_ids }),
        Token::Wrong if has_token => return Err(Refusal::WrongToken),
        Token::Wrong => return Err(Refusal::NoToken),
        Token::InCookie | Token::Missing | Token::Stale => {}
    }
    if kind == Kind::Change && has_token {
        Err(Refusal::NeedsToken)
    } else if !is_local {
        Err(Refusal::Elsewhere)
    } else if is_forwarded {
        Err(Refusal::Forwarded)
    } else if !names_us {
        Err(Refusal::OtherHost)
    } else {
        Ok(Reader { sees_ids: false })
    }
}

/// The knowledge of the gate.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    pub(super) token: watch::Receiver<AdminToken>,
    pub(super) open: Open,
    pub(super) guesses: Guesses,
}

/// Lets a request pass, with what it may be told, or refuses it.
pub(super) async fn pass(
    State(gate): State<Gate>,
    Extension(caller): Extension<Caller>,
    mut request: Request,
    next: Next,
) -> Response {
    let (parts, token) = (request.extensions(), gate.token.borrow().clone());
    // A path that no route has is a view: a list of the paths that there are.
    let route = parts.get::<MatchedPath>().map_or("", MatchedPath::as_str).to_owned();
    let kind = Kind::of(request.method(), &route, gate.open);
    let mut facts = Facts::of(&request, &token);
    let guess = gate.guesses.of(caller.0, facts.is_forwarded, &forwarded_for(request.headers()));
    if let Some(wait) = guess.take(facts.token) {
        if kind != Kind::Open {
            return too_many(wait);
        }
        facts.token = Token::Missing;
    }
    request.extensions_mut().insert(guess);
    let decided = decide(kind, facts, token.0.is_some());
    match decided {
        Ok(reader) => {
            request.extensions_mut().insert(reader);
            next.run(request).await
        }
        Err(refusal) => {
            let why = refusal.sentence(token.0.is_some(), Asker::of(request.headers()));
            if route == "/" && request.method() != Method::POST {
                return page::sign_in_form(StatusCode::FORBIDDEN, &why, token.0.is_some());
            }
            admin::answer(StatusCode::FORBIDDEN, Err(why))
        }
    }
}
