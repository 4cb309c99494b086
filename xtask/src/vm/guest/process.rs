//! One process that is watched: its end, which comes in time or is brought about, and what it printed.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io,
    os::unix::process::CommandExt as _,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

/// What a process has printed is kept up to this many bytes; of more, the beginning and the end.
const KEPT: usize = 48 << 10;

/// How often is looked whether a process has ended.
pub const PAUSE: Duration = Duration::from_millis(5);

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With this exit status, or -1 if by a signal.
    By(i32),
    /// Not in time: it was killed.
    TooLate,
}

/// A process in a process group of its own.
pub struct Watched {
    child: Child,
    output: String,
    began: Instant,
    limit: Duration,
}

impl Watched {
    /// Starts it. `number` tells its output from that of others.
    pub fn start(command: &mut Command, number: usize, seconds: u64) -> io::Result<Self> {
        let path = format!("/run/output-{number}");
        let output = File::create(&path)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .spawn()?;
        Ok(Self {
            child,
            output: path,
            began: Instant::now(),
            limit: Duration::from_secs(seconds),
        })
    }

    pub fn took(&self) -> Duration {
        self.began.elapsed()
    }

    /// How it ended, and what it printed; none while it runs. Nothing is left of its group then.
    pub fn ended(&mut self) -> io::Result<Option<(Ended, String)>> {
        let status: Option<ExitStatus> = self.child.try_wait()?;
        if status.is_none() && self.took() <= self.limit {
            return Ok(None);
        }
        let stuck = if status.is_none() {
            stuck(self.child.id())
        } else {
            String::new()
        };
        if let Ok(group) = libc::pid_t::try_from(self.child.id()) {
            // SAFETY: a call without pointers. The group may be gone, which is as well.
            unsafe { libc::kill(-group, libc::SIGKILL) };
        }
        self.child.wait()?;
        let output = shortened(&fs::read(&self.output)?) + &stuck;
        fs::remove_file(&self.output)?;
        let ended = status.map_or(Ended::TooLate, |status| {
            Ended::By(status.code().unwrap_or(-1))
        });
        Ok(Some((ended, output)))
    }
}

/// A command with the same surroundings whatever those of the first process are.
pub fn surrounded(command: &mut Command) -> &mut Command {
    command.env_clear().envs([
        ("PATH", "/bin:/usr/bin:/sbin:/usr/sbin"),
        ("HOME", "/"),
        ("TMPDIR", "/tmp"),
    ])
}

/// Runs a program to its end.
pub fn run(command: &mut Command, seconds: u64) -> io::Result<(Ended, String)> {
    let mut watched = Watched::start(surrounded(command), 0, seconds)?;
    loop {
        if let Some(ended) = watched.ended()? {
            return Ok(ended);
        }
        thread::sleep(PAUSE);
    }
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
