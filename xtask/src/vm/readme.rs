//! The table of kernels in README.md: written from what guests have shown, not typed.

use std::fs;

use anyhow::{Context, Result, bail};

use super::kernel::KERNELS;
use super::variant::VARIANTS;
use crate::checkout::Checkout;

const BEGIN: &str = "<!-- kernels: written by `cargo xtask vm --bless` -->";
const END: &str = "<!-- end of kernels -->";
const HEADER: &str = "\
| kernel | guest | transitions by | life of TIME_WAIT by | lost | tests passed |
| --- | --- | --- | --- | --- | --- |";

/// What `tcpstate probe` says, in short.
#[derive(Debug, PartialEq, Eq)]
pub struct Support {
    /// The hook that is used.
    transitions: String,
    /// All ways that work.
    timewait: String,
    lost: String,
}

impl Support {
    /// From the output of `tcpstate probe`: a heading at the margin, below it what works, used or not, and further in why.
    pub fn read(probe: &str) -> Self {
        let (mut hooks, mut observers, mut lost) = (Vec::new(), Vec::new(), Vec::new());
        let mut heading = "";
        for line in probe.lines() {
            let Some(entry) = line.strip_prefix("  ") else {
                heading = line;
                continue;
            };
            if entry.starts_with(' ') {
                continue;
            }
            let works = entry.split_once(" works");
            if heading.starts_with("state transitions") {
                hooks.extend(works.filter(|(_, mark)| mark.trim() == "used"));
            } else if heading.starts_with("life of TIME_WAIT") {
                observers.extend(works);
            } else if heading.starts_with("lost") {
                lost.push(entry.split_once(" (no ").map_or(entry, |(what, _)| what));
            }
        }
        let names = |entries: &[(&str, &str)], none: &str| {
            let names: Vec<_> = entries.iter().map(|(name, _)| name.trim()).collect();
            if names.is_empty() {
                none.to_owned()
            } else {
                names.join(", ")
            }
        };
        Self {
            transitions: names(&hooks, "no hook"),
            timewait: names(&observers, "not observed"),
            lost: lost.join("; "),
        }
    }
}

/// A row of the table.
#[derive(Debug, PartialEq, Eq)]
pub struct Row {
    pub kernel: String,
    pub guest: String,
    pub support: Support,
    /// The plans whose tests passed.
    pub plans: Vec<String>,
}

impl Row {
    /// As it stands in README.md.
    pub fn text(&self) -> String {
        let Support {
            transitions,
            timewait,
            lost,
        } = &self.support;
        format!(
            "| {} | {} | {transitions} | {timewait} | {lost} | {} |",
            self.kernel,
            self.guest,
            self.plans.join("; ")
        )
    }
}

/// The rows that README.md does not have so.
pub fn outdated<'a>(checkout: &Checkout, rows: &'a [Row]) -> Result<Vec<&'a Row>> {
    let readme = read(checkout)?;
    let missing = |row: &&Row| !readme.lines().any(|line| line == row.text());
    Ok(rows.iter().filter(missing).collect())
}

/// Puts the rows into README.md.
pub fn bless(checkout: &Checkout, rows: &[Row]) -> Result<()> {
    let path = checkout.root.join("README.md");
    let Some(text) = updated(&read(checkout)?, rows) else {
        bail!(
            "{} has no table between `{BEGIN}` and `{END}`",
            path.display()
        );
    };
    fs::write(&path, text).with_context(|| format!("{} cannot be written", path.display()))
}

fn read(checkout: &Checkout) -> Result<String> {
    let path = checkout.root.join("README.md");
    fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))
}

/// Rows of other kernels and guests stay as they are, unless there is no such kernel or guest any more.
fn updated(readme: &str, rows: &[Row]) -> Option<String> {
    let (before, rest) = readme.split_once(BEGIN)?;
    let (old, after) = rest.split_once(END)?;
    let mut table = HEADER.to_owned();
    for kernel in &KERNELS {
        for variant in &VARIANTS {
            let start = format!("| {} | {} |", kernel.name, variant.name);
            let new = rows
                .iter()
                .find(|row| row.kernel == kernel.name && row.guest == variant.name)
                .map(Row::text);
            let kept = || {
                let line = old.lines().find(|line| line.starts_with(&start));
                line.map(str::to_owned)
            };
            if let Some(line) = new.or_else(kept) {
                table.push('\n');
                table.push_str(&line);
            }
        }
    }
    Some(format!("{before}{BEGIN}\n{table}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROBE: &str = "\
kernel            Linux 5.10
state transitions, best hook first:
  BTF tracepoint      works  used
    shows everything
  classic tracepoint  works
    loses processes: no event says whose it is
life of TIME_WAIT:
  timer tracepoints   works  used
  kprobe              works
  fentry              no
    because it works not
lost on this kernel with the hooks used:
  socket cookies: by address (no bpf_get_socket_cookie (Linux 5.12))
  cgroups (no x)
";

    fn row(kernel: &str) -> Row {
        Row {
            kernel: kernel.to_owned(),
            guest: "standard".to_owned(),
            support: Support::read(PROBE),
            plans: vec!["one".to_owned(), "two".to_owned()],
        }
    }

    #[test]
    fn what_works_is_read_from_the_probe() {
        assert_eq!(
            row("6.1").text(),
            "| 6.1 | standard | BTF tracepoint | timer tracepoints, kprobe \
             | socket cookies: by address; cgroups | one; two |"
        );
        let nothing = Support::read("life of TIME_WAIT:\n  not observed\n");
        assert_eq!(nothing.transitions, "no hook");
        assert_eq!(nothing.timewait, "not observed");
    }

    #[test]
    fn rows_are_replaced_and_others_kept() {
        let readme = format!(
            "a\n{BEGIN}\n{HEADER}\n| 7 | standard | kept |\n| 6.1 | standard | old |\n| 3.0 | standard | gone |\n{END}\nb\n"
        );
        let new = row("6.1").text();
        assert_eq!(
            updated(&readme, &[row("6.1")]),
            Some(format!(
                "a\n{BEGIN}\n{HEADER}\n{new}\n| 7 | standard | kept |\n{END}\nb\n"
            ))
        );
        assert_eq!(updated("no table", &[]), None);
    }
}
