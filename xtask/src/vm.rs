//! `cargo xtask vm`: the root tests on other kernels, each in an emulated machine.

mod apt;
mod cpio;
mod files;
mod golden;
mod image;
mod kernel;
mod lock;
mod modules;
mod orders;
mod outcome;
mod protocol;
mod qemu;
mod readme;
mod results;
mod sources;
mod tools;
mod variant;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::builder::PossibleValuesParser;

use self::files::write;
use self::image::Programs;
use self::kernel::{KERNELS, Kernel};
use self::lock::Lock;
use self::orders::Orders;
use self::outcome::{Outcome, seconds};
use self::protocol::Verdict;
use self::qemu::{Guest, Machine, Took};
use self::results::Results;
use self::variant::{STANDARD, VARIANTS, Variant};
use crate::arch::{self, Arch};
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
    /// Which guests; by default `standard`, with `--kernel all` all that a kernel is meant for
    #[arg(
        long,
        value_delimiter = ',',
        value_parser = PossibleValuesParser::new(VARIANTS.map(|variant| variant.name).into_iter().chain([ALL]))
    )]
    guest: Vec<String>,
    /// Keep what `tcpstate probe` says now as what it has to say, and write the table of README.md
    #[arg(long)]
    bless: bool,
    /// Fetch the newest packages of these kernels, even if there are some already
    #[arg(long)]
    refresh: bool,
    /// Seconds that all tests of a guest may take, with its start [default: 180, for arm64 1800]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Seconds that one test may take
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..))]
    test_limit: u64,
    /// How many guests run at a time
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..))]
    guests: u8,
    /// How many tests of a guest run at a time
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..))]
    lanes: u8,
    /// Appended to the command line of the kernels
    #[arg(long, default_value = "", hide_default_value = true)]
    append: String,
    /// Passed on to the test program: part of a test's name, --skip ...
    #[arg(last = true, value_name = "FILTER AND ARGS")]
    tests: Vec<String>,
}

impl Args {
    /// The kernels and guests that are asked for.
    fn wanted(&self) -> Vec<(&'static Kernel, &'static Variant)> {
        let has = |list: &[String], name: &str| list.iter().any(|asked| asked == name);
        let every_kernel = has(&self.kernel, ALL);
        let mut wanted = Vec::new();
        for kernel in &KERNELS {
            for variant in &VARIANTS {
                let by_default = if every_kernel {
                    variant.is_meant_for(kernel.name)
                } else {
                    variant.name == STANDARD
                };
                let guest = has(&self.guest, variant.name)
                    || has(&self.guest, ALL) && variant.is_meant_for(kernel.name)
                    || self.guest.is_empty() && by_default;
                if guest && (every_kernel || has(&self.kernel, kernel.name)) {
                    wanted.push((kernel, variant));
                }
            }
        }
        wanted
    }
}

