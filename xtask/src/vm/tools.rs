//! The programs that the tests start in a guest, with their libraries: this machine's own or, for a guest with another processor,
//! from Debian packages.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::apt::Apt;
use super::files::{create, kept, remove};
use super::kernel::BOOKWORM;
use super::lock::Lock;
use crate::arch::Arch;
use crate::command;

const TOOLS: [&str; 8] = [
    "bash", "ip", "mount", "prlimit", "setpriv", "ss", "tc", "timeout",
];
/// Where they come from.
const PACKAGES: [&str; 5] = ["bash", "coreutils", "iproute2", "mount", "util-linux"];
const FOLDERS: [&str; 4] = ["usr/bin", "bin", "usr/sbin", "sbin"];

/// Files here, by their paths in the guest.
pub type Files = BTreeMap<String, PathBuf>;

/// What is not on this machine and has to be, and how to get it.
pub fn missing() -> Vec<String> {
    let here = Path::new("/");
    let missing = TOOLS.into_iter().filter(|tool| find(here, tool).is_none());
    missing.map(missing_tool).collect()
}

fn missing_tool(tool: &str) -> String {
    format!("{tool} (install the packages {})", PACKAGES.join(", "))
}

/// Those of this machine.
pub fn of_this_machine() -> Result<Files> {
    let mut files = Files::new();
    for tool in TOOLS {
        let path = find(Path::new("/"), tool).with_context(|| missing_tool(tool))?;
        let mut ldd = Command::new("ldd");
        let libraries = command::output(ldd.arg(&path), "is libc-bin installed?")?;
        let libraries = libraries.lines().filter_map(library);
        files.extend(libraries.map(|path| (path.to_owned(), path.into())));
        files.insert(place(tool, &path, Path::new("/")), path);
    }
    Ok(files)
}

/// Those for another processor, fetched if they are not there yet.
pub fn of_packages(arch: Arch, refresh: bool) -> Result<Files> {
    let cache = kept()?;
    let _lock = Lock::take(&cache)?;
    let root = cache.join("tools").join(arch.debian);
    if refresh || !root.is_dir() {
        fetch(arch, &cache, &root)?;
    }
    let mut files = Files::new();
    let mut open: Vec<PathBuf> = Vec::new();
    for tool in TOOLS {
        let path = find(&root, tool)
            .with_context(|| format!("no package of {} holds {tool}", PACKAGES.join(", ")))?;
        files.insert(place(tool, &path, &root), path.clone());
        open.push(path);
    }
    while let Some(path) = open.pop() {
        for name in needed(&path)? {
            let library = find_library(&root, &name)?;
            if files
                .insert(place(&name, &library, &root), library.clone())
                .is_none()
            {
                open.push(library);
            }
        }
    }
    Ok(files)
}

/// Puts the packages' files beside the folder, which they replace when they are complete.
fn fetch(arch: Arch, cache: &Path, root: &Path) -> Result<()> {
    let unfinished = root.with_extension("unfinished");
    remove(&unfinished)?;
    create(&unfinished)?;
    let apt = Apt::new(BOOKWORM, arch, cache)?;
    apt.update()?;
    let packages = apt.with_needed(&PACKAGES)?;
    if packages.is_empty() {
        bail!(
            "apt knows no packages for {}: see its messages above",
            arch.debian
        );
    }
    apt.unpack(&packages, &unfinished)?;
    remove(root)?;
    fs::rename(&unfinished, root)
        .with_context(|| format!("{} cannot be put in place", root.display()))
}

fn find(root: &Path, tool: &str) -> Option<PathBuf> {
    FOLDERS
        .iter()
        .map(|folder| root.join(folder).join(tool))
        .find(|path| path.exists())
}

fn find_library(root: &Path, name: &str) -> Result<PathBuf> {
    let below = |folder: &str| -> Option<PathBuf> {
        let folder = root.join(folder);
        let entries = fs::read_dir(&folder).ok()?.flatten();
        let of_processors = entries.map(|entry| entry.path());
        // What loads programs is known by its name in the folder itself.
        let mut folders = [folder].into_iter().chain(of_processors);
        folders.find_map(|folder| Some(folder.join(name)).filter(|path| path.exists()))
    };
    below("lib")
        .or_else(|| below("usr/lib"))
        .with_context(|| format!("no package holds the library {name}"))
}

/// The libraries that a program, or a library, names itself.
fn needed(path: &Path) -> Result<Vec<String>> {
    let mut readelf = Command::new("readelf");
    let told = command::output(
        readelf
            .arg("--dynamic")
            .arg("--wide")
            .arg(path)
            .env("LC_ALL", "C"),
        "is binutils installed?",
    )?;
    Ok(told
        .lines()
        .filter_map(needed_of)
        .map(str::to_owned)
        .collect())
}

/// ` 0x0000000000000001 (NEEDED)             Shared library: [libc.so.6]`
fn needed_of(line: &str) -> Option<&str> {
    let (_, name) = line.split_once("(NEEDED)")?.1.split_once('[')?;
    name.strip_suffix(']')
}

/// Where it is in the guest.
fn place(name: &str, path: &Path, root: &Path) -> String {
    // The test that copies it knows it by this name.
    if name == "bash" {
        return "/bin/bash".to_owned();
    }
    let path = path.strip_prefix(root).unwrap_or(path);
    format!("/{}", path.display())
}

/// `libc.so.6 => /lib/libc.so.6 (0x7f...)`, `/lib64/ld-linux.so.2 (0x7f...)`, or one that is in no file.
fn library(line: &str) -> Option<&str> {
    line.split_whitespace().find(|word| word.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::{library, needed_of};

    #[test]
    fn libraries_are_found_where_ldd_says() {
        assert_eq!(library("\tlinux-vdso.so.1 (0x7f)"), None);
        assert_eq!(
            library("\tlibc.so.6 => /lib/libc.so.6 (0x7f)"),
            Some("/lib/libc.so.6")
        );
        assert_eq!(
            library("\t/lib64/ld-linux-x86-64.so.2 (0x7f)"),
            Some("/lib64/ld-linux-x86-64.so.2")
        );
    }

    #[test]
    fn libraries_are_those_that_are_needed() {
        let line = " 0x0000000000000001 (NEEDED)             Shared library: [libc.so.6]";
        assert_eq!(needed_of(line), Some("libc.so.6"));
        let line = " 0x000000000000000e (SONAME)             Library soname: [libm.so.6]";
        assert_eq!(needed_of(line), None);
    }
}
