//! What both addresses of a process answer alike.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "tests")]

mod support;

use support::{Server, client};

#[tokio::test]
async fn both_addresses_say_how_the_process_is_and_what_it_takes() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"));
    let mut events = Vec::new();
    for address in [&server.ingest, &server.query] {
        for (path, words) in [
            ("/health", "live"),
            ("/health/live", "live"),
            ("/health/ready", "ready"),
            ("/metrics", "# TYPE quikflow_"),
            ("/openapi.json", "\"openapi\""),
            ("/asyncapi.json", "\"asyncapi\""),
            ("/v1/status", "\"topologies\""),
            ("/v1/addresses", "\"ingest\""),
        ] {
            let answer = client().get(format!("{address}{path}")).send().await.unwrap();
            let (status, text) = (answer.status().as_u16(), answer.text().await.unwrap());
            assert!(status == 200 && text.contains(words), "{address}{path}: {status} {text}");
            if path == "/asyncapi.json" {
                events.push(text);
            }
        }
    }
    assert_eq!(events[0], events[1], "one declaration, two documents of its events");
    assert!(server.stop().success());
}
