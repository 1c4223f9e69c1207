//! Servers of versions that are too old, as far as they are asked before that is known: how each of
//! them greets, in the words of its protocol's description; and HTTP servers that refuse.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Starts one that serves while the test's runtime runs; its port.
pub(crate) async fn server(store: &'static str) -> u16 {
    let greeting = br#"{"name":"old","version":{"number":"6.8.23"},"tagline":"You Know, for Search"}"#;
    match store {
        "elasticsearch" => return http_server(200, "content-type: application/json", greeting.to_vec()).await,
        "clickhouse" => return http_server(200, "content-type: text/plain", [&[9], b"20.8.19.4".as_slice()].concat()).await,
        _ => {}
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                // The client may leave whenever it has heard enough.
                match store {
                    "mongodb" => mongodb(stream, hello(8, false)).await,
                    "redis" => redis(stream).await,
                    _ => mysql(stream).await,
                }
            });
        }
    });
    port
}

async fn http(answer: (u16, &str, Vec<u8>), mut stream: TcpStream) -> Option<()> {
    let mut asked = Vec::new();
    while !ended(&asked) {
        let mut bytes = [0; 4_096];
        let read = stream.read(&mut bytes).await.ok().filter(|read| *read > 0)?;
        asked.extend_from_slice(&bytes[..read]);
    }
    let (status, header, body) = answer;
    let head = format!("HTTP/1.1 {status} so\r\n{header}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    stream.write_all(&[head.as_bytes(), &body].concat()).await.ok()
}

/// Starts one that answers every HTTP request like this: status, a header, body.
pub(crate) async fn http_server(status: u16, header: &'static str, body: Vec<u8>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(http((status, header, body.clone()), stream));
        }
    });
    port
}

/// Whether a request is whole.
pub(crate) fn ended(asked: &[u8]) -> bool {
    let text = String::from_utf8_lossy(asked).to_ascii_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse::<usize>().ok());
    if head.contains("transfer-encoding: chunked") { body.ends_with("0\r\n\r\n") } else { body.len() >= length.unwrap_or(0) }
}

async fn redis(mut stream: TcpStream) -> Option<()> {
    let (mut asked, mut bytes) = (String::new(), [0; 4_096]);
    loop {
        let read = stream.read(&mut bytes).await.ok().filter(|read| *read > 0)?;
        asked.push_str(&String::from_utf8_lossy(&bytes[..read]));
        // Commands are short and come whole: `*2`, `$4`, `INFO`, ….
        for command in asked.split('*').skip(1) {
            let info = "redis_version:4.0.14\r\nrole:master\r\n";
            let answer = if command.contains("INFO\r\n") && !command.contains("SETINFO") {
                format!("${}\r\n{info}\r\n", info.len())
            } else {
                "+OK\r\n".to_owned()
            };
            stream.write_all(answer.as_bytes()).await.ok()?;
        }
        asked.clear();
    }
}

/// Starts a MongoDB server that says of itself that it is a secondary; its port.
pub(crate) async fn secondary() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(mongodb(stream, hello(21, true)));
        }
    });
    port
}

/// A BSON document of what a server says of itself: its wire version (8 is MongoDB 4.2), and whether it
/// is a set's secondary.
fn hello(version: i32, secondary: bool) -> Vec<u8> {
    let mut fields = Vec::new();
    let mut field = |kind: u8, name: &str, value: &[u8]| {
        fields.push(kind);
        fields.extend_from_slice(name.as_bytes());
        fields.push(0);
        fields.extend_from_slice(value);
    };
    let text = |text: &str| [&(text.len() as i32 + 1).to_le_bytes(), text.as_bytes(), &[0]].concat();
    field(8, "ismaster", &[u8::from(!secondary)]);
    field(8, "helloOk", &[1]);
    if secondary {
        field(8, "isWritablePrimary", &[0]);
        field(8, "secondary", &[1]);
        field(2, "setName", &text("set"));
        field(2, "primary", &text("elsewhere:27017"));
    }
    field(16, "maxBsonObjectSize", &16_777_216_i32.to_le_bytes());
    field(16, "maxMessageSizeBytes", &48_000_000_i32.to_le_bytes());
    field(16, "maxWriteBatchSize", &100_000_i32.to_le_bytes());
    field(16, "minWireVersion", &0_i32.to_le_bytes());
    field(16, "maxWireVersion", &version.to_le_bytes());
    field(1, "ok", &1_f64.to_le_bytes());
    let length = i32::try_from(fields.len() + 5).expect("short");
    [&length.to_le_bytes(), fields.as_slice(), &[0]].concat()
}

