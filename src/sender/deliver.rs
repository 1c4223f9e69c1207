//! One lot to the door, until it is answered for good.

use super::lines::Lot;
use super::refused::Refusal;
use crate::client::root_cause;
use crate::exit::Failure;
use crate::out;
use quikflow_topics::clock::SharedClock;
use reqwest::StatusCode;
use serde::Deserialize;
use serde_json::Value;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// What the door said to a lot in the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Written now.
    pub(crate) accepted: u64,
    /// There already.
    pub(crate) duplicates: u64,
    /// Refused for good.
    pub(crate) refused: Vec<Refusal>,
    /// The door knows this lane only up to here, though more was acknowledged: another data
    /// directory, or an older one. Sending goes back to it.
    pub(crate) rewind: Option<u64>,
}

impl Answer {
    fn merge(&mut self, other: Answer) {
        self.accepted += other.accepted;
        self.duplicates += other.duplicates;
        self.refused.extend(other.refused);
        self.rewind = self.rewind.or(other.rewind);
    }
}

/// Where lots go.
pub(crate) struct Door {
    /// With its connection pool.
    pub(crate) http: reqwest::Client,
    /// `http://host:port/v1/events`
    pub(crate) url: String,
    /// Bearer token.
    pub(crate) token: Option<String>,
    /// The producer's id.
    pub(crate) producer: String,
    /// All lines up to this one were acknowledged.
    pub(crate) acknowledged: AtomicU64,
    /// Nobody answers at the moment, and the user was told.
    pub(crate) away: AtomicBool,
    /// For jitter.
    pub(crate) clock: SharedClock,
}

#[derive(Deserialize)]
struct Counts {
    #[serde(default)]
    accepted: u64,
    #[serde(default)]
    duplicates: Value,
    #[serde(default)]
    rejected: u64,
    #[serde(default)]
    errors: Vec<LineError>,
}

#[derive(Deserialize)]
struct LineError {
    line: Option<u64>,
    path: Option<String>,
    #[serde(alias = "code")]
    rule: Option<String>,
    message: Option<String>,
}

enum Verdict {
    Final(Answer),
    Again(Duration),
    /// An earlier lot is not through: the door itself is well.
    NotYet,
    Split,
}

impl Door {
    /// Sends a lot until it is answered for good; refused connections, 429, 5xx and batches that
    /// came before their turn are tried again for as long as it takes.
    ///
    /// # Errors
    /// What concerns every line: wrong address, wrong token, an answer that is not this protocol's.
    pub(crate) async fn deliver(&self, lot: Lot) -> Result<Answer, Failure> {
        let mut whole = Answer::default();
        let mut waiting = vec![lot];
        while let Some(lot) = waiting.pop() {
            match self.deliver_one(&lot).await? {
                Some(answer) => {
                    let rewind = answer.rewind.is_some();
                    whole.merge(answer);
                    if rewind {
                        return Ok(whole);
                    }
                }
                // Too large as a whole: the halves, in order.
                None => match lot.halves() {
                    Some((first, second)) => waiting.extend([second, first]),
                    None => {
                        whole.refused.push(too_large(&lot));
                        // An empty line takes the refused one's place, so that the lane goes on.
                        waiting.push(Lot { body: bytes::Bytes::from_static(b"\n"), ..lot });
                    }
                },
            }
        }
        Ok(whole)
    }

