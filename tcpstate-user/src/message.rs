//! Messages for people, on standard error.

use std::{
    fmt,
    io::{self, Write as _},
    sync::atomic::{AtomicBool, Ordering},
};

/// The last line on the terminal is a passing one.
static PASSING: AtomicBool = AtomicBool::new(false);

/// Back to its beginning, and away with it.
const ERASE: &str = "\r\x1b[K";

/// Says something. If nobody can hear it (standard error is closed or full), that is no reason to stop.
pub fn say(message: fmt::Arguments<'_>) {
    let erase = if PASSING.swap(false, Ordering::Relaxed) {
        ERASE
    } else {
        ""
    };
    let _ = writeln!(io::stderr().lock(), "{erase}tcpstate: {message}");
}

/// Shows a line on the terminal until something else is said. Whoever calls this has seen that there is a terminal.
pub fn show(line: fmt::Arguments<'_>) {
    PASSING.store(true, Ordering::Relaxed);
    let mut out = io::stderr().lock();
    let _ = write!(out, "{ERASE}{line}");
    let _ = out.flush();
}

/// Takes it away.
pub fn erase() {
    if PASSING.swap(false, Ordering::Relaxed) {
        let mut out = io::stderr().lock();
        let _ = write!(out, "{ERASE}");
        let _ = out.flush();
    }
}
