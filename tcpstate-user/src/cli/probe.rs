//! `tcpstate probe`.

use anyhow::{Context as _, Result};

use super::{
    Outcome,
    args::{OutputArgs, ProbeArgs},
    output,
};
use crate::{
    kernel::{
        capability,
        probe::{self, Report},
    },
    message,
    sink::json_line,
};

/// Prints what this kernel allows. Finding no hook is an error.
pub fn run(args: &ProbeArgs) -> Result<Outcome> {
    let report = probe::run();
    let text = if args.json {
        json_line(&report)?
    } else {
        text(&report, output::room(&OutputArgs::default())).into_bytes()
    };
    message::print(&text).context("the output cannot be written")?;
    if report.chosen.is_none() {
        anyhow::bail!("no hook can be used here");
    }
    Ok(Outcome::Done)
}

/// The report for people.
fn text(report: &Report, columns: usize) -> String {
    let mut out = String::new();
    let mut line = |text: std::fmt::Arguments<'_>| {
        out.push_str(&message::fold(text.to_string().trim_end(), columns));
        out.push('\n');
    };
    line(format_args!("kernel            Linux {}", report.kernel));
    if report.missing_capabilities.is_empty() {
        line(format_args!("privileges        sufficient"));
    } else {
        line(format_args!(
            "privileges        {} missing: run as root, or setcap cap_bpf,cap_perfmon=ep",
            report.missing_capabilities.join(" and ")
        ));
    }
    match &report.lockdown {
        Some(lockdown) if capability::forbids_reading(lockdown) => line(format_args!(
            "lockdown          {lockdown}: programs may not read the kernel's memory, so no hook works"
        )),
        Some(lockdown) => line(format_args!("lockdown          {lockdown}: no hindrance")),
        None => {}
    }
    line(format_args!("state transitions, best hook first:"));
    for hook in &report.hooks {
        let mark = if Some(hook.hook) == report.chosen {
            "used"
        } else {
            ""
        };
        let works = if hook.works { "works" } else { "no" };
        line(format_args!(
            "  {:<19} {works:<6} {mark}",
            hook.hook.label()
        ));
        if let Some(reason) = &hook.reason {
            line(format_args!("    because {reason}"));
        }
        if hook.loses.is_empty() {
            line(format_args!("    shows everything"));
        }
        for loses in hook.loses {
            line(format_args!("    loses {loses}"));
        }
    }
    line(format_args!("life of TIME_WAIT, best first:"));
    for observer in &report.timewait_observers {
        let mark = if Some(observer.observer) == report.timewait {
            "used"
        } else {
            ""
        };
        let works = if observer.works { "works" } else { "no" };
        line(format_args!(
            "  {:<19} {works:<6} {mark}",
            observer.observer.word()
        ));
        if let Some(reason) = &observer.reason {
            line(format_args!("    because {reason}"));
        }
        line(format_args!("    costs {}", observer.costs));
        match observer.cannot_see {
            Some(what) => line(format_args!("    does not see {what}")),
            None => line(format_args!("    sees everything")),
        }
    }
    line(format_args!("system calls (--syscalls):"));
    let calls = &report.system_calls;
    let works = if calls.works { "works" } else { "no" };
    line(format_args!("  sys_exit            {works}"));
    if let Some(reason) = &calls.reason {
        line(format_args!("    because {reason}"));
    }
    line(format_args!("    costs {}", calls.costs));
    line(format_args!("    shows {}", calls.loses));
    line(format_args!("lost on this kernel with the hooks used:"));
    if report.chosen.is_none() {
        line(format_args!("  everything: no hook works"));
    } else if report.missing.is_empty() {
        line(format_args!("  nothing"));
    }
    for missing in &report.missing {
        line(format_args!("  {} (no {})", missing.loses, missing.what));
    }
    out
}
