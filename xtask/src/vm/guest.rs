//! The first process of a guest of `cargo xtask vm`: it makes the machine usable, runs `tcpstate probe` and the tests one
//! after the other, reports over the second serial line, and switches the machine off.

#[path = "protocol.rs"]
mod protocol;

use std::{
    ffi::{CString, c_long},
    fmt::Write as _,
    fs::{self, File},
    io::{self, Write as _},
    os::{fd::AsRawFd as _, unix::process::CommandExt as _},
    process::{Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use protocol::{MODULES, ORDERS, Report, TESTS, Verdict};

/// The serial line for reports. The first one is the console, where the kernel talks as well.
const REPORTS: &str = "/dev/ttyS1";

/// What a test has printed is kept up to this many bytes; of more, the beginning and the end.
const KEPT: usize = 48 << 10;

fn main() {
    // Elsewhere there is nothing it could do but harm.
    if std::process::id() != 1 {
        eprintln!("guest: only of use as the first process of a virtual machine");
        std::process::exit(2);
    }
    if let Err(error) = live() {
        eprintln!("guest: {error}");
    }
    switch_off();
}

fn live() -> io::Result<()> {
    fs::create_dir_all("/dev")?;
    mount("devtmpfs", "/dev")?;
    let mut reports = File::options().write(true).open(REPORTS)?;
    let mut report = |report: Report| writeln!(reports, "{report}");
    mount("proc", "/proc")?;
    mount("sysfs", "/sys")?;
    report(Report::Kernel(
        fs::read_to_string("/proc/sys/kernel/osrelease")?
            .trim()
            .to_owned(),
    ))?;
    // The root is in memory already; what is mounted over it would hide what the host has put there.
    for folder in ["/tmp", "/run"] {
        fs::create_dir_all(folder)?;
    }
    for (kind, folder) in [
        ("tracefs", "/sys/kernel/tracing"),
        ("debugfs", "/sys/kernel/debug"),
        ("bpf", "/sys/fs/bpf"),
        ("cgroup2", "/sys/fs/cgroup"),
    ] {
        if let Err(error) = mount(kind, folder) {
            report(Report::Trouble(format!(
                "{kind} cannot be mounted on {folder}: {error}"
            )))?;
        }
    }
    for trouble in load_modules()? {
        report(Report::Trouble(trouble))?;
    }

    let orders = Orders::read()?;
    report(Report::Probe)?;
    let mut probe = Command::new(&orders.tcpstate);
    let (ended, output, _) = run(probe.arg("probe"), orders.limit)?;
    for line in output.lines() {
        report(Report::Output(line.to_owned()))?;
    }
    match ended {
        Ended::By(0) => {}
        Ended::By(status) => report(Report::Trouble(format!(
            "`tcpstate probe` ended with {status}"
        )))?,
        Ended::TooLate => report(Report::Trouble(
            "`tcpstate probe` did not end in time".to_owned(),
        ))?,
    }

    let mut list = Command::new(TESTS);
    list.args(["--list", "--format", "terse"])
        .args(&orders.arguments);
    let (_, output, _) = run(&mut list, orders.limit)?;
    let tests: Vec<_> = output
        .lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .collect();
    report(Report::Tests(tests.len()))?;
    for name in tests {
        report(Report::Test(name.to_owned()))?;
        let mut test = Command::new(TESTS);
        test.args(["--exact", name, "--nocapture", "--test-threads", "1"]);
        let (ended, output, took) = run(&mut test, orders.limit)?;
        let skipped = output.lines().any(|line| {
            line.starts_with("SKIPPED ")
                || line.contains(" ... SKIPPED ")
                || line.contains(" ... ignored")
        });
        let verdict = match ended {
            Ended::TooLate => Verdict::TimedOut,
            Ended::By(0) if skipped => Verdict::Skipped,
            Ended::By(0) => Verdict::Passed,
            Ended::By(_) => Verdict::Failed,
        };
        if verdict != Verdict::Passed {
            for line in output.lines() {
                report(Report::Output(line.to_owned()))?;
            }
        }
        let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        report(Report::Ended(verdict, milliseconds))?;
    }
    report(Report::Done)
}

/// What the host wants: `key=value` lines.
#[derive(Default)]
struct Orders {
    tcpstate: String,
    limit: Duration,
    arguments: Vec<String>,
}

impl Orders {
    fn read() -> io::Result<Self> {
        let mut orders = Self::default();
        for line in fs::read_to_string(ORDERS)?.lines() {
            match line.split_once('=') {
                Some(("tcpstate", path)) => path.clone_into(&mut orders.tcpstate),
                Some(("limit", seconds)) => {
                    orders.limit = Duration::from_secs(seconds.parse().unwrap_or(60));
                }
                Some(("argument", argument)) => orders.arguments.push(argument.to_owned()),
                _ => return Err(io::Error::other(format!("{ORDERS}: {line}"))),
            }
        }
        Ok(orders)
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// With this exit status, or -1 if by a signal.
    By(i32),
    /// Not in time: it was killed.
    TooLate,
}

/// Runs a program in a process group of its own, of which nothing is left afterwards.
fn run(command: &mut Command, limit: Duration) -> io::Result<(Ended, String, Duration)> {
    const OUTPUT: &str = "/run/output";
    let output = File::create(OUTPUT)?;
    let began = Instant::now();
    let mut child = command
        .env_clear()
        .envs([
            ("PATH", "/bin:/usr/bin:/sbin:/usr/sbin"),
            ("HOME", "/"),
            ("TMPDIR", "/tmp"),
        ])
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .process_group(0)
        .spawn()?;
    let status: Option<ExitStatus> = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if began.elapsed() > limit {
            break None;
        }
        thread::sleep(Duration::from_millis(5));
    };
    let took = began.elapsed();
    let stuck = if status.is_none() {
        stuck(child.id())
    } else {
        String::new()
    };
    if let Ok(group) = libc::pid_t::try_from(child.id()) {
        // SAFETY: a call without pointers. The group may be gone, which is as well.
        unsafe { libc::kill(-group, libc::SIGKILL) };
    }
    child.wait()?;
    let output = shortened(&fs::read(OUTPUT)?) + &stuck;
    let ended = status.map_or(Ended::TooLate, |status| {
        Ended::By(status.code().unwrap_or(-1))
    });
    Ok((ended, output, took))
}

/// Where in the kernel the threads of a process group are: what a test that does not end waits for.
fn stuck(group: u32) -> String {
    let mut text = String::new();
    for process in numbered("/proc") {
        // After the name, which may contain anything: state, parent, group.
        let stat = fs::read_to_string(format!("{process}/stat")).unwrap_or_default();
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        if fields.split_whitespace().nth(2) != Some(&group.to_string()) {
            continue;
        }
        for thread in numbered(&format!("{process}/task")) {
            let say = |file| fs::read_to_string(format!("{thread}/{file}")).unwrap_or_default();
            // Writing to a String cannot fail.
            let _ = write!(
                text,
                "\nstuck: {thread} {} in {}\n{}",
                say("comm").trim_end(),
                say("wchan"),
                say("stack")
            );
        }
    }
    text
}

/// The folders of a folder that are named by a number.
fn numbered(folder: &str) -> Vec<String> {
    let is_number = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| is_number(name))
        .map(|name| format!("{folder}/{name}"))
        .collect()
}

/// Without its middle, if it is too long.
fn shortened(bytes: &[u8]) -> String {
    if bytes.len() <= KEPT {
        return String::from_utf8_lossy(bytes).into_owned();
    }
    let head = &bytes[..KEPT / 2];
    let tail = &bytes[bytes.len() - KEPT / 2..];
    format!(
        "{}\n[{} bytes left out]\n{}",
        String::from_utf8_lossy(head),
        bytes.len() - head.len() - tail.len(),
        String::from_utf8_lossy(tail)
    )
}

/// Loads what the host has put there, in its order; says what could not be loaded.
fn load_modules() -> io::Result<Vec<String>> {
    let mut paths: Vec<_> = fs::read_dir(MODULES)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<_>>()?;
    paths.sort();
    let mut troubles = Vec::new();
    for path in paths {
        let file = File::open(&path)?;
        // SAFETY: the file and the empty string of parameters live through the call.
        let result: c_long =
            unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
        if result != 0 {
            let error = io::Error::last_os_error();
            troubles.push(format!("{} cannot be loaded: {error}", path.display()));
        }
    }
    Ok(troubles)
}

fn mount(kind: &str, folder: &str) -> io::Result<()> {
    // Fails where the folder is the kernel's own; mounting tells whether it is there.
    let _ = fs::create_dir_all(folder);
    let (kind, folder) = (CString::new(kind)?, CString::new(folder)?);
    // SAFETY: the strings live through the call; there is no data.
    let result = unsafe {
        libc::mount(
            kind.as_ptr(),
            folder.as_ptr(),
            kind.as_ptr(),
            0,
            std::ptr::null(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// qemu is told to end instead of starting again. If this fails, the kernel panics as its first process ends, which ends
/// qemu as well.
fn switch_off() {
    // SAFETY: a call without pointers.
    unsafe { libc::reboot(libc::RB_AUTOBOOT) };
}
