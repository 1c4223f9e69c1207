//! The form of a chain (R15), and its verification: pure.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimestampMicrosecondType};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};

/// What the step adds to a row.
pub(super) const CHAIN_COLUMNS: [(&str, DataType); 8] = [
    ("chain_topic", DataType::Utf8),
    ("chain_partition", DataType::Int64),
    ("chain_offset", DataType::Int64),
    ("chain_index", DataType::Int64),
    ("prev_hash", DataType::Utf8),
    ("hash", DataType::Utf8),
    ("salt", DataType::Utf8),
    ("digests", DataType::Utf8),
];

/// How far a chain has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The index of the next row.
    pub next: u64,
    /// The last row's hash; zeros before the first.
    pub hash: [u8; 32],
}

/// A chained row, as it is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChainRow {
    /// The source topic.
    pub topic: String,
    /// The source partition.
    pub partition: u32,
    /// The record's offset there.
    pub offset: u64,
    /// From 0, without gaps.
    pub index: u64,
    /// The hash of the row before, in hexadecimal.
    pub prev_hash: String,
    /// This row's hash, in hexadecimal.
    pub hash: String,
    /// In hexadecimal; gone where the row was erased.
    pub salt: Option<String>,
    /// A JSON object: column → digest.
    pub digests: String,
    /// The columns that are not null, as text: see [`chain_rows`]. Erased ones are absent.
    pub fields: BTreeMap<String, String>,
}

/// What is wrong with a chain, and where it is first seen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the chain of {topic}/{partition} is broken at index {index}: {what}")]
pub struct Broken {
    /// The source topic.
    pub topic: String,
    /// The source partition.
    pub partition: u32,
    /// The row's index.
    pub index: u64,
    /// What is wrong.
    pub what: String,
}

/// Chains that hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// How many rows.
    pub rows: u64,
    /// How many of them were erased (salt and values gone).
    pub erased: u64,
    /// Where each chain ends: what an anchor file is compared with.
    pub heads: BTreeMap<(String, u32), Head>,
}

/// A new row of a chain and the head behind it.
pub(super) struct Link {
    pub(super) row: ChainRow,
    pub(super) head: Head,
}

impl Link {
    pub(super) fn new(
        head: &Head,
        topic: &str,
        partition: u32,
        offset: u64,
        salt: [u8; 16],
        fields: BTreeMap<String, String>,
    ) -> Link {
        let digests: serde_json::Map<String, serde_json::Value> =
            fields.iter().map(|(name, value)| (name.clone(), hex(&digest(&salt, name, value)).into())).collect();
        let digests = serde_json::Value::Object(digests).to_string();
        let hash = row_hash(&head.hash, topic, partition, offset, head.next, &digests);
        let row = ChainRow {
            topic: topic.to_owned(),
            partition,
            offset,
            index: head.next,
            prev_hash: hex(&head.hash),
            hash: hex(&hash),
            salt: Some(hex(&salt)),
            digests,
            fields,
        };
        Link { row, head: Head { next: head.next + 1, hash } }
    }
}

