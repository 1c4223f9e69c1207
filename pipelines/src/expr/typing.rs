//! Types of expressions: checked, coerced, folded, made physical.

use super::place::Place;
use super::{StreamSchema, Want};
use arrow::datatypes::{DataType, Field};
use datafusion::common::DFSchema;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::DataFusionError;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::context::SessionState;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{BinaryExpr, Expr as Logical, ExprSchemable, Operator, cast};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::prelude::SessionConfig;
use datafusion::sql::sqlparser::ast::{Expr as Sql, ExprWithAlias, Spanned, Visit, Visitor};
use quikflow_topics::diagnostics::Diagnostic;
use quikflow_topics::schema::time_type;
use std::ops::ControlFlow;
use std::sync::{Arc, LazyLock};

/// DataFusion's functions and planners; holds no data.
pub(super) fn session() -> &'static SessionState {
    static SESSION: LazyLock<SessionState> = LazyLock::new(|| {
        let mut config = SessionConfig::new();
        let parser = &mut config.options_mut().sql_parser;
        parser.enable_ident_normalization = false;
        parser.map_string_types_to_utf8view = false;
        SessionStateBuilder::new().with_config(config).with_default_features().build()
    });
    &SESSION
}

/// The physical form of a resolved tree and the type it yields.
pub(super) fn physical(
    ast: &Sql,
    schema: &StreamSchema,
    place: &Place<'_>,
    want: Want,
) -> Result<(Arc<dyn PhysicalExpr>, DataType), Diagnostic> {
    let df_schema = DFSchema::try_from(schema.arrow.as_ref().clone()).map_err(|e| place.error_at(None, plain(&e)))?;
    let (logical, yields) = typed(ast, &df_schema).map_err(|message| innermost(ast, &df_schema, place, message))?;
    let target = target(&yields, want).map_err(|(message, help)| place.error_at(None, message).help(help))?;
    let logical = if yields == target { logical } else { cast(logical, target.clone()) };
    let physical = simplifier(&df_schema)
        .simplify(logical)
        .and_then(|logical| session().create_physical_expr(logical, &df_schema))
        .map_err(|e| place.error_at(None, plain(&e)))?;
    Ok((physical, target))
}

fn simplifier(schema: &DFSchema) -> ExprSimplifier {
    let options = session().config_options().clone();
    ExprSimplifier::new(SimplifyContext::builder().with_schema(Arc::new(schema.clone())).with_config_options(options).build())
}

/// The coerced logical form, and its type.
fn typed(ast: &Sql, schema: &DFSchema) -> Result<(Logical, DataType), String> {
    let with_alias = ExprWithAlias { expr: ast.clone(), alias: None };
    let logical = session().create_logical_expr_from_sql_expr(with_alias, schema).map_err(|e| plain(&e))?;
    strict(&logical, schema)?;
    let logical = simplifier(schema).coerce(logical, schema).map_err(|e| plain(&e))?;
    let yields = logical.get_type(schema).map_err(|e| plain(&e))?;
    Ok((logical, yields))
}

/// DataFusion would compare text with numbers by turning one into the other, which is seldom meant
/// and fails record by record; here it is a mistake. Text literals may stand for times.
fn strict(logical: &Logical, schema: &DFSchema) -> Result<(), String> {
    let mut mistake = None;
    let walked = logical.apply(|expr| {
        let pairs: Vec<(&Logical, &Logical)> = match expr {
            Logical::BinaryExpr(BinaryExpr { left, op, right }) if compares(*op) => vec![(left, right)],
            Logical::Between(between) => vec![(&between.expr, &between.low), (&between.expr, &between.high)],
            Logical::InList(list) => list.list.iter().map(|item| (list.expr.as_ref(), item)).collect(),
            _ => vec![],
        };
        for (left, right) in pairs {
            let (a, b) = (kind(&left.get_type(schema)?), kind(&right.get_type(schema)?));
            let literal_time = |one: Kind, other: Kind, other_expr: &Logical| {
                one == Kind::Time && other == Kind::Text && matches!(other_expr, Logical::Literal(..))
            };
            let fits = a == b || a == Kind::Other || b == Kind::Other || literal_time(a, b, right) || literal_time(b, a, left);
            if !fits {
                mistake = Some(format!("this compares {} with {}", a.shown(), b.shown()));
                return Ok(TreeNodeRecursion::Stop);
            }
        }
        Ok(TreeNodeRecursion::Continue)
    });
    match (mistake, walked) {
        (Some(mistake), _) => Err(mistake),
        (None, Err(error)) => Err(plain(&error)),
        (None, Ok(_)) => Ok(()),
    }
}

