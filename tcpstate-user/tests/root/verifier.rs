//! What it takes the kernel to be convinced that our programs do no harm.

use std::fs;

use crate::support::{Tool, calls_work, for_each_observer};

/// A verifier that follows every way through a program by itself comes to a hundred times as many, and takes a second for each
/// program; after a million it gives up.
const MOST: u64 = 50_000;

#[test]
fn programs_are_looked_at_once_not_in_each_of_their_ways() {
    const TEST: &str = "programs_are_looked_at_once_not_in_each_of_their_ways";
    for_each_observer(TEST, |observer| {
        let ports = "1,3,5,7,9,11,13,15-17";
        let networks = "10.0.0.0/8,2001:db8::/32,192.0.2.7,198.51.100.0/24";
        let calls = if calls_work() {
            "--syscalls"
        } else {
            "--syscalls=off"
        };
        let filters = [
            vec![],
            vec!["--netns", "self", calls],
            vec!["-4", "-L", ports, "-D", ports, "--cidr", networks],
        ];
        for filter in filters {
            let common = ["trace", "--timewait", observer];
            let tool = Tool::start(&[&common, filter.as_slice()].concat());
            let looked_at = looked_at(&tool);
            tool.stop();
            if looked_at.is_empty() {
                eprintln!("SKIPPED {TEST}: this kernel does not tell (Linux 5.16)");
                return;
            }
            // The two of the tracepoint, the two that list sockets, and at least two of the observer.
            assert!(looked_at.len() >= 6, "{filter:?}: {looked_at:?}");
            assert!(
                looked_at.iter().all(|count| *count < MOST),
                "{filter:?}: {looked_at:?}"
            );
        }
    });
}

/// How many instructions the verifier looked at in each program of this process.
fn looked_at(tool: &Tool) -> Vec<u64> {
    let files = fs::read_dir(format!("/proc/{}/fdinfo", tool.id())).expect("its open files");
    files
        .filter_map(|file| fs::read_to_string(file.ok()?.path()).ok())
        .filter_map(|text| {
            let count = text
                .lines()
                .find_map(|line| line.strip_prefix("verified_insns:"))?;
            Some(count.trim().parse().expect("a number"))
        })
        .collect()
}
