//! What there is and happens in a generated recording (`tests/pure/generated.rs` includes this file).

pub mod lives;
mod paper;
mod plots;
mod random;
mod world;
