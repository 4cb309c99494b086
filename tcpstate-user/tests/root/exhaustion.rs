//! `tcpstate timewait` on the real kernel: a network namespace that runs out of local ports. The witness is what connect()
//! itself says, and when.

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant, SystemTime},
};

use serde_json::Value;

use crate::{
    socket::{connect_loopback, disconnect, unconnected},
    support::{Printed, Tool, lacks_timewait, nobody_starts, own_netns, skipped, sysctl, text},
};

/// The rows of a section of each report.
fn section(printed: &Printed, name: &str) -> Vec<(f64, Vec<Value>)> {
    printed
        .events("timewait")
        .iter()
        .map(|report| {
            let to: jiff::Timestamp = text(&report["to"]).parse().expect("a time");
            let rows = report[name].as_array().expect("rows").clone();
            (to.as_duration().as_secs_f64(), rows)
        })
        .collect()
}

fn now() -> f64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.expect("after 1970").as_secs_f64()
}

/// Connects and closes first.
fn connect(listener: &TcpListener, address: SocketAddr) -> std::io::Result<()> {
    let client = TcpStream::connect(address)?;
    let (server, _) = listener.accept()?;
    drop(client);
    drop(server);
    Ok(())
}

#[test]
fn the_forecast_is_right_and_the_process_that_fails_is_named() {
    const TEST: &str = "the_forecast_is_right_and_the_process_that_fails_is_named";
    const EVERY: Duration = Duration::from_millis(250);
    if skipped(TEST) || lacks_timewait(TEST) {
        return;
    }
    own_netns();
    // Twenty ports besides three that are reserved and a listener's. In a range of an odd number of ports connect() leaves out
    // one or the other (`remaining` in `__inet_hash_connect`).
    sysctl("net/ipv4/ip_local_port_range", "5000 5023");
    sysctl("net/ipv4/ip_local_reserved_ports", "5001,5003,5010");
    sysctl("net/ipv4/tcp_tw_reuse", "0");
    let other = TcpListener::bind((Ipv4Addr::LOCALHOST, 5004)).expect("a listener");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 7801)).expect("a listener");
    let address = listener.local_addr().expect("bound");
    let tool = Tool::start(&["timewait", "-j", "--netns", "self", "0.5"]);
    let alone = nobody_starts();
    let began = Instant::now();
    let mut made = 0_u32;
    let (mut last, mut failed) = (0.0, 0);
    while failed < 3 {
        let next = began + EVERY * (made + failed);
        thread::sleep(next.saturating_duration_since(Instant::now()));
        match connect(&listener, address) {
            Ok(()) => {
                made += 1;
                last = now();
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
                failed += 1;
            }
        }
    }
    drop(alone);
    let printed = tool.stop();
    assert_eq!(made, 20, "as many as the range has");
    let of = |rows: &[Value]| {
        let mut rows = rows
            .iter()
            .filter(|row| row["destination"] == "127.0.0.1:7801");
        let row = rows.next().cloned();
        assert!(rows.next().is_none(), "one row");
        row
    };
    let mut looked = 0;
    for (to, rows) in section(&printed, "ports") {
        let Some(row) = of(&rows) else { continue };
        assert_eq!(row["limit"], 20);
        let used = row["used"].as_u64().expect("a count");
        let minisockets = row["minisockets"].as_u64().expect("a count");
        assert!(
            (used - 1..=used).contains(&minisockets),
            "all have been closed, but the one that is being made just then: {row}"
        );
        assert_eq!(row["free"].as_u64(), Some(20 - used));
        // With six or more behind it and some way to go.
        if (6..=16).contains(&used) {
            let forecast = row["seconds_until_none"].as_f64().expect("a forecast");
            let right = last - to;
            let tolerance = (0.2 * right).max(EVERY.as_secs_f64());
            assert!(
                (forecast - right).abs() <= tolerance,
                "{forecast} {right} {row}"
            );
            looked += 1;
        }
    }
    assert!(looked >= 3, "{looked} forecasts");
    let (_, ports) = section(&printed, "ports").pop().expect("a report");
    let full = of(&ports).expect("a row");
    assert_eq!(
        (full["used"].as_u64(), full["free"].as_u64()),
        (Some(20), Some(0))
    );
    let reports = section(&printed, "failed_connects");
    let failures: Vec<_> = reports.iter().filter_map(|(_, rows)| of(rows)).collect();
    let sum: u64 = failures
        .iter()
        .filter_map(|row| row["failed"].as_u64())
        .sum();
    assert_eq!(sum, 3, "{failures:?}");
    for row in failures {
        assert_eq!(row["pid"], std::process::id());
        assert_eq!(row["source"], "127.0.0.1");
    }
    let joined: u64 = section(&printed, "ports")
        .iter()
        .filter_map(|(_, rows)| of(rows)?["failed"].as_u64())
        .sum();
    assert_eq!(joined, 3, "the same, joined to what is full");
    drop(other);
}

