//! apt, asked for packages of another release without touching what it knows about this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::files::{create, remove, write};
use super::sources::{self, Form, Suite};
use crate::arch::Arch;
use crate::command;

/// What to do when apt fails.
const ADVICE: &str =
    "see its message above; it uses this machine's own package sources, which must be reachable";

/// apt with lists and a cache of its own.
pub struct Apt {
    configuration: PathBuf,
    folder: PathBuf,
    suite: &'static str,
}

impl Apt {
    /// For a suite and a processor, in a folder below one that is kept from run to run.
    pub fn new(suite: Suite, arch: Arch, cache: &Path) -> Result<Self> {
        let folder = &cache
            .join("apt")
            .join(format!("{}-{}", suite.name, arch.debian));
        for program in ["apt-get", "apt-cache", "dpkg-deb"] {
            if !command::exists(program) {
                bail!(
                    "{program} is not there, and kernels are taken from Debian packages: run this on a Debian system"
                );
            }
        }
        let codename = codename()?;
        let lines = folder.join("sources.list");
        let paragraphs = folder.join("sources.d");
        for folder in [
            &paragraphs,
            &folder.join("lists/partial"),
            &folder.join("archives/partial"),
        ] {
            create(folder)?;
        }
        let (mut text, mut found) = (String::new(), false);
        for (path, form) in machine_sources() {
            let own = fs::read_to_string(&path)
                .with_context(|| format!("{} cannot be read", path.display()))?;
            let rewritten = sources::rewritten(&own, form, &codename, suite);
            found |= !rewritten.is_empty();
            match form {
                Form::Lines => text.push_str(&rewritten),
                Form::Paragraphs => {
                    if let Some(name) = path.file_name() {
                        write(&paragraphs.join(name), rewritten.as_bytes())?;
                    }
                }
            }
        }
        if !found {
            bail!(
                "the package sources of this machine name no suite {codename}, so there is nothing to find {} by: \
                 see /etc/apt",
                suite.name
            );
        }
        write(&lines, text.as_bytes())?;
        // An empty list of installed packages: what this machine has installed is of no interest.
        let status = folder.join("status");
        write(&status, b"")?;
        let configuration = folder.join("apt.conf");
        write(
            &configuration,
            configured(
                arch,
                &[
                    ("Dir::Etc::SourceList", &lines),
                    ("Dir::Etc::SourceParts", &paragraphs),
                    ("Dir::State::Lists", &folder.join("lists")),
                    ("Dir::State::status", &status),
                    ("Dir::Cache", folder),
                    ("Dir::Cache::Archives", &folder.join("archives")),
                ],
            )
            .as_bytes(),
        )?;
        Ok(Self {
            configuration,
            folder: folder.to_owned(),
            suite: suite.name,
        })
    }

    /// Fetches the lists of packages. One unreachable source of many is no reason to stop: what is wanted and not found is.
    pub fn update(&self) -> Result<()> {
        let mut update = self.command("apt-get");
        update.args(["--quiet", "--quiet", "update"]);
        eprintln!("xtask: the package lists of {}", self.suite);
        if !command::succeeds(&mut update, ADVICE)? {
            eprintln!("xtask: that failed, which may not matter");
        }
        Ok(())
    }

    /// The newest package whose name has this beginning and this end, if there is one.
    pub fn newest(&self, prefix: &str, suffix: &str) -> Result<Option<String>> {
        let mut names = self.command("apt-cache");
        names.args(["pkgnames", prefix]);
        let names = command::output(&mut names, ADVICE)?;
        Ok(names
            .lines()
            .filter(|name| name.ends_with(suffix))
            .max_by_key(|name| numbers(name))
            .map(str::to_owned))
    }

    /// The packages a package cannot do without, by their names.
    pub fn depends(&self, package: &str) -> Result<Vec<String>> {
        let mut depends = self.command("apt-cache");
        depends.args(["depends", "--important", package]);
        let depends = command::output(&mut depends, ADVICE)?;
        Ok(depends
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .map(str::to_owned)
            .collect())
    }

