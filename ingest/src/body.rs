//! A request's bytes: media type, encoding, size and budget.

use crate::state::Door;
use axum::body::HttpBody;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use bytes::{Bytes, BytesMut};
use quikflow_gateway::Problem;
use std::future::poll_fn;
use std::io::Read;
use std::pin::{Pin, pin};
use tokio::sync::OwnedSemaphorePermit;

/// How the events stand in the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One event or an array.
    Json,
    /// One event a line.
    Lines,
}

/// How the body is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// Not at all.
    Plain,
    /// `gzip`
    Gzip,
    /// `zstd`
    Zstd,
}

/// The body's form, from its `Content-Type`; none is taken for JSON.
///
/// # Errors
/// 415.
pub fn form(headers: &HeaderMap) -> Result<Form, Problem> {
    let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(Form::Json) };
    let value = value.to_str().unwrap_or_default();
    let (media, parameters) = value.split_once(';').unwrap_or((value, ""));
    let charset = parameters.to_ascii_lowercase();
    if charset.contains("charset") && !charset.contains("utf-8") {
        return Err(unsupported("JSON is UTF-8, send it without another charset"));
    }
    if media.trim().eq_ignore_ascii_case("application/json") {
        return Ok(Form::Json);
    }
    match media.trim().to_ascii_lowercase().as_str() {
        "application/x-ndjson" | "application/ndjson" | "application/jsonl" | "application/x-jsonlines" => Ok(Form::Lines),
        _ => Err(unsupported("send `Content-Type: application/json` (one event or an array) or `application/x-ndjson`")),
    }
}

/// The body's packing, from its `Content-Encoding`.
///
/// # Errors
/// 415.
pub fn packing(headers: &HeaderMap) -> Result<Packing, Problem> {
    let Some(value) = headers.get(CONTENT_ENCODING) else { return Ok(Packing::Plain) };
    match value.to_str().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
        "" | "identity" => Ok(Packing::Plain),
        "gzip" | "x-gzip" => Ok(Packing::Gzip),
        "zstd" => Ok(Packing::Zstd),
        _ => Err(unsupported("send the body as it is, or with `Content-Encoding: gzip` or `zstd`")),
    }
}

fn unsupported(detail: &str) -> Problem {
    Problem::new(415, "unsupported_media_type", "media type or encoding not supported").detail(detail)
}

pub(crate) fn too_large(limit: usize) -> Problem {
    let detail = format!("a body may have {limit} bytes, also when unpacked; send it in parts");
    Problem::new(413, "body_too_large", "body too large").detail(detail)
}

/// A body, and its room in the budget: given back when this is dropped, after the answer.
pub struct Held {
    /// As sent.
    pub bytes: Bytes,
    /// Its room.
    pub room: OwnedSemaphorePermit,
}

/// Reads the body within the limits. Its room is taken from the budget before a byte is read where
/// its length is known, else as it grows.
///
/// # Errors
/// 408, 413, 429, and 400 where the sender breaks off.
pub async fn read(door: &Door, headers: &HeaderMap, body: impl HttpBody<Data = Bytes> + Send) -> Result<Held, Problem> {
    let limit = door.limits.max_body_bytes;
    let announced = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<usize>().ok());
    if announced.is_some_and(|length| length > limit) {
        return Err(too_large(limit));
    }
    let room = door.reserve(announced.unwrap_or(64 << 10))?;
    let reading = collect(door, body, announced, room);
    match tokio::time::timeout(door.limits.body_timeout, reading).await {
        Ok(held) => held,
        Err(_) => Err(Problem::new(408, "body_timeout", "the body did not come in time").detail("send smaller bodies")),
    }
}

async fn collect(
    door: &Door,
    body: impl HttpBody<Data = Bytes>,
    announced: Option<usize>,
    mut room: OwnedSemaphorePermit,
) -> Result<Held, Problem> {
    let limit = door.limits.max_body_bytes;
    let mut body = pin!(body);
    let first = next(body.as_mut()).await?.unwrap_or_default();
    if announced == Some(first.len()) {
        return Ok(Held { bytes: first, room });
    }
    let mut all = BytesMut::with_capacity(announced.unwrap_or(first.len()));
    let mut held = first;
    loop {
        if all.len() + held.len() > limit {
            return Err(too_large(limit));
        }
        all.extend_from_slice(&held);
        let missing = door.units(all.len()) as usize;
        if missing > room.num_permits() {
            // Twice what is there, so that a long body asks seldom.
            room.merge(door.reserve(all.len())?);
        }
        match next(body.as_mut()).await? {
            Some(more) => held = more,
            None => return Ok(Held { bytes: all.freeze(), room }),
        }
    }
}

/// The body's next bytes; none at its end.
async fn next<B: HttpBody<Data = Bytes>>(mut body: Pin<&mut B>) -> Result<Option<Bytes>, Problem> {
    loop {
        match poll_fn(|context| body.as_mut().poll_frame(context)).await {
            None => return Ok(None),
            Some(Err(_)) => {
                return Err(Problem::new(400, "body_broken", "the body broke off").detail("send the request again"));
            }
            // Trailers are no bytes.
            Some(Ok(frame)) => {
                if let Ok(bytes) = frame.into_data() {
                    return Ok(Some(bytes));
                }
            }
        }
    }
}

/// Unpacks within the limit and the budget; blocks the thread.
///
/// # Errors
/// 413, 429, and 400 where the bytes are not what they are said to be.
pub fn unpack(door: &Door, packing: Packing, held: &mut Held) -> Result<Bytes, Problem> {
    let packed = held.bytes.clone();
    match packing {
        Packing::Plain => Ok(packed),
        Packing::Gzip => drain(door, flate2::read::MultiGzDecoder::new(&packed[..]), held),
        Packing::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(&packed[..]).map_err(|e| not_packed(&e))?;
            // 8 MiB: what the levels up to 19 use. A larger window would be memory outside the budget.
            decoder.window_log_max(23).map_err(|e| not_packed(&e))?;
            drain(door, decoder, held)
        }
    }
}

fn not_packed(error: &std::io::Error) -> Problem {
    let detail = format!("the body cannot be unpacked as its Content-Encoding says: {error}");
    Problem::new(400, "bad_encoding", "the body cannot be unpacked").detail(detail)
}

fn drain(door: &Door, mut from: impl Read, held: &mut Held) -> Result<Bytes, Problem> {
    const STEP: usize = 256 << 10;
    let limit = door.limits.max_body_bytes;
    let mut all = Vec::new();
    loop {
        if door.units(all.len() + STEP) as usize > held.room.num_permits() {
            held.room.merge(door.reserve(STEP.max(all.len().min(4 << 20)))?);
        }
        let before = all.len();
        let read = from.by_ref().take(STEP as u64).read_to_end(&mut all).map_err(|e| not_packed(&e))?;
        if all.len() > limit {
            return Err(too_large(limit));
        }
        if read == 0 || all.len() == before {
            return Ok(Bytes::from(all));
        }
    }
}
