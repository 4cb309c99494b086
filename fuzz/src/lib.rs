//! What is done with the inputs of fuzzing, and with those that were kept of it (`tests/pure/fuzzed.rs` includes this file).

pub mod file;
pub mod records;
mod shown;
pub mod steps;
