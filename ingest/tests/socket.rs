//! The door by WebSocket: answers in order, credit, a client that does not read.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it skips"
)]

mod common;

use common::{Setup, event, setup};
use futures::{SinkExt, StreamExt};
use quikflow_gateway::{ServeLimits, serve};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

async fn open(s: &Setup) -> WebSocketStream<MaybeTlsStream<TcpStream>> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, s.router.clone(), ServeLimits::default(), std::future::pending()));
    connect_async(format!("ws://{addr}/v1/ws")).await.unwrap().0
}

async fn next(socket: &mut WebSocketStream<MaybeTlsStream<TcpStream>>) -> Value {
    serde_json::from_str(socket.next().await.unwrap().unwrap().to_text().unwrap()).unwrap()
}

fn frame(reference: &str, event: &str) -> Message {
    Message::text(format!(r#"{{"ref":{reference},"event":{event}}}"#))
}

#[tokio::test]
async fn frames_are_answered_in_order_when_durable() {
    let s = setup(|_| {});
    let mut socket = open(&s).await;
    assert_eq!(next(&mut socket).await, json!({ "credit": 256 }));
    socket.send(frame("1", &event("a"))).await.unwrap();
    socket.send(frame("\"two\"", &event("far too long"))).await.unwrap();
    socket.send(Message::text("nope")).await.unwrap();
    socket.send(Message::text(r#"{"ref":[1],"event":{}}"#)).await.unwrap();
    socket.send(frame("5", &event("b"))).await.unwrap();
    let first = next(&mut socket).await;
    assert_eq!(
        (&first["ref"], &first["ok"], &first["duplicate"], &first["offset"]),
        (&json!(1), &json!(true), &json!(false), &json!(0))
    );
    let second = next(&mut socket).await;
    assert_eq!(
        (&second["ref"], &second["ok"], &second["errors"][0]["path"]),
        (&json!("two"), &json!(false), &json!("payload.content"))
    );
    assert_eq!(next(&mut socket).await["errors"][0]["rule"], "invalid_json");
    assert_eq!(next(&mut socket).await["errors"][0]["path"], "ref");
    let last = next(&mut socket).await;
    assert_eq!((&last["ref"], &last["offset"], s.broker.rows()), (&json!(5), &json!(1), 2));
}

#[tokio::test]
async fn nothing_is_answered_before_it_is_durable_and_credit_is_a_law() {
    let s = setup(|l| l.credit = 4);
    *s.broker.held.lock().unwrap() = Some(Vec::new());
    let mut socket = open(&s).await;
    assert_eq!(next(&mut socket).await, json!({ "credit": 4 }));
    for n in 0..5 {
        socket.send(frame(&n.to_string(), &event("a"))).await.unwrap();
    }
    let Message::Close(Some(close)) = socket.next().await.unwrap().unwrap() else { panic!("closed before any answer") };
    assert_eq!(u16::from(close.code), 1008);
    assert!(s.broker.rows() <= 4);
}

#[tokio::test]
async fn within_its_credit_a_client_sends_on() {
    let s = setup(|l| l.credit = 4);
    let mut socket = open(&s).await;
    next(&mut socket).await;
    for round in 0..50 {
        for n in 0..4 {
            socket.send(frame(&(round * 4 + n).to_string(), &event("a"))).await.unwrap();
        }
        for n in 0..4 {
            assert_eq!(next(&mut socket).await["ref"], round * 4 + n);
        }
    }
    assert_eq!(s.broker.rows(), 200);
}

#[tokio::test]
async fn sockets_are_closed_when_the_process_drains() {
    let s = setup(|_| {});
    let mut socket = open(&s).await;
    next(&mut socket).await;
    socket.send(frame("1", &event("a"))).await.unwrap();
    assert_eq!(next(&mut socket).await["ok"], true);
    s.closing.send(true).unwrap();
    let Message::Close(Some(close)) = socket.next().await.unwrap().unwrap() else { panic!("a close frame") };
    assert_eq!(u16::from(close.code), 1000);
}
