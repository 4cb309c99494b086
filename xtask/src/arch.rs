//! The processors that tcpstate is built for, and what static programs for each take.

use std::env::consts::ARCH;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, anyhow};

use crate::{command, toolchain};

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arch {
    /// As Rust calls it.
    pub name: &'static str,
    /// As Debian calls it.
    pub debian: &'static str,
    /// What compiles and links for it elsewhere, and the packages it comes with.
    compiler: &'static str,
    packages: &'static str,
}

pub const X86_64: Arch = Arch {
    name: "x86_64",
    debian: "amd64",
    compiler: "x86_64-linux-gnu-gcc",
    packages: "gcc-x86-64-linux-gnu and libc6-dev-amd64-cross",
};

pub const AARCH64: Arch = Arch {
    name: "aarch64",
    debian: "arm64",
    compiler: "aarch64-linux-gnu-gcc",
    packages: "gcc-aarch64-linux-gnu and libc6-dev-arm64-cross",
};

pub const ALL: [Arch; 2] = [X86_64, AARCH64];

impl Arch {
    /// This machine's.
    pub fn here() -> Result<Self> {
        let here = ALL.into_iter().find(|arch| arch.is_here());
        here.with_context(|| {
            let names = ALL.map(|arch| arch.name).join(" and ");
            format!("static programs are built for {names}, and this machine is {ARCH}: say for which (--arch)")
        })
    }

    pub fn named(name: &str) -> Option<Self> {
        ALL.into_iter().find(|arch| arch.name == name)
    }

    pub fn is_here(self) -> bool {
        self.name == ARCH
    }

    /// For Rust. At home it is what the compiler itself was built for, whatever its C library.
    pub fn target(self) -> Result<String> {
        if self.is_here() {
            toolchain::host(&mut Command::new("rustc"))
        } else {
            Ok(format!("{}-unknown-linux-gnu", self.name))
        }
    }

    /// cargo, for static programs: they run whatever libraries there are, or are not.
    pub fn cargo(self, task: &str) -> Result<Command> {
        let target = self.target()?;
        let mut cargo = toolchain::undisturbed(Command::new("cargo"));
        cargo.args([task, "--locked", "--target", &target]);
        let linked = r#"rustflags=["-C","target-feature=+crt-static"]"#;
        cargo.args(["--config", &format!("target.{target}.{linked}")]);
        if !self.is_here() {
            let compiler = self.compiler;
            cargo.args(["--config", &format!("target.{target}.linker={compiler:?}")]);
        }
        Ok(cargo)
    }

    /// What is not there and has to be, to build for it, and how to get it.
    pub fn missing(self) -> Vec<String> {
        let mut missing = Vec::new();
        if !self.is_here() && !command::exists(self.compiler) {
            let Self {
                compiler, packages, ..
            } = self;
            missing.push(format!("{compiler} (install the packages {packages})"));
        }
        if let Ok(target) = self.target()
            && !has_library(&target)
        {
            missing.push(format!(
                "Rust's standard library for {target} (run `rustup target add {target}`)"
            ));
        }
        missing
    }

    /// Installs Rust's standard library for it, if it is not there.
    pub fn install_library(self) -> Result<()> {
        let target = self.target()?;
        if has_library(&target) || !command::exists("rustup") {
            return Ok(());
        }
        let mut rustup = Command::new("rustup");
        rustup.args(["target", "add", &target]);
        eprintln!("xtask: {}", command::shown(&rustup));
        command::run(&mut rustup, "see its message above; it needs the network")
    }
}

fn has_library(target: &str) -> bool {
    let mut rustc = Command::new("rustc");
    rustc.args(["--print", "target-libdir", "--target", target]);
    command::answer(&mut rustc).is_some_and(|folder| Path::new(&folder).is_dir())
}

/// Whether a program of 64 bits needs another one to load it: then it is not static (`PT_INTERP`, see elf(5)).
pub fn is_static(program: &[u8]) -> Result<bool> {
    const PT_INTERP: u32 = 3;
    let broken = || anyhow!("what was built is no program of 64 bits");
    let number = |at: usize, size: usize| -> Option<usize> {
        let bytes = program.get(at..)?.get(..size)?;
        let number = bytes
            .iter()
            .rev()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        usize::try_from(number).ok()
    };
    if !program.starts_with(b"\x7fELF\x02\x01") {
        return Err(broken());
    }
    let field = |at, size| number(at, size).ok_or_else(broken);
    let (table, size, count) = (field(32, 8)?, field(54, 2)?, field(56, 2)?);
    for entry in 0..count {
        if field(table.saturating_add(entry * size), 4)? == PT_INTERP as usize {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "a test stops where its set-up fails")]
mod tests {
    use super::*;

    #[test]
    fn what_was_built_for_this_machine_alone_is_not_static() {
        let this = std::env::current_exe().and_then(std::fs::read);
        let this = this.expect("the test program");
        assert!(!is_static(&this).expect("a program"));
        assert!(is_static(&this[..40]).is_err());
        assert!(is_static(b"#!/bin/sh").is_err());
    }
}
