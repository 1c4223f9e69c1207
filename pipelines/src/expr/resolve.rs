//! From the names that people write to the names of Arrow columns.

use super::StreamSchema;
use super::place::Place;
use super::typing::session;
use datafusion::logical_expr::Volatility;
use datafusion::sql::sqlparser::ast::{
    AccessExpr, Expr as Sql, Function, FunctionArguments, Ident, ObjectNamePart, Query, VisitMut, VisitorMut,
};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::Token;
use quikflow_topics::catalogue::TopicKind;
use quikflow_topics::diagnostics::{Diagnostic, closest};
use quikflow_topics::schema;
use std::collections::BTreeSet;
use std::ops::ControlFlow;

/// What people write, and the system column that it means.
const SYSTEM_NAMES: [(&str, &str); 6] = [
    ("type", schema::TYPE),
    ("key", schema::KEY),
    ("id", schema::ID),
    ("event_time", schema::EVENT_TIME),
    ("arrival_time", schema::ARRIVAL_TIME),
    ("metadata", schema::HEADERS),
];

/// System columns that may be named as they are.
const OPEN_SYSTEM: [&str; 2] = [schema::PARTITION, schema::OFFSET];

/// Reads one expression; nothing may follow it.
pub(super) fn parse(text: &str, place: &Place<'_>) -> Result<Sql, Diagnostic> {
    let parsed = Parser::new(&GenericDialect {}).with_recursion_limit(64).try_with_sql(text).and_then(|mut parser| {
        let expr = parser.parse_expr()?;
        match parser.peek_token().token {
            Token::EOF => Ok(expr),
            _ => parser.expected_ref("an operator or the end", parser.peek_token_ref()),
        }
    });
    parsed.map_err(|error| place.syntax(&error.to_string()))
}

/// Puts the Arrow names in.
pub(super) fn resolve(expr: &mut Sql, schema: &StreamSchema, place: &Place<'_>) -> Result<(), Diagnostic> {
    let mut resolver = Resolver { schema, place, parameters: BTreeSet::new() };
    match expr.visit(&mut resolver) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(mistake) => Err(*mistake),
    }
}

struct Resolver<'a> {
    schema: &'a StreamSchema,
    place: &'a Place<'a>,
    /// Names that lambdas bind.
    parameters: BTreeSet<String>,
}

type Step = ControlFlow<Box<Diagnostic>>;

impl VisitorMut for Resolver<'_> {
    type Break = Box<Diagnostic>;

    fn pre_visit_query(&mut self, _: &mut Query) -> Step {
        ControlFlow::Break(Box::new(
            self.place
                .error_at(None, "an expression sees one record, it cannot hold a query")
                .help("use a `join` step for tables"),
        ))
    }

    fn pre_visit_expr(&mut self, expr: &mut Sql) -> Step {
        match expr {
            // `payload.tags[1]` is parsed as ((payload).tags)[1]
            Sql::CompoundFieldAccess { root, access_chain } => {
                if let (Sql::Identifier(first), Some(AccessExpr::Dot(Sql::Identifier(second)))) =
                    (root.as_ref(), access_chain.first())
                {
                    **root = Sql::CompoundIdentifier(vec![first.clone(), second.clone()]);
                    access_chain.remove(0);
                }
            }
            Sql::Lambda(lambda) => self.parameters.extend(lambda.params.iter().map(|p| p.name.value.clone())),
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Sql) -> Step {
        let resolved = match expr {
            Sql::Identifier(name) if self.parameters.contains(&name.value) => return ControlFlow::Continue(()),
            Sql::Identifier(name) => self.column(std::slice::from_ref(name)),
            Sql::CompoundIdentifier(parts) => self.column(parts),
            Sql::Function(function) => match self.function(function) {
                Ok(None) => return ControlFlow::Continue(()),
                Ok(Some(column)) => Ok(column),
                Err(mistake) => Err(mistake),
            },
            _ => return ControlFlow::Continue(()),
        };
        match resolved {
            Ok(column) => *expr = Sql::Identifier(Ident::with_quote_and_span('"', column.1, column.0)),
            Err(mistake) => return ControlFlow::Break(Box::new(mistake)),
        }
        ControlFlow::Continue(())
    }
}

/// An Arrow column's name, and where the name that means it stands.
type Found = (String, datafusion::sql::sqlparser::tokenizer::Span);

