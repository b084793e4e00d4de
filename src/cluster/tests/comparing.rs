//! A replica whose registry is not that of the others leaves service, and no other one does.

use super::*;
use crate::cluster::{
    backup::BackupError,
    compare::{Accord, UNFIT},
};

fn accord(instance: &Instance) -> Accord {
    *instance.accord().borrow()
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_differs_from_a_majority_leaves_service_for_good() {
    for damaged in [0, 2] {
        runtime::follow_seed(41);
        let wires = Wires::default();
        let three = found(&wires, &[1, 2, 3]).await;
        lead(&three, 1).await;
        let bad = &three[damaged];
        seconds(1.0).await;
        bad.view().damage(add_peer(7));
        seconds(3.0).await;
        assert!(three.iter().all(|it| accord(it) == Accord::Fits), "no entry tells them apart yet");
        three[0].write(vec![add_peer(8)]).await;
        until("it differs", || matches!(accord(bad), Accord::Differs { .. })).await;
        until("its life is over", || !bad.serves()).await;
        assert_eq!(bad.was_over(), UNFIT);
        assert_says(
            &accord(bad).trouble().unwrap(),
            &["differs from that of a majority of the voters at entry"],
        );
        assert!(bad.view().digests().points.is_empty(), "it tells nothing wrong any more");
        assert!(matches!(bad.backup().await, Err(BackupError::Unfit(_))));
        assert_eq!(bad.metrics.replicas_differ.get(), 1);
        until("another one leads", || {
            let leader = three[1].status().leader;
            leader.is_some_and(|leader| leader != bad.id)
        })
        .await;
        let incarnation = |at: &Instance| at.view().read(|registry| registry.incarnation(bad.id));
        until("its clients are set free", || incarnation(&three[1]).0 == 2).await;
        for good in three.iter().filter(|it| it.id != bad.id) {
            assert!(good.serves() && accord(good) == Accord::Fits && good.life() == 1);
            assert_eq!(good.metrics.replicas_differ.get(), 0);
        }
        seconds(10.0).await;
        assert!(!bad.serves(), "that does not mend itself");
    }
}

#[tokio::test(start_paused = true)]
async fn where_no_majority_tells_which_is_right_none_answers_until_one_does() {
    runtime::follow_seed(42);
    let wires = Wires::default();
    let mut three = found(&wires, &[1, 2, 3]).await;
    lead(&three, 2).await;
    let disk = three.remove(0).stop();
    seconds(0.5).await;
    three[1].view().damage(add_peer(7));
    three[0].write(vec![add_peer(8)]).await;
    until("both are in doubt", || {
        three.iter().all(|it| matches!(accord(it), Accord::Contested { .. }) && !it.serves())
    })
    .await;
    assert!(three.iter().all(|it| it.was_over() == UNFIT));
    assert_says(
        &accord(&three[0]).trouble().unwrap(),
        &["no majority of the voters has the same registry: start the voters that are down"],
    );
    assert!(matches!(three[0].backup().await, Err(BackupError::Unfit(_))));
    let third = Instance::start(&wires, Given::with(1, &[1, 2, 3]).on(disk)).await;
    until("the right ones serve", || three[0].serves() && third.serves()).await;
    until("the wrong one is found out", || matches!(accord(&three[1]), Accord::Differs { .. }))
        .await;
    assert!(!three[1].serves());
    assert_eq!(three[0].metrics.replicas_differ.get(), 0);
}
