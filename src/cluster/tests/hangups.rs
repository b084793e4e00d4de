//! Requests whose clients hang up before a leader has them.

use tokio::time::timeout;

use super::*;
use crate::{
    cluster::proposer::Writer as _,
    ids::{OrphanAddr, RepairId},
    queue::{Claim, Queued},
};

/// Says, for a client of the third instance says that the partner of this socket is gone.
fn reconnect(connection: u64, orphan: &str) -> Command {
    let (instance, incarnation) = (InstanceId(3), Incarnation(1));
    Command::Reconnect {
        session: SessionId { instance, incarnation, connection },
        source: Source::of([10, 0, 0, 1].into()),
        id: RepairId("7".into()),
        orphan: OrphanAddr(Socket::parse(orphan).unwrap()),
    }
}

/// Carried out late, it would end a link that another instance has told its client of meanwhile.
#[tokio::test(start_paused = true)]
async fn what_a_cut_off_instance_was_asked_is_forgotten_with_the_client() {
    runtime::follow_seed(35);
    let wires = Wires::default();
    let three = found(&wires, &[1, 2, 3]).await;
    lead(&three, 1).await;
    three[0].write(vec![connect(1, 1), connect(1, 2)]).await;
    let links = |it: &Instance| it.view().read(|registry| registry.totals().links);
    until("all know the link", || three.iter().all(|it| links(it) == 1)).await;
    let (sender, mut queue) = mpsc::channel::<Queued>(64);
    let proposer = three[2].proposer(Incarnation(1));
    tokio::spawn(async move { proposer.run(&mut queue).await });

    for other in [1, 2] {
        wires.set_apart(3, other, true);
    }
    let (early, late, patient) = (Claim::default(), Claim::default(), Claim::default());
    let ask = |claim: &Claim, command| sender.try_send(claim.on(command)).unwrap();
    assert!(three[2].status().leader.is_some(), "it does not know yet");
    ask(&early, reconnect(1, "10.0.1.1:1"));
    until("it knows", || three[2].status().leader.is_none()).await;
    ask(&late, reconnect(2, "10.0.1.2:2"));
    ask(&patient, add_peer(1));
    let led = three[2].router.led();
    assert!(timeout(Duration::from_secs(1), led).await.is_err(), "nothing is sent to the silent");
    drop((early, late));
    for other in [1, 2] {
        wires.set_apart(3, other, false);
    }
    timeout(PATIENCE, three[2].router.led()).await.unwrap();
    until("the patient one is heard", || three.iter().all(|it| it.peers() == 1)).await;
    assert!(three.iter().all(|it| links(it) == 1), "nothing was asked of the link");
    assert_eq!(three[2].metrics.requests_taken_back.get(), 2);
}
