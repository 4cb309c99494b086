//! How far a recording has been read, on a terminal.

use std::{
    fmt,
    fs::FileType,
    io::{self, IsTerminal as _},
    os::{fd::AsFd as _, unix::fs::FileTypeExt as _},
    time::{Duration, Instant},
};

use super::{args::OutputArgs, terminal};
use crate::message;

/// What takes no longer needs no progress; it also tells a time that is left only then.
const SOON: Duration = Duration::from_millis(500);
/// How often it is shown.
const OFTEN: Duration = Duration::from_millis(100);
const BAR: usize = 30;
/// Room for the bar and what stands behind it, if that is no more than anybody has.
const WIDE: usize = 79;

/// A bar, if somebody looks and it disturbs nothing.
#[derive(Debug)]
pub struct Progress {
    began: Instant,
    /// When it is shown next; `None` if never.
    next: Option<Instant>,
    /// Bytes of the whole recording.
    total: u64,
}

impl Progress {
    /// Of so many bytes. Output that comes meanwhile (`rows`) must go into a file: on a terminal, or through a pipe to what
    /// writes there, it would mix with the bar.
    pub fn new(total: u64, rows: bool, args: &OutputArgs) -> Self {
        let apart = args.output.is_some() || is_file();
        let shown = terminal::is_able(&io::stderr()) && (apart || !rows);
        let began = Instant::now();
        Self {
            began,
            next: shown.then(|| began + SOON),
            total,
        }
    }

    /// So many bytes have been read.
    pub fn at(&mut self, bytes: u64) {
        let Some(next) = self.next else {
            return;
        };
        let now = Instant::now();
        if now < next {
            return;
        }
        self.next = Some(now + OFTEN);
        let shown = Shown {
            bytes: bytes.min(self.total),
            total: self.total,
            elapsed: now - self.began,
            room: message::room(),
        };
        message::show(format_args!("{shown}"));
    }

    /// Something else is to be seen from here on.
    pub fn end(&mut self) {
        if self.next.take().is_some() {
            message::erase();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

/// Whether standard output goes where nobody looks meanwhile.
fn is_file() -> bool {
    let quiet = |kind: FileType| kind.is_file() || kind.is_char_device();
    let out = io::stdout();
    !out.is_terminal()
        && out
            .as_fd()
            .try_clone_to_owned()
            .ok()
            .and_then(|out| std::fs::File::from(out).metadata().ok())
            .is_some_and(|metadata| quiet(metadata.file_type()))
}

struct Shown {
    bytes: u64,
    total: u64,
    elapsed: Duration,
    /// Columns: where there are too few for the bar, the numbers stand alone.
    room: usize,
}

impl fmt::Display for Shown {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            bytes,
            total,
            elapsed,
            room,
        } = *self;
        let of = |whole: u64| {
            let part = u128::from(whole) * u128::from(bytes) / u128::from(total.max(1));
            usize::try_from(part).unwrap_or_default()
        };
        if room >= WIDE {
            let filled = "#".repeat(of(BAR as u64));
            write!(out, "[{filled:-<BAR$}] ")?;
        }
        write!(
            out,
            "{:>3} %  {} of {} MiB",
            of(100),
            bytes >> 20,
            total >> 20,
        )?;
        let nanoseconds = elapsed.as_nanos() * u128::from(total - bytes) / u128::from(bytes.max(1));
        let seconds = nanoseconds.div_ceil(1_000_000_000);
        match (bytes, seconds) {
            // Not known, or more than anybody waits for.
            (0, _) | (_, 360_000..) => Ok(()),
            (_, ..100) => write!(out, "  {seconds} s left"),
            _ => write!(out, "  {} min left", seconds.div_ceil(60)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Shown, WIDE};

    #[test]
    fn a_bar_fits_on_a_line() {
        let shown = |bytes, total| {
            let elapsed = Duration::from_secs(2);
            Shown {
                bytes,
                total,
                elapsed,
                room: WIDE,
            }
            .to_string()
        };
        let mib = 1 << 20;
        assert_eq!(
            shown(100 * mib, 400 * mib),
            "[#######-----------------------]  25 %  100 of 400 MiB  6 s left"
        );
        assert_eq!(
            shown(0, 0),
            "[------------------------------]   0 %  0 of 0 MiB"
        );
        let narrow = Shown {
            bytes: mib,
            total: 4 * mib,
            elapsed: Duration::from_secs(2),
            room: 39,
        };
        assert_eq!(narrow.to_string(), " 25 %  1 of 4 MiB  6 s left");
        assert!(shown(1, u64::MAX).len() < 90);
        assert!(shown(u64::MAX, u64::MAX).contains("100 %"));
        assert!(shown(mib, 4000 * mib).ends_with("134 min left"));
    }
}
