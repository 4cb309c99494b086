//! The life of TIME_WAIT as far as the kernel's list of sockets tells it. The witness is what the test did, and when.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    support::{Printed, Tool, nobody_starts, own_netns, probe, skipped, steps, sysctl},
    timewait::{connect, half_close, listener},
};

const POLL: Duration = Duration::from_secs(1);

/// Starts the tool, or says that this kernel does not let it poll.
fn start(test: &str, arguments: &[&str]) -> Option<Tool> {
    if skipped(test) {
        return None;
    }
    let report = probe();
    let observers = report["timewait_observers"].as_array().expect("a list");
    let poll = observers.iter().find(|report| report["observer"] == "poll");
    if poll.expect("it is told")["works"] != true {
        eprintln!(
            "SKIPPED {test}: sockets have no cookies that join a minisocket to its connection"
        );
        return None;
    }
    own_netns();
    let common = ["-j", "--netns", "self", "--timewait", "poll"];
    Some(Tool::start(&[arguments, &common].concat()))
}

fn connection(printed: &Printed, port: u16) -> Value {
    let mut all = printed.events("connection");
    all.retain(|line| line["lport"] == port);
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

fn seconds(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn the_list_tells_when_time_wait_began() {
    let Some(tool) = start(
        "the_list_tells_when_time_wait_began",
        &["conns", "--running"],
    ) else {
        return;
    };
    let listener = listener();
    let nobody = nobody_starts();
    let (server, client_port) = half_close(connect(&listener));
    let half_closed = Instant::now();
    thread::sleep(Duration::from_millis(300));
    drop(server);
    let closed = half_closed.elapsed().as_secs_f64();
    drop(nobody);
    thread::sleep(POLL * 2);
    let line = connection(&tool.stop(), client_port);
    assert_eq!(line["state"], "time_wait", "{line}");
    assert_eq!(line["time_wait"]["end"], "running");
    assert_eq!(line["closed_first"], "local");
    let fin_wait2 = seconds(&line["states"]["fin_wait2"]);
    // A tick of the kernel is up to 10 ms.
    assert!(
        (0.1..closed + 0.1).contains(&fin_wait2),
        "{fin_wait2} of {closed}: {line}"
    );
}

#[test]
fn what_is_gone_from_the_list_has_ended() {
    let Some(tool) = start("what_is_gone_from_the_list_has_ended", &["trace"]) else {
        return;
    };
    // In FIN_WAIT2 it waits no longer than this for the peer's FIN.
    sysctl("net/ipv4/tcp_fin_timeout", "3");
    let listener = listener();
    let nobody = nobody_starts();
    let began = Instant::now();
    let (server, client_port) = half_close(connect(&listener));
    drop(nobody);
    thread::sleep(Duration::from_secs(6) + POLL * 2);
    let printed = tool.stop();
    let whole = began.elapsed().as_secs_f64();
    let lines = printed.of_port(client_port);
    let last = &lines[lines.len() - 2..];
    assert_eq!(
        steps(last),
        ["fin_wait2->fin_wait2", "fin_wait2->close"],
        "{lines:?}"
    );
    assert_eq!(last[1]["minisocket"], true);
    assert_eq!(last[1]["bound"], "at_most", "{lines:?}");
    assert_eq!(last[1]["reason"], "expired");
    assert_eq!(last[1]["known_by"], "inferred");
    let told = seconds(&last[1]["seconds"]);
    assert!((3.0..whole).contains(&told), "{told} of {whole}");
    drop(server);
}

#[test]
fn what_gets_no_minisocket_closes_with_the_next_list() {
    let Some(tool) = start(
        "what_gets_no_minisocket_closes_with_the_next_list",
        &["trace"],
    ) else {
        return;
    };
    sysctl("net/ipv4/tcp_max_tw_buckets", "0");
    let listener = listener();
    let nobody = nobody_starts();
    let (server, client_port) = half_close(connect(&listener));
    drop(server);
    drop(nobody);
    thread::sleep(POLL * 2 + POLL / 2);
    let printed = tool.stop();
    let lines = printed.of_port(client_port);
    let last = lines.last().expect("the end");
    assert_eq!(last["new"], "close", "{lines:?}");
    assert_eq!(last["bound"], "exact");
}
