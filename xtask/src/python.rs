//! The Python packages that read in tests what tcpstate has exported: in a virtual environment of the checkout's own.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::checkout::Checkout;
use crate::command;

const PACKAGES: &str = include_str!("../python-packages.txt");

/// Where it is, and what is in it.
fn folder(checkout: &Checkout) -> PathBuf {
    checkout.target.join("python")
}

fn stamp(checkout: &Checkout) -> PathBuf {
    folder(checkout).join("installed.txt")
}

/// Its Python, if all packages are there.
pub fn ready(checkout: &Checkout) -> Option<PathBuf> {
    let python = folder(checkout).join("bin/python3");
    let installed = fs::read_to_string(stamp(checkout)).ok()?;
    // A Python that was upgraded or removed leaves a link behind.
    let runs = command::answer(
        Command::new(&python).args(["-c", "import duckdb, perfetto, viztracer, wasmtime"]),
    );
    (installed == PACKAGES && runs.is_some()).then_some(python)
}

pub fn missing(checkout: &Checkout) -> Option<String> {
    let missing = match ready(checkout) {
        Some(_) => return None,
        None if command::exists("python3") => "Python packages for tests of exports",
        None => "python3, for tests of exports (install it first)",
    };
    Some(missing.to_owned())
}

pub fn install(checkout: &Checkout) -> Result<()> {
    if ready(checkout).is_some() || !command::exists("python3") {
        return Ok(());
    }
    let folder = folder(checkout);
    fs::create_dir_all(&checkout.target)
        .with_context(|| format!("{} cannot be made", checkout.target.display()))?;
    let mut venv = Command::new("python3");
    venv.args(["-m", "venv", "--clear"]).arg(&folder);
    command::run(
        venv.stdin(Stdio::null()),
        "is Python's module venv there (Debian: the package python3-venv)?",
    )?;
    let list = folder.join("wanted.txt");
    fs::write(&list, PACKAGES).with_context(|| format!("{} cannot be written", list.display()))?;
    let mut pip = Command::new(folder.join("bin/python3"));
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]);
    pip.arg("--requirement").arg(&list);
    eprintln!("xtask: {}", command::shown(&pip));
    command::run(
        pip.stdin(Stdio::null()),
        "see its message above; it needs the Python package index",
    )?;
    fs::rename(&list, stamp(checkout)).context("the list of Python packages cannot be kept")
}
