//! Metrics that follow from what entries brought about.

use crate::{
    metrics::Metrics,
    registry::{Asked, Cause, Ended, Forgotten, LinkedBy, Note, What},
};

/// Counts what entries brought about.
pub fn count(notes: &[Note], metrics: &Metrics) {
    let seconds = |ms: u64| ms as f64 / 1000.0;
    let expired = |what: &str| metrics.expired.with_label_values(&[what]).inc();
    let made_room = |what: &str| metrics.made_room.with_label_values(&[what]).inc();
    let repairs = |end: &str| metrics.repairs.with_label_values(&[end]).inc();
    for note in notes {
        match note.what {
            What::Ended(Ended::Expired(Asked::Connect)) => expired("ask"),
            What::Ended(Ended::Expired(Asked::Reconnect)) => {
                expired("repair");
                repairs("expired");
            }
            What::Forgotten(Forgotten::Answer) => expired("answer"),
            What::Forgotten(Forgotten::Client) => expired("client"),
            What::Forgotten(Forgotten::Peer) => expired("peer"),
            What::Linked { by, waited_ms } => {
                metrics.links.with_label_values(&[by.as_str()]).inc();
                metrics.link_seconds.observe(seconds(waited_ms));
                if by != LinkedBy::Join {
                    repairs("linked");
                    metrics.repair_seconds.observe(seconds(waited_ms));
                }
            }
            What::Paired { waited_ms } => {
                repairs("paired");
                metrics.repair_seconds.observe(seconds(waited_ms));
            }
            What::CutOff { clients, .. } => metrics.clients_cut_off.inc_by(clients),
            What::Returned { clients } => metrics.clients_returned.inc_by(clients),
            What::Ended(Ended::MadeRoom) => made_room("wait"),
            What::MadeRoom(Forgotten::Answer) => made_room("answer"),
            What::MadeRoom(Forgotten::Client) | What::TakenOut(Cause::MadeRoom) => {
                made_room("client");
            }
            What::MadeRoom(Forgotten::Peer) => made_room("peer"),
            What::TakenOut(Cause::Forgotten | Cause::Lost | Cause::Replaced | Cause::Silent) => {
                metrics.taken_out.inc();
            }
            // Sessions count what they are told, and no figure counts the others.
            What::Asked(_)
            | What::CameBack
            | What::CountsAsFirst
            | What::Detached
            | What::Ended(Ended::HungUp | Ended::Superseded)
            | What::Joined
            | What::Parted
            | What::Refused(_) => {}
        }
    }
}

/// Sets the metric that tells version, profile and platform.
pub fn tell_build(metrics: &Metrics) {
    let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
    let platform = format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS);
    metrics.build_info.with_label_values(&[env!("CARGO_PKG_VERSION"), profile, &platform]).set(1);
}
