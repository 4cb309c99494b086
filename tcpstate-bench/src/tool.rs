//! A tool at work: from its start, over the moment when it sees everything, to its end.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::{
    sys::signal::Signal,
    unistd::{SysconfVar, sysconf},
};

use crate::{
    child::Running,
    interrupt,
    subject::{FILE, Subject},
};

/// Where its output goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// As the subject says.
    Own,
    /// To a file, to be counted.
    Counted,
}

pub struct Tool {
    process: Running,
    /// What it writes.
    pub output: PathBuf,
    messages: PathBuf,
}

/// What a process has used so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Seconds in user space.
    pub user: f64,
    /// Seconds in the kernel.
    pub system: f64,
    /// The most memory it had, in bytes.
    pub peak: u64,
    /// The memory it has, in bytes.
    pub memory: u64,
}

/// How long a tool may take until it has attached: bpftrace compiles first.
const START: Duration = Duration::from_secs(30);
/// How long it may take to end.
const END: Duration = Duration::from_secs(60);

impl Tool {
    /// Starts it, and waits until it has attached.
    pub fn start(subject: &Subject, folder: &Path, output: Output) -> Result<Self> {
        let mut tool = Self::launch(subject, folder, output)?;
        tool.attached()?;
        Ok(tool)
    }

    /// Only starts it.
    pub fn launch(subject: &Subject, folder: &Path, output: Output) -> Result<Self> {
        let program = subject
            .program
            .as_ref()
            .map_err(|reason| anyhow!("{reason}"))?;
        let file = folder.join("output");
        let messages = folder.join("messages");
        if file.exists() {
            fs::remove_file(&file)?;
        }
        let own = subject.arguments.iter().any(|argument| argument == FILE);
        let create = |path: &Path| {
            File::create(path).with_context(|| format!("{} cannot be made", path.display()))
        };
        let stdout: Stdio = if !own && (subject.to_file || output == Output::Counted) {
            create(&file)?.into()
        } else {
            Stdio::null()
        };
        let mut command = Command::new(program);
        for argument in &subject.arguments {
            if argument == FILE {
                command.arg(&file);
            } else {
                command.arg(argument);
            }
        }
        command
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(create(&messages)?);
        Ok(Self {
            process: Running::start(&mut command)?,
            output: file,
            messages,
        })
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What it said.
    pub fn messages(&self) -> String {
        let bytes = fs::read(&self.messages).unwrap_or_default();
        String::from_utf8_lossy(&bytes).trim().to_owned()
    }

    /// Waits until it holds a link to a hook, and goes on holding it: libraries try what the kernel can do before.
    fn attached(&mut self) -> Result<()> {
        let end = Instant::now() + START;
        let mut since = None;
        loop {
            if self.process.ended().is_some() {
                let messages = self.messages();
                let last: Vec<_> = messages.lines().rev().take(3).collect();
                bail!("it ended at once: {}", last.join(" / "));
            }
            since = holds_link(self.pid()).then(|| since.unwrap_or_else(Instant::now));
            if since.is_some_and(|since| since.elapsed() > Duration::from_millis(400)) {
                return Ok(());
            }
            if Instant::now() > end {
                bail!("it did not attach within {} s", START.as_secs());
            }
            interrupt::pause(Duration::from_millis(20))?;
        }
    }

    /// What it has used so far.
    pub fn usage(&self) -> Result<Usage> {
        usage(self.pid()).with_context(|| self.messages())
    }

    /// Ends it as Ctrl-C would, and waits.
    pub fn end(mut self) -> Result<PathBuf> {
        self.process.signal(Signal::SIGINT);
        let deadline = Instant::now() + END;
        while self.process.ended().is_none() {
            if Instant::now() > deadline {
                bail!("it did not end within {} s of Ctrl-C", END.as_secs());
            }
            interrupt::pause(Duration::from_millis(10))?;
        }
        Ok(self.output)
    }
}

/// Whether a process has a descriptor that attaches something to the kernel.
fn holds_link(pid: u32) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd"));
    descriptors.into_iter().flatten().flatten().any(|entry| {
        fs::read_link(entry.path()).is_ok_and(|target| {
            let target = target.to_string_lossy();
            ["bpf_link", "bpf-link", "perf_event", "raw-tracepoint"]
                .iter()
                .any(|kind| target.starts_with("anon_inode:") && target.contains(kind))
        })
    })
}

fn usage(pid: u32) -> Result<Usage> {
    let gone = "the process is gone";
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context(gone)?;
    // After the name, which may contain anything, comes the state, the third field; utime is the 14th.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let mut times = fields.split_ascii_whitespace().skip(11);
    let hertz = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    let mut seconds = || {
        let ticks: Option<f64> = times.next().and_then(|ticks| ticks.parse().ok());
        #[expect(clippy::cast_precision_loss, reason = "a hundred, or a thousand")]
        let hertz = hertz as f64;
        ticks.unwrap_or(0.0) / hertz
    };
    let (user, system) = (seconds(), seconds());
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context(gone)?;
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.split_ascii_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    };
    Ok(Usage {
        user,
        system,
        peak: bytes("VmHWM:"),
        memory: bytes("VmRSS:"),
    })
}
