//! Messages for people, on standard error, and answers that are printed whole.

use std::{
    cell::RefCell,
    fmt,
    io::{self, Write as _},
    iter,
    sync::atomic::{AtomicBool, Ordering},
};

use crate::sink::escape;

/// The last line on the terminal is a passing one.
static PASSING: AtomicBool = AtomicBool::new(false);

/// Back to its beginning, and away with it.
const ERASE: &str = "\r\x1b[K";

/// What a thread would have said and printed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Messages for standard error, without the name of the program.
    pub said: Vec<String>,
    /// For standard output, from [`print()`]; rows and reports have a way of their own (`--output`).
    pub printed: Vec<u8>,
}

thread_local! {
    static HEARD: RefCell<Option<Heard>> = const { RefCell::new(None) };
}

/// Keeps to itself what this thread says and prints meanwhile, for whoever tries out thousands of commands and wants to look at
/// their answers.
pub fn overhear<T>(work: impl FnOnce() -> T) -> (T, Heard) {
    HEARD.set(Some(Heard::default()));
    let done = work();
    (done, HEARD.take().unwrap_or_default())
}

/// Whether somebody keeps to itself what this thread says.
#[must_use]
pub fn is_overheard() -> bool {
    HEARD.with_borrow(Option::is_some)
}

/// So many of something: `1 event`, `2 events`.
#[must_use]
pub fn plural(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// Says something. If nobody can hear it (standard error is closed or full), that is no reason to stop.
pub fn say(message: fmt::Arguments<'_>) {
    let message = message.to_string();
    let message = escape::message(&message);
    let overheard = HEARD.with_borrow_mut(|heard| {
        let heard = heard.as_mut();
        heard.map(|heard| heard.said.push(message.to_string()))
    });
    if overheard.is_some() {
        return;
    }
    let erase = if PASSING.swap(false, Ordering::Relaxed) {
        ERASE
    } else {
        ""
    };
    let _ = writeln!(io::stderr().lock(), "{erase}tcpstate: {message}");
}

/// Prints an answer on standard output.
///
/// # Errors
/// If it cannot be written.
pub fn print(answer: &[u8]) -> io::Result<()> {
    let overheard = HEARD.with_borrow_mut(|heard| {
        let heard = heard.as_mut();
        heard.map(|heard| heard.printed.extend_from_slice(answer))
    });
    if overheard.is_some() {
        return Ok(());
    }
    let mut out = io::stdout().lock();
    out.write_all(answer)?;
    out.flush()
}

/// How long a passing line may be: one that the terminal wraps could not be taken away.
#[must_use]
pub fn room() -> usize {
    let size = terminal_size::terminal_size_of(io::stderr());
    size.map_or(usize::MAX, |(width, _)| {
        usize::from(width.0).saturating_sub(1)
    })
}

/// Breaks a line that is longer than so many columns between words. It goes on below its text, which begins at the margin or behind
/// a label and two blanks.
#[must_use]
pub fn fold(line: &str, columns: usize) -> String {
    let text = line.rfind("  ").map_or(0, |blanks| blanks + 2);
    let margin = line.len() - line.trim_start().len();
    let text = if text > columns / 2 { margin } else { text };
    let indent = text + 2;
    let (label, text) = line.split_at(text);
    let mut out = label.to_owned();
    let mut width = label.chars().count();
    for (index, word) in text.split(' ').enumerate() {
        let length = word.chars().count();
        if index > 0 && width + 1 + length > columns {
            out.truncate(out.trim_end().len());
            out.push('\n');
            out.extend(iter::repeat_n(' ', indent));
            width = indent;
        } else if index > 0 {
            out.push(' ');
            width += 1;
        }
        out.push_str(word);
        width += length;
    }
    out
}

/// Shows a line on the terminal until something else is said, as far as there is room. Whoever calls this has seen that there is a
/// terminal that takes control sequences.
pub fn show(line: fmt::Arguments<'_>) {
    PASSING.store(true, Ordering::Relaxed);
    let line: String = line.to_string().chars().take(room()).collect();
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

#[cfg(test)]
mod tests {
    use super::{fold, overhear, print, say};

    #[test]
    fn a_line_is_broken_between_words_and_goes_on_below_its_text() {
        assert_eq!(fold("  nothing", 20), "  nothing");
        assert_eq!(
            fold("  nothing is lost here", 20),
            "  nothing is lost\n    here"
        );
        assert_eq!(
            fold("kernel  Linux 6.18.44 of today", 24),
            "kernel  Linux 6.18.44 of\n          today"
        );
        assert_eq!(
            fold("    because a-word-that-is-too-long", 20),
            "    because\n      a-word-that-is-too-long"
        );
        // No label, but blanks within the text.
        assert_eq!(
            fold("  0: (79) r1 = r0  ; R1=scalar()", 20),
            "  0: (79) r1 = r0  ;\n    R1=scalar()"
        );
        assert_eq!(fold("  as wide as it is", usize::MAX), "  as wide as it is");
    }

    #[test]
    fn what_a_thread_says_and_prints() {
        let (done, heard) = overhear(|| {
            say(format_args!("warning: {}", 1));
            print(b"an ").and_then(|()| print(b"answer"))
        });
        assert!(done.is_ok());
        assert_eq!(heard.said, ["warning: 1"]);
        assert_eq!(heard.printed, b"an answer");
        let ((), heard) = overhear(|| {});
        assert!(heard.said.is_empty() && heard.printed.is_empty());
    }
}
