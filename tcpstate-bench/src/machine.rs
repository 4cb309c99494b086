//! The machine that is measured.

use std::{fs, path::Path, process::Command, thread};

use anyhow::{Context as _, Result, bail};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::utsname::uname,
};

/// The kernel may have been told to measure every program itself, which takes more time than some programs.
pub fn check() -> Result<()> {
    let counted = fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled").unwrap_or_default();
    if counted.trim() == "1" {
        bail!(
            "kernel.bpf_stats_enabled is 1, so every BPF program takes longer than it would: `sysctl kernel.bpf_stats_enabled=0` first"
        );
    }
    Ok(())
}

/// What a reader has to know of the machine, in lines of a list.
pub fn description() -> Vec<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = cpus.lines().find(|line| line.starts_with(name));
        line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()))
    };
    let model = field("model name").unwrap_or_else(|| "unknown processor".to_owned());
    let megahertz = field("cpu MHz").map_or_else(String::new, |mhz| format!(", {mhz} MHz now"));
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"))
        .and_then(|kib| kib.parse::<u64>().ok())
        .map_or_else(String::new, |kib| format!(", {} GiB of memory", kib >> 20));
    let virtual_machine = if cpus.contains("hypervisor") {
        ", a virtual machine"
    } else {
        ""
    };
    let kernel = uname().map_or_else(
        |_| "unknown".to_owned(),
        |uname| format!("Linux {}", uname.release().to_string_lossy()),
    );
    let read = |path: &str| {
        fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let jit = match read("/proc/sys/net/core/bpf_jit_enable").as_str() {
        "0" => ", BPF interpreted",
        _ => ", BPF compiled (JIT)",
    };
    let date = Command::new("date")
        .args(["-u", "+%Y-%m-%d %H:%M UTC"])
        .output();
    let date = date.map_or_else(
        |_| "unknown".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    );
    vec![
        format!("Processor: {model}{megahertz}, {cores} cores{memory}{virtual_machine}"),
        format!("Kernel: {kernel}{jit}"),
        format!("Date: {date}"),
        format!(
            "Load of the machine at the start (1, 5, 15 minutes): {}",
            load()
        ),
    ]
}

fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let words: Vec<_> = load.split(' ').take(3).collect();
    words.join(", ")
}

/// Peers look for their tracepoints in tracefs. If it is not mounted, it is from now on, for us and what we start.
pub fn mount_tracefs() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("no mount namespace can be made")?;
    let nothing = None::<&str>;
    mount(
        nothing,
        "/",
        nothing,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        nothing,
    )
    .context("mounts cannot be made private")?;
    for (kind, folder, example) in [
        (
            "tracefs",
            "/sys/kernel/tracing",
            "/sys/kernel/tracing/events",
        ),
        ("debugfs", "/sys/kernel/debug", "/sys/kernel/debug/tracing"),
    ] {
        if !Path::new(example).exists() {
            // If this kernel lacks it, those who need it will say so.
            let _ = mount(Some(kind), folder, Some(kind), MsFlags::empty(), nothing);
        }
    }
    Ok(())
}
