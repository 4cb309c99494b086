//! The kernels, taken from Debian packages: fetched once, kept outside the checkout, checked before each use.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};

use super::apt::Apt;
use super::files::{create, kept, remove, write};
use super::lock::Lock;
use super::modules;
use super::sources::Suite;
use crate::arch::{AARCH64, Arch, X86_64};
use crate::command;

/// A kernel we test on.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// As it is asked for.
    pub name: &'static str,
    /// The processor it is for.
    pub arch: Arch,
    /// How the names of its packages begin.
    prefix: &'static str,
    /// Where it is looked for, best first.
    suites: &'static [Suite],
}

const BULLSEYE: Suite = Suite {
    name: "bullseye",
    released: true,
};
pub const BOOKWORM: Suite = Suite {
    name: "bookworm",
    released: true,
};
const FORKY: Suite = Suite {
    name: "forky",
    released: false,
};
const SID: Suite = Suite {
    name: "sid",
    released: false,
};

pub const KERNELS: [Kernel; 6] = [
    Kernel {
        name: "5.10",
        arch: X86_64,
        prefix: "linux-image-5.10.",
        suites: &[BULLSEYE],
    },
    Kernel {
        name: "6.1",
        arch: X86_64,
        prefix: "linux-image-6.1.",
        suites: &[BOOKWORM],
    },
    Kernel {
        name: "6.12",
        arch: X86_64,
        prefix: "linux-image-6.12.",
        suites: &[BOOKWORM],
    },
    Kernel {
        name: "7",
        arch: X86_64,
        prefix: "linux-image-7.",
        suites: &[FORKY, SID],
    },
    Kernel {
        name: "6.1-arm64",
        arch: AARCH64,
        prefix: "linux-image-6.1.",
        suites: &[BOOKWORM],
    },
    Kernel {
        name: "6.12-arm64",
        arch: AARCH64,
        prefix: "linux-image-6.12.",
        suites: &[BOOKWORM],
    },
];

const IMAGE: &str = "vmlinuz";
const MODULES: &str = "modules";
/// Names the package and the modules: what was kept when the list of modules was another one is of no use.
const RECIPE: &str = "recipe";
const SUMS: &str = "SHA256SUMS";

/// A kernel's files: nobody changes them as long as this lives.
pub struct Files {
    _lock: Lock,
    pub image: PathBuf,
    /// In the order to load them in.
    pub modules: Vec<PathBuf>,
}

impl Kernel {
    /// What is kept, or else fetched; `refresh` asks for a newer one.
    pub fn files(&self, refresh: bool) -> Result<Files> {
        let cache = kept()?;
        let lock = Lock::take(&cache)?;
        let folder = cache.join("kernels").join(self.name);
        if refresh || !is_whole(&folder)? {
            self.fetch(&cache, &folder)?;
        }
        let mut modules = list(&folder.join(MODULES))?;
        modules.sort();
        Ok(Files {
            _lock: lock,
            image: folder.join(IMAGE),
            modules,
        })
    }

    /// Puts the files together beside the folder, which they replace when they are complete.
    fn fetch(&self, cache: &Path, folder: &Path) -> Result<()> {
        let unfinished = folder.with_file_name(format!("{}.unfinished", self.name));
        let unpacked = unfinished.join("unpacked");
        remove(&unfinished)?;
        create(&unpacked)?;
        let package = self.unpack(cache, &unpacked)?;

        let files = modules::walk(&unpacked)?;
        let image = files
            .iter()
            .find(|path| {
                path.file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with(IMAGE))
            })
            .ok_or_else(|| anyhow!("{package} holds no kernel image ({IMAGE}*)"))?;
        fs::rename(image, unfinished.join(IMAGE))
            .with_context(|| format!("{} cannot be moved", image.display()))?;
        let modules = unfinished.join(MODULES);
        create(&modules)?;
        for (number, module) in modules::in_load_order(&files)?.iter().enumerate() {
            write(
                &modules.join(format!("{number:02}-{}.ko", module.name)),
                &module.bytes,
            )?;
        }
        remove(&unpacked)?;
        write(&unfinished.join(RECIPE), recipe(&package).as_bytes())?;
        let names: Vec<_> = modules::walk(&unfinished)?
            .iter()
            .filter_map(|path| path.strip_prefix(&unfinished).ok().map(Path::to_owned))
            .collect();
        let mut sums = Command::new("sha256sum");
        sums.current_dir(&unfinished).args(names);
        let sums = command::output(&mut sums, "is coreutils installed?")? + "\n";
        write(&unfinished.join(SUMS), sums.as_bytes())?;

        remove(folder)?;
        fs::rename(&unfinished, folder)
            .with_context(|| format!("{} cannot be put in place", folder.display()))
    }

    /// Unpacks the newest package of this kernel, with the packages its image and modules are in; returns its name.
    fn unpack(&self, cache: &Path, into: &Path) -> Result<String> {
        // Kernels for virtual machines: small, and with what a virtual machine needs built in.
        let suffix = format!("-cloud-{}", self.arch.debian);
        for suite in self.suites {
            let apt = Apt::new(*suite, self.arch, cache)?;
            apt.update()?;
            let Some(package) = apt.newest(self.prefix, &suffix)? else {
                continue;
            };
            // From 6.17 on, Debian has image and modules in packages of their own.
            let release = package.trim_start_matches("linux-image-");
            let mut packages: Vec<_> = apt
                .depends(&package)?
                .into_iter()
                .filter(|name| name.ends_with(release))
                .collect();
            packages.push(package.clone());
            apt.unpack(&packages, into)?;
            return Ok(package);
        }
        let suites: Vec<_> = self.suites.iter().map(|suite| suite.name).collect();
        bail!(
            "no package {}*{suffix} in {} (is the network there? do the package sources of this machine carry it?)",
            self.prefix,
            suites.join(" or ")
        );
    }
}

/// Whether all is there that was put there, and nothing has changed it.
fn is_whole(folder: &Path) -> Result<bool> {
    let Ok(kept) = fs::read_to_string(folder.join(RECIPE)) else {
        return Ok(false);
    };
    let package = kept.lines().next().unwrap_or_default();
    if kept != recipe(package) {
        return Ok(false);
    }
    let mut check = Command::new("sha256sum");
    check
        .current_dir(folder)
        .args(["--check", "--quiet", "--strict", SUMS]);
    let whole = command::succeeds(&mut check, "is coreutils installed?")?;
    if !whole {
        eprintln!(
            "xtask: {} is damaged: it is fetched again",
            folder.display()
        );
    }
    Ok(whole)
}

fn recipe(package: &str) -> String {
    format!("{package}\n{}\n", modules::WANTED.join(" "))
}

fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    fs::read_dir(folder)
        .and_then(|entries| {
            entries
                .map(|entry| entry.map(|entry| entry.path()))
                .collect()
        })
        .with_context(|| format!("{} cannot be read", folder.display()))
}
