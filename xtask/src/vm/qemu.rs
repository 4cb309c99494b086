//! One guest, from its first instruction to its end, which comes in time or is brought about.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::results::Results;
use crate::command;

pub const PROGRAM: &str = "qemu-system-x86_64";

/// A console that says more than this is stuck in a loop.
const CONSOLE_LIMIT: u64 = 64 << 20;

/// What a guest is started from, and where it leaves what it says.
pub struct Guest<'a> {
    pub image: &'a Path,
    /// Written there by us.
    pub initramfs: &'a Path,
    /// Virtual processors.
    pub processors: u8,
    /// For the kernel, besides what every guest gets.
    pub append: &'a str,
    /// What the kernel says.
    pub console: PathBuf,
    /// What our first process says.
    pub report: PathBuf,
    /// How long it may take.
    pub limit: Duration,
}

/// qemu; killed if we leave early.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Fails if it has ended, which is what we want.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Guest<'_> {
    /// Runs it to its end. `heard` is called with each line of the report.
    ///
    /// Fails if the guest did not do all it was asked to; what it did is in the results all the same.
    pub fn run(
        &self,
        results: &mut Results,
        mut heard: impl FnMut(&str, &mut Results),
    ) -> Result<()> {
        for path in [&self.console, &self.report] {
            fs::write(path, "").with_context(|| format!("{} cannot be written", path.display()))?;
        }
        let began = Instant::now();
        let mut qemu = self.command();
        let child = qemu.stdin(Stdio::null()).spawn().with_context(|| {
            format!("`{PROGRAM}` cannot be started (install the package qemu-system-x86)")
        })?;
        let mut running = Running(child);
        let mut report = Follower::open(&self.report)?;
        let ended = loop {
            // Asked before the last reading, so that nothing is left unread.
            let ended = running.0.try_wait().context("qemu cannot be watched")?;
            for line in report.lines()? {
                heard(&line, results);
            }
            if ended.is_some() {
                break ended;
            }
            let too_much = fs::metadata(&self.console).is_ok_and(|file| file.len() > CONSOLE_LIMIT);
            if began.elapsed() > self.limit || too_much {
                break None;
            }
            thread::sleep(Duration::from_millis(100));
        };
        drop(running);
        if results.done {
            return Ok(());
        }
        bail!(
            "{}{}",
            self.why(ended.is_some(), results),
            self.last_words()
        );
    }

    fn why(&self, ended: bool, results: &Results) -> String {
        let unfinished: Vec<_> = results
            .tests()
            .filter(|test| test.verdict.is_none())
            .map(|test| shown(&test.name))
            .collect();
        let during = match (&results.kernel, results.tests().next()) {
            (None, _) => "before our first process was there".to_owned(),
            (Some(_), None) => "before the first test".to_owned(),
            (Some(_), Some(_)) => format!("in {}", unfinished.join(", ")),
        };
        let what = if ended {
            "the guest ended by itself"
        } else {
            "the guest did not end in time and was killed"
        };
        format!(
            "{what}, {during} (limit {} s); its console: {}",
            self.limit.as_secs(),
            self.console.display()
        )
    }

    /// The end of the console, from the panic on if there was one.
    fn last_words(&self) -> String {
        const LINES: usize = 12;
        let text = fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        let from = lines
            .iter()
            .position(|line| line.contains("Kernel panic"))
            .unwrap_or(lines.len().saturating_sub(LINES));
        lines[from..]
            .iter()
            .take(LINES)
            .fold(String::new(), |text, line| text + "\n    " + &shown(line))
    }

    fn command(&self) -> Command {
        // If we are killed, nobody would end qemu: the kernel does.
        let mut qemu = if command::exists("setpriv") {
            let mut setpriv = Command::new("setpriv");
            setpriv.args(["--pdeathsig", "KILL", PROGRAM]);
            setpriv
        } else {
            Command::new(PROGRAM)
        };
        // The plainest processor: what newer ones have (five levels of page tables, mitigations) makes emulation half as fast.
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-accel", "tcg,thread=multi", "-cpu", "qemu64", "-m", "1024"])
            .args(["-smp", &self.processors.to_string()])
            // A panic restarts, and a restart ends qemu.
            .args(["-no-reboot", "-append"])
            .arg(format!("console=ttyS0 panic=-1 quiet {}", self.append))
            .arg("-kernel")
            .arg(self.image)
            .arg("-initrd")
            .arg(self.initramfs);
        for (name, path) in [("console", &self.console), ("report", &self.report)] {
            // A comma in a value is written twice.
            let path = path.to_string_lossy().replace(',', ",,");
            qemu.args(["-chardev", &format!("file,id={name},path={path}")])
                .args(["-serial", &format!("chardev:{name}")]);
        }
        qemu
    }
}

/// Processor time of all children of ours that have ended: a guest that is slow because others keep the machine busy is told
/// from one that has much to do.
pub fn processor_time() -> Duration {
    // SAFETY: `rusage` is plain data, for which zeros are valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the structure lives through the call.
    unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage) };
    let time = |time: libc::timeval| {
        Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or_default())
            + Duration::from_micros(u64::try_from(time.tv_usec).unwrap_or_default())
    };
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// A line for a terminal: what a guest prints must not control it.
pub fn shown(line: &str) -> String {
    line.trim_end()
        .chars()
        .map(|c| match c {
            '\t' => ' ',
            c if c.is_control() => '\u{fffd}',
            c => c,
        })
        .collect()
}

/// Reads a file as it grows, line by line.
struct Follower {
    file: File,
    unfinished: Vec<u8>,
}

impl Follower {
    fn open(path: &Path) -> Result<Self> {
        let file =
            File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
        Ok(Self {
            file,
            unfinished: Vec::new(),
        })
    }

    fn lines(&mut self) -> Result<Vec<String>> {
        self.file
            .read_to_end(&mut self.unfinished)
            .context("the guest's report cannot be read")?;
        let Some(end) = self.unfinished.iter().rposition(|byte| *byte == b'\n') else {
            return Ok(Vec::new());
        };
        let rest = self.unfinished.split_off(end + 1);
        let lines = std::mem::replace(&mut self.unfinished, rest);
        Ok(String::from_utf8_lossy(&lines)
            .lines()
            .map(str::to_owned)
            .collect())
    }
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "a test stops where its set-up fails")]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn what_a_guest_prints_does_not_control_the_terminal() {
        assert_eq!(shown("a\u{1b}[2J\tb\r\n"), "a\u{fffd}[2J b");
    }

    #[test]
    fn only_whole_lines_are_read() {
        let path = std::env::temp_dir().join(format!("tcpstate-follow-{}", std::process::id()));
        let mut file = File::create(&path).expect("a file");
        let mut follower = Follower::open(&path).expect("the file");
        file.write_all(b"one\ntw").expect("written");
        assert_eq!(follower.lines().expect("read"), ["one"]);
        assert!(follower.lines().expect("read").is_empty());
        file.write_all(b"o\n").expect("written");
        assert_eq!(follower.lines().expect("read"), ["two"]);
        fs::remove_file(path).expect("removed");
    }
}
