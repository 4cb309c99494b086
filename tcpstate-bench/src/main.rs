//! The measurements of `cargo xtask bench`: what tcpstate costs, beside its peers, on this machine.

mod added;
mod bench;
mod bpf;
mod child;
mod count;
mod figures;
mod goal;
mod interrupt;
mod kernel;
mod load;
mod machine;
mod memory;
mod profile;
mod rates;
mod replay;
mod report;
mod start;
mod subject;
mod tool;

use std::{
    env, fs,
    os::unix::fs::{MetadataExt as _, chown},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::{Parser, ValueEnum};
use nix::unistd::Uid;
use tcpstate_bench::{Link, Mode};

use bench::{Bench, Folder};
use bpf::Floor;
use load::Load;
use report::Results;
use subject::Subject;

/// Measure what tcpstate costs on this machine, beside its peers, and write BENCHMARKS.md. Needs root.
#[derive(Parser)]
#[command(
    bin_name = "cargo xtask bench",
    after_help = "Exit status: 0 measured, 1 a goal was missed (--check), 2 it could not be measured.

Parts of a measurement are named rates, costs, added, profile, start, replay and
memory; what is measured is named by --list.

Examples:
  cargo xtask bench                              everything; writes BENCHMARKS.md
  cargo xtask bench --quick                      whether everything works; figures mean nothing
  cargo xtask bench --only rates trace-json      one ratio
  cargo xtask bench --only added empty closers   nanoseconds that two of them add
  cargo xtask bench --check --only rates costs   compare with the goals"
)]
struct Args {
    /// Short runs, and few: to see that everything works
    #[arg(long)]
    quick: bool,

    /// Only these parts, and only these tools; prints the page instead of writing it
    #[arg(long, num_args = 1.., value_name = "NAME")]
    only: Vec<String>,

    /// How many pairs of runs without and with a tool
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pairs: Option<u32>,

    /// How long a run is measured, after its warm-up
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: Option<u32>,

    /// Who closes first, and how, in the load
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,

    /// What the packets of the load go over
    #[arg(long, value_enum, default_value_t)]
    link: Link,

    /// Fail if a goal is missed
    #[arg(long)]
    check: bool,

    /// Say what can be measured
    #[arg(long)]
    list: bool,

    /// Write the page here
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// The folder of the checkout
    #[arg(long, hide = true, default_value = ".")]
    root: PathBuf,

    /// Attach the smallest programs there are, until Ctrl-C
    #[arg(long, hide = true)]
    attach: Option<Floor>,
}

/// A part of the measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    Rates,
    Costs,
    Added,
    Profile,
    Start,
    Replay,
    Memory,
}

