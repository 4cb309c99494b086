//! `cargo xtask generate`: a large recording for measurements, which is not worth keeping.

use std::ffi::OsString;
use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::checkout::Checkout;
use crate::command;

/// Generate a large recording, always the same: cargo xtask generate /tmp/large.tcps --connections 1000000 --events 20000000 --seed 1
#[derive(clap::Args)]
pub struct Args {
    /// OUT and flags; --help tells
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "OUT AND FLAGS"
    )]
    args: Vec<OsString>,
}

/// An example of tcpstate-user does it: xtask itself stays small.
pub fn perform(args: &Args, checkout: &Checkout) -> Result<ExitCode> {
    let mut cargo = Command::new("cargo");
    cargo.args(["run", "--quiet", "--release", "--locked"]);
    cargo.args(["--package", "tcpstate-user", "--example", "generate"]);
    cargo
        .arg("--manifest-path")
        .arg(checkout.root.join("Cargo.toml"));
    cargo.arg("--").args(&args.args);
    let done = command::succeeds(&mut cargo, "is cargo in PATH?")?;
    Ok(if done {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(2)
    })
}
