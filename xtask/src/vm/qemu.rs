//! One guest, from its first instruction to its end, which comes in time or is brought about.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::results::Results;
use crate::arch::{AARCH64, Arch};
use crate::command;

/// What emulates a machine, and what that machine is like. The processors are plain: what newer ones have (five levels of page
/// tables, signed pointers, mitigations) makes emulation half as fast.
#[derive(Clone, Copy)]
pub struct Machine {
    pub program: &'static str,
    pub package: &'static str,
    name: &'static str,
    processor: &'static str,
    /// The first serial line, as the kernel calls it.
    console: &'static str,
    /// The device of the second one.
    report: &'static str,
    /// Seconds in which a guest does everything.
    pub limit: u64,
}

const X86: Machine = Machine {
    program: "qemu-system-x86_64",
    package: "qemu-system-x86",
    name: "pc",
    processor: "qemu64",
    console: "ttyS0",
    report: "isa-serial,index=1,chardev=report",
    limit: 180,
};

const ARM: Machine = Machine {
    program: "qemu-system-aarch64",
    package: "qemu-system-arm",
    name: "virt",
    processor: "cortex-a57",
    console: "ttyAMA0",
    report: "pci-serial,chardev=report",
    limit: 1800,
};

/// A console that says more than this is stuck in a loop.
const CONSOLE_LIMIT: u64 = 64 << 20;

/// What a guest is started from, and where it leaves what it says.
pub struct Guest<'a> {
    pub machine: Machine,
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
    /// See [`Machine::threads_are_safe`].
    pub threads: bool,
}

impl Machine {
    /// With this processor.
    pub fn of(arch: Arch) -> Self {
        if arch == AARCH64 { ARM } else { X86 }
    }

    /// Whether this qemu emulates each processor in a thread of its own without running code that has just been changed by another
    /// one ("accel/tcg: Always lock pages before translation", qemu 8.1). Earlier ones seldom let a guest panic with `int3`, or spin for
    /// ever, when a kernel patches itself: which it does for every hook that is attached.
    pub fn threads_are_safe(self) -> bool {
        let mut qemu = Command::new(self.program);
        let version = command::output(qemu.arg("--version"), "is qemu whole?");
        version.is_ok_and(|text| version_of(&text) >= Some((8, 1)))
    }
}

/// How long a guest took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Took {
    pub time: Duration,
    /// Of this machine's processors: a guest that is slow because others keep the machine busy is told from one that has much
    /// to do.
    pub processor: Duration,
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
        took: &mut Took,
        mut heard: impl FnMut(&str, &mut Results),
    ) -> Result<()> {
        for path in [&self.console, &self.report] {
            fs::write(path, "").with_context(|| format!("{} cannot be written", path.display()))?;
        }
        let began = Instant::now();
        let mut qemu = self.command();
        let child = qemu.stdin(Stdio::null()).spawn().with_context(|| {
            let Machine {
                program, package, ..
            } = self.machine;
            format!("`{program}` cannot be started (install the package {package})")
        })?;
        let mut running = Running(child);
        let mut report = Follower::open(&self.report)?;
        let ended = loop {
            *took = Took {
                time: began.elapsed(),
                processor: processor_time(running.0.id()).unwrap_or(took.processor),
            };
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
        let Machine {
            program,
            name,
            processor,
            console,
            report,
            ..
        } = self.machine;
        let mut qemu = if command::exists("setpriv") {
            let mut setpriv = Command::new("setpriv");
            setpriv.args(["--pdeathsig", "KILL", program]);
            setpriv
        } else {
            Command::new(program)
        };
        let accelerator = if self.threads {
            "tcg,thread=multi"
        } else {
            "tcg,thread=single"
        };
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-machine", name, "-cpu", processor, "-m", "1024"])
            .args(["-accel", accelerator])
            .args(["-smp", &self.processors.to_string()])
            // A panic restarts, and a restart ends qemu.
            .args(["-no-reboot", "-append"])
            .arg(format!("console={console} panic=-1 quiet {}", self.append))
            .arg("-kernel")
            .arg(self.image)
            .arg("-initrd")
            .arg(self.initramfs);
        for (name, path) in [("console", &self.console), ("report", &self.report)] {
            // A comma in a value is written twice.
            let path = path.to_string_lossy().replace(',', ",,");
            qemu.args(["-chardev", &format!("file,id={name},path={path}")]);
        }
        qemu.args(["-serial", "chardev:console", "-device", report]);
        qemu
    }
}

/// Processor time that this process has used; `None` if there is none (any more).
fn processor_time(pid: u32) -> Option<Duration> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything; `utime` and `stime` are the 12th and 13th number behind it (proc_pid_stat(5)).
    let (_, numbers) = line.rsplit_once(')')?;
    let mut numbers = numbers.split_whitespace().skip(11);
    let mut ticks = || numbers.next()?.parse::<u64>().ok();
    let ticks = ticks()? + ticks()?;
    // SAFETY: no memory is handed over.
    let per_second = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).ok()?;
    Some(Duration::from_millis(ticks * 1000 / per_second.max(1)))
}

/// `QEMU emulator version 7.2.22 (Debian ...)`
fn version_of(text: &str) -> Option<(u32, u32)> {
    let (_, version) = text.split_once("version ")?;
    let mut numbers = version.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next()?.parse().ok();
    Some((number()?, number()?))
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
    fn the_version_is_read() {
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright";
        assert_eq!(version_of(debian), Some((7, 2)));
        assert_eq!(version_of("QEMU emulator version 10.0.2"), Some((10, 0)));
        assert_eq!(version_of("QEMU emulator"), None);
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
