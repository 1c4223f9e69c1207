//! Little-endian numbers and compressed buffers, read with bounds checks.

use super::Damaged;

/// Reads from stored bytes; every method fails at the end instead of panicking.
#[derive(Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// Reads `bytes` from their start.
    pub fn new(bytes: &'a [u8]) -> Input<'a> {
        Input(bytes)
    }

    /// The next `n` bytes.
    ///
    /// # Errors
    /// [`Damaged`] when there are fewer.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], Damaged> {
        let (head, tail) =
            self.0.split_at_checked(n).ok_or_else(|| Damaged(format!("{n} bytes wanted, {} left", self.0.len())))?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Damaged> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// One byte.
    ///
    /// # Errors
    /// [`Damaged`] at the end.
    pub fn u8(&mut self) -> Result<u8, Damaged> {
        Ok(self.array::<1>()?[0])
    }

    /// Two bytes.
    ///
    /// # Errors
    /// [`Damaged`] at the end.
    pub fn u16(&mut self) -> Result<u16, Damaged> {
        self.array().map(u16::from_le_bytes)
    }

    /// Four bytes.
    ///
    /// # Errors
    /// [`Damaged`] at the end.
    pub fn u32(&mut self) -> Result<u32, Damaged> {
        self.array().map(u32::from_le_bytes)
    }

    /// Eight bytes.
    ///
    /// # Errors
    /// [`Damaged`] at the end.
    pub fn u64(&mut self) -> Result<u64, Damaged> {
        self.array().map(u64::from_le_bytes)
    }

    /// Eight bytes, signed.
    ///
    /// # Errors
    /// [`Damaged`] at the end.
    pub fn i64(&mut self) -> Result<i64, Damaged> {
        self.array().map(i64::from_le_bytes)
    }

    /// How many bytes are left.
    pub fn left(&self) -> usize {
        self.0.len()
    }

    /// A buffer written by [`put_buffer`], which must hold exactly `len` bytes.
    ///
    /// # Errors
    /// [`Damaged`] when it does not.
    pub fn buffer(&mut self, len: usize) -> Result<Vec<u8>, Damaged> {
        let codec = self.u8()?;
        let raw = self.u32()? as usize;
        let stored = self.u32()? as usize;
        let bytes = self.take(stored)?;
        if raw != len {
            return Err(Damaged(format!("a buffer of {raw} bytes where {len} were expected")));
        }
        match codec {
            RAW if raw == stored => Ok(bytes.to_vec()),
            // LZ4 never shrinks below 1/255, so a larger claim is a lie and nothing is allocated.
            LZ4 if raw / 256 <= stored => {
                let out = lz4_flex::block::decompress(bytes, raw).map_err(|e| Damaged(format!("lz4: {e}")))?;
                if out.len() == raw { Ok(out) } else { Err(Damaged::new("lz4: too short")) }
            }
            _ => Err(Damaged(format!("a buffer of unknown form {codec}"))),
        }
    }

    /// The same where the length is not known beforehand.
    ///
    /// # Errors
    /// [`Damaged`] when it does not decode.
    pub fn buffer_of_any_length(&mut self) -> Result<Vec<u8>, Damaged> {
        let raw = Input(self.0.get(1..).unwrap_or_default()).u32()?;
        self.buffer(raw as usize)
    }
}

const RAW: u8 = 0;
const LZ4: u8 = 1;

/// Below this length a buffer is not worth compressing.
const SMALL: usize = 48;

/// Appends `raw`, compressed where that is smaller.
pub fn put_buffer(out: &mut Vec<u8>, raw: &[u8]) {
    let start = out.len();
    out.push(LZ4);
    out.extend_from_slice(&(raw.len() as u32).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    let body = out.len();
    if raw.len() >= SMALL {
        out.resize(body + lz4_flex::block::get_maximum_output_size(raw.len()), 0);
        let written = lz4_flex::block::compress_into(raw, &mut out[body..]).unwrap_or(usize::MAX);
        if written < raw.len() - raw.len() / 16 {
            out.truncate(body + written);
            out[body - 4..body].copy_from_slice(&(written as u32).to_le_bytes());
            return;
        }
        out.truncate(body);
    }
    out[start] = RAW;
    out[body - 4..body].copy_from_slice(&(raw.len() as u32).to_le_bytes());
    out.extend_from_slice(raw);
}