/// connect() with IPv6, and one that fails for another reason.
#[test]
fn only_connects_without_a_port_are_told() {
    if skipped("only_connects_without_a_port_are_told") {
        return;
    }
    own_netns();
    sysctl("net/ipv4/ip_local_port_range", "5000 5001");
    let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 7802)).expect("a listener");
    let address = listener.local_addr().expect("bound");
    let tool = Tool::start(&["timewait", "-j", "--netns", "self"]);
    let alone = nobody_starts();
    let kept: Vec<_> = (0..2)
        .map(|_| TcpStream::connect(address).expect("a connection"))
        .collect();
    let error = TcpStream::connect(address).expect_err("there is no port");
    assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
    let error = TcpStream::connect((Ipv4Addr::LOCALHOST, 7809)).expect_err("nobody listens");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    assert!(TcpStream::connect((Ipv4Addr::new(192, 0, 2, 1), 9)).is_err());
    drop(alone);
    let printed = tool.stop();
    let (_, failed) = section(&printed, "failed_connects")
        .pop()
        .expect("a report");
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert_eq!(failed[0]["destination"], "[::1]:7802");
    assert_eq!(failed[0]["failed"], 1);
    let (_, ports) = section(&printed, "ports").pop().expect("a report");
    assert_eq!(ports.len(), 1, "{ports:?}");
    assert_eq!(ports[0]["used"], 2);
    assert_eq!(ports[0]["minisockets"], 0);
    drop(kept);
}

/// The socket still has the port and the error of the life before.
#[test]
fn a_socket_used_before_that_finds_no_port_is_told() {
    if skipped("a_socket_used_before_that_finds_no_port_is_told") {
        return;
    }
    own_netns();
    sysctl("net/ipv4/ip_local_port_range", "5000 5001");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 7803)).expect("a listener");
    let address = listener.local_addr().expect("bound");
    let socket = unconnected();
    let trace = Tool::start(&["trace", "-j", "--netns", "self"]);
    let timewait = Tool::start(&["timewait", "-j", "--netns", "self"]);
    let alone = nobody_starts();
    connect_loopback(&socket, 7803).expect("a connection");
    disconnect(&socket);
    let kept: Vec<_> = (0..2)
        .map(|_| TcpStream::connect(address).expect("a connection"))
        .collect();
    let failed = connect_loopback(&socket, 7803);
    assert_eq!(failed, Err(nix::Error::EADDRNOTAVAIL));
    drop(alone);
    let printed = trace.stop();
    let transitions = printed.events("transition");
    let given_up = transitions
        .iter()
        .find(|one| one["old"] == "syn_sent" && one["new"] == "close")
        .expect("connect() that fails");
    assert_eq!(given_up["lport"], Value::Null);
    assert_eq!(given_up["error"], Value::Null);
    assert_eq!(given_up["rport"], 7803);
    let printed = timewait.stop();
    let (_, rows) = section(&printed, "failed_connects")
        .pop()
        .expect("a report");
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!(rows[0]["failed"], 1);
    drop(kept);
}

/// What was there before counts, unless it was accepted.
#[test]
fn connections_that_were_there_hold_their_ports() {
    if skipped("connections_that_were_there_hold_their_ports") {
        return;
    }
    own_netns();
    sysctl("net/ipv4/ip_local_port_range", "5000 5019");
    // The listener's port is in the range too.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 5007)).expect("a listener");
    let address = listener.local_addr().expect("bound");
    let kept: Vec<_> = (0..5)
        .map(|_| TcpStream::connect(address).expect("a connection"))
        .collect();
    let tool = Tool::start(&["timewait", "-j", "--netns", "self"]);
    let printed = tool.stop();
    let (_, ports) = section(&printed, "ports").pop().expect("a report");
    assert_eq!(ports.len(), 1, "{ports:?}");
    assert_eq!(ports[0]["destination"], "127.0.0.1:5007");
    assert_eq!(ports[0]["used"], 5);
    assert_eq!(ports[0]["limit"], 19);
    assert_eq!(ports[0]["seconds_until_none"], Value::Null, "nothing grows");
    drop(kept);
}
