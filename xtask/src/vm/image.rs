//! What a guest is made of besides its kernel: our programs, and the orders what to do with them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use super::cpio::Archive;
use super::orders::Orders;
use super::{protocol, tools};
use crate::arch::Arch;
use crate::checkout::Checkout;
use crate::{command, root};

/// Programs for guests with one processor, where cargo has put them: static ones, since a guest has no libraries.
pub struct Programs {
    pub arch: Arch,
    pub tcpstate: PathBuf,
    tests: PathBuf,
    init: PathBuf,
    tools: tools::Files,
}

impl Programs {
    /// Builds them. Emulation is slow, so they are optimised; the checks of a development build stay.
    pub fn build(arch: Arch, tools: tools::Files, checkout: &Checkout) -> Result<Self> {
        let folder = checkout.target.join("vm");
        let cargo = |task: &str, arguments: &[&str]| {
            let mut cargo = arch.cargo(task)?;
            cargo.current_dir(&checkout.root).args(arguments);
            cargo.arg("--target-dir").arg(&folder);
            for setting in ["opt-level=2", "debug=false", "strip=true"] {
                cargo.args(["--config", &format!("profile.dev.{setting}")]);
            }
            anyhow::Ok(cargo)
        };
        eprintln!("xtask: building static programs for {}", arch.name);
        let mut init = cargo("build", &["--package", "xtask", "--bin", "guest"])?;
        command::run(&mut init, "see cargo's message above")?;
        // Cargo starts what it has built through the runner, which here only says what that is.
        let mut tests = cargo("test", &["--package", "tcpstate-user", "--test", "root"])?;
        let target = arch.target()?;
        tests.env(root::runner_variable(&target), "echo");
        // Building takes a while: cargo shows how far it is.
        tests.stderr(Stdio::inherit());
        let tests = command::output(&mut tests, "see cargo's message above")?;
        let Some(tests) = tests.lines().map(Path::new).find(|path| path.is_file()) else {
            bail!("cargo did not say where it has put the root tests: {tests}");
        };
        let built = folder.join(target).join("debug");
        Ok(Self {
            arch,
            tools,
            tcpstate: built.join("tcpstate"),
            tests: tests.to_owned(),
            init: built.join("guest"),
        })
    }
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
    for (place, path) in &programs.tools {
        archive.program(place, &read(path)?);
    }

    archive.file(protocol::ORDERS, orders.to_string().as_bytes());
    Ok(archive.finish())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("{} cannot be read", path.display()))
}
