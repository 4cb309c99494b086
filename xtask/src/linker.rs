//! bpf-linker: it turns the bitcode that rustc emits for the eBPF target into the object.

use std::ffi::OsString;
use std::process::Command;

use anyhow::{Result, bail};

use crate::{command, debian, toolchain};

/// The object depends on it, so it is pinned. It uses LLVM 22 as does the pinned rustc, whose bitcode it reads.
pub const VERSION: &str = "0.13.0";

/// The version that is there and runs.
pub fn version() -> Option<String> {
    let answer = command::answer(Command::new("bpf-linker").arg("--version"))?;
    Some(
        answer
            .strip_prefix("bpf-linker ")
            .unwrap_or(&answer)
            .to_owned(),
    )
}

/// The version of the LLVM that bpf-linker uses.
pub fn llvm_version() -> Option<String> {
    let own = prefix().map(|prefix| {
        let mut path = prefix;
        path.push("/bin/llvm-config");
        path
    });
    own.into_iter()
        .chain([OsString::from("llvm-config-22")])
        .find_map(|program| command::answer(Command::new(program).arg("--version")))
}

/// Builds it. Called only when the right version does not run: what is there is overwritten.
pub fn install() -> Result<()> {
    let Some(prefix) = prefix() else {
        bail!(
            "bpf-linker {VERSION} is not there, and its prerequisites can be installed by xtask with apt-get only: \
             install the development files (headers, libraries, llvm-config) of LLVM 22, zlib and zstd with your \
             package manager, set LLVM_PREFIX to the folder LLVM 22 lives in (it contains bin/llvm-config), \
             then run `cargo xtask setup` again"
        );
    };
    let mut cargo = toolchain::undisturbed(toolchain::pinned("cargo"));
    cargo.args([
        "install",
        "bpf-linker",
        "--version",
        VERSION,
        "--locked",
        "--force",
    ]);
    // Its default features bring another way of finding LLVM, which does not build against distributions' packages.
    cargo.args(["--no-default-features", "--features", "llvm-22"]);
    cargo.env("LLVM_PREFIX", prefix);
    eprintln!("xtask: {} (about a minute)", command::shown(&cargo));
    command::run(
        &mut cargo,
        "see its message above; it needs the network and LLVM 22",
    )?;
    match version() {
        Some(version) if version == VERSION => Ok(()),
        Some(version) => bail!(
            "bpf-linker {VERSION} has been installed, but {version} comes first in PATH: remove that one, \
             or put the bin folder of cargo's home first"
        ),
        None => bail!(
            "bpf-linker {VERSION} has been installed, but does not run: \
             put the bin folder of cargo's home in PATH, and see what `bpf-linker --version` says"
        ),
    }
}

/// Where LLVM lives: the user's word, or where Debian's packages put it.
fn prefix() -> Option<OsString> {
    debian::llvm_prefix_of_user().or_else(|| debian::is_here().then(|| debian::LLVM_PREFIX.into()))
}