impl Resolver<'_> {
    fn has(&self, name: &str) -> bool {
        self.schema.arrow.index_of(name).is_ok()
    }

    fn system(&self, name: &str) -> Option<String> {
        let system = SYSTEM_NAMES.iter().find(|(written, _)| *written == name).map(|(_, column)| *column);
        let open = OPEN_SYSTEM.into_iter().find(|open| *open == name);
        system.or(open).filter(|column| self.has(column)).map(str::to_owned)
    }

    fn field(&self, name: &str) -> Option<String> {
        (!name.starts_with('_') && self.has(name)).then(|| name.to_owned())
    }

    fn column(&self, parts: &[Ident]) -> Result<Found, Diagnostic> {
        let events = self.schema.kind == TopicKind::Events;
        let found = match parts {
            [name] if events => self.system(&name.value).or_else(|| self.field(&name.value)),
            [name] => self.field(&name.value).or_else(|| self.system(&name.value)),
            [payload, name] if events && payload.value == "payload" => self.field(&name.value),
            _ => None,
        };
        let span = parts.first().zip(parts.last()).map(|(a, b)| a.span.union(&b.span));
        match (found, span) {
            (Some(column), Some(span)) => Ok((column, span)),
            _ => Err(self.unknown(parts)),
        }
    }

    fn unknown(&self, parts: &[Ident]) -> Diagnostic {
        let written = parts.iter().map(|part| part.value.as_str()).collect::<Vec<_>>().join(".");
        let mistake = self.place.error_at_name(parts, format!("unknown column `{written}`"));
        let available = available(self.schema);
        let bare = parts.last().map_or("", |part| part.value.as_str());
        let last = |name: &str| name.rsplit('.').next().unwrap_or("").to_owned();
        let near = available.iter().find(|name| last(name) == bare).map(String::as_str);
        let near = near.or_else(|| closest(&written, available.iter().map(String::as_str)));
        let list = available.join(", ");
        match near {
            Some(near) => mistake.help(format!("did you mean `{near}`? available: {list}")),
            None => mistake.help(format!("available: {list}")),
        }
    }

    /// Refuses functions that are unknown, that aggregate, or that a replay would answer otherwise.
    /// `user` without parentheses is a function to the parser; it may be a column here.
    fn function(&self, function: &Function) -> Result<Option<Found>, Diagnostic> {
        let parts: Vec<Ident> = function.name.0.iter().filter_map(ObjectNamePart::as_ident).cloned().collect();
        if matches!(function.args, FunctionArguments::None)
            && let Ok(column) = self.column(&parts)
        {
            return Ok(Some(column));
        }
        let name = parts.iter().map(|part| part.value.to_lowercase()).collect::<Vec<_>>().join(".");
        let state = session();
        if function.over.is_some() {
            return Err(self
                .place
                .error_at_name(&parts, "an expression sees one record, `over` has no place in it")
                .help("use a `window` step"));
        }
        if let Some(known) = state.scalar_functions().get(&name) {
            return match known.signature().volatility {
                Volatility::Immutable => Ok(None),
                _ => Err(self
                    .place
                    .error_at_name(&parts, format!("`{name}` gives another answer each time, and a replay must give the same"))
                    .help("use the record's own `event_time` or `arrival_time`, or a field")),
            };
        }
        if state.higher_order_functions().contains_key(&name) {
            return Ok(None);
        }
        if state.aggregate_functions().contains_key(&name) {
            return Err(self
                .place
                .error_at_name(&parts, format!("`{name}` aggregates many records, an expression sees one"))
                .help("put it into the `aggregate` of a `window` step, as a call of its own"));
        }
        let mistake = self.place.error_at_name(&parts, format!("unknown function `{name}`"));
        let mut names: Vec<&str> = state.scalar_functions().keys().map(String::as_str).collect();
        names.sort_unstable();
        Err(match closest(&name, names) {
            Some(near) => mistake.help(format!("did you mean `{near}`?")),
            None => {
                mistake.help("the functions are DataFusion's: https://datafusion.apache.org/user-guide/sql/scalar_functions.html")
            }
        })
    }
}

/// The names that an expression over `schema` may use, as they are written.
pub(super) fn available(schema: &StreamSchema) -> Vec<String> {
    let fields = schema.arrow.fields().iter().map(|f| f.name()).filter(|name| !name.starts_with('_'));
    let fields: Vec<String> = match schema.kind {
        TopicKind::Events => fields.map(|name| format!("payload.{name}")).collect(),
        TopicKind::Rows => fields.cloned().collect(),
    };
    let system = SYSTEM_NAMES
        .iter()
        .filter(|(written, column)| schema.arrow.index_of(column).is_ok() && !fields.iter().any(|field| field == written));
    let system: Vec<String> = system.map(|(written, _)| (*written).to_owned()).collect();
    fields.into_iter().chain(system).collect()
}
