//! Files and folders, with errors that say what to do; and where those are that are kept from run to run.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

/// The folder of what is kept from run to run, whatever checkout it is for.
pub fn kept() -> Result<PathBuf> {
    let given = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    given("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| given("HOME").map(|home| Path::new(&home).join(".cache")))
        .map(|folder| folder.join("tcpstate-xtask"))
        .ok_or_else(|| {
            anyhow!("neither XDG_CACHE_HOME nor HOME is set: there is no place to keep kernels")
        })
}

pub fn create(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| {
        format!(
            "{} cannot be made (is the folder above it yours?)",
            folder.display()
        )
    })
}

pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes)
        .with_context(|| format!("{} cannot be written (is the disk full?)", path.display()))
}

pub fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| {
            format!("{} cannot be removed (remove it by hand)", folder.display())
        })?;
    }
    Ok(())
}
