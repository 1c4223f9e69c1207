//! Calls of aggregate functions, as in the `aggregate` of a window.

use super::place::Place;
use super::typing::session;
use super::{Expr, StreamSchema, Want, finish, resolve};
use datafusion::sql::sqlparser::ast::{
    DuplicateTreatment, Expr as Sql, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, ObjectNamePart,
};
use quikflow_topics::declaration::Node;
use quikflow_topics::diagnostics::{Diagnostic, closest};

/// `count(distinct payload.userId) filter (where type = 'X')`, taken apart and compiled.
#[derive(Clone, Debug)]
pub struct AggregateCall {
    /// DataFusion's name of the function, in lower case: `count`, `approx_percentile_cont`.
    pub function: String,
    /// Each value once.
    pub distinct: bool,
    /// The arguments in their order; none for `count(*)`. Constants: see [`Expr::constant`].
    pub args: Vec<Expr>,
    /// Only records for which this is true.
    pub filter: Option<Expr>,
    /// As written.
    pub text: String,
}

impl AggregateCall {
    /// Compiles the SQL text at `node`, which is one call.
    ///
    /// # Errors
    /// As [`Expr::compile`]; also what is no call of an aggregate function.
    pub fn compile(node: &Node, schema: &StreamSchema) -> Result<AggregateCall, Diagnostic> {
        let text = node.str()?;
        let place = Place::new(node, text);
        let Sql::Function(call) = resolve::parse(text, &place)? else {
            return Err(place
                .error_at(None, "an aggregate is one call of an aggregate function")
                .help("write such as `count(*)`, and compute with the results in a `map` after the window"));
        };
        let parts: Vec<Ident> = call.name.0.iter().filter_map(ObjectNamePart::as_ident).cloned().collect();
        let function = parts.iter().map(|part| part.value.to_lowercase()).collect::<Vec<_>>().join(".");
        known(&function, &parts, &place)?;
        if call.over.is_some() || call.null_treatment.is_some() {
            return Err(place
                .error_at(None, "`over`, `ignore nulls` and `respect nulls` have no place here")
                .help("the step's window and groups say what is aggregated"));
        }
        let (distinct, mut args) = arguments(&call, &function, &place)?;
        // approx_percentile_cont(0.95) within group (order by x) is the standard's way of (x, 0.95)
        for (index, order) in call.within_group.into_iter().enumerate() {
            args.insert(index, order.expr);
        }
        let mut compiled = Vec::with_capacity(args.len());
        for mut arg in args {
            let text = arg.to_string();
            resolve::resolve(&mut arg, schema, &place)?;
            compiled.push(finish(text, arg, schema, &place, Want::Any)?);
        }
        let filter = match call.filter {
            Some(mut filter) => {
                let text = filter.to_string();
                resolve::resolve(&mut filter, schema, &place)?;
                Some(finish(text, *filter, schema, &place, Want::Bool)?)
            }
            None => None,
        };
        Ok(AggregateCall { function, distinct, args: compiled, filter, text: text.to_owned() })
    }

    /// Arrow names of all columns that it reads.
    pub fn columns(&self) -> Vec<String> {
        let mut names: Vec<String> = self.args.iter().chain(&self.filter).flat_map(|expr| expr.columns.iter().cloned()).collect();
        names.sort();
        names.dedup();
        names
    }
}

fn known(function: &str, parts: &[Ident], place: &Place<'_>) -> Result<(), Diagnostic> {
    let state = session();
    if state.aggregate_functions().contains_key(function) {
        return Ok(());
    }
    if state.scalar_functions().contains_key(function) {
        return Err(place
            .error_at_name(parts, format!("`{function}` sees one record, it does not aggregate"))
            .help("put it inside of one, such as `sum(character_length(payload.content))`"));
    }
    let mistake = place.error_at_name(parts, format!("unknown aggregate `{function}`"));
    let mut names: Vec<&str> = state.aggregate_functions().keys().map(String::as_str).collect();
    names.sort_unstable();
    Err(match closest(function, names) {
        Some(near) => mistake.help(format!("did you mean `{near}`?")),
        None => {
            mistake.help("available: count, sum, avg, min, max, approx_distinct, approx_percentile_cont, first_value, last_value")
        }
    })
}

fn arguments(call: &Function, function: &str, place: &Place<'_>) -> Result<(bool, Vec<Sql>), Diagnostic> {
    let FunctionArguments::List(list) = &call.args else {
        return Err(place
            .error_at(None, format!("`{function}` needs arguments in parentheses"))
            .help("write such as `count(*)`"));
    };
    if !list.clauses.is_empty() {
        return Err(place
            .error_at(None, "an aggregate takes no clauses after its arguments")
            .help("first_value and last_value follow event time, then the place in the log"));
    }
    let mut args = Vec::with_capacity(list.args.len());
    for arg in &list.args {
        match arg {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => args.push(expr.clone()),
            FunctionArg::Unnamed(FunctionArgExpr::Wildcard) if function == "count" && list.args.len() == 1 => {}
            other => {
                return Err(place
                    .error_at(None, format!("`{other}` is no argument of `{function}`"))
                    .help("write an expression"));
            }
        }
    }
    Ok((list.duplicate_treatment == Some(DuplicateTreatment::Distinct), args))
}
