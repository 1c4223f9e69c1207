//! What the aggregates of a window need, and who computes them.

use super::super::accumulators::{Accumulator, ApproxDistinct, Count, Distinct, Ends, FloatSum, IntSum, Percentile, extreme};
use super::super::keys::{KeyCodec, can_be_key};
use super::prepare::{Argument, Form};
use crate::expr::{AggregateCall, Expr};
use arrow::datatypes::DataType;
use datafusion::scalar::ScalarValue;
use quikflow_topics::declaration::Node;
use quikflow_topics::diagnostics::{Diagnostic, closest};

/// All aggregates that there are.
const AVAILABLE: [&str; 11] = [
    "count",
    "count(distinct …)",
    "sum",
    "avg",
    "min",
    "max",
    "approx_distinct",
    "approx_percentile_cont",
    "approx_median",
    "first_value",
    "last_value",
];

#[derive(Clone, Debug, PartialEq)]
enum Function {
    Count,
    Distinct,
    ApproxDistinct,
    IntSum { average: bool },
    FloatSum { average: bool },
    Extreme { max: bool },
    Percentile(f64),
    Ends { last: bool },
}

/// An aggregate column, typed.
#[derive(Clone)]
pub(super) struct Planned {
    pub(super) name: String,
    pub(super) call: AggregateCall,
    function: Function,
}

impl Planned {
    /// Decides who computes the call at `node`.
    pub(super) fn new(name: &str, call: AggregateCall, node: &Node) -> Result<Planned, Diagnostic> {
        let function = Planned::function(&call, node)?;
        Ok(Planned { name: name.to_owned(), call, function })
    }

    fn function(call: &AggregateCall, node: &Node) -> Result<Function, Diagnostic> {
        let name = call.function.as_str();
        if call.distinct && name != "count" {
            return Err(node.error(format!("`{name}(distinct …)` is not there")).help("only count takes distinct"));
        }
        let most = if name == "approx_percentile_cont" { 2 } else { 1 };
        let least = if name == "count" && !call.distinct { 0 } else { most };
        if AVAILABLE.contains(&name) && !(least..=most).contains(&call.args.len()) {
            return Err(node.error(format!("`{name}` takes {most} argument{}", if most == 1 { "" } else { "s" })));
        }
        let argument = call.args.first().map_or(DataType::Null, |expr| expr.data_type.clone());
        let wrong = |wants: &str| node.error(format!("`{name}` needs {wants}, not {argument}"));
        Ok(match name {
            "count" if call.distinct => match can_be_key(&argument) {
                true => Function::Distinct,
                false => return Err(wrong("text, a number, a time or true or false")),
            },
            "count" => Function::Count,
            "approx_distinct" => match can_be_key(&argument) {
                true => Function::ApproxDistinct,
                false => return Err(wrong("text, a number, a time or true or false")),
            },
            "sum" | "avg" | "mean" => match argument {
                DataType::Int64 => Function::IntSum { average: name != "sum" },
                DataType::Float64 => Function::FloatSum { average: name != "sum" },
                _ => return Err(wrong("a number")),
            },
            "min" | "max" => match extreme(&argument, true) {
                Some(_) => Function::Extreme { max: name == "max" },
                None => return Err(wrong("text, a number, a time or true or false")),
            },
            "approx_percentile_cont" | "approx_median" => {
                if !matches!(argument, DataType::Int64 | DataType::Float64) {
                    return Err(wrong("a number"));
                }
                match call.args.get(1) {
                    None => Function::Percentile(0.5),
                    Some(fraction) => Function::Percentile(constant_fraction(fraction).ok_or_else(|| {
                        node.error("the percentile must be a constant from 0 to 1")
                            .help("such as approx_percentile_cont(x, 0.95)")
                    })?),
                }
            }
            "first_value" | "last_value" => match can_be_key(&argument) {
                true => Function::Ends { last: name == "last_value" },
                false => return Err(wrong("text, a number, a time or true or false")),
            },
            other => {
                let mistake = node.error(format!("windows cannot compute `{other}`"));
                let near = closest(other, AVAILABLE).map(|near| format!("did you mean `{near}`? ")).unwrap_or_default();
                return Err(mistake.help(format!("{near}available: {}", AVAILABLE.join(", "))));
            }
        })
    }

    /// The type of the column.
    pub(super) fn data_type(&self) -> DataType {
        match self.function {
            Function::Count | Function::Distinct | Function::ApproxDistinct => DataType::Int64,
            Function::IntSum { average: false } => DataType::Int64,
            Function::IntSum { average: true } | Function::FloatSum { .. } | Function::Percentile(_) => DataType::Float64,
            Function::Extreme { .. } | Function::Ends { .. } => self.argument_type(),
        }
    }

