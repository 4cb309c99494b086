//! What the kernel counts, as `nstat` shows it: a witness of its own.

use std::fs;

/// A counter of TCP of the network namespace of this thread: `RetransSegs`, `TWRecycled` ...
pub fn counter(name: &str) -> u64 {
    let tables = [("snmp", "Tcp:"), ("netstat", "TcpExt:")];
    let value = tables.into_iter().find_map(|(file, group)| {
        let table = fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        let table = table.expect("the counters");
        let mut lines = table.lines().filter(|line| line.starts_with(group));
        let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
        let mut pairs = names.split(' ').zip(values.split(' '));
        let (_, value) = pairs.find(|(one, _)| *one == name)?;
        Some(value.parse().expect("a number"))
    });
    value.expect("a counter of that name")
}
