//! Clients that wait: what each costs in memory, and what they cost in processor time.

use std::{io, time::Duration};

use tokio::time::sleep;

use super::{
    ledger::{Wrong, Wrongs},
    load::{Extent, Line, Plan, repairs},
    process::Server,
    protocol,
};

/// Connections that are being opened or answered at once.
const WINDOW: usize = 64;

/// What waiting costs.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    /// Resident bytes of the server for each waiting connection.
    pub(crate) bytes_each: f64,
    /// Resident bytes of the server before they came.
    pub(crate) bytes_before: f64,
    /// Processor time while they waited, in percent of one core.
    pub(crate) idle_percent: f64,
    /// What was wrong when they were answered at last.
    pub(crate) wrongs: Wrongs,
}

/// Opens `count` connections that wait for the other side of a repair, watches the server for
/// `idle`, then answers them all.
///
/// # Errors
/// If the server ends.
pub(crate) async fn hold(
    server: &Server,
    count: usize,
    idle: Duration,
    patience: Duration,
) -> io::Result<Held> {
    let plan = Plan { clients: WINDOW, extent: Extent::Count(10 * WINDOW), patience };
    let mut wrongs = repairs(&plan, &server.repair, &mut || ()).await.wrongs;
    let before = server.resident_bytes()?;
    let mut waiting = Vec::with_capacity(count);
    for number in 0..count {
        match ask(server, count, number).await {
            Ok(line) => waiting.push((number, line)),
            Err(wrong) => wrongs.add(wrong),
        }
    }
    // Once these later ones are answered, the earlier ones have been taken in too.
    wrongs.merge(&repairs(&plan, &server.repair, &mut || ()).await.wrongs);
    sleep(Duration::from_secs(1)).await;
    let after = server.resident_bytes()?;
    let cpu = server.cpu()?;
    sleep(idle).await;
    let cpu = server.cpu()? - cpu;
    for (number, mut line) in waiting {
        let answered = async {
            let mut second = ask(server, count, count + number).await?;
            tokio::try_join!(line.expect_repair(count + number), second.expect_repair(number))?;
            tokio::try_join!(line.expect_end(), second.expect_end()).map(drop)
        };
        match tokio::time::timeout(patience, answered).await {
            Ok(Ok(())) => {}
            Ok(Err(wrong)) => wrongs.add(wrong),
            Err(_) => wrongs.add(Wrong::Untold),
        }
    }
    Ok(Held {
        bytes_each: after.saturating_sub(before) as f64 / count as f64,
        bytes_before: before as f64,
        idle_percent: 100.0 * cpu.as_secs_f64() / idle.as_secs_f64(),
        wrongs,
    })
}

/// A connection that asks as orphan `number`; orphans whose numbers are `count` apart are partners.
async fn ask(server: &Server, count: usize, number: usize) -> Result<Line, Wrong> {
    let mut line = Line::open(server.repair.at(number)).await?;
    line.send(&protocol::reconnect(&format!("hold-{}", number % count), number)).await?;
    Ok(line)
}
