//! Tests on the real kernel: root, eBPF, real sockets in network namespaces of their own. The witness is what each test
//! itself did.

#![expect(clippy::expect_used, reason = "a test stops where its set-up fails")]
#![expect(clippy::panic, reason = "a test stops where its set-up fails")]

mod filters;
mod hostile;
mod netem;
mod probe;
mod smp;
mod support;
mod timewait;
mod trace;
