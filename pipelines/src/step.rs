//! What a kind of step is, and the registry of them all.
//!
//! A new kind is one file in `steps/` and one line in [`crate::steps::KINDS`]. From the registry
//! come the parser, "unknown step x, available: …", `quikflow schema`, the reference and `explain`.

use crate::expr::{Expr, StreamSchema};
use crate::operator::Operator;
use quikflow_topics::catalogue::Catalogue;
use quikflow_topics::declaration::{Node, Table};
use quikflow_topics::diagnostics::Diagnostic;
use std::collections::BTreeSet;
use std::sync::Arc;

/// A field of a kind of step.
#[derive(Clone, Copy, Debug)]
pub struct FieldDoc {
    /// As written in the file.
    pub name: &'static str,
    /// `duration`, `text`, `sql`, `sql list`, `table<sql>`, `number`, `bool`, `steps`.
    pub ty: &'static str,
    /// Must be given.
    pub required: bool,
    /// One sentence.
    pub doc: &'static str,
}

/// A kind of step: `filter`, `window`, ….
///
/// Two conventions with the parser: a step whose value is a table with a text field `table` reads
/// that topic as its input 1; of a `branch`, output port i is arm i, and the parser itself reads
/// `steps` and `to` of each arm.
///
/// A topology is planned twice: first over all columns of its sources, to learn what its steps
/// read, then over those alone. So `plan` has no side effects, and a fingerprint depends on texts
/// and types, never on a column's place.
pub struct StepKind {
    /// The field that names it in a step's table.
    pub name: &'static str,
    /// One line.
    pub summary: &'static str,
    /// Paragraphs, with the guarantee: what is exact, what is kept, what can be late.
    pub doc: &'static str,
    /// The fields of a step of this kind, the naming one first.
    pub fields: &'static [FieldDoc],
    /// A runnable `[[topology]]` with a `[[test]]`, in TOML (events are those of the example catalogue in `tests/`).
    pub example: &'static str,
    /// Whether a step of this kind owns state and so needs a `name` (R12).
    pub stateful: bool,
    /// Reads a step of this kind.
    pub plan: fn(&mut StepContext<'_>) -> Result<Box<dyn Step>, Vec<Diagnostic>>,
}

/// What a kind's `plan` is given.
pub struct StepContext<'a> {
    /// The step's table: `{ window = {…}, group_by = {…} }`.
    pub table: &'a Table,
    /// The value of the field that names the kind.
    pub value: &'a Node,
    /// The step's `name`, or one made from its position for stateless steps.
    pub name: String,
    /// The schema of each input; most kinds have one.
    pub inputs: Vec<StreamSchema>,
    /// Of each input: the sources that its rows come from (index in the topology's `sources`, the
    /// topic's name).
    pub sources: Vec<Vec<(usize, String)>>,
    /// The columns of output 0 that are read later, once that is known (the second planning): a step
    /// that repeats rows leaves the others behind.
    pub wanted: Option<&'a BTreeSet<String>>,
    /// The declared topics and events, and rows topics of topologies already planned.
    pub catalogue: &'a Catalogue,
    /// The name of the topology.
    pub topology: &'a str,
}

impl StepContext<'_> {
    /// Compiles the SQL expression at `node` against input 0.
    ///
    /// # Errors
    /// Syntax errors, unknown columns ("did you mean …"), type errors, with the caret in the text.
    pub fn expr(&self, node: &Node) -> Result<Expr, Diagnostic> {
        self.expr_on(0, node)
    }

    /// The same against another input.
    ///
    /// # Errors
    /// As [`StepContext::expr`].
    pub fn expr_on(&self, input: usize, node: &Node) -> Result<Expr, Diagnostic> {
        Expr::compile(node, &self.inputs[input])
    }
}

/// A step, read and typed; builds one operator for each worker.
pub trait Step: Send + Sync {
    /// The schema of each output port.
    fn outputs(&self) -> Vec<StreamSchema>;
    /// A new operator without state.
    fn build(&self) -> Operator;
    /// For stateful steps: what its stored state depends on; a change of this text is refused (R12).
    fn fingerprint(&self) -> Option<String> {
        None
    }
    /// Columns of input `input` that it reads, by their Arrow names; `None` for all of them.
    /// Columns that merely pass through are not meant.
    fn reads(&self, input: usize) -> Option<Vec<String>>;
    /// Whether input columns pass through to the outputs (filter: yes; window: no).
    fn passes_through(&self) -> bool;
    /// Whether records may come too late for it; then the topology has late topics.
    fn can_be_late(&self) -> bool {
        false
    }
    /// Sets of columns each of which determines the record's key on the outputs, given those of
    /// input 0 (`_key` itself is a set of one): what a sink's key is checked against (R13). As it
    /// stands it is right for steps that pass columns through and leave the key alone.
    fn key_columns(&self, input: &[BTreeSet<String>]) -> Vec<BTreeSet<String>> {
        input.to_vec()
    }
    /// The columns of the outputs whose text the record's key is, given those of input 0 (`_key` is one). As it stands
    /// it is right for steps that leave the key alone.
    fn key_texts(&self, input: &BTreeSet<String>) -> BTreeSet<String> {
        let each: Vec<BTreeSet<String>> = input.iter().map(|name| BTreeSet::from([name.clone()])).collect();
        self.key_columns(&each).into_iter().flatten().collect()
    }
    /// For stateful steps: by input, the columns that the key of its state holds as they are, or none
    /// where its state is by source partition. Stateless steps bring no records together.
    fn state_columns(&self) -> Option<Vec<BTreeSet<String>>> {
        None
    }
    /// Where processes share the work and the key of its state is not that of the records: a stateless step
    /// that makes pieces of rows, for each of `shares`, and a stateful one that merges such pieces
    /// (rows of `steps::piece_schema`).
    fn halves(&self, _shares: u32) -> Option<(Arc<dyn Step>, Arc<dyn Step>)> {
        None
    }
    /// Lines for `explain`: keys, state, emission, what each column costs.
    fn describe(&self) -> Vec<String>;
}