pub fn perform(args: &Args, checkout: &Checkout) -> Result<ExitCode> {
    let wanted = args.wanted();
    let archs: Vec<_> = arch::ALL
        .into_iter()
        .filter(|arch| wanted.iter().any(|(kernel, _)| kernel.arch == *arch))
        .collect();
    let missing = missing(&archs);
    if !missing.is_empty() {
        bail!(
            "guests cannot be run, missing: {}; `cargo xtask setup` installs it",
            missing.join("; ")
        );
    }
    let runs = checkout.target.join("vm/run");
    let _lock = Lock::take(&runs)?;
    let programs = archs
        .into_iter()
        .map(|arch| build(arch, args, checkout))
        .collect::<Result<Vec<_>>>()?;
    let host = Host {
        args,
        programs: &programs,
        folder: &runs,
        packing: Mutex::new(()),
    };
    let outcomes = host.run_all(&wanted);
    for outcome in &outcomes {
        outcome.print_rows();
    }
    let as_kept = compare(args, checkout, &outcomes)?;
    Ok(if outcomes.iter().any(|outcome| !outcome.whole) {
        ExitCode::from(2)
    } else if outcomes.iter().any(Outcome::failed) || !as_kept {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// What guests with this processor are made of.
fn build(arch: Arch, args: &Args, checkout: &Checkout) -> Result<Programs> {
    let tools = if arch.is_here() {
        tools::of_this_machine()?
    } else {
        tools::of_packages(arch, args.refresh)?
    };
    Programs::build(arch, tools, checkout)
}

/// Compares with what the repository keeps, or keeps it. True if there is no difference (any more).
fn compare(args: &Args, checkout: &Checkout, outcomes: &[Outcome]) -> Result<bool> {
    let mut same = true;
    for outcome in outcomes {
        let path = golden::path(checkout, outcome.kernel, outcome.variant);
        let Some(text) = golden::text(outcome.kernel, &outcome.results) else {
            continue;
        };
        if args.bless {
            golden::bless(&path, &text)?;
        } else {
            same &= outcome::tell_difference(&path, &golden::compare(&path, &text));
        }
    }
    // What some of the tests say is not what the table is about.
    if !args.tests.is_empty() {
        return Ok(same);
    }
    let rows: Vec<_> = outcomes
        .iter()
        .filter(|outcome| outcome.whole && !outcome.failed())
        .filter_map(Outcome::row)
        .collect();
    if args.bless {
        readme::bless(checkout, &rows)?;
        return Ok(true);
    }
    for row in readme::outdated(checkout, &rows)? {
        same = false;
        println!(
            "README.md does not say so (`cargo xtask vm --bless` writes it): {}",
            row.text()
        );
    }
    Ok(same)
}

/// What is not there and has to be for guests with these processors, and how to get it.
pub fn missing(archs: &[Arch]) -> Vec<String> {
    let mut missing = Vec::new();
    for arch in archs {
        let Machine {
            program, package, ..
        } = Machine::of(*arch);
        if !command::exists(program) {
            missing.push(format!("{program} (install the package {package})"));
        }
        missing.extend(arch.missing());
    }
    if !command::exists("xz") {
        missing.push("xz (install the package xz-utils)".to_owned());
    }
    missing.extend(tools::missing());
    missing
}

/// What all guests have in common.
struct Host<'a> {
    args: &'a Args,
    programs: &'a [Programs],
    folder: &'a Path,
    /// Kernels are fetched, and guests put together, one after the other.
    packing: Mutex<()>,
}

impl Host<'_> {
    /// Runs them, some at a time, and says what each of them has found out; in the order they were asked for.
    fn run_all(&self, wanted: &[(&'static Kernel, &'static Variant)]) -> Vec<Outcome> {
        let waiting = Mutex::new(wanted.iter().enumerate());
        let outcomes = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for _ in 0..self.args.guests {
                scope.spawn(|| {
                    // A statement of its own, so that the others do not wait for the guest.
                    let next = || lock(&waiting).next();
                    while let Some((place, (kernel, variant))) = next() {
                        let outcome = self.run(kernel, variant);
                        let mut outcomes = lock(&outcomes);
                        outcome.print_details();
                        outcomes.push((place, outcome));
                    }
                });
            }
        });
        let mut outcomes = outcomes
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        outcomes.sort_by_key(|(place, _)| *place);
        outcomes.into_iter().map(|(_, outcome)| outcome).collect()
    }

    fn run(&self, kernel: &'static Kernel, variant: &'static Variant) -> Outcome {
        let title = variant.title(kernel.name);
        // What a guest has found out is of use even if it does not come to its end.
        let mut results = Results::default();
        let mut took = Took::default();
        let ran = self.start(kernel, variant, &title, &mut results, &mut took);
        if let Err(error) = &ran {
            eprintln!("xtask: {title}: {error:#}");
        }
        Outcome {
            kernel,
            variant,
            plans: variant.plans(),
            results,
            whole: ran.is_ok(),
            took,
        }
    }

    fn start(
        &self,
        kernel: &Kernel,
        variant: &Variant,
        title: &str,
        results: &mut Results,
        took: &mut Took,
    ) -> Result<()> {
        let arch = kernel.arch;
        let programs = self.programs.iter().find(|programs| programs.arch == arch);
        let programs = programs.context("nothing was built for this kernel's processor")?;
        let folder = self.folder.join(title.replace(' ', "-"));
        fs::create_dir_all(&folder)
            .with_context(|| format!("{} cannot be made", folder.display()))?;
        let (image, initramfs) = (folder.join("vmlinuz"), folder.join("initramfs"));
        {
            let _others_wait = lock(&self.packing);
            let files = kernel.files(self.args.refresh)?;
            let orders = self.orders(programs, variant);
            let packed = image::pack(programs, &files.modules, &orders)?;
            write(&initramfs, &packed)?;
            fs::copy(&files.image, &image)
                .with_context(|| format!("{} cannot be written", image.display()))?;
        }
        let machine = Machine::of(arch);
        let guest = Guest {
            machine,
            image: &image,
            initramfs: &initramfs,
            processors: variant.processors,
            append: &format!("{} {}", variant.append, self.args.append),
            console: folder.join("console.log"),
            report: folder.join("report.log"),
            limit: Duration::from_secs(self.args.limit.unwrap_or(machine.limit)),
            threads: machine.threads_are_safe(),
        };
        eprintln!(
            "xtask: {title}: starting; console: {}",
            guest.console.display()
        );
        guest.run(results, took, |line, results| {
            follow(title, line, results);
        })?;
        if results.announced() == 0 {
            bail!(
                "no test was run (does a test match the filter? see {})",
                guest.report.display()
            );
        }
        Ok(())
    }

    fn orders(&self, programs: &Programs, variant: &Variant) -> Orders {
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        Orders {
            tcpstate: programs.tcpstate.to_string_lossy().into_owned(),
            limit: self.args.test_limit,
            lanes: self.args.lanes.into(),
            waiting: owned(&variant::WAITING),
            hidden: owned(variant.hidden),
            capabilities: variant.capabilities.to_owned(),
            arguments: self.args.tests.clone(),
            plans: variant.plans(),
        }
    }
}

/// A thread that panics leaves nothing half done under these locks.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says which test has ended.
fn follow(title: &str, line: &str, results: &mut Results) {
    let ended = results.take(line).map(|(_, test)| {
        let word = test.verdict.map_or("", Verdict::word);
        let took = seconds(Duration::from_millis(test.milliseconds));
        format!("{} {word} ({took})", qemu::shown(&test.name))
    });
    if let Some(ended) = ended {
        let number = results.tests().filter(|test| test.verdict.is_some());
        eprintln!(
            "xtask: {title}: {} of {}: {ended}",
            number.count(),
            results.announced()
        );
    }
}
