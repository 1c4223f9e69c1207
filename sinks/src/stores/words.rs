//! The words of texts as the embedded index cuts them (FTS5, unicode61), for a store that has an index of its own.
//!
//! What stands between ASCII separators is cut by itself, so a piece of ASCII letters and digits is a word as it
//! is, in lower case. Only other pieces are given to FTS5, each once a call.

use super::search::TOKENIZE;
use super::text::plain;
use rusqlite::Connection;
use std::collections::BTreeMap;

/// FTS5 cuts longer words off.
const LONGEST: usize = 32_768;

/// The words of each text: lower case, without diacritics, one space between.
pub(crate) fn words<T: AsRef<str>>(texts: &[T]) -> rusqlite::Result<Vec<String>> {
    let mut pieces = Pieces::default();
    let drafts: Vec<Draft> = texts.iter().map(|text| pieces.draft(&plain(text.as_ref()))).collect();
    let cut = pieces.cut()?;
    Ok(drafts.into_iter().map(|draft| draft.finish(&cut)).collect())
}

/// A text's words so far: between them belong those of pieces that FTS5 is to cut.
struct Draft {
    words: String,
    /// (length of the words before it, which piece).
    gaps: Vec<(usize, usize)>,
}

impl Draft {
    fn finish(self, cut: &[String]) -> String {
        if self.gaps.is_empty() {
            return self.words;
        }
        let mut whole = String::with_capacity(self.words.len() + 16 * self.gaps.len());
        let (mut rest, mut taken) = (self.words.as_str(), 0);
        let put = |words: &str, whole: &mut String| {
            let words = words.trim_matches(' ');
            if !words.is_empty() && !whole.is_empty() {
                whole.push(' ');
            }
            whole.push_str(words);
        };
        for (at, piece) in self.gaps {
            let (before, after) = rest.split_at_checked(at - taken).unwrap_or((rest, ""));
            (rest, taken) = (after, at);
            put(before, &mut whole);
            put(cut.get(piece).map_or("", String::as_str), &mut whole);
        }
        put(rest, &mut whole);
        whole
    }
}

/// Pieces that FTS5 is to cut, each once.
#[derive(Default)]
struct Pieces {
    known: BTreeMap<String, usize>,
}

impl Pieces {
    fn draft(&mut self, text: &str) -> Draft {
        let mut draft = Draft { words: String::with_capacity(text.len()), gaps: Vec::new() };
        for piece in text.split(|c: char| c.is_ascii() && !c.is_ascii_alphanumeric()).filter(|piece| !piece.is_empty()) {
            if piece.is_ascii() && piece.len() <= LONGEST {
                if !draft.words.is_empty() {
                    draft.words.push(' ');
                }
                draft.words.extend(piece.bytes().map(|b| char::from(b.to_ascii_lowercase())));
            } else {
                let next = self.known.len();
                let piece = match self.known.get(piece) {
                    Some(known) => *known,
                    None => *self.known.entry(piece.to_owned()).or_insert(next),
                };
                draft.gaps.push((draft.words.len(), piece));
            }
        }
        draft
    }

    /// The words of each piece.
    fn cut(self) -> rusqlite::Result<Vec<String>> {
        let mut texts = vec![String::new(); self.known.len()];
        for (piece, at) in self.known {
            texts[at] = piece;
        }
        if texts.is_empty() { Ok(texts) } else { by_fts(&texts) }
    }
}

/// The words of each text, as FTS5 itself cuts them.
fn by_fts(texts: &[String]) -> rusqlite::Result<Vec<String>> {
    let memory = Connection::open_in_memory()?;
    memory.execute_batch(&format!(
        "CREATE VIRTUAL TABLE h USING fts5(body, content='', {TOKENIZE});
         CREATE VIRTUAL TABLE terms USING fts5vocab(h, instance); BEGIN"
    ))?;
    let mut insert = memory.prepare("INSERT INTO h(rowid, body) VALUES(?1, ?2)")?;
    for (i, text) in texts.iter().enumerate() {
        insert.execute(rusqlite::params![i64::try_from(i).unwrap_or(i64::MAX), text])?;
    }
    // Instances come by term; sorting each text's own few here costs less than the library's sorting of all.
    let mut all: Vec<Vec<(i64, std::ops::Range<usize>)>> = vec![Vec::new(); texts.len()];
    let mut terms = String::new();
    let mut select = memory.prepare("SELECT doc, \"offset\", term FROM terms")?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        let at = usize::try_from(row.get::<_, i64>(0)?).unwrap_or(usize::MAX);
        let (offset, term) = (row.get(1)?, row.get_ref(2)?.as_str()?);
        if let Some(of_text) = all.get_mut(at) {
            if !terms.ends_with(term) {
                terms.push_str(term);
            }
            of_text.push((offset, terms.len() - term.len()..terms.len()));
        }
    }
    let joined = |mut of_text: Vec<(i64, std::ops::Range<usize>)>| {
        of_text.sort_unstable_by_key(|(offset, _)| *offset);
        let words: Vec<&str> = of_text.into_iter().map(|(_, range)| terms.get(range).unwrap_or_default()).collect();
        words.join(" ")
    };
    let words = all.into_iter().map(joined).collect();
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As the index cuts the whole text.
    fn whole(text: &str) -> String {
        by_fts(&[plain(text).into_owned()]).unwrap_or_default().remove(0)
    }

    #[test]
    fn words_are_those_of_the_index() {
        let texts = [
            "",
            "Plain words, TWICE: plain_words!",
            "Ça va? Crème brûlée, naïve & co",
            "don\u{2019}t \u{201c}stop\u{201d} don\u{2019}t",
            "e\u{301}te\u{301} \u{301}alone \u{130}stanbul Stra\u{df}e \u{41f}\u{440}\u{438}\u{432}\u{435}\u{442}",
            "<p>one<b>two</b></p>three &amp; x\u{0}y",
            "\u{1f600} only \u{1f600}signs \u{4f60}\u{597d}",
        ];
        let cut = words(&texts).unwrap_or_default();
        assert_eq!(cut.len(), texts.len());
        for (text, cut) in texts.iter().zip(&cut) {
            assert_eq!(*cut, whole(text), "{text:?}");
        }
        assert_eq!(cut[1], "plain words twice plain words");
        assert_eq!(cut[2], "ca va creme brulee naive co");
        let long = format!("a {} b", "x".repeat(LONGEST + 5));
        assert_eq!(words(&[&long]).unwrap_or_default(), [whole(&long)]);
    }

    proptest! {
        #[test]
        fn any_text_is_cut_as_by_the_index(text in "([ -~]|[\\x00-\u{17f}]|[\u{300}-\u{36f}]|.){0,60}") {
            prop_assert_eq!(words(&[&text]).unwrap_or_default(), [whole(&text)]);
        }
    }
}
