//! The measurements of `cargo xtask bench`.

fn main() {}
