//! Tests of everything right of the ring buffer: no root, no kernel, no clock.

#![expect(clippy::expect_used, reason = "a test stops where its set-up fails")]

mod again;
mod closers;
mod command_line;
mod connections;
mod decode;
mod disguise;
mod doctor;
mod documented;
mod exports;
mod found;
#[path = "../../../fuzz/src/lib.rs"]
mod fuzz;
mod fuzzed;
mod gate;
mod generated;
mod hist;
mod lifecycle;
#[path = "../../examples/generate/machine/mod.rs"]
mod machine;
mod output;
mod parts;
mod poll;
mod properties;
mod pty;
mod recorder;
mod recordings;
mod records;
mod replay;
mod replayed;
mod reports;
mod scene;
mod states;
mod story;
mod tables;
mod timewait;
mod waits;
