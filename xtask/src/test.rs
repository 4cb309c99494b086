//! `cargo xtask test`: all tests; those of the kernel side need root.

use std::ffi::OsString;
use std::process::{Command, ExitCode};

use anyhow::{Result, bail};

use crate::checkout::Checkout;
use crate::{command, python, root, toolchain};

/// The tests that need root look for it, and say that they skip.
const SKIP: &str = "TCPSTATE_SKIP_ROOT";

/// The Python that reads exports.
const PYTHON: &str = "TCPSTATE_PYTHON";

/// Run all tests: built as you are, run as root (through sudo), because the kernel side is tested in the kernel
#[derive(clap::Args)]
pub struct Args {
    /// Skip the tests that need root
    #[arg(long)]
    without_root: bool,
    /// Passed on to the test programs: part of a test's name, --nocapture ...
    #[arg(trailing_var_arg = true, value_name = "FILTER AND ARGS")]
    args: Vec<OsString>,
}

pub fn perform(args: &Args, checkout: &Checkout) -> Result<ExitCode> {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(&checkout.root);
    cargo.args([
        "test",
        "--locked",
        "--no-fail-fast",
        "--workspace",
        "--exclude",
        "tcpstate-ebpf",
        "--",
    ]);
    cargo.args(&args.args);
    cargo.env_remove(PYTHON);
    match python::ready(checkout) {
        Some(python) => {
            cargo.env(PYTHON, python);
        }
        None => eprintln!(
            "xtask: skipped: reading exports with Perfetto's and DuckDB's own packages, because `cargo xtask setup` has not \
             installed them"
        ),
    }
    if args.without_root {
        eprintln!(
            "xtask: skipped: the tests that load programs into the kernel or make network namespaces, \
             because they need root ({SKIP}=1)"
        );
        cargo.env(SKIP, "1");
    } else {
        // Left over in someone's shell it would make a run pass that has tested little.
        cargo.env_remove(SKIP);
        if !root::is_root()? {
            if !root::can_sudo() {
                bail!(
                    "the tests of the kernel side need root, and there is no sudo that lets you: run this as root, \
                     or `cargo xtask test --without-root`, which skips them"
                );
            }
            let host = toolchain::host(&mut Command::new("rustc"))?;
            cargo.env(root::runner_variable(&host), "sudo -E");
        }
    }
    let passed = command::succeeds(&mut cargo, "is cargo in PATH?")?;
    Ok(if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
