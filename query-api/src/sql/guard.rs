//! What SQL may say: one statement that reads. Decided on the parsed statement, by what is allowed,
//! and once more on the plan.

use crate::problem::Problem;
use crate::sql::errors;
use crate::state::QueryLimits;
use datafusion::execution::context::SQLOptions;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::Statement as Sql;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};

/// Refuses text that is too long, or so nested that planning it would not end well.
///
/// # Errors
/// 422 naming `sql`.
pub fn check_text(sql: &str, limits: &QueryLimits) -> Result<(), Problem> {
    if sql.trim().is_empty() {
        return Err(Problem::field("sql", "required", "`sql` is empty: write a SELECT"));
    }
    if sql.len() > limits.sql_text {
        return Err(Problem::field("sql", "max_length", format!("`sql` is longer than {} bytes", limits.sql_text)));
    }
    check_tokens("sql", sql, limits.sql_tokens)
}

/// Refuses text of too many tokens.
///
/// # Errors
/// 422 naming `path`.
pub fn check_tokens(path: &str, sql: &str, most: usize) -> Result<(), Problem> {
    let tokens = Tokenizer::new(&GenericDialect {}, sql)
        .tokenize()
        .map_err(|e| Problem::field(path, "syntax", format!("`{path}` cannot be read: {e}")))?;
    let count = tokens.iter().filter(|t| !matches!(t, Token::Whitespace(_))).count();
    if count > most {
        return Err(Problem::field(path, "max_length", format!("`{path}` has {count} tokens, at most {most} are allowed")));
    }
    Ok(())
}

/// Plans one statement that reads.
///
/// # Errors
/// 422 for anything else, saying what is allowed.
pub async fn plan(context: &SessionContext, sql: &str) -> Result<LogicalPlan, Problem> {
    let state = context.state();
    let dialect = state.config().options().sql_parser.dialect;
    let statement = state.sql_to_statement(sql, &dialect).map_err(|e| errors::planning(&e))?;
    if !reads(&statement) {
        return Err(Problem::field(
            "sql",
            "read_only",
            "only statements that read are allowed: SELECT, WITH, VALUES, EXPLAIN, SHOW, DESCRIBE",
        ));
    }
    let plan = state.statement_to_plan(statement).await.map_err(|e| errors::planning(&e))?;
    let options = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    options.verify_plan(&plan).map_err(|_| Problem::field("sql", "read_only", "only statements that read are allowed"))?;
    Ok(plan)
}

fn reads(statement: &Statement) -> bool {
    match statement {
        Statement::Statement(sql) => matches!(
            sql.as_ref(),
            Sql::Query(_)
                | Sql::ShowTables { .. }
                | Sql::ShowColumns { .. }
                | Sql::ShowFunctions { .. }
                | Sql::ExplainTable { .. }
                | Sql::Explain { .. }
        ),
        Statement::Explain(explain) => reads(&explain.statement),
        Statement::CreateExternalTable(_) | Statement::CopyTo(_) | Statement::Reset(_) => false,
    }
}
