//! What a transition takes longer with a tool: a listener that is opened and closed in bursts so short that nobody need read meanwhile.
//! Two transitions a round, both in the process's own system call, which is where a tool has most to read.

use std::{
    os::fd::{AsRawFd as _, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use nix::{
    sched::{CloneFlags, CpuSet, sched_setaffinity, unshare},
    sys::socket::{AddressFamily, Backlog, Shutdown, SockFlag, SockType, listen, shutdown, socket},
    unistd::Pid,
};

use crate::{
    bench::Bench,
    figures::{Figures, number},
    interrupt,
    subject::Subject,
    tool::{Output, Tool},
};

/// What came out for one subject.
#[derive(Clone, Debug, Default)]
pub struct Added {
    /// Nanoseconds that a transition takes longer.
    pub nanoseconds: Figures,
    /// Why it was not measured.
    pub failed: Option<String>,
}

/// What came out.
#[derive(Debug, Default)]
pub struct AddedTimes {
    /// In the order of the subjects.
    pub rows: Vec<Added>,
    /// Nanoseconds of half a round, without any tool.
    pub without: Figures,
}

/// Rounds in a burst: 4000 records are less than any buffer.
const ROUNDS: u32 = 2000;

pub fn measure(bench: &Bench, subjects: &[Subject]) -> Result<AddedTimes> {
    let (pairs, bursts) = if bench.quick { (1, 5) } else { (5, 20) };
    let mut times = AddedTimes {
        rows: vec![Added::default(); subjects.len()],
        ..AddedTimes::default()
    };
    let mut before = round(bursts)?;
    times.without.push(before);
    for _ in 0..pairs {
        for (row, subject) in subjects.iter().enumerate() {
            if times.rows[row].failed.is_some() {
                continue;
            }
            match with(bench, subject, bursts) {
                Ok(with) => {
                    let after = round(bursts)?;
                    let added = with - f64::midpoint(before, after);
                    times.rows[row].nanoseconds.push(added);
                    times.without.push(after);
                    before = after;
                    bench.say(&format!("added: {} {added:.0} ns", subject.name));
                }
                Err(error) => {
                    interrupt::check()?;
                    times.rows[row].failed = Some(format!("{error:#}"));
                }
            }
        }
    }
    Ok(times)
}

fn with(bench: &Bench, subject: &Subject, bursts: u32) -> Result<f64> {
    let tool = Tool::start(subject, bench.folder.path(), Output::Own)?;
    let with = round(bursts)?;
    tool.end()?;
    Ok(with)
}

/// Nanoseconds for each transition: the median of the bursts.
fn round(bursts: u32) -> Result<f64> {
    // A thread of its own, in a network namespace of its own, on a processor of its own.
    let thread = thread::Builder::new().name("rounds".to_owned());
    let thread = thread
        .spawn(move || run(bursts))
        .context("no more threads")?;
    thread.join().map_err(|_| anyhow!("the rounds panicked"))?
}

fn run(bursts: u32) -> Result<f64> {
    unshare(CloneFlags::CLONE_NEWNET).context("no network namespace can be made")?;
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let mut last = CpuSet::new();
    last.set(processors - 1)?;
    // Elsewhere it would only be less steady.
    let _ = sched_setaffinity(Pid::from_raw(0), &last);
    let socket = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .context("no socket")?;
    let mut times = Figures::default();
    burst(&socket)?;
    for _ in 0..bursts {
        // The reader of a tool gets its time.
        interrupt::pause(Duration::from_millis(60))?;
        times.push(burst(&socket)?);
    }
    times.median().context("no bursts")
}

fn burst(socket: &OwnedFd) -> Result<f64> {
    let began = Instant::now();
    for _ in 0..ROUNDS {
        listen(socket, Backlog::new(1)?).context("listen failed")?;
        shutdown(socket.as_raw_fd(), Shutdown::Both).context("shutdown failed")?;
    }
    let nanoseconds = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
    Ok(number(nanoseconds) / f64::from(2 * ROUNDS))
}
