//! The bytes of an eBPF object: how it is built, and how two of them differ.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::checkout::Checkout;
use crate::{command, toolchain};

/// Fixed, not the build machine's: aya-ebpf asks for it to lay out the registers that kprobes are given, and guesses it
/// from the machine that compiles. Programs that look at registers would need an object for each architecture.
const ARCHITECTURE: &str = "x86_64";

/// Fixed here: the workspace's release profile is tuned for the user side, and must not change the object.
const PROFILE: [&str; 8] = [
    "profile.release.opt-level=3",
    "profile.release.debug=2",
    "profile.release.debug-assertions=false",
    "profile.release.overflow-checks=false",
    "profile.release.lto=\"thin\"",
    "profile.release.codegen-units=1",
    "profile.release.panic=\"abort\"",
    // Build scripts and macros, which only have to be ready soon.
    "profile.release.build-override.debug=0",
];

/// Builds the object and gives back its bytes.
///
/// They hold BTF, not DWARF: the kernel's verifier then quotes the source line it does not like, which is what a bug report
/// from a kernel we do not have consists of. The price is that they change whenever a line of the kernel side moves.
pub fn build(checkout: &Checkout, target: &Path) -> Result<Vec<u8>> {
    let mut cargo = cargo(checkout, target, "build")?;
    if !command::succeeds(&mut cargo, toolchain::SET_UP)? {
        bail!("tcpstate-ebpf does not build: see the messages above");
    }
    let linked = target.join("bpfel-unknown-none/release/tcpstate-ebpf");
    let stripped = linked.with_extension("stripped");
    strip(&linked, &stripped)?;
    read(&stripped)
}

pub fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| {
        format!(
            "{} cannot be read (`cargo xtask ebpf` makes it)",
            path.display()
        )
    })
}

/// A cargo command on the kernel side's crate, for its target.
pub fn cargo(checkout: &Checkout, target: &Path, subcommand: &str) -> Result<Command> {
    let mut cargo = toolchain::undisturbed(toolchain::pinned("cargo"));
    cargo.current_dir(&checkout.root).arg(subcommand);
    cargo.args(["--locked", "--package", "tcpstate-ebpf", "--release"]);
    // The target's core library is distributed as source only.
    cargo
        .args(["--target", "bpfel-unknown-none", "-Z", "build-std=core"])
        .env("RUSTC_BOOTSTRAP", "1");
    cargo.args(PROFILE.iter().flat_map(|setting| ["--config", setting]));
    cargo.arg("--target-dir").arg(target);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", rust_flags(checkout, target)?);
    Ok(cargo)
}

fn rust_flags(checkout: &Checkout, target: &Path) -> Result<OsString> {
    // "." and not a made-up name: LLVM reads the lines that it puts into BTF from the files at these paths, and cargo starts
    // the linker in the checkout. The other names lead nowhere on purpose.
    let mut renamed = vec![
        (checkout.root.clone(), "."),
        (target.to_owned(), "/tcpstate-build/target"),
        (toolchain::sysroot()?, "/tcpstate-build/rust"),
    ];
    for home in cargo_homes() {
        renamed.extend(registries(&home).map(|registry| (registry, "/tcpstate-build/registry")));
        renamed.push((home, "/tcpstate-build/cargo"));
    }
    // Of several that match rustc takes the last: folders within other folders go last.
    renamed.sort_by_key(|(folder, _)| folder.as_os_str().len());

    let mut flags = OsString::from("-Cdebuginfo=2\x1f-Clinker=bpf-linker\x1f-Clink-arg=--btf");
    // In order, LLVM makes a call of `memset` of any zeros. See `probe` in tcpstate-ebpf/src/memory.rs.
    flags.push("\x1f-Clink-arg=--disable-expand-memcpy-in-order");
    flags.push(format!("\x1f--cfg=bpf_target_arch=\"{ARCHITECTURE}\""));
    for (folder, name) in renamed {
        flags.push("\x1f--remap-path-prefix=");
        flags.push(folder);
        flags.push("=");
        flags.push(name);
    }
    Ok(flags)
}

/// Where cargo keeps the sources of dependencies, by each name it may call that folder.
fn cargo_homes() -> Vec<PathBuf> {
    let home = std::env::var_os("CARGO_HOME")
        .filter(|home| !home.is_empty())
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    let absolute = home.and_then(|home| std::path::absolute(home).ok());
    let canonical = absolute.as_ref().and_then(|home| home.canonicalize().ok());
    let mut homes: Vec<_> = absolute.into_iter().chain(canonical).collect();
    homes.dedup();
    homes
}

/// The folders of unpacked dependencies, one for each registry, and named after its address: whoever uses a mirror gets another
/// name. They exist by now, since xtask has dependencies itself.
fn registries(cargo_home: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let folders = fs::read_dir(cargo_home.join("registry/src")).ok();
    folders
        .into_iter()
        .flatten()
        .filter_map(|folder| Some(folder.ok()?.path()))
}

/// Takes the DWARF away, which nothing reads and which is most of the file; BTF stays.
fn strip(from: &Path, to: &Path) -> Result<()> {
    let sysroot = toolchain::sysroot()?;
    let host = toolchain::host(&mut toolchain::pinned("rustc"))?;
    let folder = sysroot.join("lib/rustlib").join(host).join("bin");
    // The pinned toolchain's own: it decides over the object's bytes too.
    let mut objcopy = Command::new(folder.join("rust-objcopy"));
    objcopy.env("LD_LIBRARY_PATH", sysroot.join("lib"));
    objcopy.arg("--strip-debug").args([from, to]);
    command::output(&mut objcopy, toolchain::SET_UP)?;
    Ok(())
}

/// Where two objects differ, in words; nothing if they are the same.
pub fn difference(checked_in: &[u8], rebuilt: &[u8]) -> Option<String> {
    if checked_in == rebuilt {
        return None;
    }
    let sizes = if checked_in.len() == rebuilt.len() {
        format!("both have {} bytes", rebuilt.len())
    } else {
        format!(
            "{} bytes checked in, {} bytes rebuilt",
            checked_in.len(),
            rebuilt.len()
        )
    };
    let same = checked_in
        .iter()
        .zip(rebuilt)
        .take_while(|(one, other)| one == other)
        .count();
    Some(match (checked_in.get(same), rebuilt.get(same)) {
        (Some(one), Some(other)) => {
            format!(
                "{sizes}; the first difference is at byte {same:#x}: {one:#04x} checked in, {other:#04x} rebuilt"
            )
        }
        _ => format!("{sizes}; the shorter one is the beginning of the longer one"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_bytes_do_not_differ() {
        assert_eq!(difference(b"abc", b"abc"), None);
        assert_eq!(difference(b"", b""), None);
    }

    #[test]
    fn first_differing_byte_is_named() {
        assert_eq!(
            difference(b"abcd", b"abXd").as_deref(),
            Some(
                "both have 4 bytes; the first difference is at byte 0x2: 0x63 checked in, 0x58 rebuilt"
            )
        );
    }

    #[test]
    fn cut_off_object_is_named_as_such() {
        assert_eq!(
            difference(b"abc", b"").as_deref(),
            Some(
                "3 bytes checked in, 0 bytes rebuilt; the shorter one is the beginning of the longer one"
            )
        );
    }
}