fn main() -> ExitCode {
    match perform(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// True unless a goal was missed that was asked for.
fn perform(args: &Args) -> Result<bool> {
    if !Uid::effective().is_root() {
        bail!("this needs root: programs are loaded into the kernel, and network namespaces made");
    }
    interrupt::install()?;
    if let Some(floor) = args.attach {
        return attach(floor);
    }
    machine::check()?;
    machine::mount_tracefs()?;
    let machine = machine::description();
    let bench = bench(args)?;
    let (observers, refused) = subject::observers(&bench.tcpstate)?;
    let all = subject::all(&bench.tcpstate, &observers)?;
    if args.list {
        for subject in &all {
            println!("{:<18}{}", subject.name, subject.shown());
        }
        return Ok(true);
    }
    let (parts, subjects) = select(args, all)?;
    bench.say(&format!(
        "this takes about {} minutes; Ctrl-C ends it",
        1 + expected(&bench, &parts, subjects.len()).as_secs() / 60
    ));
    let results = measure(&bench, &parts, &subjects, refused)?;
    let verdicts = goal::verdicts(&subjects, &results);
    let command: Vec<_> = env::args()
        .skip(1)
        .filter(|word| !word.starts_with("--root"))
        .collect();
    let command = format!("cargo xtask bench {}", command.join(" "));
    let page = report::markdown(
        &bench,
        command.trim(),
        &machine,
        &subjects,
        &results,
        &verdicts,
    );
    let usual = args.mode == Mode::default() && args.link == Link::default();
    let whole = !args.quick && args.only.is_empty() && usual;
    let file = args
        .output
        .clone()
        .or_else(|| whole.then(|| args.root.join("BENCHMARKS.md")));
    match file {
        Some(file) => write(&file, &page)?,
        None => print!("{page}"),
    }
    let missed: Vec<_> = verdicts.iter().filter(|verdict| !verdict.met).collect();
    for verdict in &missed {
        eprintln!(
            "bench: goal missed: {}: {} (goal: {})",
            verdict.figure, verdict.measured, verdict.goal
        );
    }
    Ok(!args.check || missed.is_empty())
}

fn bench(args: &Args) -> Result<Bench> {
    let here = env::current_exe().context("this program is not to be found")?;
    let beside = |name: &str| {
        let path = here.with_file_name(name);
        if path.is_file() {
            return Ok(path);
        }
        bail!(
            "{} is missing: start this by `cargo xtask bench`",
            path.display()
        )
    };
    let (pairs, seconds, warm_up) = if args.quick { (1, 1, 0.5) } else { (7, 3, 1.0) };
    Ok(Bench {
        tcpstate: beside("tcpstate")?,
        generate: beside("examples/generate")?,
        load: Load {
            churn: beside("churn")?,
            seconds: args.seconds.unwrap_or(seconds).into(),
            warm_up,
            mode: args.mode,
            link: args.link,
        },
        pairs: args.pairs.unwrap_or(pairs),
        quick: args.quick,
        folder: Folder::make(here.parent().context("no folder")?)?,
        began: Instant::now(),
    })
}

/// Names of parts and names of tools; if none of a kind is named, all are meant.
fn select(args: &Args, all: Vec<Subject>) -> Result<(Vec<Part>, Vec<Subject>)> {
    let mut parts = Vec::new();
    let mut names = Vec::new();
    for name in &args.only {
        if let Ok(part) = Part::from_str(name, false) {
            parts.push(part);
        } else if all.iter().any(|subject| subject.name == *name) {
            names.push(name);
        } else {
            bail!("nothing is called `{name}`: see `cargo xtask bench --list`");
        }
    }
    if parts.is_empty() {
        parts = if names.is_empty() {
            Part::value_variants().to_vec()
        } else {
            vec![Part::Rates, Part::Costs, Part::Added]
        };
    }
    let wanted = |subject: &Subject| names.is_empty() || names.contains(&&subject.name);
    Ok((parts, all.into_iter().filter(wanted).collect()))
}

/// About: how long a run takes besides its load was measured.
fn expected(bench: &Bench, parts: &[Part], subjects: usize) -> Duration {
    let load = bench.load.seconds + bench.load.warm_up + 0.6;
    let tool = 1.2;
    let subjects = f64::from(u32::try_from(subjects).unwrap_or(u32::MAX));
    let seconds = parts.iter().map(|part| match part {
        Part::Rates => f64::from(bench.pairs) * subjects * (2.0 * load + tool),
        Part::Costs => subjects * (2.0 * load + 2.0 * tool + 2.0),
        Part::Added if bench.quick => subjects * (0.8 + tool),
        Part::Added => 5.0 * subjects * (2.8 + tool),
        Part::Profile => 3.0 * (load + 2.0 * tool + 3.0),
        Part::Start if bench.quick => 15.0,
        Part::Start => 150.0,
        Part::Replay if bench.quick => 5.0,
        Part::Replay => 300.0,
        Part::Memory => 10.0,
    });
    Duration::from_secs_f64(seconds.sum())
}

fn measure(
    bench: &Bench,
    parts: &[Part],
    subjects: &[Subject],
    absent: Vec<String>,
) -> Result<Results> {
    let mut results = Results {
        absent,
        ..Results::default()
    };
    // What counts time first: memory leaves a larger process behind.
    for part in Part::value_variants() {
        if !parts.contains(part) {
            continue;
        }
        match part {
            Part::Rates => results.rates = Some(rates::measure(bench, subjects)?),
            Part::Costs => results.costs = Some(kernel::measure(bench, subjects)?),
            Part::Added => results.added = Some(added::measure(bench, subjects)?),
            Part::Profile => results.profiles = Some(profile::measure(bench, subjects)?),
            Part::Start => results.starts = Some(start::measure(bench)?),
            Part::Replay => results.replays = Some(replay::measure(bench)?),
            Part::Memory => results.kept = Some(memory::measure(bench)?),
        }
    }
    Ok(results)
}

/// The file belongs to whom its folder belongs: we may have been started through sudo.
fn write(file: &Path, page: &str) -> Result<()> {
    fs::write(file, page).with_context(|| format!("{} cannot be written", file.display()))?;
    let folder = file
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let owner = fs::metadata(folder.unwrap_or(Path::new(".")))?;
    chown(file, Some(owner.uid()), Some(owner.gid()))?;
    eprintln!("bench: wrote {}", file.display());
    Ok(())
}

fn attach(floor: Floor) -> Result<bool> {
    let _attached = floor.attach()?;
    while interrupt::check().is_ok() {
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(true)
}
