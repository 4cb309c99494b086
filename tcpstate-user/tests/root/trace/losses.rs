//! Nothing is lost, or it is counted, and what is around it says no more than is known.

use std::{
    collections::BTreeMap,
    io::Read as _,
    net::{Ipv4Addr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::json;

use super::{ACTIVE, PASSIVE, assert_all, connect, seconds};
use crate::support::{
    Tool, connections_asked_for, nobody_starts, own_netns, port, skipped, steps, text,
};

#[test]
fn every_transition_of_ten_thousand_connections_is_accounted_for() {
    if skipped("every_transition_of_ten_thousand_connections_is_accounted_for") {
        return;
    }
    let connections = connections_asked_for().map_or(10_000, u64::from);
    own_netns();
    let tool = Tool::trace(&[]);
    let alone = nobody_starts();
    churn(connections);
    drop(alone);
    let printed = tool.stop();
    let mut counts = BTreeMap::new();
    for step in steps(&printed.transitions()) {
        *counts.entry(step).or_insert(0_u64) += 1;
    }
    let summary = printed.summary();
    for step in ACTIVE.iter().chain(&PASSIVE) {
        assert_eq!(
            counts.get(*step),
            Some(&connections),
            "{step} in {counts:?}, {summary}"
        );
    }
    assert_eq!(
        summary["events"],
        connections * 10 + 2,
        "and the listener: {counts:?}"
    );
    assert_eq!(summary["connections"], connections * 2 + 1);
    assert_eq!(summary["damaged"], 0);
    assert_eq!(
        summary["loss"],
        json!({"ring_full": 0, "undecodable": 0, "table_full": 0, "unread": 0, "not_found": 0, "missed": 0, "unrecorded": 0})
    );
    assert_all(&printed.transitions(), "pid", &json!(std::process::id()));
}

/// Times behind a hole that is not known yet must not be told as bounds.
#[test]
fn under_overload_no_false_bound_is_told_and_the_end_comes() {
    const CONNECTIONS: u64 = 5_000;
    if skipped("under_overload_no_false_bound_is_told_and_the_end_comes") {
        return;
    }
    own_netns();
    let began = Instant::now();
    let tool = Tool::trace(&["--buffer", "64K", "--skip-existing"]);
    churn(CONNECTIONS);
    let whole = began.elapsed().as_secs_f64();
    let printed = tool.stop();
    let summary = printed.summary();
    // A first event whose connection was never heard of again belongs to nobody we could tell.
    let missing = [&summary["loss"]["ring_full"], &summary["undecided"]];
    let missing: u64 = missing.iter().filter_map(|count| count.as_u64()).sum();
    assert_eq!(
        printed.transitions().len() as u64 + missing,
        CONNECTIONS * 10 + 2,
        "{summary}"
    );
    for line in printed.transitions() {
        // Every connection began while we looked.
        assert_ne!(line["bound"], "at_least", "{line}");
        if line["seconds"].is_f64() {
            assert!(seconds(&line) <= whole, "{line}");
        }
    }
}

#[test]
fn what_is_lost_is_counted_and_marked() {
    const CONNECTIONS: u64 = 2_000;
    if skipped("what_is_lost_is_counted_and_marked") {
        return;
    }
    own_netns();
    let tool = Tool::trace(&["--buffer", "64K"]);
    let kept = connect((Ipv4Addr::LOCALHOST, 0));
    let (client_port, server_port) = (kept.client_port, kept.server_port);
    thread::sleep(Duration::from_millis(200));
    tool.signal(Signal::SIGSTOP);
    churn(CONNECTIONS);
    drop(kept.client);
    drop(kept.server);
    tool.signal(Signal::SIGCONT);
    thread::sleep(Duration::from_millis(300));
    drop(kept.listener);
    let printed = tool.stop();
    let lost: u64 = printed
        .events("loss")
        .iter()
        .filter_map(|loss| loss["count"].as_u64())
        .sum();
    assert!(lost > 0);
    assert_eq!(printed.summary()["loss"]["ring_full"], lost);
    assert!(
        printed.err.contains(&format!("LOST {lost}")),
        "{}",
        printed.err
    );
    // What came and what was lost is all there was: the churn, its listener, the kept connection and its listener.
    let came = printed.transitions().len() as u64;
    let lost = lost + printed.summary()["undecided"].as_u64().expect("a count");
    let made = CONNECTIONS * 10 + 2 + 10 + 2;
    assert_eq!(came + lost, made, "{}", printed.summary());
    // A connection of the churn may have had the same port.
    let mut lines = printed.of_port(client_port);
    lines.retain(|line| line["rport"] == server_port);
    // The ring buffer of the other processor may have had room. What follows a gap says so.
    let mut state = "close";
    for line in &lines {
        assert_eq!(line["damaged"] == true, line["old"] != state, "{lines:?}");
        state = text(&line["new"]);
    }
    let mut all = ACTIVE.iter();
    let in_order = |step: &String| all.any(|known| known == step);
    assert!(steps(&lines).iter().all(in_order), "{lines:?}");
    assert!(lines.len() >= 2, "{lines:?}");
}

/// Without its turn on busy processors the reader would lose events.
#[test]
fn it_runs_before_others_unless_it_was_told_not_to() {
    if skipped("it_runs_before_others_unless_it_was_told_not_to") {
        return;
    }
    let nice = |tool: &Tool| {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", tool.id()));
        let stat = stat.expect("it runs");
        // After the name come the state, the third field, and others; nice is the 19th.
        let (_, fields) = stat.rsplit_once(')').expect("a name");
        fields.split_ascii_whitespace().nth(16).map(str::to_owned)
    };
    own_netns();
    let tool = Tool::trace(&[]);
    assert_eq!(nice(&tool).as_deref(), Some("-5"));
    tool.stop();
    // A thread's, which what it starts inherits.
    // SAFETY: it is our own.
    assert_eq!(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 3) }, 0);
    let tool = Tool::trace(&[]);
    assert_eq!(nice(&tool).as_deref(), Some("3"));
    tool.stop();
}

/// Opens and closes this many connections, one after the other; the client closes first.
fn churn(connections: u64) {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a listener");
    let server_port = port(listener.local_addr());
    for number in 0..connections {
        let address = Ipv4Addr::from(0x7f00_0001 + u32::try_from(number % 64).expect("small"));
        let client = TcpStream::connect((address, server_port)).expect("a connection");
        let (mut server, _) = listener.accept().expect("the other end");
        drop(client);
        assert_eq!(server.read(&mut [0]).expect("the end"), 0);
    }
}
