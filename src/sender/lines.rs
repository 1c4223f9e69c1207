//! Reads a file of lines (plain, gzip or zstd) and cuts it into lots, without looking into the lines.

use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A line longer than this is refused here: 4 MiB.
pub(crate) const MAX_LINE: usize = 4 << 20;
/// A lot is cut at this many bytes even where it has fewer lines than `--batch`: 4 MiB.
const MAX_LOT: usize = 4 << 20;
/// How much of an overlong line is kept for the refused file.
const KEPT_OF_LONG: usize = 4 << 10;

/// Lines that go in one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lot {
    /// The line that ends the lot before this one; 0 at the start.
    pub(crate) previous: u64,
    /// Number of the first line in `body`, from 1.
    pub(crate) first: u64,
    /// Number of the last line in `body`.
    pub(crate) last: u64,
    /// The lines as they stand in the file, each ended by a newline.
    pub(crate) body: Bytes,
}

impl Lot {
    /// How many lines.
    pub(crate) fn lines(&self) -> u64 {
        self.last + 1 - self.first
    }

    /// The line with this number, without its newline.
    pub(crate) fn line(&self, number: u64) -> &[u8] {
        let Some(at) = number.checked_sub(self.first).and_then(|at| usize::try_from(at).ok()) else { return &[] };
        self.body.split(|&b| b == b'\n').nth(at).unwrap_or(&[])
    }

    /// Two halves, in order; `None` for a single line.
    pub(crate) fn halves(&self) -> Option<(Lot, Lot)> {
        let half = self.lines() / 2;
        if half == 0 {
            return None;
        }
        let mut ends = self.body.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(at, _)| at + 1);
        let cut = ends.nth(usize::try_from(half).ok()? - 1)?;
        let middle = self.first + half - 1;
        Some((
            Lot { previous: self.previous, first: self.first, last: middle, body: self.body.slice(..cut) },
            Lot { previous: middle, first: middle + 1, last: self.last, body: self.body.slice(cut..) },
        ))
    }
}

/// What the reader yields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Lines to send.
    Lot(Lot),
    /// A line that is too long to send: number, length in bytes, how it begins.
    TooLong(u64, u64, Vec<u8>),
}

/// Counts the bytes read through it, for the progress bar.
struct Counted<R>(R, Arc<AtomicU64>);

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(buffer)?;
        self.1.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// Opens what `input` holds: its first bytes say whether it is gzip, zstd or plain. `counted` moves
/// with the bytes taken from `input`.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn open(input: Box<dyn Read + Send>, counted: Arc<AtomicU64>) -> io::Result<Box<dyn BufRead + Send>> {
    let mut raw = BufReader::with_capacity(256 << 10, Counted(input, counted));
    let begins = raw.fill_buf()?;
    Ok(if begins.starts_with(&[0x1f, 0x8b]) {
        Box::new(BufReader::with_capacity(256 << 10, MultiGzDecoder::new(raw)))
    } else if begins.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Box::new(BufReader::with_capacity(256 << 10, zstd::Decoder::with_buffer(raw)?))
    } else {
        Box::new(raw)
    })
}

/// Cuts lines into lots of at most `batch` lines.
pub(crate) struct Lots {
    input: Box<dyn BufRead + Send>,
    batch: u64,
    /// Lines read so far.
    line: u64,
    /// The last line of the lot before.
    previous: u64,
    queued: Option<Piece>,
    failed: Option<io::Error>,
    ended: bool,
}

enum Line {
    Whole,
    Long(u64, Vec<u8>),
    End,
}

impl Lots {
    /// Lots of `input` after line `after`: lines up to it are read and left out.
    ///
    /// # Errors
    /// When it cannot be read, or is shorter.
    pub(crate) fn new(input: Box<dyn BufRead + Send>, batch: u64, after: u64) -> io::Result<Lots> {
        let mut lots = Lots { input, batch: batch.max(1), line: 0, previous: after, queued: None, failed: None, ended: false };
        let mut nothing = Vec::new();
        while lots.line < after {
            nothing.clear();
            if matches!(lots.read_line(&mut nothing)?, Line::End) {
                let what = format!("it has {} lines, an interrupted run had come to line {after}", lots.line);
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
            }
            lots.line += 1;
        }
        Ok(lots)
    }

    /// Appends the next line to `body` with a newline.
    fn read_line(&mut self, body: &mut Vec<u8>) -> io::Result<Line> {
        let start = body.len();
        let mut skipped: u64 = 0;
        let mut kept = Vec::new();
        loop {
            let available = match self.input.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if available.is_empty() {
                if skipped > 0 {
                    return Ok(Line::Long(skipped, kept));
                }
                if body.len() == start {
                    return Ok(Line::End);
                }
                body.push(b'\n');
                return Ok(Line::Whole);
            }
            let newline = memchr_newline(available);
            let taken = newline.unwrap_or(available.len());
            if skipped > 0 {
                skipped += taken as u64;
            } else if body.len() - start + taken > MAX_LINE {
                // Too long: keep how it begins, count the rest without holding it.
                let missing = KEPT_OF_LONG.saturating_sub(body.len() - start).min(taken);
                body.extend_from_slice(&available[..missing]);
                skipped = (body.len() - start + taken - missing) as u64;
                kept = body.split_off(start);
                kept.truncate(KEPT_OF_LONG);
            } else {
                body.extend_from_slice(&available[..taken]);
            }
            let consumed = taken + usize::from(newline.is_some());
            self.input.consume(consumed);
            if newline.is_some() {
                if skipped > 0 {
                    return Ok(Line::Long(skipped, kept));
                }
                body.push(b'\n');
                return Ok(Line::Whole);
            }
        }
    }

