//! A registry full of links: how fast it fills, what it weighs in memory and on disk, and how
//! soon and how truly it answers after its process was killed.

use std::{io, time::Duration};

use emnetchain::clock;
use tokio::time::{sleep, timeout};

use super::{
    ledger::{Ledger, Wrong, Wrongs},
    load::{Extent, Line, Plan, links},
    process::{Program, Server, bytes_on_disk, fresh_directory},
    protocol::{self, Part},
};

/// Links under way at once while it fills: enough to reach the server's full rate.
const WINDOW: usize = 256;

/// Clients that come back after the restart and must be told what they had been told.
const WITNESSES: usize = 1000;

/// What a full registry costs.
#[derive(Clone, Debug)]
pub(crate) struct Filled {
    /// Links per second while it filled.
    pub(crate) per_second: f64,
    /// Resident bytes of the server when it was full and no client but one was connected.
    pub(crate) resident_bytes: u64,
    /// Bytes of its files then.
    pub(crate) disk_bytes: u64,
    /// From the start of the second process until it listened.
    pub(crate) until_listening: Duration,
    /// From the start of the second process until a client that came back had both its answers.
    pub(crate) until_answer: Duration,
    /// Resident bytes of the second process then.
    pub(crate) resident_bytes_again: u64,
    /// What was wrong, before and after.
    pub(crate) wrongs: Wrongs,
}

/// Makes `count` links, kills the server, starts it again over the same files and asks it.
///
/// # Errors
/// If the server does not start or ends early.
pub(crate) async fn fill(
    program: &Program,
    count: usize,
    patience: Duration,
) -> io::Result<Filled> {
    let directory = fresh_directory()?;
    let server = Server::start(program, directory.path())?;
    let plan = Plan { clients: WINDOW, extent: Extent::Count(count), patience };
    let (outcome, ledger) = links(&plan, &server.chain, &mut || ()).await;
    let mut wrongs = outcome.wrongs;
    sleep(Duration::from_secs(1)).await;
    let resident_bytes = server.resident_bytes()?;
    server.kill()?;
    let disk_bytes = bytes_on_disk(&directory.path().join("data"))?;

    let server = Server::start(program, directory.path())?;
    let until_listening = clock::now() - server.started;
    let mut until_answer = None;
    let step = (count / WITNESSES).max(1);
    for number in (1..ledger.len().saturating_sub(1)).step_by(step) {
        let answer = timeout(patience, come_back(&server, &ledger, number)).await;
        let standstill = answer.is_err();
        if let Err(wrong) = answer.unwrap_or(Err(Wrong::Untold)) {
            wrongs.add(wrong);
        }
        if standstill {
            break;
        }
        until_answer.get_or_insert_with(|| clock::now() - server.started);
    }
    Ok(Filled {
        per_second: outcome.per_second,
        resident_bytes,
        disk_bytes,
        until_listening,
        until_answer: until_answer.unwrap_or_default(),
        resident_bytes_again: server.resident_bytes()?,
        wrongs,
    })
}

/// Client `number` connects again and must be told the two neighbours that it was told before.
async fn come_back(server: &Server, ledger: &Ledger, number: usize) -> Result<(), Wrong> {
    let mut told = (None, None);
    let mut line = Line::open(server.chain.at(number)).await?;
    line.send(&protocol::connect(number)).await?;
    loop {
        let link = |bytes: &[u8]| protocol::read_link(bytes).ok_or(Wrong::Bytes);
        match line.answer(|answer| answer.map(link).transpose()).await?? {
            Some((Part::Tail, partner)) => told.0 = Some(partner),
            Some((Part::Head, partner)) => told.1 = Some(partner),
            None if told == ledger.neighbours(number) => return Ok(()),
            None => return Err(Wrong::Contradiction),
        }
    }
}
