//! The Debian packages that building bpf-linker, tests, and virtual machines take.

use std::env;
use std::ffi::OsString;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::{command, root};

/// Where llvm-22-dev puts LLVM.
pub const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

const FOR_LINKER: [&str; 3] = ["llvm-22-dev", "libzstd-dev", "zlib1g-dev"];
/// What a test compares with: a web server and its load, and what reads exports.
const FOR_TESTS: [&str; 3] = ["apache2-utils", "nginx-light", "python3-venv"];
/// qemu, what unpacks kernels, what compiles C for arm64, and the programs that the tests start in a guest.
const FOR_GUESTS: [&str; 8] = [
    "gcc-aarch64-linux-gnu",
    "iproute2",
    "libc6-dev-arm64-cross",
    "mount",
    "qemu-system-arm",
    "qemu-system-x86",
    "util-linux",
    "xz-utils",
];
/// Other tools to measure beside ours, and what makes network devices.
const FOR_BENCH: [&str; 4] = ["bpftrace", "iproute2", "libbpf-tools", "linux-perf"];

pub fn is_here() -> bool {
    command::exists("apt-get") && command::exists("dpkg-query")
}

/// The user's own LLVM: then the packages are not our business.
pub fn llvm_prefix_of_user() -> Option<OsString> {
    env::var_os("LLVM_PREFIX").filter(|prefix| !prefix.is_empty())
}

/// The packages that are wanted and not installed; none on other systems.
pub fn missing() -> Vec<&'static str> {
    if !is_here() {
        return Vec::new();
    }
    let for_linker: &[_] = if llvm_prefix_of_user().is_some() {
        &[]
    } else {
        &FOR_LINKER
    };
    for_linker
        .iter()
        .chain(&FOR_TESTS)
        .chain(&FOR_GUESTS)
        .copied()
        .filter(|package| !is_installed(package))
        .collect()
}

/// The same of what `cargo xtask bench` measures beside ours.
pub fn missing_for_bench() -> Vec<&'static str> {
    if !is_here() {
        return Vec::new();
    }
    FOR_BENCH
        .into_iter()
        .filter(|package| !is_installed(package))
        .collect()
}

fn is_installed(package: &str) -> bool {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat=${db:Status-Status}\n", package]);
    // One line for each architecture.
    command::answer(&mut query)
        .is_some_and(|states| states.lines().any(|state| state == "installed"))
}

pub fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let Some(mut install) = apt_get()? else {
        bail!(
            "the packages {0} are missing, and installing them takes root or sudo: \
             run `apt-get install {0}` as root, then this again",
            packages.join(" ")
        );
    };
    install
        .args(["install", "--yes", "--no-install-recommends"])
        .args(packages);
    eprintln!("xtask: {}", command::shown(&install));
    if command::succeeds(&mut install, "is apt-get usable?")? {
        return Ok(());
    }
    if let Some(mut update) = apt_get()? {
        update.arg("update");
        eprintln!("xtask: that failed; {} and again", command::shown(&update));
        // One unreachable source of many is no reason to stop: the second attempt decides.
        command::succeeds(&mut update, "is apt-get usable?")?;
    }
    command::run(
        &mut install,
        "see its message above; if this release does not carry LLVM 22, add the LLVM project's apt repository, \
         or set LLVM_PREFIX to an LLVM 22 of your own",
    )
}

/// apt-get with the rights to install; none if there is no way to get them.
fn apt_get() -> Result<Option<Command>> {
    let mut apt_get = if root::is_root()? {
        Command::new("apt-get")
    } else if root::can_sudo() {
        let mut sudo = Command::new("sudo");
        sudo.args(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]);
        sudo
    } else {
        return Ok(None);
    };
    apt_get
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null());
    Ok(Some(apt_get))
}
