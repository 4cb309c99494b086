//! `cargo xtask bench`: what tcpstate costs on this machine, beside its peers.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::checkout::Checkout;
use crate::{command, debian, root};

/// Measure what tcpstate costs on this machine, and write BENCHMARKS.md: --help tells how; needs root
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    /// Passed on to the measurement: --quick, --only NAME..., --pairs N, --check ...
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// Does not return when all goes well: we become the measurement, so that Ctrl-C and the exit status are its own.
pub fn perform(args: &Args, checkout: &Checkout) -> Result<ExitCode> {
    let asks = |flags: &[&str]| {
        args.args
            .iter()
            .any(|arg| flags.iter().any(|flag| arg == flag))
    };
    let root = root::is_root()?;
    let help = asks(&["-h", "--help"]);
    if !help && !root && !root::can_sudo() {
        bail!(
            "this loads programs into the kernel and makes network namespaces, which needs root, and there is no sudo that \
             lets you: run it as root"
        );
    }
    // Together: each alone would have the libraries they share built anew.
    let mut cargo = Command::new("cargo");
    cargo.current_dir(&checkout.root).args([
        "build",
        "--release",
        "--locked",
        "--package",
        "tcpstate-user",
        "--package",
        "tcpstate-bench",
        "--bins",
        "--example",
        "generate",
    ]);
    command::run(&mut cargo, "see its message above")?;
    if !help && !asks(&["--list"]) {
        install_peers();
    }
    let bench = checkout.target.join("release/bench");
    let mut measurement = if root || help {
        Command::new(&bench)
    } else {
        let mut sudo = Command::new("sudo");
        sudo.arg(&bench);
        sudo
    };
    measurement
        .arg(format!("--root={}", checkout.root.display()))
        .args(&args.args);
    Err(measurement.exec()).with_context(|| format!("{} cannot be started", bench.display()))
}

/// What is not there is left out of the measurement, which says so.
fn install_peers() {
    let missing = debian::missing_for_bench();
    if let Err(error) = debian::install(&missing) {
        eprintln!("xtask: {error:#}");
        eprintln!(
            "xtask: goes on without what is missing of: {}",
            missing.join(" ")
        );
    }
}
