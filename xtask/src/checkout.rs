//! The folders of the checkout this task works on.

use std::env;
use std::path::{self, PathBuf};

use anyhow::{Context, Result, anyhow};

pub struct Checkout {
    /// The workspace's folder, without symbolic links: compilers record the path they find, not the one we write.
    pub root: PathBuf,
    /// Where cargo puts what it builds.
    pub target: PathBuf,
}

impl Checkout {
    pub fn locate() -> Result<Self> {
        // Asked at run time first: a target folder shared by two checkouts holds one xtask for both.
        let package = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = package
            .parent()
            .ok_or_else(|| anyhow!("{} has no parent folder", package.display()))?;
        let root = root.canonicalize().with_context(|| {
            format!(
                "the checkout {} cannot be found (run this as `cargo xtask` inside it)",
                root.display()
            )
        })?;
        let target = match env::var_os("CARGO_TARGET_DIR") {
            Some(folder) => {
                path::absolute(folder).context("CARGO_TARGET_DIR is not a usable path")?
            }
            None => root.join("target"),
        };
        Ok(Self { root, target })
    }

    /// The eBPF object that tcpstate-user embeds, so that nobody needs an eBPF toolchain to build tcpstate.
    pub fn object(&self) -> PathBuf {
        self.root.join("tcpstate-user/ebpf/tcpstate.bpf.o")
    }

    /// The tools the object was built with.
    pub fn built_with(&self) -> PathBuf {
        self.root.join("tcpstate-user/ebpf/BUILT-WITH")
    }
}
