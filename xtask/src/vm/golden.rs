//! What `tcpstate probe` says on each kernel, kept in the repository: a change of what is supported shows in a diff.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::kernel::Kernel;
use super::results::Results;
use super::variant::Variant;
use crate::checkout::Checkout;

/// How the output of `tcpstate probe` compares with what is kept.
#[derive(Debug, PartialEq, Eq)]
pub enum Comparison {
    Same,
    /// The lines that differ, each with a mark.
    Changed(Vec<String>),
    /// Nothing is kept yet.
    New,
}

/// The file for a kernel and a guest.
pub fn path(checkout: &Checkout, kernel: &Kernel, variant: &Variant) -> PathBuf {
    let name = if variant.ordinary {
        kernel.name.to_owned()
    } else {
        format!("{}-{}", kernel.name, variant.name)
    };
    checkout
        .root
        .join("tcpstate-user/tests/golden/probe")
        .join(name + ".txt")
}

/// What is kept: the output with the kernel as it is asked for, since the rest of its release changes with every update, and
/// the exit status unless it is 0. None if it was not heard.
pub fn text(kernel: &Kernel, results: &Results) -> Option<String> {
    let (probe, release) = (results.probe.as_ref()?, results.kernel.as_deref()?);
    let mut text = String::new();
    for line in &probe.lines {
        let line = line.replace(release, kernel.name);
        // Which of the maps is made first, and fails, is not the same each time.
        let line = match line.split_once(" map `") {
            Some((before, rest)) => {
                let (_, after) = rest.split_once('`').unwrap_or(("", rest));
                format!("{before} map{after}")
            }
            None => line,
        };
        text.push_str(line.trim_end());
        text.push('\n');
    }
    if probe.status != 0 {
        text.push_str("exit status ");
        text.push_str(&probe.status.to_string());
        text.push('\n');
    }
    Some(text)
}

pub fn compare(path: &Path, text: &str) -> Comparison {
    match fs::read_to_string(path) {
        Ok(kept) if kept == text => Comparison::Same,
        Ok(kept) => Comparison::Changed(difference(&kept, text)),
        Err(_) => Comparison::New,
    }
}

pub fn bless(path: &Path, text: &str) -> Result<()> {
    let cannot = || format!("{} cannot be written", path.display());
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(cannot)?;
    }
    fs::write(path, text).with_context(cannot)
}

/// The lines between the first and the last that differ.
fn difference(old: &str, new: &str) -> Vec<String> {
    let (old, new): (Vec<_>, Vec<_>) = (old.lines().collect(), new.lines().collect());
    let same = |(a, b): &(&&str, &&str)| a == b;
    let head = old.iter().zip(&new).take_while(same).count();
    let (old, new) = (&old[head..], &new[head..]);
    let tail = old.iter().rev().zip(new.iter().rev());
    let tail = tail.take_while(same).count();
    let removed = old[..old.len() - tail]
        .iter()
        .map(|line| format!("- {line}"));
    let added = new[..new.len() - tail]
        .iter()
        .map(|line| format!("+ {line}"));
    removed.chain(added).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_shown() {
        assert_eq!(
            difference("a\nb\nc\n", "a\nx\ny\nc\n"),
            ["- b", "+ x", "+ y"]
        );
        assert_eq!(difference("a\na\n", "a\n"), ["- a"]);
        assert!(difference("a\n", "a\n").is_empty());
    }
}
