//! The pinned Rust toolchain: the eBPF object and the verdict of the lints depend on the compiler's version.

use std::env;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Result, anyhow, bail};

use crate::command;

/// A stable release, which stays obtainable; `RUSTC_BOOTSTRAP=1` opens the one unstable option we need (build-std).
/// Its LLVM has to be of the major version that bpf-linker uses (`linker.rs`).
pub const PINNED: &str = "1.95.0";

const COMPONENTS: [&str; 3] = ["rust-src", "rustfmt", "clippy"];

pub enum State {
    Ready,
    NoRustup,
    Absent,
    Lacks(Vec<&'static str>),
}

pub fn state() -> State {
    if !command::exists("rustup") {
        return State::NoRustup;
    }
    let (Some(_), Ok(sysroot)) = (name(), sysroot()) else {
        return State::Absent;
    };
    // Looked up as files: asking rustup takes longer, and it does not know about linked toolchains.
    let lacking: Vec<_> = COMPONENTS
        .into_iter()
        .filter(|component| {
            !sysroot
                .join(match *component {
                    "rust-src" => "lib/rustlib/src/rust/library/core/src/lib.rs",
                    "rustfmt" => "bin/cargo-fmt",
                    _ => "bin/cargo-clippy",
                })
                .is_file()
        })
        .collect();
    if lacking.is_empty() {
        State::Ready
    } else {
        State::Lacks(lacking)
    }
}

/// A tool of the pinned toolchain.
pub fn pinned(tool: &str) -> Command {
    of_toolchain(name().unwrap_or(PINNED), tool)
}

/// What rustup calls the pinned release here: its version, or the toolchain we were started with, if that is of this version
/// (`stable`, while it is): then nothing has to be downloaded. The object is the same either way.
pub fn name() -> Option<&'static str> {
    // Kept once found; before, `install` may change the answer.
    static NAME: OnceLock<String> = OnceLock::new();
    if NAME.get().is_none() {
        let version = format!("rustc {PINNED} ");
        let ours = env::var("RUSTUP_TOOLCHAIN").ok();
        let name = [PINNED.to_owned()].into_iter().chain(ours).find(|name| {
            command::answer(of_toolchain(name, "rustc").arg("--version"))
                .is_some_and(|answer| answer.starts_with(&version))
        })?;
        NAME.get_or_init(|| name);
    }
    NAME.get().map(String::as_str)
}

fn of_toolchain(name: &str, tool: &str) -> Command {
    let mut command = Command::new("rustup");
    // Looking must not install: `setup` does that, when asked.
    command
        .env("RUSTUP_AUTO_INSTALL", "0")
        .args(["run", name, tool]);
    command
}

pub fn install(state: &State) -> Result<()> {
    let mut rustup = Command::new("rustup");
    match state {
        State::Ready => return Ok(()),
        State::NoRustup => bail!(
            "rustup is not there, so the Rust toolchain {PINNED} with its library sources cannot be had: \
             install rustup (many distributions package it), then run `cargo xtask setup` again"
        ),
        State::Absent => {
            rustup.args(["toolchain", "install", PINNED, "--profile", "minimal"]);
            rustup
                .arg("--no-self-update")
                .args(["--component", &COMPONENTS.join(",")]);
        }
        State::Lacks(components) => {
            rustup
                .args(["component", "add", "--toolchain", name().unwrap_or(PINNED)])
                .args(components);
        }
    }
    eprintln!("xtask: {}", command::shown(&rustup));
    command::run(&mut rustup, "see its message above; it needs the network")
}

/// The folder of the pinned toolchain.
pub fn sysroot() -> Result<PathBuf> {
    let mut rustc = pinned("rustc");
    let sysroot = command::output(rustc.args(["--print", "sysroot"]), SET_UP)?;
    Ok(PathBuf::from(sysroot))
}

/// The triple of this machine, as the given rustc sees it.
pub fn host(rustc: &mut Command) -> Result<String> {
    let version = command::output(rustc.arg("-vV"), SET_UP)?;
    version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .map(str::to_owned)
        .ok_or_else(|| anyhow!("`rustc -vV` names no host, so its tools cannot be found: {SET_UP}"))
}

/// Takes away what the user has set for other builds: with it the object, or the lints, would differ from everyone else's.
pub fn undisturbed(mut command: Command) -> Command {
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(disturbs) {
            command.env_remove(name);
        }
    }
    command
}

fn disturbs(variable: &str) -> bool {
    const NAMES: [&str; 8] = [
        "CARGO_INCREMENTAL",
        "RUSTC",
        "RUSTC_BOOTSTRAP",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTDOC",
        "RUSTDOCFLAGS",
        "RUSTFLAGS",
    ];
    const PREFIXES: [&str; 5] = [
        "CARGO_BUILD_",
        "CARGO_ENCODED_",
        "CARGO_PROFILE_",
        "CARGO_TARGET_",
        "CARGO_UNSTABLE_",
    ];
    // Where results go, and how many processes make them, does not change them.
    const HARMLESS: [&str; 2] = ["CARGO_TARGET_DIR", "CARGO_BUILD_JOBS"];

    let suspect =
        NAMES.contains(&variable) || PREFIXES.iter().any(|prefix| variable.starts_with(prefix));
    suspect && !HARMLESS.contains(&variable)
}

/// What to do when a tool is not as it should be.
pub const SET_UP: &str = "run `cargo xtask setup`";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_the_result_disturbs_and_nothing_else() {
        for variable in [
            "RUSTFLAGS",
            "CARGO_BUILD_TARGET",
            "CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER",
        ] {
            assert!(disturbs(variable), "{variable}");
        }
        for variable in [
            "PATH",
            "CARGO_HOME",
            "CARGO_TARGET_DIR",
            "CARGO_BUILD_JOBS",
            "CARGO_NET_OFFLINE",
        ] {
            assert!(!disturbs(variable), "{variable}");
        }
    }
}
