//! The load, in all its ways, on the real kernel.

#![expect(clippy::expect_used, reason = "a test stops where its set-up fails")]

use std::{env, process::Command};

use tcpstate_bench::Churned;

/// As in the tests of the tool: says so, too.
fn skipped(test: &str) -> bool {
    let skip = env::var_os("TCPSTATE_SKIP_ROOT").is_some();
    if skip {
        eprintln!("SKIPPED {test}: it needs root");
    }
    skip
}

fn churn(arguments: &[&str]) -> Churned {
    let mut churn = Command::new(env!("CARGO_BIN_EXE_churn"));
    churn
        .args(["--seconds=0.2", "--warm-up=0.1"])
        .args(arguments);
    let output = churn.output().expect("it starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    serde_json::from_slice(&output.stdout).expect("a line of JSON")
}

#[test]
fn every_way_makes_connections_without_errors() {
    if skipped("every_way_makes_connections_without_errors") {
        return;
    }
    for link in ["loopback", "veth"] {
        for mode in ["client-close", "server-close", "rst"] {
            let churned = churn(&["--link", link, "--mode", mode, "--threads=2"]);
            assert!(churned.connections > 0, "{churned:?}");
            assert!(churned.connections_all > churned.connections, "{churned:?}");
            assert!(churned.errors.is_empty(), "{churned:?}");
            assert!(churned.latency_us.p50 <= churned.latency_us.max);
            assert_eq!(churned.netns == churned.server_netns, link == "loopback");
        }
    }
}

#[test]
fn addresses_in_turn_may_be_few() {
    if skipped("addresses_in_turn_may_be_few") {
        return;
    }
    let churned = churn(&["--destinations=1", "--threads=1"]);
    assert!(churned.connections > 0, "{churned:?}");
    assert!(churned.errors.is_empty(), "{churned:?}");
}
