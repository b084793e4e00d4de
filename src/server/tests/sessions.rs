//! Sessions from both sides: the bytes for a client, and the commands for the registry.

use std::{
    io::{Read, Write},
    net::TcpStream as StdStream,
    process::{Command as Process, Stdio},
};

use tokio::{io::Interest, net::TcpSocket, runtime::Handle};

use super::*;
use crate::{
    ids::{PeerId, Source},
    registry::Why,
};

#[tokio::test]
async fn a_request_may_be_split_at_every_byte() {
    let mut bench = Bench::start(ServerOptions::default());
    for at in 1..CONNECT.len() {
        let mut client = bench.chain().await;
        client.write_all(&CONNECT[..at]).await.unwrap();
        tokio::task::yield_now().await;
        client.write_all(&CONNECT[at..]).await.unwrap();
        let session = bench.connected().await;
        bench.tell(session, Part::Head, Then::Close);
        assert_eq!(rest(&mut client).await, HEAD, "split at {at}");
    }
}

#[tokio::test]
async fn commands_carry_the_session_the_source_and_the_request() {
    let mut bench = Bench::start(ServerOptions::default());
    let mut client = connect(bench.addresses.repair).await;
    client.write_all(RECONNECT).await.unwrap();
    let Command::Reconnect { session, source, id, orphan } = bench.command().await else {
        panic!("not a RECONNECT")
    };
    assert_eq!((session.instance, session.incarnation), (InstanceId(1), Incarnation(2)));
    assert_eq!(source, Source::of(client.local_addr().unwrap().ip()));
    assert_eq!((&*id.0, orphan.0.to_string().as_str()), ("7", "127.0.0.1:1"));
    let ip = Socket::parse("127.0.0.1:8").unwrap();
    let message = Message::Repair { ip };
    bench.outbox.dispatch(&[Effect::Tell { session, message, then: Then::Close }]);
    assert_eq!(rest(&mut client).await, br#"{"msg":"CONNECT","ip":"127.0.0.1:8"}"#);
    bench.all_gone().await;
}

#[tokio::test]
async fn junk_is_met_with_silence_and_a_later_request_is_heard() {
    let mut bench = Bench::start(ServerOptions::default());
    let mut client = bench.chain().await;
    client.write_all(b"hello\n{\"msg\":\"connect\"}").await.unwrap();
    client.write_all(RECONNECT).await.unwrap();
    client.write_all(CONNECT).await.unwrap();
    let session = bench.connected().await;
    assert_eq!((bench.rejected("junk"), bench.rejected("unknown_message")), (1, 2));
    bench.tell(session, Part::Head, Then::Close);
    assert_eq!(rest(&mut client).await, HEAD);
}

#[tokio::test]
async fn a_refused_request_leaves_the_connection_open_for_another_one() {
    let mut bench = Bench::start(ServerOptions::default());
    let (mut client, session) = bench.waiting().await;
    let why = Refusal::NotOwner;
    bench.outbox.dispatch(&[Effect::Refuse { session, why }]);
    assert_eq!(bench.rejected("not_owner"), 1);
    eventually("the session hears again", || {
        client.try_write(CONNECT).unwrap() == CONNECT.len() && !bench.commands.is_empty()
    })
    .await;
    assert_eq!(bench.connected().await, session);
    bench.tell(session, Part::Tail, Then::Close);
    assert_eq!(rest(&mut client).await, TAIL);
}

#[tokio::test]
async fn what_a_client_sends_behind_its_request_does_not_turn_the_close_into_a_reset() {
    let mut bench = Bench::start(ServerOptions::default());
    for extra in [&b"\n"[..], CONNECT, &[b'x'; 100_000]] {
        let (mut client, session) = bench.waiting().await;
        client.write_all(extra).await.unwrap();
        bench.tell(session, Part::Tail, Then::Stay);
        assert_eq!(read(&mut client, TAIL.len()).await, TAIL);
        client.write_all(extra).await.unwrap();
        bench.tell(session, Part::Head, Then::Close);
        client.write_all(extra).await.unwrap();
        assert_eq!(rest(&mut client).await, HEAD);
    }
    assert!(bench.commands.is_empty(), "a second request is not heard");
    bench.all_gone().await;
}

#[tokio::test]
async fn what_a_client_sends_behind_our_fin_does_not_destroy_the_answer() {
    let mut bench = Bench::start(ServerOptions::default());
    let (mut client, session) = bench.waiting().await;
    bench.tell(session, Part::Head, Then::Close);
    while !client.ready(Interest::READABLE).await.unwrap().is_read_closed() {
        tokio::task::yield_now().await;
    }
    for _ in 0..10 {
        client.write_all(CONNECT).await.unwrap();
    }
    assert_eq!(rest(&mut client).await, HEAD);
    client.shutdown().await.unwrap();
    bench.all_gone().await;
    assert!(client.take_error().unwrap().is_none(), "no reset to the very end");
}

#[tokio::test]
async fn a_released_client_gets_a_fin_and_no_byte() {
    let mut bench = Bench::start(ServerOptions::default());
    let (mut client, session) = bench.waiting().await;
    bench.outbox.dispatch(&[Effect::Release { session, why: Why::Superseded }]);
    assert_eq!(rest(&mut client).await, b"");
}

#[tokio::test]
async fn effects_of_others_are_dropped() {
    let mut bench = Bench::start(ServerOptions::default());
    let (mut client, session) = bench.waiting().await;
    for stranger in [
        SessionId { instance: InstanceId(9), ..session },
        SessionId { incarnation: Incarnation(1), ..session },
        SessionId { connection: 999, ..session },
    ] {
        bench.tell(stranger, Part::Tail, Then::Close);
    }
    bench.tell(session, Part::Head, Then::Close);
    assert_eq!(rest(&mut client).await, HEAD);
}

#[tokio::test]
async fn a_half_closed_client_that_reads_is_told_and_that_is_reported() {
    let mut bench = Bench::start(ServerOptions::default());
    let (mut client, session) = bench.half_closed().await;
    bench.tell(session, Part::Head, Then::Confirm);
    assert_eq!(bench.command().await, Command::Delivered { session });
    bench.outbox.dispatch(&[Effect::Release { session, why: Why::Answered }]);
    assert_eq!(rest(&mut client).await, HEAD);
    bench.all_gone().await;
}

#[tokio::test]
async fn nothing_is_reported_while_the_clients_kernel_has_not_taken_the_bytes() {
    let mut bench = Bench::start(ServerOptions::default());
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(1).unwrap(); // the least that the kernel allows
    let mut client = socket.connect(bench.addresses.chains[0]).await.unwrap();
    client.write_all(CONNECT).await.unwrap();
    let session = bench.connected().await;
    client.shutdown().await.unwrap();
    assert_eq!(bench.command().await, Command::HalfClose { session });
    let before = 200;
    for _ in 0..before {
        bench.tell(session, Part::Head, Then::Stay);
    }
    bench.tell(session, Part::Head, Then::Confirm);
    let early = timeout(Duration::from_millis(200), bench.commands.recv()).await;
    assert!(early.is_err(), "{early:?}");
    assert_eq!(read(&mut client, (before + 1) * HEAD.len()).await, HEAD.repeat(before + 1));
    assert_eq!(bench.command().await, Command::Delivered { session });
}

#[tokio::test]
async fn a_client_that_exited_is_found_out_by_telling_it() {
    let mut bench = Bench::start(ServerOptions::default());
    for _ in 0..20 {
        let (client, session) = bench.waiting().await;
        drop(client); // the same FIN as a half-close, but no process reads any more
        assert_eq!(bench.command().await, Command::HalfClose { session });
        bench.tell(session, Part::Head, Then::Confirm);
        assert_eq!(bench.command().await, Command::Disconnect { session });
    }
    bench.all_gone().await;
}

#[tokio::test]
async fn a_process_that_was_killed_is_found_out_too() {
    let mut bench = Bench::start(ServerOptions::default());
    let mut client = Process::new("bash")
        .args([
            "-c",
            r#"exec 3<>"/dev/tcp/127.0.0.1/$1"; printf %s "$2" >&3; exec cat <&3"#,
            "client",
        ])
        .arg(bench.addresses.chains[0].port().to_string())
        .arg(std::str::from_utf8(CONNECT).unwrap())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let session = bench.connected().await;
    client.kill().unwrap();
    client.wait().unwrap();
    assert_eq!(bench.command().await, Command::HalfClose { session });
    bench.tell(session, Part::Tail, Then::Confirm);
    assert_eq!(bench.command().await, Command::Disconnect { session });
}

#[tokio::test]
async fn a_reset_is_noticed_in_every_phase() {
    let mut bench = Bench::start(ServerOptions::default());
    let mut mid_message = bench.chain().await;
    mid_message.write_all(&CONNECT[..20]).await.unwrap();
    eventually("accepted", || bench.outbox.sessions() == 1).await;
    reset(mid_message);
    bench.all_gone().await;

    let (waiting, session) = bench.waiting().await;
    reset(waiting);
    assert_eq!(bench.command().await, Command::Disconnect { session });

    let (half_closed, session) = bench.half_closed().await;
    reset(half_closed);
    assert_eq!(bench.command().await, Command::Disconnect { session });

    let (flooding, session) = bench.waiting().await;
    let chunk = vec![b' '; 65536];
    eventually("no more of it is read", || {
        let _ = flooding.try_write(&chunk);
        bench.rejected("flood") == 1
    })
    .await;
    reset(flooding);
    assert_eq!(bench.command().await, Command::Disconnect { session });
    bench.all_gone().await;
    assert!(bench.commands.is_empty());
}

#[tokio::test]
async fn a_half_closed_client_does_not_keep_the_loop_busy() {
    let mut bench = Bench::start(ServerOptions::default());
    let mut clients = Vec::new();
    for _ in 0..50 {
        clients.push(bench.half_closed().await);
    }
    let busy = || Handle::current().metrics().worker_total_busy_duration(0);
    let before = busy();
    sleep(Duration::from_millis(300)).await;
    let spent = busy() - before;
    assert!(spent < Duration::from_millis(100), "busy for {spent:?} of 300 ms");
}

#[tokio::test]
async fn effects_reach_the_wires_in_their_order_across_connections() {
    let mut bench = Bench::start(ServerOptions::default());
    for round in 0..200 {
        let (earlier, first) = bench.waiting().await;
        let (mut later, second) = bench.waiting().await;
        bench.outbox.dispatch(&[
            link(first, Part::Head, Then::Close),
            link(second, Part::Tail, Then::Close),
        ]);
        // No await lies between dispatch and here: the first message must be there already.
        let early = earlier.into_std().unwrap();
        let mut bytes = [0; HEAD.len()];
        (&early).read_exact(&mut bytes).unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert_eq!(bytes, HEAD);
        assert_eq!(read(&mut later, TAIL.len()).await, TAIL);
    }
}

#[tokio::test]
async fn emnet_answers_one_request_after_the_other() {
    let mut bench = Bench::start(ServerOptions::default());
    let mut client = bench.emnet().await;
    let requests =
        br#"{"msg":"ADD_PEER","IP_Peer":"x"}{"msg":"NO"}nonsense{"msg":"ASK_IP","id":5}"#;
    client.write_all(requests).await.unwrap();
    client.shutdown().await.unwrap();
    let Command::AddPeer { session, address, .. } = bench.command().await else { panic!() };
    assert_eq!(address, "x");
    eventually("the second waits for the first", || bench.commands.is_empty()).await;
    let tell = |message| Effect::Tell { session, message, then: Then::Stay };
    bench.outbox.dispatch(&[tell(Message::PeerAdded { id: PeerId(5) })]);
    assert_eq!(bench.command().await, Command::AskIp { session, id: PeerId(5) });
    bench.outbox.dispatch(&[tell(Message::PeerFound { address: "x".into() })]);
    let expected: &[u8] = b"{\"id\":5,\"msg\":\"SUCCESS\"}\n{\"msg\":\"FAILED\"}\n\
                            {\"IP\":\"x\",\"msg\":\"SUCCESS\"}\n";
    assert_eq!(rest(&mut client).await, expected);
    bench.all_gone().await;
    assert!(bench.commands.is_empty(), "nothing else is said of EMNet's clients");
}

/// A request that waits in the queue then is carried out for none.
#[tokio::test]
async fn a_client_that_hangs_up_takes_its_request_back() {
    let deadline = Duration::from_millis(50);
    let mut bench =
        Bench::start(ServerOptions { idle_deadline: deadline, ..ServerOptions::default() });
    let mut client = bench.chain().await;
    client.write_all(CONNECT).await.unwrap();
    let request = bench.queued().await;
    client.shutdown().await.unwrap();
    let half_close = bench.queued().await;
    assert!(matches!(half_close.command, Command::HalfClose { .. }));
    assert!(request.is_wanted() && half_close.is_wanted(), "it may still read");
    reset(client);
    let disconnect = bench.queued().await;
    assert!(matches!(disconnect.command, Command::Disconnect { .. }));
    bench.all_gone().await;
    assert!(!request.is_wanted());
    assert!(disconnect.is_wanted() && half_close.is_wanted(), "the session's end is told");

    // EMNet's clients are sent away when no answer comes, and the registry hears nothing of it.
    let mut client = bench.emnet().await;
    client.write_all(br#"{"msg":"ASK_IP","id":5}"#).await.unwrap();
    let request = bench.queued().await;
    assert!(request.is_wanted());
    assert_eq!(rest(&mut client).await, b"");
    assert!(!request.is_wanted());
}

#[tokio::test]
async fn a_client_that_asks_very_much_takes_turns_with_others() {
    let requests = 1024;
    let bench = Bench::start(ServerOptions::default());
    let mut client = StdStream::connect(bench.addresses.emnet.unwrap()).unwrap();
    client.write_all(&b"{}".repeat(requests)).unwrap();
    client.set_nonblocking(true).unwrap();
    let mut buffer = vec![0; requests * FAILED.len()];
    let mut answered = 0;
    let began = clock::now();
    while answered < requests * FAILED.len() {
        // This test and the session share one thread: what is here was written in a turn or two.
        tokio::task::yield_now().await;
        let turn = client.read(&mut buffer).unwrap_or(0);
        assert!(turn <= 256 * FAILED.len(), "{turn} bytes before another task had a turn");
        assert!(clock::now() - began < PATIENCE, "only {answered} bytes");
        answered += turn;
    }
}

#[tokio::test]
async fn an_instance_drains_and_stops() {
    let mut bench = Bench::start(ServerOptions::default());
    let (mut waiting, session) = bench.waiting().await;
    let mut silent = bench.chain().await;
    eventually("both are there", || bench.outbox.sessions() == 2).await;
    bench.phase.send_replace(Phase::Drained);
    let address = bench.addresses.chains[0];
    eventually("no client is accepted", || StdStream::connect(address).is_err()).await;
    bench.tell(session, Part::Tail, Then::Stay);
    assert_eq!(read(&mut waiting, TAIL.len()).await, TAIL);
    bench.phase.send_replace(Phase::Stopping);
    assert_eq!(rest(&mut waiting).await, b"");
    assert_eq!(rest(&mut silent).await, b"");
    drop((waiting, silent));
    while let Some(ended) = timeout(PATIENCE, bench.tasks.join_next()).await.expect("in time") {
        ended.unwrap().unwrap();
    }
    assert!(bench.commands.recv().await.is_none(), "clients keep their asks");
    assert_eq!(bench.outbox.sessions(), 0);
}

#[tokio::test]
async fn what_cannot_be_bound_is_named() {
    let bench = Bench::start(ServerOptions::default());
    let taken = bench.addresses.repair;
    let wanted = Addresses { chains: vec!["127.0.0.1:0".parse().unwrap()], ..bench.addresses };
    let (_options, live) = watch::channel(ServerOptions::default());
    let error = Servers::bind(&wanted, live).unwrap_err();
    assert_eq!(error.to_string(), format!("the repair server cannot listen on {taken}"));
}
