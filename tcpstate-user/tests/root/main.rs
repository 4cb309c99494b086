//! Tests on the real kernel: root, eBPF, real sockets in network namespaces of their own. The witness is what each test
//! itself did.

#![expect(clippy::expect_used, reason = "a test stops where its set-up fails")]
#![expect(clippy::panic, reason = "a test stops where its set-up fails")]

mod calls;
mod churn;
mod closes;
mod containers;
mod counters;
mod doctor;
mod exhaustion;
mod existing;
mod filters;
mod folder;
mod hostile;
mod netem;
mod nginx;
mod opens;
mod overflow;
mod peer;
mod poll;
mod probe;
#[path = "../pure/pty.rs"]
mod pty;
mod python;
mod recording;
mod recordings;
mod segments;
mod server;
mod smp;
mod socket;
mod states;
mod support;
mod timewait;
mod trace;
mod verifier;
mod views;
mod wire;