fn compares(op: Operator) -> bool {
    use Operator::{Eq, Gt, GtEq, IsDistinctFrom, IsNotDistinctFrom, Lt, LtEq, NotEq};
    matches!(op, Eq | NotEq | Lt | LtEq | Gt | GtEq | IsDistinctFrom | IsNotDistinctFrom)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Number,
    Bool,
    Time,
    /// Null, lists, intervals: left to DataFusion.
    Other,
}

impl Kind {
    fn shown(self) -> &'static str {
        match self {
            Kind::Text => "text",
            Kind::Number => "a number",
            Kind::Bool => "true or false",
            Kind::Time => "a time",
            Kind::Other => "something else",
        }
    }
}

fn kind(ty: &DataType) -> Kind {
    match ty {
        ty if ty.is_string() => Kind::Text,
        ty if ty.is_numeric() => Kind::Number,
        DataType::Boolean => Kind::Bool,
        DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 => Kind::Time,
        _ => Kind::Other,
    }
}

/// The smallest piece of the tree that cannot be typed is the one to blame.
fn innermost(ast: &Sql, schema: &DFSchema, place: &Place<'_>, message: String) -> Diagnostic {
    struct Finder<'a>(&'a DFSchema);
    impl Visitor for Finder<'_> {
        type Break = (datafusion::sql::sqlparser::tokenizer::Span, String);

        fn post_visit_expr(&mut self, expr: &Sql) -> ControlFlow<Self::Break> {
            match typed(expr, self.0) {
                Ok(_) => ControlFlow::Continue(()),
                Err(message) => ControlFlow::Break((expr.span(), message)),
            }
        }
    }
    match ast.visit(&mut Finder(schema)) {
        ControlFlow::Break((span, inner)) => place.error_in(span, inner),
        ControlFlow::Continue(()) => place.error_at(None, message),
    }
}

/// The type of column that holds what is yielded.
fn target(yields: &DataType, want: Want) -> Result<DataType, (String, String)> {
    let stored = stored_type(yields);
    match want {
        Want::Bool if *yields == DataType::Boolean || *yields == DataType::Null => Ok(DataType::Boolean),
        Want::Bool => Err((
            format!("a condition is wanted here, and this is {}", shown(yields)),
            "compare it with something, such as `… = 'x'` or `… is not null`".to_owned(),
        )),
        Want::Text => match stored {
            Some(DataType::List(_)) | None => {
                Err((format!("text is wanted here, and this is {}", shown(yields)), "name one text, number or time".to_owned()))
            }
            Some(_) => Ok(DataType::Utf8),
        },
        Want::Any => stored.ok_or_else(|| {
            (
                format!("no column can hold {}", shown(yields)),
                "cast it to text, a number, true or false, a time or a list of text".to_owned(),
            )
        }),
    }
}

/// The stored type nearest to a type of Arrow, where there is one.
pub(crate) fn stored_type(ty: &DataType) -> Option<DataType> {
    Some(match ty {
        DataType::Null => DataType::Utf8,
        ty if ty.is_string() => DataType::Utf8,
        ty if ty.is_integer() => DataType::Int64,
        ty if ty.is_numeric() => DataType::Float64,
        DataType::Boolean => DataType::Boolean,
        DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 => time_type(),
        DataType::Dictionary(_, value) => stored_type(value)?,
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _)
            if stored_type(item.data_type()) == Some(DataType::Utf8) =>
        {
            DataType::List(Arc::new(Field::new("item", DataType::Utf8, true)))
        }
        _ => return None,
    })
}

/// A type in plain words.
fn shown(ty: &DataType) -> String {
    match (kind(ty), ty) {
        (Kind::Other, DataType::List(item)) if item.data_type().is_string() => "a list of text".to_owned(),
        (Kind::Other, DataType::Null) => "null".to_owned(),
        (Kind::Other, other) => other.to_string(),
        (kind, _) => kind.shown().to_owned(),
    }
}

/// DataFusion's message in one line, in our form.
pub(super) fn plain(error: &DataFusionError) -> String {
    let text = error.find_root().strip_backtrace();
    let mut line = text.lines().next().unwrap_or("");
    for prefix in ["Error during planning: ", "Arrow error: ", "Execution error: ", "This feature is not implemented: "] {
        line = line.strip_prefix(prefix).unwrap_or(line);
    }
    let line: String = line.trim_end_matches('.').chars().take(300).collect();
    let mut chars = line.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}
