//! Messages are found through the search API by a phrase of theirs.
//!
//! The phrase is a piece of the message as it was sent, outside of tags. Many messages of bots differ
//! in a number only; so of a message's pieces that one is taken which the fewest messages hold, as
//! this file counts them, from the raw contents.

use super::Server;
use super::random::Random;
use futures::StreamExt;
use hashbrown::HashMap;
use serde_json::Value;

/// A message: (channelId, messageId), content.
pub type Sent = (String, String, String);

/// Words of a phrase, the most first.
const LENGTHS: [usize; 4] = [8, 5, 3, 2];
/// The longest phrase, in bytes.
const LONGEST: usize = 200;
/// Requests under way at a time.
const AT_ONCE: usize = 8;

/// Words of a text that stand one after the other, with nothing but punctuation between: each with
/// its place in the text and its hash.
type Run = Vec<(usize, usize, u64)>;

/// The runs of a text. Tags, entities, quotes and letters beyond ASCII end a run, and a word that
/// touches one is left out: how the index sees it is not this file's to know.
fn runs(text: &str) -> Vec<Run> {
    let bytes = text.as_bytes();
    let breaks = |byte: u8| !byte.is_ascii() || byte.is_ascii_control() || b"<>&;\"".contains(&byte);
    let (mut runs, mut run, mut at) = (Vec::new(), Run::new(), 0);
    while at < bytes.len() {
        if breaks(bytes[at]) {
            runs.push(std::mem::take(&mut run));
            at = match bytes[at] {
                b'<' => bytes[at..].iter().position(|b| *b == b'>').map_or(bytes.len(), |end| at + end + 1),
                _ => at + 1,
            };
            continue;
        }
        let length = bytes[at..].iter().position(|b| !b.is_ascii_alphanumeric()).unwrap_or(bytes.len() - at);
        if length == 0 {
            at += 1;
            continue;
        }
        let end = at + length;
        let touches = (at > 0 && breaks(bytes[at - 1])) || bytes.get(end).is_some_and(|b| breaks(*b));
        if touches {
            runs.push(std::mem::take(&mut run));
        } else {
            let hash = bytes[at..end].iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte.to_ascii_lowercase())).wrapping_mul(0x0100_0000_01b3)
            });
            run.push((at, end, hash));
        }
        at = end;
    }
    runs.push(run);
    runs
}

/// Every phrase of so many words: its place, and the hash of its words.
fn phrases(run: &Run, words: usize) -> impl Iterator<Item = (usize, usize, u64)> + '_ {
    run.windows(words).map(move |window| {
        let hash =
            window.iter().fold(words as u64, |hash, word| (hash ^ word.2).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23));
        (window[0].0, window[words - 1].1, hash)
    })
}

/// A message's phrases, of the most words that one of its runs has.
fn candidates(content: &str) -> Vec<(usize, usize, u64)> {
    let runs = runs(content);
    let of = |words: usize| -> Vec<_> {
        runs.iter().flat_map(|run| phrases(run, words)).filter(|(from, to, _)| to - from <= LONGEST).collect()
    };
    LENGTHS.iter().map(|words| of(*words)).find(|found| !found.is_empty()).unwrap_or_default()
}

/// So many messages drawn by seed, each with the phrase of it that the fewest messages hold.
fn drawn(sent: &[Sent], count: usize, seed: u64) -> Vec<(&Sent, &str)> {
    let mut random = Random(seed);
    let mut drawn = Vec::new();
    for _ in 0..count * 20 {
        let message = &sent[random.below(sent.len() as u64) as usize];
        let phrases = candidates(&message.2);
        if !phrases.is_empty() && drawn.len() < count {
            drawn.push((message, phrases));
        }
    }
    assert_eq!(drawn.len(), count, "too few messages have a phrase");
    let mut holders: HashMap<u64, u32> = drawn.iter().flat_map(|(_, phrases)| phrases.iter().map(|p| (p.2, 0))).collect();
    for (_, _, content) in sent {
        for run in runs(content) {
            for words in LENGTHS {
                for (_, _, hash) in phrases(&run, words) {
                    if let Some(holders) = holders.get_mut(&hash) {
                        *holders += 1;
                    }
                }
            }
        }
    }
    let rarest = |(message, phrases): (&'_ Sent, Vec<(usize, usize, u64)>)| {
        let best = phrases.iter().min_by_key(|p| holders[&p.2]).copied();
        best.map(|(from, to, _)| (from, to)).unwrap_or((0, message.2.len()))
    };
    drawn.into_iter().map(|(message, phrases)| (message, rarest((message, phrases)))).map(|(m, (a, b))| (m, &m.2[a..b])).collect()
}

/// 1,000 messages drawn by seed are found by a phrase of theirs.
pub async fn are_found(server: &Server, sent: &[Sent], seed: u64) {
    println!("seed {seed}");
    let client = super::client();
    let looks = drawn(sent, 1_000, seed).into_iter().map(|((channel, id, _), phrase)| {
        let client = client.clone();
        async move { (!found(&client, server, (channel, id), phrase).await).then(|| format!("{id} of {channel} by {phrase:?}")) }
    });
    let missed: Vec<String> = futures::stream::iter(looks).buffer_unordered(AT_ONCE).filter_map(|m| async { m }).collect().await;
    assert!(
        missed.is_empty(),
        "{} of 1,000 messages are not found by a phrase of theirs: {:#?}",
        missed.len(),
        &missed[..missed.len().min(10)]
    );
}

/// Whether a message is among the answers, page by page.
async fn found(client: &reqwest::Client, server: &Server, (channel, id): (&str, &str), phrase: &str) -> bool {
    let (url, quoted) = (format!("{}/api/v1/search", server.query), format!("\"{phrase}\""));
    let mut cursor: Option<String> = None;
    loop {
        let mut query = vec![("q", quoted.as_str()), ("channelId", channel), ("limit", "100")];
        if let Some(cursor) = &cursor {
            query.push(("cursor", cursor));
        }
        let answer: Value = client.get(&url).query(&query).send().await.unwrap().json().await.unwrap();
        let items = answer["items"].as_array().unwrap_or_else(|| panic!("{answer}"));
        if items.iter().any(|item| item["messageId"] == id && item["channelId"] == channel) {
            return true;
        }
        match answer["cursor"].as_str() {
            Some(next) => cursor = Some(next.to_owned()),
            None => return false,
        }
    }
}