    /// These packages, with all that they cannot do without.
    pub fn with_needed(&self, packages: &[&str]) -> Result<Vec<String>> {
        let mut install = self.command("apt-get");
        install.args(["--simulate", "--no-install-recommends", "install"]);
        let install = command::output(install.args(packages), ADVICE)?;
        Ok(install
            .lines()
            .filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next())
            .map(str::to_owned)
            .collect())
    }

    /// Fetches packages and unpacks them into a folder. apt compares each with the signed list of packages.
    pub fn unpack(&self, packages: &[String], into: &Path) -> Result<()> {
        let archives = self.folder.join("download");
        // Left over from a run that was cut off.
        remove(&archives)?;
        create(&archives)?;
        let mut download = self.command("apt-get");
        download
            .args(["--quiet", "--quiet", "download"])
            .args(packages);
        download.current_dir(&archives);
        let names = match packages {
            [first, .., last] if packages.len() > 4 => {
                format!("{first} to {last} ({})", packages.len())
            }
            few => few.join(", "),
        };
        eprintln!("xtask: fetching {names} of {}", self.suite);
        command::run(&mut download, ADVICE)?;
        let read = || format!("{} cannot be read", archives.display());
        for archive in fs::read_dir(&archives).with_context(read)? {
            let mut extract = Command::new("dpkg-deb");
            extract
                .arg("--extract")
                .arg(archive.with_context(read)?.path())
                .arg(into);
            command::run(&mut extract, "is the disk full?")?;
        }
        remove(&archives)
    }

    fn command(&self, program: &str) -> Command {
        let mut apt = Command::new(program);
        apt.arg("--config-file").arg(&self.configuration);
        apt.env("LC_ALL", "C");
        apt
    }
}

fn configured(arch: Arch, paths: &[(&str, &Path)]) -> String {
    // What other packages have hooked into apt is for the machine's own lists. Our folders may be closed to the user that
    // apt would download as.
    let arch = arch.debian;
    let mut text = format!(
        "\
        #clear APT::Update::Post-Invoke;\n\
        #clear APT::Update::Post-Invoke-Success;\n\
        APT::Architecture {arch:?};\n\
        APT::Architectures {{ {arch:?}; }};\n\
        APT::Sandbox::User \"root\";\n\
        Acquire::Languages \"none\";\n\
        Acquire::Retries \"2\";\n\
        Acquire::http::Timeout \"30\";\n\
        Acquire::https::Timeout \"30\";\n"
    );
    for (key, path) in paths {
        text.push_str(key);
        text.push_str(" \"");
        text.push_str(&path.to_string_lossy());
        text.push_str("\";\n");
    }
    text
}

/// The name of the release this machine has.
fn codename() -> Result<String> {
    const FILE: &str = "/etc/os-release";
    let text = fs::read_to_string(FILE).with_context(|| format!("{FILE} cannot be read"))?;
    text.lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|name| name.trim_matches('"').to_owned())
        .with_context(|| format!("{FILE} names no release (VERSION_CODENAME): is this Debian?"))
}

fn machine_sources() -> Vec<(PathBuf, Form)> {
    let parts = fs::read_dir("/etc/apt/sources.list.d")
        .into_iter()
        .flatten()
        .flatten();
    [PathBuf::from("/etc/apt/sources.list")]
        .into_iter()
        .chain(parts.map(|entry| entry.path()))
        .filter(|path| path.is_file())
        .filter_map(|path| {
            let form = match path.extension()?.to_str()? {
                "list" => Form::Lines,
                "sources" => Form::Paragraphs,
                _ => return None,
            };
            Some((path, form))
        })
        .collect()
}

/// The numbers in a name: by them versions are ordered.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_by_their_numbers() {
        let names = [
            "linux-image-6.12.9+deb12-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
            "linux-image-6.12.43+deb12-cloud-amd64",
        ];
        assert_eq!(
            names.iter().max_by_key(|name| numbers(name)),
            Some(&names[1])
        );
    }
}
