//! `cargo xtask setup`: what rebuilding the eBPF object, the checks, virtual machines, and tests need.

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::checkout::Checkout;
use crate::linker::{self, VERSION};
use crate::toolchain::{self, PINNED, SET_UP, State};
use crate::{arch, command, debian, python, vm};

/// Install what rebuilding the eBPF object, virtual machines and tests need: building and using tcpstate takes none of it
#[derive(clap::Args)]
pub struct Args {
    /// Only say what is there and what is missing; exit status 2 if something is missing
    #[arg(long)]
    check: bool,
}

pub fn perform(args: &Args, checkout: &Checkout) -> Result<ExitCode> {
    if args.check {
        let missing = missing(checkout);
        report(&missing);
        return Ok(if missing.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(2)
        });
    }
    toolchain::install(&toolchain::state())?;
    debian::install(&debian::missing())?;
    if linker::version().as_deref() != Some(VERSION) {
        linker::install()?;
    }
    for arch in arch::ALL {
        arch.install_library()?;
    }
    python::install(checkout)?;
    let missing = missing(checkout);
    report(&missing);
    if !missing.is_empty() {
        bail!("the set-up ran to its end, but is not complete: see the list above");
    }
    Ok(ExitCode::SUCCESS)
}

/// Fails unless the tools that build the object run. The packages are not asked for: a bpf-linker that runs has no use for them.
pub fn demand() -> Result<()> {
    let missing: Vec<_> = missing_toolchain()
        .into_iter()
        .chain(missing_linker())
        .collect();
    if !missing.is_empty() {
        bail!(
            "the eBPF side cannot be built, missing: {}: {SET_UP}",
            missing.join("; ")
        );
    }
    Ok(())
}

fn report(missing: &[String]) {
    for what in missing {
        println!("missing: {what}");
    }
    if missing.is_empty() {
        println!(
            "ready: Rust {PINNED} with library sources, rustfmt and clippy; bpf-linker {VERSION}; virtual machines; Python packages"
        );
    } else {
        println!("`cargo xtask setup` installs it");
    }
}

fn missing(checkout: &Checkout) -> Vec<String> {
    let packages = debian::missing();
    let packages = (!packages.is_empty()).then(|| format!("packages {}", packages.join(" ")));
    missing_toolchain()
        .into_iter()
        .chain(packages)
        .chain(missing_linker())
        .chain(vm::missing(&arch::ALL))
        .chain(python::missing(checkout))
        .collect()
}

fn missing_toolchain() -> Option<String> {
    match toolchain::state() {
        State::Ready => None,
        State::NoRustup => Some("rustup (install it first)".to_owned()),
        State::Absent => Some(format!("Rust toolchain {PINNED}")),
        State::Lacks(components) => Some(format!(
            "of Rust toolchain {PINNED}: {}",
            components.join(", ")
        )),
    }
}

fn missing_linker() -> Option<String> {
    match linker::version() {
        Some(version) if version == VERSION => None,
        Some(version) => Some(format!("bpf-linker {VERSION} (there is {version})")),
        None if command::exists("bpf-linker") => Some(format!(
            "bpf-linker {VERSION} (there is one that does not run)"
        )),
        None => Some(format!("bpf-linker {VERSION}")),
    }
}