    fn argument_type(&self) -> DataType {
        self.call.args.first().map_or(DataType::Null, |expr| expr.data_type.clone())
    }

    /// What `explain` says about it.
    pub(super) fn cost(&self) -> String {
        match self.function {
            Function::Count => "8 bytes a group".to_owned(),
            Function::Distinct => "exact; 32 bytes a group, 29 for each further value until the window closes".to_owned(),
            Function::ApproxDistinct => "standard error 0.81 %; 4 bytes a value, at most 16 KiB a group".to_owned(),
            Function::IntSum { .. } => "exact; 32 bytes a group".to_owned(),
            Function::FloatSum { .. } => "exact in any order; 48 bytes a group".to_owned(),
            Function::Extreme { .. } => "exact; 16 bytes a group".to_owned(),
            Function::Percentile(_) => {
                "relative error at most 1 %; 24 bytes a group, 16 for each further part of the scale".to_owned()
            }
            Function::Ends { .. } => "exact, by event time; 40 bytes a group and the value".to_owned(),
        }
    }

    fn form(&self) -> Form {
        match self.function {
            Function::Count => Form::Present,
            Function::Distinct | Function::ApproxDistinct => Form::Hash,
            _ => Form::Value,
        }
    }

    fn accumulator(&self) -> Box<dyn Accumulator> {
        match &self.function {
            Function::Count => Box::new(Count::default()),
            Function::Distinct => Box::new(Distinct::default()),
            Function::ApproxDistinct => Box::new(ApproxDistinct::default()),
            Function::IntSum { average } => Box::new(IntSum::new(*average)),
            Function::FloatSum { average } => Box::new(FloatSum::new(*average)),
            Function::Percentile(fraction) => Box::new(Percentile::new(*fraction)),
            Function::Ends { last } => Box::new(Ends::new(KeyCodec::new(vec![self.argument_type()]), *last)),
            // The plan has made sure of the type; a count stands in for what cannot be.
            Function::Extreme { max } => extreme(&self.argument_type(), *max).unwrap_or_else(|| Box::new(Count::default())),
        }
    }
}

fn constant_fraction(expr: &Expr) -> Option<f64> {
    let fraction = match expr.constant()? {
        ScalarValue::Float64(Some(fraction)) => fraction,
        ScalarValue::Int64(Some(fraction)) => fraction as f64,
        _ => return None,
    };
    (0.0..=1.0).contains(&fraction).then_some(fraction)
}

/// All aggregates of a window: each expression once, each argument once.
#[derive(Clone)]
pub(super) struct Calls {
    /// The group columns' expressions first.
    pub(super) exprs: Vec<Expr>,
    pub(super) arguments: Vec<Argument>,
    pub(super) planned: Vec<Planned>,
    columns: Vec<Option<usize>>,
}

impl Calls {
    pub(super) fn new(groups: Vec<Expr>, planned: Vec<Planned>) -> Calls {
        let mut calls = Calls { exprs: groups, arguments: Vec::new(), columns: Vec::new(), planned: Vec::new() };
        let first = calls.exprs.len();
        for call in &planned {
            let column = calls.argument(first, call);
            calls.columns.push(column);
        }
        calls.planned = planned;
        calls
    }

    fn argument(&mut self, first: usize, planned: &Planned) -> Option<usize> {
        let form = planned.form();
        let always = |expr: &Expr| expr.constant().is_some_and(|value| !value.is_null());
        let value = planned.call.args.first().filter(|expr| form != Form::Present || !always(expr));
        let expr = value.map(|expr| self.expr(first, expr));
        let filter = planned.call.filter.as_ref().map(|expr| self.expr(first, expr));
        if expr.is_none() && filter.is_none() {
            return None;
        }
        let argument = Argument { expr, filter, form };
        let at = self.arguments.iter().position(|known| *known == argument).unwrap_or(self.arguments.len());
        if at == self.arguments.len() {
            self.arguments.push(argument);
        }
        Some(at)
    }

    /// Where an expression stands among those that are evaluated.
    fn expr(&mut self, first: usize, expr: &Expr) -> usize {
        let same = |known: &Expr| known.data_type == expr.data_type && known.text == expr.text;
        match self.exprs[first..].iter().position(same) {
            Some(at) => first + at,
            None => {
                self.exprs.push(expr.clone());
                self.exprs.len() - 1
            }
        }
    }

    /// New accumulators, each with the column of its argument.
    pub(super) fn accumulators(&self) -> Vec<(Box<dyn Accumulator>, Option<usize>)> {
        self.planned.iter().zip(&self.columns).map(|(planned, column)| (planned.accumulator(), *column)).collect()
    }
}
