//! The lives of instances: which ones end, when, and for what reason; and deadlines.

use super::*;
use crate::cluster::admin::Change;

/// Returns the life of an instance as the registry of another one has it.
fn life(at: &Instance, of: u64) -> u64 {
    at.view().read(|registry| registry.incarnation(InstanceId(of))).0
}

#[tokio::test(start_paused = true)]
async fn the_life_of_an_instance_that_is_lost_ends_if_its_clients_still_ask() {
    runtime::follow_seed(31);
    let wires = Wires::default();
    let mut five = found(&wires, &[1, 2, 3, 4, 5]).await;
    lead(&five, 1).await;
    five[0].write(vec![connect(1, 1), connect(2, 2), connect(3, 3)]).await;
    let disk = five.remove(2).stop();
    drop(five.remove(2).stop());
    let lost = clock::now();
    until("it is given up", || life(&five[0], 3) == 2).await;
    let took = clock::now() - lost;
    assert!((3..5).contains(&took.as_secs()), "not heard for 3 s, looked every half: {took:?}");
    seconds(5.0).await;
    let lives: Vec<u64> = (1..=5).map(|of| life(&five[0], of)).collect();
    assert_eq!(lives, [1, 1, 2, 1, 1], "of the others one has no client, and the rest are well");
    assert_eq!(five[0].metrics.lives_ended.get(), 1);
    assert!(five.iter().all(|it| it.life() == 1));
    let third = Instance::start(&wires, Given::with(3, &[1, 2, 3, 4, 5]).on(disk)).await;
    until("it serves", || third.serves()).await;
    assert_eq!(third.life(), 3);

    // One that runs, and was cut off, finds that its life was ended.
    for other in [1, 3, 5] {
        wires.set_apart(2, other, true);
    }
    until("it is given up", || life(&five[0], 2) == 2).await;
    assert_eq!(five[1].life(), 1, "it does not know yet");
    for other in [1, 3, 5] {
        wires.set_apart(2, other, false);
    }
    until("it begins another life", || five[1].life() == 3).await;
    assert_eq!(five[1].was_over(), "the others had given this instance up");
}

/// It has not heard those that were away before, and they may be on their way to it.
#[tokio::test(start_paused = true)]
async fn a_new_leader_listens_before_it_gives_another_one_up() {
    runtime::follow_seed(34);
    let wires = Wires::default();
    let mut three = found(&wires, &[1, 2, 3]).await;
    lead(&three, 1).await;
    three[0].write(vec![connect(1, 1)]).await;
    seconds(10.0).await;
    drop(three.remove(0).stop());
    let leads = |it: &Instance| it.status().leader == Some(it.id);
    until("another one leads", || three.iter().any(leads)).await;
    let since = clock::now();
    until("the old one is given up", || life(&three[0], 1) == 2).await;
    let took = clock::now() - since;
    assert!((3..5).contains(&took.as_secs()), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_leader_judges_only_what_it_has_listened_for() {
    runtime::follow_seed(32);
    let wires = Wires::default();
    let mut three = found(&wires, &[1, 2, 3]).await;
    lead(&three, 1).await;
    three[0].write(vec![connect(1, 1), connect(2, 2), connect(3, 3)]).await;
    // The machine sleeps, and wakes up.
    for instance in &three {
        instance.process.pause();
    }
    seconds(20.0).await;
    for instance in &three {
        instance.process.resume();
    }
    seconds(10.0).await;
    for of in 1..=3 {
        assert_eq!(life(&three[0], of), 1, "instance {of} was well all the time");
    }
    // One that is removed can never answer its clients.
    let by = leader(&three).await;
    let last = if by == 2 { 1 } else { 2 };
    let gone = three.remove(last);
    let by = leader(&three).await;
    three[by].change(Change::Remove(gone.id)).await.unwrap();
    let removed = clock::now();
    until("its life is over", || life(&three[by], gone.id.0) == 2).await;
    assert!(clock::now() - removed < Duration::from_millis(1500), "that is not waited for");
    // And one that stops says so itself.
    let other = &three[1 - by];
    let before = life(other, other.id.0);
    other.end_life().await;
    until("its life is over", || life(&three[by], other.id.0) > before).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_due_happens_by_log_time_though_none_writes() {
    runtime::follow_seed(33);
    let wires = Wires::default();
    let three = found(&wires, &[1, 2, 3]).await;
    lead(&three, 1).await;
    seconds(7.0).await;
    three[1].write(vec![add_peer(1)]).await;
    let kept = clock::now();
    until("all know", || three.iter().all(|it| it.peers() == 1)).await;
    until("it is forgotten", || three.iter().all(|it| it.peers() == 0)).await;
    let took = (clock::now() - kept).as_secs_f64();
    assert!((19.9..21.0).contains(&took), "it was to be kept for 20 s: {took}");
    // A new leader goes on from the registry's time.
    three[1].write(vec![add_peer(2)]).await;
    let kept = clock::now();
    seconds(10.0).await;
    three[1].write(vec![Command::Tick]).await;
    lead(&three, 2).await;
    until("it is forgotten", || three.iter().all(|it| it.peers() == 0)).await;
    let took = (clock::now() - kept).as_secs_f64();
    assert!((19.9..22.0).contains(&took), "{took}");
    // With nothing due, nothing is written.
    let before = three[1].status().last_log_index;
    seconds(30.0).await;
    assert_eq!(three[1].status().last_log_index, before);
}
