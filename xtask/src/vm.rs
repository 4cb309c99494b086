//! `cargo xtask vm`: the root tests on other kernels, each in an emulated machine.

mod apt;
mod cpio;
mod image;
mod kernel;
mod modules;
mod protocol;
mod qemu;
mod results;
mod sources;

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::builder::PossibleValuesParser;

use self::image::{Orders, Programs};
use self::kernel::{KERNELS, Kernel};
use self::protocol::Verdict;
use self::qemu::Guest;
use self::results::Results;
use crate::checkout::Checkout;
use crate::command;

const ALL: &str = "all";

/// Run the tests of the kernel side on other kernels, in emulated machines: takes no root, some minutes a kernel
#[derive(clap::Args)]
pub struct Args {
    /// Which kernels
    #[arg(
        long,
        value_delimiter = ',',
        default_value = ALL,
        value_parser = PossibleValuesParser::new(KERNELS.map(|kernel| kernel.name).into_iter().chain([ALL]))
    )]
    kernel: Vec<String>,
    /// Fetch the newest packages of these kernels, even if there are some already
    #[arg(long)]
    refresh: bool,
    /// Seconds that all tests of a kernel may take, with its start
    #[arg(long, default_value_t = 180, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// Seconds that one test may take
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    test_limit: u64,
    /// Passed on to the test program: part of a test's name, --skip ...
    #[arg(last = true, value_name = "FILTER AND ARGS")]
    tests: Vec<OsString>,
}

pub fn perform(args: &Args, checkout: &Checkout) -> Result<ExitCode> {
    let missing = missing();
    if !missing.is_empty() {
        bail!("guests cannot be run, missing: {}", missing.join("; "));
    }
    let wanted = |kernel: &&Kernel| {
        let asked = |name: &String| name == kernel.name || name == ALL;
        args.kernel.iter().any(asked)
    };
    let programs = Programs::build(checkout)?;
    let mut rows = Vec::new();
    for kernel in KERNELS.iter().filter(wanted) {
        let began = Instant::now();
        let mut results = Results::default();
        let outcome = run(kernel, args, &programs, checkout, &mut results);
        print(kernel, &results);
        if let Err(error) = &outcome {
            eprintln!("xtask: {}: {error:#}", kernel.name);
        }
        rows.push(Row {
            kernel,
            results,
            whole: outcome.is_ok(),
            took: began.elapsed(),
        });
    }
    println!("{}", Row::HEADER);
    for row in &rows {
        println!("{}", row.text());
    }
    Ok(if rows.iter().any(|row| !row.whole) {
        ExitCode::from(2)
    } else if rows.iter().any(Row::failed) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// What is not there and has to be, and how to get it.
pub fn missing() -> Vec<String> {
    let mut missing = Vec::new();
    if std::env::consts::ARCH != "x86_64" {
        missing.push("an x86-64 machine (guests run this machine's programs)".to_owned());
    }
    if !command::exists(qemu::PROGRAM) {
        missing.push(format!(
            "{} (install the package qemu-system-x86)",
            qemu::PROGRAM
        ));
    }
    if !command::exists("xz") {
        missing.push("xz (install the package xz-utils)".to_owned());
    }
    if !image::can_build() {
        missing.push(format!(
            "the standard library for static programs (run `rustup target add {}`)",
            image::TARGET
        ));
    }
    missing
}

/// Boots one kernel. What was found out before a failure is in the results.
fn run(
    kernel: &Kernel,
    args: &Args,
    programs: &Programs,
    checkout: &Checkout,
    results: &mut Results,
) -> Result<()> {
    let files = kernel.files(args.refresh)?;
    let folder = checkout.target.join("vm/run").join(kernel.name);
    fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    let orders = Orders {
        limit: args.test_limit,
        arguments: &args.tests,
    };
    let initramfs = folder.join("initramfs");
    write(&initramfs, &image::pack(programs, &files.modules, &orders)?)?;
    let guest = Guest {
        image: &files.image,
        initramfs: &initramfs,
        console: folder.join("console.log"),
        report: folder.join("report.log"),
        limit: Duration::from_secs(args.limit),
    };
    eprintln!(
        "xtask: {}: starting; console: {}",
        kernel.name,
        guest.console.display()
    );
    let mut told = 0;
    guest.run(results, |results| {
        let ended = results.tests.iter().filter(|test| test.verdict.is_some());
        for test in ended.skip(told) {
            told += 1;
            eprintln!(
                "xtask: {}: {told} of {}: {} {} ({})",
                kernel.name,
                results.announced,
                qemu::shown(&test.name),
                test.verdict.map_or("", Verdict::word),
                seconds(Duration::from_millis(test.milliseconds))
            );
        }
    })?;
    if results.announced == 0 {
        bail!(
            "no test was run (does a test match the filter? see {})",
            guest.report.display()
        );
    }
    Ok(())
}

/// What was found out about a kernel: its probe, and why tests failed or were skipped.
fn print(kernel: &Kernel, results: &Results) {
    let block = |title: String, lines: &[String]| {
        println!("{title}");
        for line in lines {
            println!("    {}", qemu::shown(line));
        }
    };
    if !results.probe.is_empty() {
        block(format!("{}: tcpstate probe", kernel.name), &results.probe);
    }
    if !results.troubles.is_empty() {
        block(format!("{}: trouble", kernel.name), &results.troubles);
    }
    for test in &results.tests {
        match test.verdict {
            Some(Verdict::Passed) | None => {}
            Some(verdict) => block(
                format!("{}: {} {}", kernel.name, test.name, verdict.word()),
                &test.output,
            ),
        }
    }
}

/// A line of the table.
struct Row<'a> {
    kernel: &'a Kernel,
    results: Results,
    /// The guest did all it was asked to.
    whole: bool,
    took: Duration,
}

impl Row<'_> {
    const HEADER: &'static str = "kernel  release                        hook                passed failed skipped not run    time";

    fn text(&self) -> String {
        let results = &self.results;
        let failed = results.count(&[Verdict::Failed, Verdict::TimedOut]);
        format!(
            "{:<7} {:<30} {:<18} {:>7} {failed:>6} {:>7} {:>7} {:>7}",
            self.kernel.name,
            results.kernel.as_deref().unwrap_or("did not start"),
            results.hook(),
            results.count(&[Verdict::Passed]),
            results.count(&[Verdict::Skipped]),
            results.missing(),
            seconds(self.took),
        )
    }

    fn failed(&self) -> bool {
        let results = &self.results;
        results.count(&[Verdict::Failed, Verdict::TimedOut]) + results.missing() > 0
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes)
        .with_context(|| format!("{} cannot be written (is the disk full?)", path.display()))
}
