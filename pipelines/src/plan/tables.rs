//! How shares of the work read the tables of joins (R19): beside the stream, where both lie by the same key; else each
//! share reads the table whole.
//!
//! A table read whole is there for any record, so its join can be divided however the stream is. Its rows are left
//! out where no record of the share can ask for them.

use super::keys::Keys;
use crate::expr::StreamSchema;
use arrow::datatypes::DataType;
use std::collections::BTreeSet;

/// A table that every share of a topology reads whole, since what its rows are joined with lies by another key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whole {
    /// Which rows a share keeps; none: all of them.
    pub kept: Option<Kept>,
}

/// The rows of a table that a share keeps: those that its own records of the stream can ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The column whose text is the key of the stream's records.
    pub column: String,
    /// How many partitions the stream has.
    pub partitions: u32,
}

/// How a join reads a table.
pub(super) enum TableJoin {
    /// What a share needs lies in its own partitions of the table.
    Beside,
    /// All of it, or those rows.
    Whole(Option<Kept>),
}

/// Whether every share reads a table whole, by the joins that do.
pub(super) fn whole(joins: &[TableJoin]) -> Option<Whole> {
    let rows = |join: &TableJoin| match join {
        TableJoin::Beside => None,
        TableJoin::Whole(kept) => kept.clone(),
    };
    let first = joins.first().and_then(rows);
    let any = joins.iter().any(|join| matches!(join, TableJoin::Whole(_)));
    any.then(|| Whole { kept: first.filter(|first| joins.iter().all(|join| rows(join).as_ref() == Some(first))) })
}

/// Which rows of a table a share needs, where the stream's records lie by the text of the column that they are joined by.
/// `keys` is what they lie by, in so many `partitions`, by topic.
pub(super) fn kept(
    on: &BTreeSet<String>,
    table_on: &BTreeSet<String>,
    keys: &Keys,
    partitions: &[u32],
    table: &StreamSchema,
) -> Option<Kept> {
    let [first, others @ ..] = partitions else { return None };
    let column = table_on.first()?;
    let is_text = table.arrow.field_with_name(column).is_ok_and(|field| *field.data_type() == DataType::Utf8);
    let lies = keys.gather(on, false) && others.iter().all(|other| other == first);
    (lies && is_text).then(|| Kept { column: column.clone(), partitions: *first })
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::datatypes::{Field, Schema};
    use quikflow_topics::catalogue::TopicKind;
    use std::sync::Arc;

    #[test]
    fn a_table_is_whole_where_one_join_needs_it_and_rows_are_left_out_where_all_agree() {
        let of = |column: &str| Some(Kept { column: column.to_owned(), partitions: 6 });
        let kept_of = |joins: &[TableJoin]| whole(joins).map(|whole| whole.kept);
        assert_eq!(kept_of(&[]), None);
        assert_eq!(kept_of(&[TableJoin::Beside, TableJoin::Beside]), None);
        assert_eq!(kept_of(&[TableJoin::Whole(of("a"))]), Some(of("a")));
        assert_eq!(kept_of(&[TableJoin::Whole(of("a")), TableJoin::Whole(of("a"))]), Some(of("a")));
        assert_eq!(kept_of(&[TableJoin::Whole(of("a")), TableJoin::Whole(of("b"))]), Some(None));
        assert_eq!(kept_of(&[TableJoin::Whole(of("a")), TableJoin::Beside]), Some(None));
        assert_eq!(kept_of(&[TableJoin::Beside, TableJoin::Whole(of("a"))]), Some(None));
        assert_eq!(kept_of(&[TableJoin::Whole(None), TableJoin::Whole(of("a"))]), Some(None));
    }

    #[test]
    fn rows_are_left_out_by_the_text_that_the_stream_lies_by_alone() {
        let fields = [("b", DataType::Utf8), ("n", DataType::Int64)].map(|(name, ty)| Field::new(name, ty, true));
        let table = StreamSchema { arrow: Arc::new(Schema::new(fields.to_vec())), kind: TopicKind::Events };
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<String>>();
        let kept = |on: &[&str], table_on: &[&str], text_of: &[&str], partitions: &[u32]| {
            let keys = Keys { determined_by: vec![set(&["a"]), set(&[])], text_of: set(text_of) };
            kept(&set(on), &set(table_on), &keys, partitions, &table)
        };
        let by_b = Some(Kept { column: "b".to_owned(), partitions: 6 });
        assert_eq!(kept(&["a"], &["b"], &["_key", "a"], &[6]), by_b);
        assert_eq!(kept(&["a"], &["b"], &["a"], &[6, 6]), by_b);
        assert_eq!(kept(&["a"], &["b"], &["a"], &[6, 4]), None, "the stream's topics are divided otherwise");
        assert_eq!(kept(&["a"], &["b"], &["_key"], &[6]), None, "the key is made of what is joined by, and not its text");
        assert_eq!(kept(&[], &["b"], &["a"], &[6]), None, "joined by an expression");
        assert_eq!(kept(&["a"], &["n"], &["a"], &[6]), None, "a number has no one text");
    }
}
