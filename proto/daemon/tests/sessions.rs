//! Sessions over real loopback connections: opening, refusing, losing the peer, tokens, shutdown.

use std::net::SocketAddr;
use std::time::Duration;

use daemon::Shutdown;
use proto::{DialError, Incoming, Token};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use types::{
    CommandStamp, ContainerId, Epoch, FromNode, NodeBeat, NodeHello, NodeId, NodeIncarnation, NodeWelcome,
    Resource, ToNode,
};

type NodeIncoming = Incoming<NodeHello, NodeWelcome, (CommandStamp, ToNode), FromNode>;

struct Server {
    addr: SocketAddr,
    incoming: mpsc::Receiver<NodeIncoming>,
    shutdown: Shutdown,
    serving: tokio::task::JoinHandle<anyhow::Result<()>>,
}

async fn server(token: Option<Token>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("bound");
    let (to, incoming) = mpsc::channel(8);
    let shutdown = Shutdown::new();
    let routes = tonic::service::Routes::new(proto::node_service(to));
    let serving = tokio::spawn(daemon::serve_grpc(listener, routes, token, shutdown.clone()));
    Server { addr, incoming, shutdown, serving }
}

fn hello() -> NodeHello {
    NodeHello {
        node: NodeId("n1".into()),
        incarnation: NodeIncarnation { boot_id: "b".into(), state_id: "s".into() },
        total: Resource { memory_bytes: 1 << 30, cpu_millis: 2_000 },
        hosts: vec!["127.0.0.1".into()],
        rack: "r1".into(),
        labels: [("disk".to_owned(), "ssd".to_owned())].into(),
        address: "127.0.0.1:1".into(),
        containers: Vec::new(),
        state: Vec::new(),
        lease_lapsed: false,
        version: "0".into(),
    }
}

fn welcome() -> NodeWelcome {
    NodeWelcome { epoch: Epoch(7), session: 3, lease_ms: 5_000, beat_ms: 500 }
}

fn beat(sent_at_ms: u64) -> FromNode {
    FromNode::Beat(NodeBeat { sent_at_ms, unhealthy: None })
}

const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn both_sides_send_items_in_order_after_hello_and_welcome() {
    let mut server = server(None).await;
    let link = proto::connect(&server.addr.to_string(), None).await.expect("reachable");
    let accepting = tokio::spawn(async move {
        let incoming = server.incoming.recv().await.expect("a dialler");
        assert_eq!(incoming.hello, hello());
        incoming.accept(welcome())
    });
    let mut dialled = proto::dial_node(&link, hello()).await.expect("welcome");
    assert_eq!(dialled.welcome, welcome());
    let (tx, mut rx) = accepting.await.expect("accepted");

    for n in 0..5_000 {
        dialled.tx.send(beat(n)).expect("open");
    }
    for n in 0..5_000 {
        assert_eq!(timeout(SOON, rx.recv()).await.expect("in time"), Some(beat(n)));
    }
    let forget = (CommandStamp::default(), ToNode::Forget { container: ContainerId::default() });
    tx.send(forget.clone()).expect("open");
    assert_eq!(timeout(SOON, dialled.rx.recv()).await.expect("in time"), Some(forget));
}

#[tokio::test]
async fn a_peer_that_goes_ends_both_halves_at_once() {
    let mut server = server(None).await;
    let link = proto::connect(&server.addr.to_string(), None).await.expect("reachable");
    let accepting =
        tokio::spawn(async move { server.incoming.recv().await.expect("a dialler").accept(welcome()) });
    let dialled = proto::dial_node(&link, hello()).await.expect("welcome");
    let (tx, mut rx) = accepting.await.expect("accepted");
    drop(dialled);
    assert_eq!(timeout(Duration::from_secs(2), rx.recv()).await.expect("noticed"), None);
    let gone = async {
        while tx.send((CommandStamp::default(), ToNode::BeatAck { sent_at_ms: 0 })).is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(2), gone).await.expect("the sending half ends too");
}

#[tokio::test]
async fn a_refused_hello_is_told_why_and_a_dropped_one_may_try_again() {
    let mut server = server(None).await;
    let link = proto::connect(&server.addr.to_string(), None).await.expect("reachable");
    let answering = tokio::spawn(async move {
        server.incoming.recv().await.expect("a dialler").refuse("node id taken".into());
        drop(server.incoming.recv().await.expect("a dialler"));
        server
    });
    match proto::dial_node(&link, hello()).await {
        Err(DialError::Refused(reason)) => assert_eq!(reason, "node id taken"),
        other => panic!("not refused: {other:?}"),
    }
    match proto::dial_node(&link, hello()).await {
        Err(DialError::Unreachable { .. }) => {}
        other => panic!("not to be tried again: {other:?}"),
    }
    drop(answering.await.expect("answered"));
}

#[tokio::test]
async fn a_dialler_without_the_token_is_refused() {
    let token = Token::from_text("secret").expect("printable");
    let mut server = server(Some(token.clone())).await;
    let addr = server.addr.to_string();
    for wrong in [None, Some(Token::from_text("guess").expect("printable"))] {
        let link = proto::connect(&addr, wrong.as_ref()).await.expect("reachable");
        match proto::dial_node(&link, hello()).await {
            Err(DialError::Refused(reason)) => assert!(reason.contains("--token-file"), "{reason}"),
            other => panic!("not refused: {other:?}"),
        }
    }
    let link = proto::connect(&addr, Some(&token)).await.expect("reachable");
    let accepting =
        tokio::spawn(async move { server.incoming.recv().await.expect("a dialler").accept(welcome()) });
    assert!(proto::dial_node(&link, hello()).await.is_ok());
    drop(accepting.await);
}

#[tokio::test]
async fn nobody_listening_is_unreachable_and_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("bound").to_string();
    drop(listener);
    match proto::connect(&addr, None).await {
        Err(DialError::Unreachable { addr: named, .. }) => assert_eq!(named, addr),
        other => panic!("reachable: {other:?}"),
    }
}

#[tokio::test]
async fn an_open_session_does_not_keep_a_server_from_ending() {
    let mut server = server(None).await;
    let link = proto::connect(&server.addr.to_string(), None).await.expect("reachable");
    let shutdown = server.shutdown.clone();
    let accepting =
        tokio::spawn(async move { server.incoming.recv().await.expect("a dialler").accept(welcome()) });
    let dialled = proto::dial_node(&link, hello()).await.expect("welcome");
    let halves = accepting.await.expect("accepted");
    shutdown.begin();
    timeout(Duration::from_secs(3), server.serving)
        .await
        .expect("ends in time")
        .expect("no panic")
        .expect("no error");
    drop((dialled, halves));
}
