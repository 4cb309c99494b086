//! The kernel modules that the tests need, with those that they need.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command;

/// By name. One that a kernel has built in, or does not have, is no module there.
pub const WANTED: [&str; 10] = [
    "inet_diag",
    "tcp_diag",
    "veth",
    "tun",
    "sch_netem",
    "nf_tables",
    "nft_counter",
    "nft_limit",
    "nft_numgen",
    "nft_reject_inet",
];

pub struct Module {
    pub name: String,
    pub bytes: Vec<u8>,
}

/// Every file below a folder.
pub fn walk(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let read = || format!("{} cannot be read", folder.display());
        for entry in fs::read_dir(&folder).with_context(read)? {
            let entry = entry.with_context(read)?;
            let kind = entry.file_type().with_context(read)?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

/// The wanted modules among these files, each after those it depends on.
pub fn in_load_order(files: &[PathBuf]) -> Result<Vec<Module>> {
    let paths: HashMap<String, &Path> = files
        .iter()
        .filter_map(|path| Some((module_name(path)?, path.as_path())))
        .collect();
    let mut ordered = Vec::new();
    for name in WANTED {
        add(name, &paths, &mut ordered)?;
    }
    Ok(ordered)
}

fn add(name: &str, paths: &HashMap<String, &Path>, ordered: &mut Vec<Module>) -> Result<()> {
    let Some(path) = paths.get(name) else {
        return Ok(());
    };
    if ordered.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let bytes = read(path)?;
    for needed in depends(&bytes) {
        add(&needed, paths, ordered)?;
    }
    ordered.push(Module {
        name: name.to_owned(),
        bytes,
    });
    Ok(())
}

/// `nf-tables.ko.xz` is `nf_tables` to the kernel.
fn module_name(path: &Path) -> Option<String> {
    let (name, _) = path.file_name()?.to_str()?.split_once(".ko")?;
    Some(name.replace('-', "_"))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let program = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(path).with_context(|| format!("{} cannot be read", path.display())),
    };
    let mut unpack = Command::new(program);
    unpack.args(["--decompress", "--stdout"]).arg(path);
    let output = unpack.output().with_context(|| {
        format!("`{program}` cannot be started, and this kernel's modules are packed with it: install it")
    })?;
    if !output.status.success() {
        bail!(
            "`{}` failed ({}): {}",
            command::shown(&unpack),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(output.stdout)
}

/// From the module's own information: `depends=a,b` between zero bytes.
fn depends(bytes: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"depends=";
    bytes
        .split(|byte| *byte == 0)
        .find_map(|text| text.strip_prefix(KEY))
        .map(|names| {
            String::from_utf8_lossy(names)
                .split(',')
                .filter(|name| !name.is_empty())
                .map(|name| name.replace('-', "_"))
                .collect()
        })
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_what_they_depend_on() {
        let path = Path::new("kernel/net/netfilter/nf-tables.ko.xz");
        assert_eq!(module_name(path).as_deref(), Some("nf_tables"));
        assert_eq!(module_name(Path::new("modules.order")), None);
        assert_eq!(
            depends(b"\x7fELF\0name=x\0depends=nfnetlink,libcrc32c\0"),
            ["nfnetlink", "libcrc32c"]
        );
        assert!(depends(b"\0depends=\0name=x\0").is_empty());
    }
}