fn framed(hasher: &mut Sha256, bytes: &[u8]) {
    hasher.update((bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

fn digest(salt: &[u8], name: &str, value: &str) -> [u8; 32] {
    let mut hasher = Sha256::new();
    framed(&mut hasher, salt);
    framed(&mut hasher, name.as_bytes());
    framed(&mut hasher, value.as_bytes());
    hasher.finalize().into()
}

fn row_hash(previous: &[u8; 32], topic: &str, partition: u32, offset: u64, index: u64, digests: &str) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(previous);
    framed(&mut hasher, topic.as_bytes());
    hasher.update(partition.to_le_bytes());
    hasher.update(offset.to_le_bytes());
    hasher.update(index.to_le_bytes());
    framed(&mut hasher, digests.as_bytes());
    hasher.finalize().into()
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
    digits.filter(|d| d.len() % 2 == 0).map(|d| d.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// Checks rows of any number of chains; each chain's rows come in the order of their index. `from`
/// says where chains whose beginning was trimmed start; others start at index 0.
///
/// # Errors
/// The first row that was changed, taken out, put in or moved.
pub fn verify_chain(rows: impl IntoIterator<Item = ChainRow>, from: &BTreeMap<(String, u32), Head>) -> Result<Verified, Broken> {
    let mut verified = Verified { heads: from.clone(), ..Verified::default() };
    for row in rows {
        let fail = |what: String| Broken { topic: row.topic.clone(), partition: row.partition, index: row.index, what };
        let head = verified.heads.entry((row.topic.clone(), row.partition)).or_default();
        if row.index != head.next {
            return Err(fail(format!("index {} was expected: rows are missing, doubled or out of order", head.next)));
        }
        if row.prev_hash != hex(&head.hash) {
            return Err(fail("it does not follow the row before it".to_owned()));
        }
        let hash = row_hash(&head.hash, &row.topic, row.partition, row.offset, row.index, &row.digests);
        if row.hash != hex(&hash) {
            return Err(fail("its hash does not fit its origin and digests".to_owned()));
        }
        let digests: BTreeMap<String, String> =
            serde_json::from_str(&row.digests).map_err(|_| fail("its digests are no JSON object of text".to_owned()))?;
        match row.salt.as_deref().filter(|salt| !salt.is_empty()) {
            None => {
                if let Some(name) = row.fields.keys().next() {
                    return Err(fail(format!("it was erased, yet has a value in `{name}`")));
                }
                verified.erased += 1;
            }
            Some(salt) => {
                let salt = unhex(salt).ok_or_else(|| fail("its salt is not hexadecimal".to_owned()))?;
                if let Some(name) = digests.keys().find(|name| !row.fields.contains_key(*name)) {
                    return Err(fail(format!("the value of `{name}` is missing")));
                }
                for (name, value) in &row.fields {
                    if digests.get(name) != Some(&hex(&digest(&salt, name, value))) {
                        return Err(fail(format!("the value of `{name}` was changed")));
                    }
                }
            }
        }
        *head = Head { next: row.index + 1, hash };
        verified.rows += 1;
    }
    Ok(verified)
}

/// The columns of a batch that are digested: all but the system's and the chain's own.
pub(super) fn fields(batch: &RecordBatch) -> Result<Vec<(String, ArrayRef)>, String> {
    let schema = batch.schema();
    let own = |name: &str| name.starts_with('_') || CHAIN_COLUMNS.iter().any(|(own, _)| *own == name);
    let columns = schema.fields().iter().zip(batch.columns()).filter(|(field, _)| !own(field.name()));
    columns
        .map(|(field, column)| match text(column, 0) {
            Err(()) => Err(format!("`{}` is of type {}, which a chain cannot digest", field.name(), field.data_type())),
            Ok(_) => Ok((field.name().clone(), column.clone())),
        })
        .collect()
}

/// One row of them, as text, without nulls.
pub(super) fn row(fields: &[(String, ArrayRef)], row: usize) -> BTreeMap<String, String> {
    fields.iter().filter_map(|(name, column)| Some((name.clone(), text(column, row).ok()??))).collect()
}

/// A value's one form as text: text as it is, numbers as JSON writes them, times in microseconds
/// since 1970, lists as JSON; none for null.
fn text(column: &ArrayRef, row: usize) -> Result<Option<String>, ()> {
    let value = |text: &dyn Fn() -> String| Ok((row < column.len() && column.is_valid(row)).then(text));
    match column.data_type() {
        DataType::Utf8 => value(&|| column.as_string::<i32>().value(row).to_owned()),
        DataType::Int64 => value(&|| column.as_primitive::<Int64Type>().value(row).to_string()),
        DataType::Float64 => value(&|| serde_json::Value::from(column.as_primitive::<Float64Type>().value(row)).to_string()),
        DataType::Boolean => value(&|| column.as_boolean().value(row).to_string()),
        DataType::Timestamp(..) => value(&|| column.as_primitive::<TimestampMicrosecondType>().value(row).to_string()),
        DataType::List(item) if item.data_type() == &DataType::Utf8 => value(&|| {
            let items = column.as_list::<i32>().value(row);
            let items: Vec<Option<&str>> = items.as_string::<i32>().iter().collect();
            serde_json::json!(items).to_string()
        }),
        _ => Err(()),
    }
}

/// The chained rows of a batch of the topic that a `chain` step's rows were written to.
///
/// # Errors
/// Columns of the chain that are missing or of another type.
pub fn chain_rows(batch: &RecordBatch) -> Result<Vec<ChainRow>, String> {
    let missing = |name: &str| format!("the column `{name}` of the chain is missing");
    let string = |name: &str| {
        let column = batch.column_by_name(name).and_then(|column| column.as_string_opt::<i32>());
        column.cloned().ok_or_else(|| missing(name))
    };
    let long = |name: &str| {
        let column = batch.column_by_name(name).and_then(|column| column.as_primitive_opt::<Int64Type>());
        column.cloned().ok_or_else(|| missing(name))
    };
    let (topic, prev_hash, hash) = (string("chain_topic")?, string("prev_hash")?, string("hash")?);
    let (salt, digests) = (string("salt")?, string("digests")?);
    let (partition, offset, index) = (long("chain_partition")?, long("chain_offset")?, long("chain_index")?);
    let fields = fields(batch)?;
    let number = |value: i64| u64::try_from(value).map_err(|_| "a chain's numbers are not negative".to_owned());
    let one = |at: usize| {
        Ok(ChainRow {
            topic: topic.value(at).to_owned(),
            partition: u32::try_from(partition.value(at)).map_err(|_| "a partition is out of range".to_owned())?,
            offset: number(offset.value(at))?,
            index: number(index.value(at))?,
            prev_hash: prev_hash.value(at).to_owned(),
            hash: hash.value(at).to_owned(),
            salt: salt.is_valid(at).then(|| salt.value(at).to_owned()),
            digests: digests.value(at).to_owned(),
            fields: row(&fields, at),
        })
    };
    (0..batch.num_rows()).map(one).collect()
}

/// Unpredictable salts: SHA-256 over a secret that lives in this object only and a counter. Since a
/// salt is stored with its row alone, what is lost with an uncommitted epoch is simply drawn anew.
pub(super) struct Salts {
    secret: [u8; 32],
    drawn: u64,
}

impl Salts {
    /// The secret comes from the standard library's hash keys, which are random bits of the system:
    /// four keyed hashes of two keys.
    pub(super) fn new() -> Salts {
        let mut secret = [0; 32];
        let keys = [RandomState::new(), RandomState::new()];
        for (i, part) in (0u64..).zip(secret.chunks_exact_mut(8)) {
            part.copy_from_slice(&keys[(i % 2) as usize].hash_one(i).to_le_bytes());
        }
        Salts { secret, drawn: 0 }
    }

    pub(super) fn next(&mut self) -> [u8; 16] {
        self.drawn += 1;
        let mut hasher = Sha256::new();
        hasher.update(self.secret);
        hasher.update(self.drawn.to_le_bytes());
        let mut salt = [0; 16];
        salt.copy_from_slice(&hasher.finalize()[..16]);
        salt
    }
}
