//! The address at which this instance was started, compared with the one that the members know.
//!
//! An operator may start an instance at another address and forget to tell the cluster. Then it
//! reaches the others, but they do not reach it: it hears no leader, and if it led, the others
//! could not write. The flags alone prove nothing: the list may be older than a move, and a port
//! may be passed on to another one. So an instance is in the wrong place only if its flags differ
//! from the membership *and* no member has called it since it started. Members call each other
//! once a second.

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use crate::clock;

/// Time that members have to call an instance that has started, before it says that none does.
const CALLED_WITHIN: Duration = Duration::from_secs(4);

/// Where this instance is; clones share it.
#[derive(Clone, Debug)]
pub struct Place(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    since: Instant,
    listening: OnceLock<SocketAddr>,
    called: AtomicBool,
}

impl Default for Place {
    fn default() -> Self {
        let (listening, called) = (OnceLock::new(), AtomicBool::new(false));
        Self(Arc::new(Inner { since: clock::now(), listening, called }))
    }
}

impl Place {
    /// Takes note of where this instance listens for others. Without it, it is in no wrong place.
    pub fn listens_at(&self, address: SocketAddr) {
        self.0.listening.get_or_init(|| address);
    }

    /// Takes note that a member has called this instance.
    pub fn called(&self) {
        self.0.called.store(true, Ordering::Release);
    }

    /// Returns whether members have had the time to call this instance.
    pub fn is_old(&self) -> bool {
        clock::now().saturating_duration_since(self.0.since) > CALLED_WITHIN
    }

    /// Returns where this instance was started, if that is not where the members look for it
    /// (`known`) and none has called it. `listed` is its own entry in the list that it was started
    /// with.
    pub fn differing(&self, listed: Option<&str>, known: &str) -> Option<String> {
        let listening = *self.0.listening.get()?;
        if self.0.called.load(Ordering::Acquire) {
            return None;
        }
        differing(listening, listed, known)
    }
}

fn differing(listening: SocketAddr, listed: Option<&str>, known: &str) -> Option<String> {
    let is_any = listening.ip().is_unspecified();
    let listed = listed.filter(|at| !at.is_empty());
    let is_another_port = !known.ends_with(&format!(":{}", listening.port()));
    if known.is_empty() || known == listening.to_string() {
        return None;
    }
    match listed {
        // A list that names a host says how others get here, unless it is older than a move.
        Some(listed) if listed != known && (is_any || listed.parse::<SocketAddr>().is_err()) => {
            Some(listed.to_owned())
        }
        Some(_) if is_any => None,
        None if is_any => is_another_port.then(|| format!("HOST:{}", listening.port())),
        // A host's name may well stand for the address where this instance listens.
        Some(_) | None if known.parse::<SocketAddr>().is_err() => {
            is_another_port.then(|| listening.to_string())
        }
        Some(_) | None => Some(listening.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_held_against_the_membership() {
        for (listening, listed, known, expected) in [
            ("10.0.0.2:7000", Some("10.0.0.2:7000"), "10.0.0.2:7000", None),
            // It was moved: the list is older, or is not, or is none.
            ("10.0.0.2:7001", Some("10.0.0.2:7000"), "10.0.0.2:7000", Some("10.0.0.2:7001")),
            ("10.0.0.2:7001", Some("10.0.0.2:7001"), "10.0.0.2:7000", Some("10.0.0.2:7001")),
            ("10.0.0.9:7000", None, "10.0.0.2:7000", Some("10.0.0.9:7000")),
            ("10.0.0.9:7000", Some("new:7000"), "old:7000", Some("new:7000")),
            ("0.0.0.0:7000", Some("new:7000"), "old:7000", Some("new:7000")),
            ("0.0.0.0:7001", None, "old:7000", Some("HOST:7001")),
            ("10.0.0.2:7001", Some("old:7000"), "old:7000", Some("10.0.0.2:7001")),
            // The cluster was told; only the list is old.
            ("10.0.0.9:7000", Some("10.0.0.2:7000"), "10.0.0.9:7000", None),
            // A name or a wildcard stands for any address.
            ("10.0.0.2:7000", Some("host:7000"), "host:7000", None),
            ("10.0.0.2:7000", None, "host:7000", None),
            ("0.0.0.0:7000", Some("10.0.0.2:7000"), "10.0.0.2:7000", None),
            ("0.0.0.0:7000", None, "10.0.0.2:7000", None),
            ("10.0.0.2:7000", None, "", None),
        ] {
            let told = differing(listening.parse().unwrap(), listed, known);
            assert_eq!(told.as_deref(), expected, "{listening} {listed:?} {known}");
        }
    }

    #[test]
    fn one_that_a_member_calls_is_where_it_is_looked_for() {
        let place = Place::default();
        assert_eq!(place.differing(None, "127.0.0.1:1"), None, "it listens nowhere");
        place.listens_at("127.0.0.1:2".parse().unwrap());
        assert_eq!(place.differing(None, "127.0.0.1:1").as_deref(), Some("127.0.0.1:2"));
        place.called();
        assert_eq!(place.differing(None, "127.0.0.1:1"), None);
    }
}
