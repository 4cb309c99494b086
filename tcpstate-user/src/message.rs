//! Messages for people, on standard error.

use std::{
    fmt,
    io::{self, Write as _},
};

/// Says something. If nobody can hear it (standard error is closed or full), that is no reason to stop.
pub fn say(message: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "tcpstate: {message}");
}
