//! The binary form of state: varints, little-endian numbers, length-prefixed bytes.
//!
//! Every piece begins with a format byte of its operator; a reader refuses a format that it does
//! not know, so stored state is never read as something else.

/// State that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stored state is broken at byte {at}: {what}")]
pub(crate) struct CodecError {
    /// Where in the piece.
    pub(crate) at: usize,
    /// What was wrong.
    pub(crate) what: &'static str,
}

/// Appends to a piece of state.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    /// What is written so far.
    pub(crate) bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn new(format: u8) -> Writer {
        Writer { bytes: vec![format] }
    }

    pub(crate) fn byte(&mut self, value: u8) {
        self.bytes.push(value);
    }

    /// LEB128.
    pub(crate) fn uint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push((value as u8) | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }

    /// Zigzag LEB128.
    pub(crate) fn int(&mut self, value: i64) {
        self.uint(((value << 1) ^ (value >> 63)) as u64);
    }

    pub(crate) fn long(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn wide(&mut self, value: u128) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn float(&mut self, value: f64) {
        self.long(value.to_bits());
    }

    pub(crate) fn slice(&mut self, value: &[u8]) {
        self.uint(value.len() as u64);
        self.bytes.extend_from_slice(value);
    }
}

/// Reads a piece of state from its beginning.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Checks the format byte.
    pub(crate) fn new(bytes: &'a [u8], format: u8) -> Result<Reader<'a>, CodecError> {
        match bytes.first() {
            Some(found) if *found == format => Ok(Reader { bytes, at: 1 }),
            Some(_) => Err(CodecError { at: 0, what: "it was written by another version; reset the topology" }),
            None => Err(CodecError { at: 0, what: "it is empty" }),
        }
    }

    pub(crate) fn error(&self, what: &'static str) -> CodecError {
        CodecError { at: self.at, what }
    }

    pub(crate) fn done(&self) -> bool {
        self.at >= self.bytes.len()
    }

    pub(crate) fn take(&mut self, length: usize) -> Result<&'a [u8], CodecError> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| self.error("it ends too early"))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    pub(crate) fn byte(&mut self) -> Result<u8, CodecError> {
        Ok(self.take(1)?[0])
    }

    pub(crate) fn uint(&mut self) -> Result<u64, CodecError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.error("a number has no end"))
    }

    /// A count of things of at least one byte each: never more than what is left.
    pub(crate) fn count(&mut self) -> Result<usize, CodecError> {
        let count = self.uint()?;
        match usize::try_from(count) {
            Ok(count) if count <= self.bytes.len() - self.at => Ok(count),
            _ => Err(self.error("a count is larger than what follows")),
        }
    }

    pub(crate) fn int(&mut self) -> Result<i64, CodecError> {
        let value = self.uint()?;
        Ok(((value >> 1) as i64) ^ -((value & 1) as i64))
    }

    pub(crate) fn long(&mut self) -> Result<u64, CodecError> {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(self.take(8)?);
        Ok(u64::from_le_bytes(bytes))
    }

    pub(crate) fn wide(&mut self) -> Result<u128, CodecError> {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(self.take(16)?);
        Ok(u128::from_le_bytes(bytes))
    }

    pub(crate) fn float(&mut self) -> Result<f64, CodecError> {
        Ok(f64::from_bits(self.long()?))
    }

    pub(crate) fn slice(&mut self) -> Result<&'a [u8], CodecError> {
        let length = self.count()?;
        self.take(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut writer = Writer::new(7);
        for value in [0, 1, 127, 128, u64::MAX] {
            writer.uint(value);
        }
        for value in [0, -1, 63, i64::MIN, i64::MAX] {
            writer.int(value);
        }
        writer.slice(b"abc");
        writer.wide(u128::MAX - 1);
        writer.float(-0.5);
        let mut reader = Reader::new(&writer.bytes, 7).unwrap();
        for value in [0, 1, 127, 128, u64::MAX] {
            assert_eq!(reader.uint(), Ok(value));
        }
        for value in [0, -1, 63, i64::MIN, i64::MAX] {
            assert_eq!(reader.int(), Ok(value));
        }
        assert_eq!(reader.slice(), Ok(&b"abc"[..]));
        assert_eq!(reader.wide(), Ok(u128::MAX - 1));
        assert_eq!(reader.float(), Ok(-0.5));
        assert!(reader.done());
    }

    #[test]
    fn broken_pieces_are_refused() {
        assert!(Reader::new(&[], 1).is_err());
        assert!(Reader::new(&[2], 1).is_err());
        assert!(Reader::new(&[1, 0xff, 0xff], 1).unwrap().uint().is_err());
        assert!(Reader::new(&[1, 200, 1], 1).unwrap().slice().is_err());
    }
}
