//! Messages are found through the search API by a phrase of theirs.
//!
//! The phrase is a piece of the message as it was sent, outside of tags. Many messages of bots differ
//! in a number only; so of a message's pieces one is taken that few messages hold, as this file counts
//! them, from the raw contents.

use super::Server;
use super::random::Random;
use futures::StreamExt;
use hashbrown::HashMap;
use serde_json::Value;
use std::ops::Range;

/// A message: (channelId, messageId), content.
pub type Sent = (String, String, String);

/// Words of a phrase.
const LENGTHS: [usize; 3] = [2, 3, 5];
/// A word that no more messages hold is rare.
const RARE: u32 = 200;
/// A phrase that more messages hold tells none of them apart: bots write the same line thousands of times.
const COMMON: u32 = 300;
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

/// Words of a text in a row.
struct Phrase {
    place: Range<usize>,
    hash: u64,
    words: Vec<u64>,
}

/// Every phrase of so many words.
fn phrases(run: &Run, words: usize) -> impl Iterator<Item = Phrase> + '_ {
    run.windows(words).map(move |window| {
        let words = window.iter().map(|word| word.2).collect();
        Phrase { place: window[0].0..window[window.len() - 1].1, hash: of_words(window), words }
    })
}

/// The hash of words in a row.
fn of_words(window: &[(usize, usize, u64)]) -> u64 {
    let mix = |hash: u64, word: u64| (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
    window.iter().fold(window.len() as u64, |hash, word| mix(hash, word.2))
}

/// A message's phrases.
fn candidates(content: &str) -> Vec<Phrase> {
    let all = runs(content);
    let phrases = all.iter().flat_map(|run| LENGTHS.iter().flat_map(move |words| phrases(run, *words)));
    phrases.filter(|phrase| phrase.place.len() <= LONGEST).collect()
}

/// So many messages drawn by seed, each with a phrase of it: one around a rare word if it has one,
/// else the one that the fewest messages hold. Messages without any that tells them apart are left out.
fn drawn(sent: &[Sent], count: usize, seed: u64) -> Vec<(&Sent, &str)> {
    let mut random = Random(seed);
    let mut drawn: Vec<(&Sent, Vec<Phrase>)> = Vec::new();
    // Three of four have such a phrase.
    while drawn.len() < count + count / 2 {
        let message = &sent[random.below(sent.len() as u64) as usize];
        let phrases = candidates(&message.2);
        if !phrases.is_empty() {
            drawn.push((message, phrases));
        }
    }
    let mut holders: HashMap<u64, u32> = HashMap::new();
    for phrase in drawn.iter().flat_map(|(_, phrases)| phrases) {
        holders.insert(phrase.hash, 0);
        holders.extend(phrase.words.iter().map(|word| (*word, 0)));
    }
    for (_, _, content) in sent {
        for run in runs(content) {
            let hashes = LENGTHS.iter().flat_map(|words| run.windows(*words).map(of_words));
            for hash in hashes.chain(run.iter().map(|word| word.2)) {
                if let Some(holders) = holders.get_mut(&hash) {
                    *holders += 1;
                }
            }
        }
    }
    let cost = |phrase: &Phrase| {
        let rarest = phrase.words.iter().map(|word| holders[word]).min().unwrap_or(0);
        if rarest <= RARE { (0, rarest) } else { (1, holders[&phrase.hash]) }
    };
    let drawn: Vec<(&Sent, &str)> = drawn
        .into_iter()
        .filter_map(|(message, phrases)| {
            let best = phrases.iter().min_by_key(|phrase| cost(phrase)).filter(|best| cost(best).1 <= COMMON)?;
            message.2.get(best.place.clone()).map(|phrase| (message, phrase))
        })
        .take(count)
        .collect();
    assert_eq!(drawn.len(), count, "too few messages have a phrase that tells them apart");
    drawn
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
