//! quikflow-ingest
