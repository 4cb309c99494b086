//! From exec to the first transition that is seen, and what the sockets cost that are there at the start.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::{
    sched::{CloneFlags, unshare},
    unistd::gettid,
};
use serde_json::Value;

use crate::{
    bench::Bench,
    figures::{Figures, number},
    interrupt,
    subject::{Goals, Seen, Subject},
    tool::{Output, Tool},
};

/// What came out for one way of starting.
#[derive(Debug, Default)]
pub struct Start {
    /// What is started, on what.
    pub title: String,
    /// Milliseconds from before exec until a transition is seen.
    pub attached: Figures,
    /// CPU milliseconds until it is idle.
    pub cpu: Figures,
    /// Milliseconds from before exec until it is idle.
    pub idle: Figures,
    /// Bytes of memory when it is idle.
    pub memory: Figures,
    /// Sockets that it says it has found.
    pub found: Figures,
    /// Why it was not measured.
    pub failed: Option<String>,
}

pub fn measure(bench: &Bench) -> Result<Vec<Start>> {
    let many = if bench.quick { 10_000 } else { 100_000 };
    let mut rows = vec![
        repeat(bench, "trace -j --skip-existing", "", None)?,
        repeat(bench, "trace -j", ", nothing there", None)?,
    ];
    for (sockets, time_waits, there) in [
        (many, 0, format!(", {many} sockets there")),
        (0, many, format!(", {many} TIME_WAITs there")),
        (
            many,
            many,
            format!(", {many} sockets and {many} TIME_WAITs there"),
        ),
    ] {
        rows.push(repeat(
            bench,
            "trace -j",
            &there,
            Some((sockets, time_waits)),
        )?);
    }
    Ok(rows)
}

fn repeat(
    bench: &Bench,
    arguments: &str,
    there: &str,
    existing: Option<(u32, u32)>,
) -> Result<Start> {
    let mut start = Start {
        title: format!("tcpstate {arguments}{there}"),
        ..Start::default()
    };
    let subject = Subject {
        name: "start".to_owned(),
        program: Ok(bench.tcpstate.clone()),
        arguments: arguments.split(' ').map(str::to_owned).collect(),
        to_file: true,
        seen: Seen::Nothing,
        goals: Goals::default(),
    };
    let times = match (bench.quick, existing) {
        (true, _) => 1,
        // Making so many, and waiting until they have gone, takes long.
        (false, Some(_)) => 3,
        (false, None) => 5,
    };
    for _ in 0..times {
        // Made anew each time: TIME_WAITs go after a minute, and an end is work.
        let existing = existing.map(|(sockets, waits)| bench.load.existing(sockets, waits));
        let existing = existing.transpose()?;
        let done = once(bench, &subject, &mut start);
        if existing.is_some() {
            drop(existing);
            crate::load::settled()?;
        }
        if let Err(error) = done {
            interrupt::check()?;
            start.failed = Some(format!("{error:#}"));
            break;
        }
    }
    bench.say(&match &start.failed {
        None => format!(
            "start: {}: attached after {} ms, {} ms of CPU",
            start.title,
            start.attached.shown(0),
            start.cpu.shown(0)
        ),
        Some(reason) => format!("start: {} not measured: {reason}", start.title),
    });
    Ok(start)
}

fn once(bench: &Bench, subject: &Subject, start: &mut Start) -> Result<()> {
    let prober = Prober::start()?;
    let began = Instant::now();
    let tool = Tool::launch(subject, bench.folder.path(), Output::Own)?;
    let attached = first_seen(&tool, &prober, began)?;
    drop(prober);
    // Idle: no tick of the clock for half a second.
    let mut last = (tool.usage()?, began.elapsed());
    while began.elapsed().saturating_sub(last.1) < Duration::from_millis(500) {
        interrupt::pause(Duration::from_millis(20))?;
        let usage = tool.usage()?;
        if usage.user + usage.system > last.0.user + last.0.system {
            last = (usage, began.elapsed());
        }
        if began.elapsed() > Duration::from_secs(30) {
            bail!("it is not idle after 30 s");
        }
    }
    start.attached.push(attached.as_secs_f64() * 1e3);
    start.cpu.push((last.0.user + last.0.system) * 1e3);
    start.idle.push(last.1.as_secs_f64() * 1e3);
    start.memory.push(number(tool.usage()?.memory));
    let output = tool.end()?;
    let text = fs::read_to_string(output)?;
    let summary = text.lines().rev().find_map(|line| {
        let line: Value = serde_json::from_str(line).ok()?;
        line["found"].as_u64()
    });
    start
        .found
        .push(number(summary.context("there is no summary")?));
    Ok(())
}

/// How long after the start the first listener was opened that the tool has seen.
fn first_seen(tool: &Tool, prober: &Prober, began: Instant) -> Result<Duration> {
    let end = began + Duration::from_secs(20);
    while Instant::now() < end {
        interrupt::pause(Duration::from_millis(10))?;
        if let Some(port) = first_port(&tool.output, prober.netns) {
            let opened = prober
                .opened
                .lock()
                .map_err(|_| anyhow!("the prober panicked"))?;
            let opened = opened.get(usize::from(port - FIRST_PORT));
            return Ok(opened
                .context("a listener of nobody")?
                .duration_since(began));
        }
    }
    bail!("nothing was seen within 20 s: {}", tool.messages())
}

fn first_port(output: &Path, netns: u64) -> Option<u16> {
    let text = fs::read_to_string(output).ok()?;
    text.lines().find_map(|line| {
        let line: Value = serde_json::from_str(line).ok()?;
        let ours = line["netns"].as_u64() == Some(netns) && line["new"] == "listen";
        let port = line["lport"].as_u64().filter(|_| ours)?;
        u16::try_from(port).ok().filter(|port| *port >= FIRST_PORT)
    })
}

const FIRST_PORT: u16 = 1024;

/// Opens a listener on the next port every half millisecond, in a network namespace of its own, until it is dropped.
struct Prober {
    netns: u64,
    /// When; the first one is that of `FIRST_PORT`.
    opened: Arc<Mutex<Vec<Instant>>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Prober {
    fn start() -> Result<Self> {
        let opened = Arc::new(Mutex::new(Vec::new()));
        let over = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = std::sync::mpsc::channel();
        let (times, end) = (Arc::clone(&opened), Arc::clone(&over));
        let thread = thread::Builder::new().name("prober".to_owned());
        let thread = thread.spawn(move || {
            let entered = unshare(CloneFlags::CLONE_NEWNET);
            // Whoever started this waits for it.
            let _ = sender.send(entered.map(|()| gettid()));
            for port in FIRST_PORT..=u16::MAX {
                if end.load(Ordering::Relaxed) {
                    break;
                }
                if let Ok(mut times) = times.lock() {
                    times.push(Instant::now());
                }
                drop(TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)));
                thread::sleep(Duration::from_micros(500));
            }
        })?;
        let thread_id = receiver
            .recv()?
            .context("no network namespace can be made")?;
        let netns = fs::metadata(format!("/proc/self/task/{thread_id}/ns/net"))?.ino();
        Ok(Self {
            netns,
            opened,
            over,
            thread: Some(thread),
        })
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
