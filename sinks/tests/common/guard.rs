//! A doorkeeper before a server that speaks HTTP: who does not bring the login is refused, and so are
//! some requests.

use super::old::ended;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What the doorkeeper asks for.
#[derive(Clone, Copy)]
pub(crate) struct Guard {
    /// Header lines, in small letters, that every request has to have.
    pub(crate) wanted: &'static [&'static str],
    /// What is answered to a request without them: status, a header, body.
    pub(crate) stranger: (u16, &'static str, &'static str),
    /// Requests whose first line has this in it are answered by 403.
    pub(crate) forbidden: &'static str,
}

/// Starts one before the server at `host`, which never sees the login; its port.
pub(crate) async fn start(guard: Guard, host: String) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(pass(guard, host.clone(), stream));
        }
    });
    port
}

/// One request a connection.
async fn pass(guard: Guard, host: String, mut client: TcpStream) -> Option<()> {
    let mut asked = Vec::new();
    while !ended(&asked) {
        let mut bytes = [0; 4_096];
        let read = client.read(&mut bytes).await.ok().filter(|read| *read > 0)?;
        asked.extend_from_slice(&bytes[..read]);
    }
    let end = asked.windows(4).position(|four| four == b"\r\n\r\n")?;
    let (head, body) = asked.split_at(end);
    let head = String::from_utf8_lossy(head).into_owned();
    let mut lines = head.lines();
    let first = lines.next()?;
    let lines: Vec<&str> = lines.collect();
    let known = |wanted: &&str| {
        let (name, value) = wanted.split_once(": ").unwrap_or((wanted, ""));
        lines.iter().any(|line| line.split_once(": ").is_some_and(|(n, v)| n.eq_ignore_ascii_case(name) && v == value))
    };
    let refusal = match (guard.wanted.iter().all(known), first.contains(guard.forbidden)) {
        (true, false) => None,
        (true, true) => Some((403, "content-type: application/json", "{}")),
        (false, _) => Some(guard.stranger),
    };
    if let Some((status, header, body)) = refusal {
        let head = format!("HTTP/1.1 {status} so\r\n{header}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
        return client.write_all(format!("{head}{body}").as_bytes()).await.ok();
    }
    let mut server = TcpStream::connect(&host).await.ok()?;
    let login = |line: &&&str| {
        let line = line.to_ascii_lowercase();
        !["authorization:", "x-clickhouse-user:", "x-clickhouse-key:", "connection:"].iter().any(|name| line.starts_with(name))
    };
    let rest: Vec<&str> = lines.iter().filter(login).copied().collect();
    server.write_all(format!("{first}\r\n{}\r\nconnection: close", rest.join("\r\n")).as_bytes()).await.ok()?;
    server.write_all(body).await.ok()?;
    // The client is told that this connection takes no other request.
    let mut start = [0; 1];
    while start != *b"\n" {
        server.read_exact(&mut start).await.ok()?;
        client.write_all(&start).await.ok()?;
    }
    client.write_all(b"connection: close\r\n").await.ok()?;
    tokio::io::copy(&mut server, &mut client).await.ok().map(|_| ())
}