    /// The answer for good, or `None` when the lot must be cut.
    async fn deliver_one(&self, lot: &Lot) -> Result<Option<Answer>, Failure> {
        let mut attempt: u32 = 0;
        loop {
            let sent = self.request(lot).send().await;
            let verdict = match sent {
                Ok(response) => {
                    if self.away.swap(false, Ordering::Relaxed) {
                        out::note(format!("{} answers again", self.url));
                    }
                    self.judge(lot, response, attempt).await?
                }
                Err(error) if error.is_builder() => return Err(Failure::usage(format!("{}: {}", self.url, root_cause(&error)))),
                Err(error) => {
                    if attempt == 3 && !self.away.swap(true, Ordering::Relaxed) {
                        out::note(format!("nobody answers at {} ({}); trying on, Ctrl-C ends it", self.url, root_cause(&error)));
                    }
                    Verdict::Again(self.pause(attempt, Duration::from_secs(1)))
                }
            };
            match verdict {
                Verdict::Final(answer) => return Ok(Some(answer)),
                Verdict::Split => return Ok(None),
                Verdict::NotYet => {
                    // The door has waited a little already.
                    attempt = 0;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Verdict::Again(pause) => {
                    attempt = attempt.saturating_add(1);
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    fn request(&self, lot: &Lot) -> reqwest::RequestBuilder {
        let request = self
            .http
            .post(&self.url)
            .query(&[("records", "false")])
            .header("content-type", "application/x-ndjson")
            .header("quikflow-producer", &self.producer)
            .header("quikflow-first-line", lot.first.to_string())
            .header("quikflow-previous-line", lot.previous.to_string())
            .timeout(Duration::from_secs(120))
            .body(lot.body.clone());
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    async fn judge(&self, lot: &Lot, response: reqwest::Response, attempt: u32) -> Result<Verdict, Failure> {
        let status = response.status();
        let hint = retry_after(&response);
        let body = match response.bytes().await {
            Ok(body) => body,
            // The answer broke off: the lane makes another try harmless.
            Err(_) => return Ok(Verdict::Again(self.pause(attempt, Duration::from_secs(1)))),
        };
        let json: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        match status {
            StatusCode::OK | StatusCode::ACCEPTED => Ok(Verdict::Final(answer(lot, json, &self.url)?)),
            StatusCode::UNPROCESSABLE_ENTITY if json.get("errors").is_some_and(Value::is_array) => {
                Ok(Verdict::Final(answer(lot, json, &self.url)?))
            }
            StatusCode::PAYLOAD_TOO_LARGE => Ok(Verdict::Split),
            StatusCode::CONFLICT if is_out_of_sequence(&json) => {
                let expected = json.get("expected").and_then(Value::as_u64);
                match expected {
                    // What came before this lot was acknowledged, and the door does not have it.
                    Some(expected) if expected < lot.previous && self.acknowledged.load(Ordering::SeqCst) >= lot.previous => {
                        Ok(Verdict::Final(Answer { rewind: Some(expected), ..Answer::default() }))
                    }
                    _ => Ok(Verdict::NotYet),
                }
            }
            StatusCode::TOO_MANY_REQUESTS => {
                Ok(Verdict::Again(hint.unwrap_or_else(|| self.pause(attempt, Duration::from_secs(2)))))
            }
            StatusCode::REQUEST_TIMEOUT => Ok(Verdict::Again(self.pause(attempt, Duration::from_secs(1)))),
            status if status.is_server_error() => {
                Ok(Verdict::Again(hint.unwrap_or_else(|| self.pause(attempt, Duration::from_secs(2)))))
            }
            status => Err(whole_refused(&self.url, status, &json)),
        }
    }

    /// Exponential from 25 ms, never above `most`, with up to a quarter of jitter.
    fn pause(&self, attempt: u32, most: Duration) -> Duration {
        let base = Duration::from_millis(25).saturating_mul(1 << attempt.min(10)).min(most);
        let jitter = self.clock.elapsed().subsec_nanos() % 256;
        base + base / 4 * jitter / 256
    }
}

fn is_out_of_sequence(json: &Value) -> bool {
    ["type", "code", "title", "rule"].iter().any(|name| {
        json.get(name)
            .and_then(Value::as_str)
            .is_some_and(|text| text.contains("out_of_sequence") || text.contains("out-of-sequence"))
    })
}

fn retry_after(response: &reqwest::Response) -> Option<Duration> {
    let seconds: f64 = response.headers().get("retry-after")?.to_str().ok()?.trim().parse().ok()?;
    (seconds.is_finite() && seconds >= 0.0).then(|| Duration::from_secs_f64(seconds.clamp(0.02, 30.0)))
}

fn answer(lot: &Lot, json: Value, url: &str) -> Result<Answer, Failure> {
    let counts: Counts = serde_json::from_value(json)
        .map_err(|error| Failure::failed(format!("{url} does not answer as ingest does: {error}; is it the ingest address?")))?;
    let refused: Vec<Refusal> = counts
        .errors
        .into_iter()
        .map(|error| Refusal {
            line: error.line.unwrap_or(lot.first),
            code: error.rule.unwrap_or_else(|| "refused".into()),
            path: error.path.filter(|p| !p.is_empty()),
            message: error.message.unwrap_or_default(),
        })
        .collect();
    let lines: std::collections::BTreeSet<u64> = refused.iter().map(|r| r.line).collect();
    if (lines.len() as u64) < counts.rejected {
        return Err(Failure::failed(format!(
            "{url} refused {} of lines {} to {} and names {} of them; send with a smaller --batch",
            counts.rejected,
            lot.first,
            lot.last,
            lines.len()
        )));
    }
    Ok(Answer { accepted: counts.accepted, duplicates: counts.duplicates.as_u64().unwrap_or(0), refused, rewind: None })
}

fn too_large(lot: &Lot) -> Refusal {
    Refusal {
        line: lot.first,
        code: "too_large".into(),
        path: None,
        message: format!("the line has {} bytes, more than the door takes", lot.body.len()),
    }
}

fn whole_refused(url: &str, status: StatusCode, json: &Value) -> Failure {
    let detail = json.get("detail").or_else(|| json.get("title")).and_then(Value::as_str).unwrap_or("");
    let remedy = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "; set QUIKFLOW_TOKEN or QUIKFLOW_TOKEN_FILE to the process's token",
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => "; is --url the ingest address?",
        _ => "",
    };
    Failure::usage(format!("{url} answers {status}: {detail}{remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lot() -> Lot {
        Lot { previous: 3, first: 4, last: 5, body: "a\nb\n".into() }
    }

    #[test]
    fn refused_lines_come_with_their_reasons() {
        let json = serde_json::json!({
            "accepted": 1, "duplicates": 0, "rejected": 1,
            "errors": [{ "line": 5, "path": "payload.content", "rule": "max_length", "message": "too long" }],
        });
        let got = answer(&lot(), json, "u").unwrap();
        assert_eq!((got.accepted, got.refused[0].line, got.refused[0].code.as_str()), (1, 5, "max_length"));
    }

    #[test]
    fn unnamed_refusals_are_not_passed_over() {
        let json = serde_json::json!({ "accepted": 0, "rejected": 2, "errors": [{ "line": 5, "rule": "x" }] });
        assert!(answer(&lot(), json, "u").is_err());
    }

    #[test]
    fn duplicates_may_be_unknown() {
        let json = serde_json::json!({ "accepted": 2, "duplicates": "unknown" });
        assert_eq!(answer(&lot(), json, "u").unwrap().duplicates, 0);
    }

    #[test]
    fn out_of_sequence_is_recognised() {
        assert!(is_out_of_sequence(&serde_json::json!({ "type": "https://quikflow.dev/problems/out_of_sequence" })));
        assert!(!is_out_of_sequence(&serde_json::json!({ "type": "id_conflict" })));
    }
}
