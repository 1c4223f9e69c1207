//! quikflow-query-api