async fn mongodb(mut stream: TcpStream, hello: Vec<u8>) -> Option<()> {
    loop {
        let mut head = [0; 16];
        stream.read_exact(&mut head).await.ok()?;
        let number = |at: usize| i32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let mut body = vec![0; usize::try_from(number(0) - 16).ok()?];
        stream.read_exact(&mut body).await.ok()?;
        // OP_QUERY is answered by OP_REPLY, OP_MSG by its like.
        let (kind, before): (i32, Vec<u8>) = match number(12) {
            2_004 => (1, [0_i32, 0, 0, 0, 1].iter().flat_map(|n| n.to_le_bytes()).collect()),
            _ => (2_013, vec![0; 5]),
        };
        let length = i32::try_from(16 + before.len() + hello.len()).ok()?;
        let head: Vec<u8> = [length, 1, number(4), kind].iter().flat_map(|n| n.to_le_bytes()).collect();
        stream.write_all(&[&head, &before, &hello].map(Vec::as_slice).concat()).await.ok()?;
    }
}

/// A packet of MySQL's protocol.
fn packet(number: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("short").to_le_bytes();
    [&length[..3], &[number], body].concat()
}

fn column(number: u8, kind: u8, charset: u8) -> Vec<u8> {
    let mut body = Vec::new();
    for text in ["def", "", "", "", "c", ""] {
        body.push(text.len() as u8);
        body.extend_from_slice(text.as_bytes());
    }
    body.extend_from_slice(&[0x0c, charset, 0, 255, 0, 0, 0, kind, 0, 0, 0, 0, 0]);
    packet(number, &body)
}

async fn mysql(mut stream: TcpStream) -> Option<()> {
    const OK: [u8; 7] = [0, 0, 0, 2, 0, 0, 0];
    const END: [u8; 5] = [0xfe, 0, 0, 2, 0];
    let greeting = [
        b"\x0a5.6.51\0".as_slice(),
        &[1, 0, 0, 0],
        b"abcdefgh\0",
        // Protocol 4.1, transactions, secure connection, databases by name; then plugins.
        &[0x09, 0xa2, 45, 2, 0, 0x08, 0, 21],
        &[0; 10],
        b"ijklmnopqrst\0",
        b"mysql_native_password\0",
    ];
    stream.write_all(&packet(0, &greeting.concat())).await.ok()?;
    loop {
        let mut head = [0; 4];
        stream.read_exact(&mut head).await.ok()?;
        let mut body = vec![0; usize::from(head[0]) + 256 * usize::from(head[1])];
        stream.read_exact(&mut body).await.ok()?;
        let next = head[3] + 1;
        let columns = |from: u8| [column(from, 0xfd, 45), column(from + 1, 0x08, 63), packet(from + 2, &END)].concat();
        let answer = match (next, body.first()) {
            (1, Some(0x16)) => [packet(1, &[0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0]), columns(2)].concat(),
            (1, Some(0x17)) => {
                let row = [&[0, 0, 6], b"5.6.51".as_slice(), &[0; 8]].concat();
                [packet(1, &[2]), columns(2), packet(5, &row), packet(6, &END)].concat()
            }
            // A prepared statement is closed without an answer.
            (1, Some(0x19)) => continue,
            _ => packet(next, &OK),
        };
        stream.write_all(&answer).await.ok()?;
    }
}

/// Sends JSON by HTTP; the status of the answer, and its body.
pub(crate) async fn ask(method: &str, host: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(host).await.expect("a connection");
    let head = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\nconnection: close");
    let asked = format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(asked.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("an answer");
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    (head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0), body.to_owned())
}
