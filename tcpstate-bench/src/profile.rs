//! Where the time goes while a tool works: samples of all processors, by perf.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;

use crate::{
    bench::Bench,
    child::Running,
    figures::number,
    interrupt,
    subject::{Subject, find},
    tool::{Output, Tool},
};

/// What is looked at: with rows, with sums, and with neither.
const PROFILED: [&str; 3] = ["trace-json", "closers", "record"];

/// What came out for one subject.
#[derive(Debug)]
pub struct Profile {
    pub name: String,
    /// In the tool's process.
    pub tool: Part,
    /// In programs in the kernel, and what they call, while others run.
    pub programs: Part,
    /// All samples.
    pub samples: u64,
}

/// Samples, and the functions in which they were taken.
#[derive(Debug, Default)]
pub struct Part {
    pub samples: u64,
    functions: HashMap<String, u64>,
}

impl Part {
    fn add(&mut self, function: &str) {
        self.samples += 1;
        *self.functions.entry(function.to_owned()).or_default() += 1;
    }

    /// The functions with most of them.
    pub fn most(&self) -> Vec<(&str, u64)> {
        const SHOWN: usize = 10;
        let functions = self.functions.iter();
        let mut most: Vec<_> = functions
            .map(|(name, samples)| (name.as_str(), *samples))
            .collect();
        most.sort_by_key(|(name, samples)| (u64::MAX - samples, *name));
        most.truncate(SHOWN);
        most
    }
}

impl Profile {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            tool: Part::default(),
            programs: Part::default(),
            samples: 0,
        }
    }

    /// What `perf script` says of one sample: the process, then the functions, innermost first.
    fn add(&mut self, ours: bool, functions: &[String]) {
        self.samples += 1;
        let Some(innermost) = functions.first() else {
            return;
        };
        if ours {
            self.tool.add(innermost);
        } else if functions.iter().any(|function| calls_programs(function)) {
            self.programs.add(innermost);
        }
    }
}

/// The kernel's functions that call the programs of a tracepoint.
fn calls_programs(function: &str) -> bool {
    function.starts_with("bpf_trace_run")
}

pub fn measure(bench: &Bench, subjects: &[Subject]) -> Result<Vec<Profile>> {
    let Some(perf) = find("perf") else {
        bail!("profile: there is no perf; it is in the package linux-perf");
    };
    let mut profiles = Vec::new();
    for subject in subjects {
        if PROFILED.contains(&subject.name.as_str()) {
            let profile = profile(bench, subject, &perf)?;
            bench.say(&format!("profile: {}", profile.name));
            profiles.push(profile);
        }
    }
    Ok(profiles)
}

fn profile(bench: &Bench, subject: &Subject, perf: &Path) -> Result<Profile> {
    const LIMIT: Duration = Duration::from_secs(60);
    let tool = Tool::start(subject, bench.folder.path(), Output::Own)?;
    let file = bench.folder.path().join("perf.data");
    let mut record = Command::new(perf);
    record.args(["record", "-q", "-a", "-g", "-F", "1999", "-o"]);
    record.arg(&file).stdin(Stdio::null()).stderr(Stdio::null());
    let mut record = Running::start(&mut record)?;
    interrupt::pause(Duration::from_millis(500))?;
    let held = bench.load.run()?;
    record.signal(Signal::SIGINT);
    let ended = record.wait(LIMIT);
    let pid = tool.pid();
    tool.end()?;
    held.release()?;
    if ended.is_none() {
        bail!("perf record did not end within {} s", LIMIT.as_secs());
    }
    let mut script = Command::new(perf);
    script.args(["script", "-F", "pid,ip,sym", "-i"]).arg(&file);
    script.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut script = Running::start(&mut script)?;
    let told = script.child().stdout.take().context("perf says nothing")?;
    let mut profile = Profile::new(&subject.name);
    let mut ours = false;
    let mut functions = Vec::new();
    for line in BufReader::new(told).lines() {
        let line = line?;
        let mut words = line.trim().splitn(2, ' ');
        match (words.next().unwrap_or_default(), words.next()) {
            ("", _) => {
                profile.add(ours, &functions);
                functions.clear();
            }
            (_, Some(function)) => functions.push(function.to_owned()),
            (process, None) => ours = process.parse() == Ok(pid),
        }
    }
    fs::remove_file(&file)?;
    if profile.samples == 0 {
        bail!("perf script shows no samples");
    }
    Ok(profile)
}

/// Of all samples.
pub fn share(samples: u64, all: u64) -> f64 {
    100.0 * number(samples) / number(all.max(1))
}
