//! Tests over the whole router, with stores and a log in memory.

mod entities;
mod formats;
mod house;
mod log;
mod operate;
mod sql;
mod views;
