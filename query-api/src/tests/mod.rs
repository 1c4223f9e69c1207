//! Tests over the whole router, with stores in memory.
