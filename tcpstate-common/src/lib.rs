//! What both sides of the ring buffer must agree on: TCP states, records, the configuration handed to
//! the kernel side, and the list of kernel fields it reads. No `std`, no aya, no output.

#![no_std]

pub mod config;
pub mod fields;
pub mod record;
pub mod state;
