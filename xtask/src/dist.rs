//! `cargo xtask dist`: tcpstate as one file that runs on other hosts.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::builder::PossibleValuesParser;

use crate::arch::{self, Arch};
use crate::checkout::Checkout;
use crate::command;

/// Build tcpstate as one static file, which runs on hosts with other libraries than this one, or none
#[derive(clap::Args)]
pub struct Args {
    /// The processor it is for; by default this machine's
    #[arg(long, value_parser = PossibleValuesParser::new(arch::ALL.map(|arch| arch.name)))]
    arch: Option<String>,
}

pub fn perform(args: &Args, checkout: &Checkout) -> Result<ExitCode> {
    let asked = args.arch.as_deref().and_then(Arch::named);
    let arch = asked.map_or_else(Arch::here, Ok)?;
    let missing = arch.missing();
    if !missing.is_empty() {
        bail!("it cannot be built, missing: {}", missing.join("; "));
    }
    let mut cargo = arch.cargo("build")?;
    cargo
        .current_dir(&checkout.root)
        .args([
            "--release",
            "--package",
            "tcpstate-user",
            "--bin",
            "tcpstate",
        ])
        .args(["--config", "profile.release.strip=true"])
        .arg("--target-dir")
        .arg(&checkout.target);
    command::run(
        &mut cargo,
        "see its message above; static programs take the C library as libc.a (on Debian libc6-dev has it, on Fedora glibc-static)",
    )?;
    let built = checkout
        .target
        .join(arch.target()?)
        .join("release/tcpstate");
    let program =
        fs::read(&built).with_context(|| format!("{} cannot be read", built.display()))?;
    if !arch::is_static(&program)? {
        bail!(
            "{} needs libraries, so it would not run on other hosts (does this toolchain link programs statically?)",
            built.display()
        );
    }
    let folder = checkout.target.join("dist");
    fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    let path = folder.join(format!("tcpstate-{}", arch.name));
    // A new file: the one before may be running.
    let unfinished = path.with_extension("unfinished");
    fs::copy(&built, &unfinished)
        .and_then(|_| fs::rename(&unfinished, &path))
        .with_context(|| format!("{} cannot be written (is the disk full?)", path.display()))?;
    println!("{}: {} bytes, static", path.display(), program.len());
    Ok(ExitCode::SUCCESS)
}
