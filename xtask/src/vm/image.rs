//! What a guest is made of besides its kernel: our programs, and the orders what to do with them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::cpio::Archive;
use super::orders::Orders;
use super::protocol;
use crate::checkout::Checkout;
use crate::{command, root, toolchain};

/// Static programs, which run whatever libraries a guest does not have.
pub const TARGET: &str = "x86_64-unknown-linux-musl";

/// Programs for the guest, where cargo has put them.
pub struct Programs {
    pub tcpstate: PathBuf,
    tests: PathBuf,
    init: PathBuf,
}

impl Programs {
    /// Builds them. Emulation is slow, so they are optimised; the checks of a development build stay.
    pub fn build(checkout: &Checkout) -> Result<Self> {
        let folder = checkout.target.join("vm");
        let cargo = |arguments: &[&str]| {
            let mut cargo = toolchain::undisturbed(Command::new("cargo"));
            cargo.current_dir(&checkout.root).args(arguments);
            cargo
                .args(["--locked", "--target", TARGET])
                .arg("--target-dir")
                .arg(&folder);
            for setting in ["opt-level=2", "debug=false", "strip=true"] {
                cargo.args(["--config", &format!("profile.dev.{setting}")]);
            }
            cargo
        };
        eprintln!("xtask: building static programs");
        let mut init = cargo(&["build", "--package", "xtask", "--bin", "guest"]);
        command::run(&mut init, "see cargo's message above")?;
        // Cargo starts what it has built through the runner, which here only says what that is.
        let mut tests = cargo(&["test", "--package", "tcpstate-user", "--test", "root"]);
        tests.env(root::runner_variable(TARGET), "echo");
        // Building takes a while: cargo shows how far it is.
        tests.stderr(Stdio::inherit());
        let tests = command::output(&mut tests, "see cargo's message above")?;
        let Some(tests) = tests.lines().map(Path::new).find(|path| path.is_file()) else {
            bail!("cargo did not say where it has put the root tests: {tests}");
        };
        let built = folder.join(TARGET).join("debug");
        Ok(Self {
            tcpstate: built.join("tcpstate"),
            tests: tests.to_owned(),
            init: built.join("guest"),
        })
    }
}

/// Whether programs can be built for [`TARGET`].
pub fn can_build() -> bool {
    let mut rustc = Command::new("rustc");
    rustc.args(["--print", "target-libdir", "--target", TARGET]);
    command::answer(&mut rustc).is_some_and(|folder| Path::new(&folder).is_dir())
}

/// The guest's first file system.
pub fn pack(programs: &Programs, modules: &[PathBuf], orders: &Orders) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    // Without it the first process has no output.
    archive.character_device("/dev/console", (5, 1));
    archive.program("/init", &read(&programs.init)?);
    archive.program(protocol::TESTS, &read(&programs.tests)?);
    // The tests know it by the path at which it was built.
    archive.program(&orders.tcpstate, &read(&programs.tcpstate)?);
    archive.folder(protocol::MODULES);
    for module in modules {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        archive.file(&format!("{}/{name}", protocol::MODULES), &read(module)?);
    }
    add_tools(&mut archive)?;

    archive.file(protocol::ORDERS, orders.to_string().as_bytes());
    Ok(archive.finish())
}

/// Programs that the tests start, and where they may be.
const TOOLS: [&str; 8] = [
    "bash", "ip", "mount", "prlimit", "setpriv", "ss", "tc", "timeout",
];
const FOLDERS: [&str; 4] = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"];

fn find(tool: &str) -> Option<PathBuf> {
    FOLDERS
        .iter()
        .map(|folder| Path::new(folder).join(tool))
        .find(|path| path.exists())
}

fn missing_tool(tool: &str) -> String {
    format!("{tool} (install the packages bash, coreutils, iproute2, mount and util-linux)")
}

/// Programs that have to be in a guest and are not here, and how to get them.
pub fn missing_tools() -> Vec<String> {
    let missing = TOOLS.into_iter().filter(|tool| find(tool).is_none());
    missing.map(missing_tool).collect()
}

/// They are not static: their libraries come with them.
fn add_tools(archive: &mut Archive) -> Result<()> {
    let mut files = BTreeSet::new();
    for tool in TOOLS {
        let path = find(tool).with_context(|| missing_tool(tool))?;
        let mut ldd = Command::new("ldd");
        let libraries = command::output(ldd.arg(&path), "is libc-bin installed?")?;
        files.extend(libraries.lines().filter_map(library).map(PathBuf::from));
        // The test that copies it knows it by this name.
        files.insert(if tool == "bash" {
            PathBuf::from("/bin/bash")
        } else {
            path
        });
    }
    for file in files {
        archive.program(&file.to_string_lossy(), &read(&file)?);
    }
    Ok(())
}

/// `libc.so.6 => /lib/libc.so.6 (0x7f...)`, `/lib64/ld-linux.so.2 (0x7f...)`, or one that is in no file.
fn library(line: &str) -> Option<&str> {
    line.split_whitespace().find(|word| word.starts_with('/'))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("{} cannot be read", path.display()))
}

#[cfg(test)]
mod tests {
    use super::library;

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
}
