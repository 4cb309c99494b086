//! `cargo xtask check`: everything that can be said about a change without running it.

use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::checkout::Checkout;
use crate::command::{shown, succeeds};
use crate::{ebpf, object, setup, toolchain};

/// A check, and its name. It is true when nothing is wrong.
type Step = (&'static str, fn(&Checkout) -> Result<bool>);

const STEPS: [Step; 5] = [
    ("formatting", formatting),
    ("lints of the user side", user_lints),
    ("lints of the kernel side", kernel_lints),
    ("documentation", documentation),
    ("the checked-in eBPF object", ebpf::is_up_to_date),
];

/// All of them, even after one has failed: one run shows everything there is to mend.
pub fn perform(checkout: &Checkout) -> Result<ExitCode> {
    setup::demand()?;
    let mut failed = Vec::new();
    for (name, step) in STEPS {
        eprintln!("==> {name}");
        if !step(checkout)? {
            failed.push(name);
        }
    }
    if failed.is_empty() {
        eprintln!("==> all checks passed");
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("==> failed: {}", failed.join(", "));
    Ok(ExitCode::FAILURE)
}

fn formatting(checkout: &Checkout) -> Result<bool> {
    let mut fmt = cargo(checkout, &["fmt", "--all", "--check"]);
    let mut good = succeeds(&mut fmt, toolchain::SET_UP)?;
    // A workspace of its own.
    let mut fmt = cargo(
        checkout,
        &["fmt", "--check", "--manifest-path", "fuzz/Cargo.toml"],
    );
    good &= succeeds(&mut fmt, toolchain::SET_UP)?;
    if !good {
        let toolchain = toolchain::name().unwrap_or(toolchain::PINNED);
        eprintln!("`cargo +{toolchain} fmt --all` mends it");
    }
    Ok(good)
}

fn user_lints(checkout: &Checkout) -> Result<bool> {
    let mut clippy = cargo(
        checkout,
        &[
            "clippy",
            "--locked",
            "--workspace",
            "--exclude",
            "tcpstate-ebpf",
        ],
    );
    clippy.args(["--all-targets", "--", "-D", "warnings"]);
    succeeds(&mut clippy, toolchain::SET_UP)
}

fn kernel_lints(checkout: &Checkout) -> Result<bool> {
    // No --all-targets: there is no test harness for the eBPF target.
    let mut clippy = object::cargo(checkout, &checkout.target.join("ebpf"), "clippy")?;
    clippy.args(["--", "-D", "warnings"]);
    succeeds(&mut clippy, toolchain::SET_UP)
}

fn documentation(checkout: &Checkout) -> Result<bool> {
    let mut doc = cargo(
        checkout,
        &[
            "doc",
            "--locked",
            "--no-deps",
            "--workspace",
            "--exclude",
            "tcpstate-ebpf",
        ],
    );
    doc.env("RUSTDOCFLAGS", "-D warnings");
    succeeds(&mut doc, toolchain::SET_UP)
}

/// Of the pinned toolchain: what is a warning changes from release to release.
fn cargo(checkout: &Checkout, arguments: &[&str]) -> Command {
    let mut cargo = toolchain::undisturbed(toolchain::pinned("cargo"));
    cargo.current_dir(&checkout.root).args(arguments);
    eprintln!("{}", shown(&cargo));
    cargo
}