    /// The next piece, in the order of the file; `None` at its end.
    ///
    /// # Errors
    /// When it cannot be read; the lines before have been yielded.
    pub(crate) fn next(&mut self) -> io::Result<Option<Piece>> {
        if let Some(piece) = self.queued.take() {
            return Ok(Some(piece));
        }
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let mut body = Vec::new();
        let first = self.line + 1;
        while !self.ended && body.len() < MAX_LOT && self.line + 1 - first < self.batch {
            match self.read_line(&mut body) {
                Ok(Line::Whole) => self.line += 1,
                Ok(Line::Long(length, begins)) => {
                    let last = self.line;
                    self.line += 1;
                    let long = Piece::TooLong(self.line, length, begins);
                    if last < first {
                        return Ok(Some(long));
                    }
                    self.queued = Some(long);
                    return Ok(Some(self.lot(first, last, body)));
                }
                Ok(Line::End) => self.ended = true,
                Err(error) if self.line < first => return Err(error),
                // The lines read so far go out first.
                Err(error) => {
                    self.failed = Some(error);
                    self.ended = true;
                }
            }
        }
        if self.line < first {
            return Ok(None);
        }
        let last = self.line;
        Ok(Some(self.lot(first, last, body)))
    }

    fn lot(&mut self, first: u64, last: u64, mut body: Vec<u8>) -> Piece {
        // An error in the midst of a line may have left a part of it behind the last newline.
        let end = body.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
        body.truncate(end);
        let lot = Lot { previous: self.previous, first, last, body: body.into() };
        self.previous = last;
        Piece::Lot(lot)
    }
}

fn memchr_newline(bytes: &[u8]) -> Option<usize> {
    // The standard library's search for one byte in `BufRead::read_until` is not public; splitting is as quick.
    bytes.iter().position(|&b| b == b'\n')
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn lots(bytes: &[u8], batch: u64, after: u64) -> Vec<Piece> {
        let input = open(Box::new(std::io::Cursor::new(bytes.to_vec())), Arc::default()).unwrap();
        let mut lots = Lots::new(input, batch, after).unwrap();
        std::iter::from_fn(|| lots.next().unwrap()).collect()
    }

    fn lot(previous: u64, first: u64, last: u64, body: &str) -> Piece {
        Piece::Lot(Lot { previous, first, last, body: body.to_owned().into() })
    }

    #[test]
    fn lines_are_numbered_from_one_and_the_last_needs_no_newline() {
        let want = vec![lot(0, 1, 2, "a\n\n"), lot(2, 3, 3, "c\n")];
        assert_eq!(lots(b"a\n\nc", 2, 0), want);
        assert_eq!(lots(b"a\n\nc\n", 2, 0), want);
        assert_eq!(lots(b"", 2, 0), vec![]);
    }

    #[test]
    fn compressed_input_is_recognised_by_its_first_bytes() {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(b"a\nb\n").unwrap();
        assert_eq!(lots(&gz.finish().unwrap(), 9, 0), vec![lot(0, 1, 2, "a\nb\n")]);
        let zst = zstd::encode_all(&b"a\nb\n"[..], 1).unwrap();
        assert_eq!(lots(&zst, 9, 0), vec![lot(0, 1, 2, "a\nb\n")]);
    }

    #[test]
    fn a_resume_with_another_batch_starts_behind_the_accepted_line() {
        assert_eq!(lots(b"a\nb\nc\nd\n", 3, 2), vec![lot(2, 3, 4, "c\nd\n")]);
        let input = open(Box::new(&b"a\n"[..]), Arc::default()).unwrap();
        assert!(Lots::new(input, 3, 2).is_err());
    }

    #[test]
    fn an_overlong_line_is_set_aside_and_the_chain_of_lots_has_a_gap() {
        let mut bytes = b"a\n".to_vec();
        bytes.extend(std::iter::repeat_n(b'x', MAX_LINE + 1));
        bytes.extend(b"\nc\n");
        let pieces = lots(&bytes, 10, 0);
        assert_eq!(pieces[0], lot(0, 1, 1, "a\n"));
        let Piece::TooLong(2, length, begins) = &pieces[1] else { panic!("{:?}", pieces.len()) };
        assert_eq!((*length, begins.len()), (MAX_LINE as u64 + 1, KEPT_OF_LONG));
        assert_eq!(pieces[2], lot(1, 3, 3, "c\n"));
    }

    #[test]
    fn a_lot_halves_and_finds_its_lines() {
        let Piece::Lot(whole) = lot(4, 5, 7, "e\nf\ng\n") else { panic!() };
        assert_eq!(whole.line(6), b"f");
        let (one, two) = whole.halves().unwrap();
        assert_eq!((Piece::Lot(one.clone()), Piece::Lot(two)), (lot(4, 5, 5, "e\n"), lot(5, 6, 7, "f\ng\n")));
        assert_eq!(one.halves(), None);
    }

    #[test]
    fn a_damaged_archive_yields_what_came_before_the_damage() {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
        gz.write_all(b"a\nb\n").unwrap();
        let mut bytes = gz.finish().unwrap();
        bytes.truncate(bytes.len() - 9);
        let input = open(Box::new(std::io::Cursor::new(bytes)), Arc::default()).unwrap();
        let mut lots = Lots::new(input, 9, 0).unwrap();
        let first = lots.next();
        assert!(first.is_err() || lots.next().is_err());
    }
}
