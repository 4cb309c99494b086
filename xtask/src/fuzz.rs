//! `cargo xtask fuzz`: strange recordings and records, for as long as one likes.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::checkout::Checkout;
use crate::{command, toolchain};

const VERSION: &str = "0.13.2";

/// What can be fuzzed: see fuzz/src.
const TARGETS: [&str; 3] = ["file", "steps", "records"];

/// Bytes of the longest input: more adds little but time.
const LONGEST: u32 = 8192;
/// Bytes of the longest input that is kept in the repository.
const LONGEST_KEPT: u32 = 1600;

/// Try strange recordings and records; installs cargo-fuzz if need be
#[derive(clap::Args)]
pub struct Args {
    /// What to fuzz: file (whole files), steps (what a view is told), records (of the kernel side); all if not given
    #[arg(value_parser = TARGETS)]
    targets: Vec<String>,
    /// For how long, each
    #[arg(long, default_value_t = 600)]
    seconds: u32,
    /// Keep what is of use of the inputs found so far in fuzz/corpus, and remove there what is of none any more
    #[arg(long, conflicts_with = "seconds")]
    keep: bool,
}

pub fn perform(args: &Args, checkout: &Checkout) -> Result<ExitCode> {
    install()?;
    let all = TARGETS.map(str::to_owned);
    let targets: &[String] = if args.targets.is_empty() {
        &all
    } else {
        &args.targets
    };
    for target in targets {
        let mut build = fuzz(checkout, "build");
        build.arg(target);
        command::run(
            &mut build,
            "see its message above; libFuzzer takes a C++ compiler",
        )?;
        let good = if args.keep {
            keep(checkout, target)?
        } else {
            run(checkout, target, args.seconds)?
        };
        if !good {
            eprintln!(
                "{target}: see above; the input is in fuzz/artifacts. It is a bug of ours: mend it, \
                 and put the input into fuzz/regressions/{target} under a name that says what it was"
            );
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What is found goes to where it is not committed.
fn run(checkout: &Checkout, target: &str, seconds: u32) -> Result<bool> {
    let found = found(checkout, target)?;
    let mut run = fuzz(checkout, "run");
    run.arg(target)
        .args([&found, &corpus(checkout, target)])
        .arg("--");
    run.args(["-rss_limit_mb=512", "-timeout=10", "-print_final_stats=1"])
        // Messages for people are no output of interest.
        .arg("-close_fd_mask=3")
        .arg(format!("-max_len={LONGEST}"))
        .arg(format!("-max_total_time={seconds}"));
    eprintln!("{}", command::shown(&run));
    command::succeeds(&mut run, "is cargo-fuzz in PATH?")
}

fn keep(checkout: &Checkout, target: &str) -> Result<bool> {
    let corpus = corpus(checkout, target);
    let before = corpus.with_extension("before");
    fs::rename(&corpus, &before).with_context(|| corpus.display().to_string())?;
    fs::create_dir_all(&corpus)?;
    let mut merge = fuzz(checkout, "run");
    merge.arg(target).arg(&corpus);
    merge.args([&before, &found(checkout, target)?]).arg("--");
    merge
        .args(["-merge=1", "-use_counters=0", "-rss_limit_mb=512"])
        .arg(format!("-max_len={LONGEST_KEPT}"));
    eprintln!("{}", command::shown(&merge));
    let good = command::succeeds(&mut merge, "is cargo-fuzz in PATH?")?;
    if good {
        fs::remove_dir_all(&before)?;
    } else {
        fs::remove_dir_all(&corpus)?;
        fs::rename(&before, &corpus)?;
    }
    Ok(good)
}

/// With the pinned toolchain, whose unstable options for coverage and the address sanitizer we open.
fn fuzz(checkout: &Checkout, task: &str) -> Command {
    let mut cargo = toolchain::undisturbed(toolchain::pinned("cargo"));
    cargo
        .current_dir(checkout.root.join("fuzz"))
        .env("RUSTC_BOOTSTRAP", "1")
        // What is freed shall count as freed.
        .env("ASAN_OPTIONS", "quarantine_size_mb=16")
        .args(["fuzz", task, "--target-dir"])
        .arg(checkout.target.join("fuzz"));
    cargo
}

fn corpus(checkout: &Checkout, target: &str) -> std::path::PathBuf {
    checkout.root.join("fuzz/corpus").join(target)
}

fn found(checkout: &Checkout, target: &str) -> Result<std::path::PathBuf> {
    let found = Path::new(&checkout.target).join("fuzz/found").join(target);
    fs::create_dir_all(&found).with_context(|| found.display().to_string())?;
    Ok(found)
}

fn version() -> Option<String> {
    let answer = command::answer(Command::new("cargo-fuzz").arg("--version"))?;
    Some(answer.trim_start_matches("cargo-fuzz ").to_owned())
}

fn install() -> Result<()> {
    if version().as_deref() == Some(VERSION) {
        return Ok(());
    }
    let mut cargo = toolchain::undisturbed(toolchain::pinned("cargo"));
    cargo.args(["install", "cargo-fuzz", "--version", VERSION, "--locked"]);
    cargo.arg("--force");
    eprintln!("xtask: {} (about a minute)", command::shown(&cargo));
    command::run(&mut cargo, "see its message above; it needs the network")?;
    if version().as_deref() != Some(VERSION) {
        bail!(
            "cargo-fuzz {VERSION} has been installed, but does not run: put the bin folder of cargo's home first in PATH"
        );
    }
    Ok(())
}
