//! A chunk's header: what is in it and where.

use super::bytes::Input;
use super::{Damaged, FORMAT_VERSION, checksum};

/// One partition's run of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The partition.
    pub partition: u32,
    /// Offset of its first row.
    pub first: u64,
    /// Offset after its last row.
    pub next: u64,
    /// Number of rows; less than `next - first` where a compaction left gaps.
    pub rows: u32,
    /// Largest event time, µs.
    pub max_event_time: i64,
    /// Largest arrival time, µs.
    pub max_arrival_time: i64,
}

/// Where a column is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// The column's number in the topic's layout.
    pub id: u16,
    /// Its place in the chunk's body; none: it has a row of its own.
    pub at: Option<u32>,
    /// Its length in bytes.
    pub len: u32,
    /// Checksum of its bytes.
    pub checksum: u64,
}

/// The header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// How many columns the topic had when this was written: a column numbered so or higher was
    /// declared later and is read from `_rest`.
    pub known: u16,
    /// Rows of all parts.
    pub rows: u32,
    /// Arrival time of all rows, where there is no column of them; else the smallest.
    pub arrival: i64,
    /// By partition, ascending.
    pub parts: Vec<Part>,
    /// The next offset of every partition of the topic after this chunk.
    pub ends: Vec<u64>,
    /// Columns that are not all null, by number.
    pub columns: Vec<Column>,
}

impl Header {
    /// The column numbered `id`, if it is stored.
    pub fn column(&self, id: u16) -> Option<&Column> {
        self.columns.binary_search_by_key(&id, |c| c.id).ok().map(|i| &self.columns[i])
    }

    /// The largest arrival time.
    pub fn max_arrival(&self) -> i64 {
        self.parts.iter().map(|p| p.max_arrival_time).max().unwrap_or(self.arrival)
    }

    /// To bytes, checksum last.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.parts.len() * 44 + self.ends.len() * 8 + self.columns.len() * 18);
        out.push(FORMAT_VERSION);
        out.extend_from_slice(&self.known.to_le_bytes());
        out.extend_from_slice(&self.rows.to_le_bytes());
        out.extend_from_slice(&self.arrival.to_le_bytes());
        out.extend_from_slice(&(self.parts.len() as u32).to_le_bytes());
        for part in &self.parts {
            out.extend_from_slice(&part.partition.to_le_bytes());
            out.extend_from_slice(&part.first.to_le_bytes());
            out.extend_from_slice(&part.next.to_le_bytes());
            out.extend_from_slice(&part.rows.to_le_bytes());
            out.extend_from_slice(&part.max_event_time.to_le_bytes());
            out.extend_from_slice(&part.max_arrival_time.to_le_bytes());
        }
        out.extend_from_slice(&(self.ends.len() as u32).to_le_bytes());
        for end in &self.ends {
            out.extend_from_slice(&end.to_le_bytes());
        }
        out.extend_from_slice(&(self.columns.len() as u32).to_le_bytes());
        for column in &self.columns {
            out.extend_from_slice(&column.id.to_le_bytes());
            out.extend_from_slice(&column.at.unwrap_or(u32::MAX).to_le_bytes());
            out.extend_from_slice(&column.len.to_le_bytes());
            out.extend_from_slice(&column.checksum.to_le_bytes());
        }
        let sum = checksum(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        out
    }

    /// From bytes.
    ///
    /// # Errors
    /// [`Damaged`] when the checksum is wrong or the version is another.
    pub fn decode(bytes: &[u8]) -> Result<Header, Damaged> {
        let at = bytes.len().checked_sub(8).ok_or_else(|| Damaged::new("a header too short"))?;
        let (body, sum) = bytes.split_at(at);
        if checksum(body) != Input::new(sum).u64()? {
            return Err(Damaged::new("the header does not match its checksum"));
        }
        let mut input = Input::new(body);
        let version = input.u8()?;
        if version != FORMAT_VERSION {
            return Err(Damaged(format!("format version {version} is not {FORMAT_VERSION}, the one this program reads")));
        }
        let (known, rows, arrival) = (input.u16()?, input.u32()?, input.i64()?);
        let mut parts = Vec::new();
        for _ in 0..input.u32()? {
            parts.push(Part {
                partition: input.u32()?,
                first: input.u64()?,
                next: input.u64()?,
                rows: input.u32()?,
                max_event_time: input.i64()?,
                max_arrival_time: input.i64()?,
            });
        }
        let mut ends = Vec::new();
        for _ in 0..input.u32()? {
            ends.push(input.u64()?);
        }
        let mut columns = Vec::new();
        for _ in 0..input.u32()? {
            let (id, at) = (input.u16()?, input.u32()?);
            columns.push(Column { id, at: (at != u32::MAX).then_some(at), len: input.u32()?, checksum: input.u64()? });
        }
        let header = Header { known, rows, arrival, parts, ends, columns };
        let sum: u64 = header.parts.iter().map(|p| u64::from(p.rows)).sum();
        if sum != u64::from(rows) || input.left() != 0 {
            return Err(Damaged::new("the header's parts do not add up"));
        }
        Ok(header)
    }
}
