//! The versions of the tools that decide over the object's bytes, kept next to it so that a difference can be explained.

use std::fmt;

use anyhow::Result;

use crate::{command, linker, toolchain};

#[derive(Debug, PartialEq, Eq)]
pub struct BuiltWith(Vec<(String, String)>);

impl BuiltWith {
    /// The tools of this machine.
    pub fn here() -> Result<Self> {
        let rustc = command::output(
            toolchain::pinned("rustc").arg("--version"),
            toolchain::SET_UP,
        )?;
        let rustc = rustc.strip_prefix("rustc ").unwrap_or(&rustc).to_owned();
        let unknown = || "unknown".to_owned();
        Ok(Self(vec![
            ("rustc".to_owned(), rustc),
            (
                "bpf-linker".to_owned(),
                linker::version().unwrap_or_else(unknown),
            ),
            (
                "llvm".to_owned(),
                linker::llvm_version().unwrap_or_else(unknown),
            ),
        ]))
    }

    /// From `key: value` lines; lines of another form say nothing.
    pub fn parse(text: &str) -> Self {
        let pair = |line: &str| {
            let (key, value) = line.split_once(':')?;
            Some((key.trim().to_owned(), value.trim().to_owned()))
        };
        Self(text.lines().filter_map(pair).collect())
    }

    /// One sentence for each tool whose version was another one then.
    pub fn differences(&self, then: &Self) -> Vec<String> {
        let version_then = |tool: &str| {
            then.0
                .iter()
                .find(|(key, _)| key == tool)
                .map_or("unknown", |(_, version)| version)
        };
        self.0
            .iter()
            .filter(|(tool, here)| version_then(tool) != here)
            .map(|(tool, here)| {
                format!(
                    "{tool} is {here} here, and was {} when the object was built",
                    version_then(tool)
                )
            })
            .collect()
    }
}

impl fmt::Display for BuiltWith {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|(key, value)| writeln!(f, "{key}: {value}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let text = "rustc: 1.0.0 (abc 2020-01-01)\nbpf-linker: 0.1\n";
        assert_eq!(BuiltWith::parse(text).to_string(), text);
    }

    #[test]
    fn names_each_tool_that_differs() {
        let here = BuiltWith::parse("rustc: 2\nllvm: 22.1\nbpf-linker: 1");
        let then = BuiltWith::parse("rustc: 1\nllvm: 22.1");
        assert_eq!(
            here.differences(&then),
            [
                "rustc is 2 here, and was 1 when the object was built",
                "bpf-linker is 1 here, and was unknown when the object was built"
            ]
        );
        assert!(here.differences(&here).is_empty());
    }
}
