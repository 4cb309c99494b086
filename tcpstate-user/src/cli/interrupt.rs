//! Ctrl-C while a recording is read: who reads asks at each block, and at each step that is no record, whether it came, and ends in
//! order. The second ends at once.

use std::{
    process, ptr,
    sync::{
        Once,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use nix::sys::signal::{SigSet, Signal};

use super::INTERRUPTED;
use crate::message::{self, say};

static CAME: AtomicBool = AtomicBool::new(false);

/// Waits for SIGINT, SIGTERM and SIGHUP from now on, in a thread of its own, which has the privileges of the calling one. Live
/// views do not come here: their event loop waits for signals itself.
pub fn watch() {
    static ONCE: Once = Once::new();
    // Whoever tries out thousands of commands has a Ctrl-C of its own.
    if message::is_overheard() {
        return;
    }
    ONCE.call_once(|| {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.add(Signal::SIGTERM);
        // With nohup it stays ignored.
        if !is_ignored(libc::SIGHUP) {
            signals.add(Signal::SIGHUP);
        }
        // For the thread, too: it is the only other one.
        if signals.thread_block().is_err() {
            return;
        }
        let waiting = thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || wait(signals));
        if waiting.is_err() {
            // A signal ends us as it always would.
            let _ = signals.thread_unblock();
        }
    });
}

/// Whether the first has come.
pub fn came() -> bool {
    CAME.load(Ordering::Relaxed)
}

fn wait(signals: SigSet) {
    if signals.wait().is_ok() {
        CAME.store(true, Ordering::Relaxed);
    }
    // We may be waiting for the reader of our output.
    if signals.wait().is_ok() {
        say(format_args!("ended at once"));
        process::exit(INTERRUPTED.into());
    }
}

/// Whether this signal is ignored by whoever started us.
pub fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: `sigaction` is plain data, for which zeros are valid.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: a null pointer asks only; `action` lives through the call.
    let result = unsafe { libc::sigaction(signal, ptr::null(), &raw mut action) };
    result == 0 && action.sa_sigaction == libc::SIG_IGN
}
