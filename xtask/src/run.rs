//! `cargo xtask run`: the tool, built and started with what it needs.

use std::env;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::checkout::Checkout;
use crate::{root, toolchain};

/// Build tcpstate and run it as root, through sudo if need be: cargo xtask run trace -w
#[derive(clap::Args)]
pub struct Args {
    /// Passed on to tcpstate
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// Does not return when all goes well: `cargo run` becomes tcpstate, so that Ctrl-C and the exit status are tcpstate's own.
pub fn perform(args: &Args, checkout: &Checkout) -> Result<ExitCode> {
    let mut cargo = Command::new("cargo");
    cargo.args([
        "run",
        "--release",
        "--locked",
        "--package",
        "tcpstate-user",
        "--bin",
        "tcpstate",
    ]);
    cargo
        .arg("--manifest-path")
        .arg(checkout.root.join("Cargo.toml"));
    cargo.arg("--").args(&args.args);
    if !root::is_root()? {
        if !root::can_sudo() {
            bail!("tcpstate needs root, and there is no sudo that lets you: run this as root");
        }
        // sudo drops the variable by which users ask for no colours.
        let keep = env::var_os("NO_COLOR").map_or("", |_| " --preserve-env=NO_COLOR");
        let host = toolchain::host(&mut Command::new("rustc"))?;
        cargo.env(root::runner_variable(&host), format!("sudo{keep}"));
    }
    Err(cargo.exec()).context("`cargo run` cannot be started (is cargo in PATH?)")
}
