//! Local ports that run out, and bind() that fails.

use std::{io::ErrorKind, process::Command};

use super::{connect, doctor, findings, listener, seen, serve};
use crate::{
    containers::Cgroup,
    python::{Python, lacks_python},
    support::{
        lacks_calls, lacks_timewait, nobody_starts, own_netns, skipped, start, sysctl, text,
    },
};

#[test]
fn ports_that_ran_out_are_told_from_as_many_that_did_not() {
    const TEST: &str = "ports_that_ran_out_are_told_from_as_many_that_did_not";
    if skipped(TEST) || lacks_timewait(TEST) {
        return;
    }
    own_netns();
    sysctl("net/ipv4/ip_local_port_range", "5000 5049");
    sysctl("net/ipv4/tcp_tw_reuse", "0");
    let (server, address) = listener(7951);
    let tool = doctor(&[]);
    let alone = nobody_starts();
    for _ in 0..50 {
        connect(&server, address, true).expect("a port is left");
    }
    for _ in 0..3 {
        let error = connect(&server, address, true).expect_err("none is left");
        assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
    }
    drop(alone);
    let printed = tool.stop();
    let (found, code) = findings(&printed, "ports");
    assert_eq!(code, Some(1), "{}", printed.out);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0]["severity"], "high");
    assert_eq!(seen(&found[0], "failed"), 3);
    assert_eq!(seen(&found[0], "used"), 50);
    assert_eq!(seen(&found[0], "limit"), 50);
    assert_eq!(seen(&found[0], "minisockets"), 50);
    let cause = &found[0]["causes"][0];
    assert_eq!(cause["pid"], std::process::id());
    assert_eq!(cause["service"], "127.0.0.1:7951");
    assert_eq!(cause["count"], 3);
}

/// As many TIME_WAITs, in a range where they leave room, and spread over two destinations.
#[test]
fn as_many_time_waits_with_ports_left_are_no_alarm() {
    const TEST: &str = "as_many_time_waits_with_ports_left_are_no_alarm";
    if skipped(TEST) || lacks_timewait(TEST) {
        return;
    }
    own_netns();
    sysctl("net/ipv4/ip_local_port_range", "5000 5099");
    sysctl("net/ipv4/tcp_tw_reuse", "0");
    let (one, to_one) = listener(7952);
    let (two, to_two) = listener(7953);
    let tool = doctor(&["--many-time-waits", "50", "--ports-soon", "0.001"]);
    let alone = nobody_starts();
    for _ in 0..25 {
        connect(&one, to_one, true).expect("a port is left");
        connect(&two, to_two, true).expect("a port is left");
    }
    drop(alone);
    let printed = tool.stop();
    let (found, code) = findings(&printed, "ports");
    assert_eq!((found, code), (Vec::new(), Some(0)), "{}", printed.out);
    let (found, _) = findings(&printed, "time-wait");
    assert_eq!(found.len(), 1, "{}", printed.out);
    assert_eq!(found[0]["severity"], "fine");
    assert_eq!(seen(&found[0], "now"), 50);
}

#[test]
fn a_restart_that_time_wait_prevents_is_told_from_one_that_succeeds() {
    const TEST: &str = "a_restart_that_time_wait_prevents_is_told_from_one_that_succeeds";
    if skipped(TEST) || lacks_timewait(TEST) || lacks_calls(TEST) {
        return;
    }
    for comes_up in [false, true] {
        own_netns();
        let (server, address) = listener(7955);
        let tool = doctor(&[]);
        let alone = nobody_starts();
        connect(&server, address, false).expect("a connection");
        drop(server);
        for _ in 0..3 {
            assert_eq!(serve(7955, false).err(), Some(nix::Error::EADDRINUSE));
        }
        let up = comes_up.then(|| serve(7955, true).expect("it does not mind TIME_WAIT"));
        drop(alone);
        let printed = tool.stop();
        drop(up);
        let (found, code) = findings(&printed, "bind");
        assert_eq!(found.len(), 1, "{}", printed.out);
        let (severity, exit) = if comes_up { ("fine", 0) } else { ("high", 1) };
        assert_eq!(found[0]["severity"], severity, "{}", printed.out);
        assert_eq!(code, Some(exit));
        assert_eq!(seen(&found[0], "failed"), 3);
        assert_eq!(seen(&found[0], "minisockets"), 1);
        assert_eq!(seen(&found[0], "listeners"), 0);
        assert_eq!(found[0]["causes"][0]["pid"], std::process::id());
    }
}

/// A second listener where it has one: nobody else is in the way, and trying again does not help.
#[test]
fn a_process_that_is_in_its_own_way_is_told() {
    const TEST: &str = "a_process_that_is_in_its_own_way_is_told";
    if skipped(TEST) || lacks_calls(TEST) {
        return;
    }
    for before in [true, false] {
        own_netns();
        // Found by the list of sockets, or seen when it begins to listen.
        let found = before.then(|| serve(7979, true).expect("it is free"));
        let tool = doctor(&[]);
        let seen_there = (!before).then(|| serve(7979, true).expect("it is free"));
        for _ in 0..3 {
            assert_eq!(serve(7979, true).err(), Some(nix::Error::EADDRINUSE));
        }
        let printed = tool.stop();
        drop((found, seen_there));
        let (found, code) = findings(&printed, "bind");
        assert_eq!((found.len(), code), (1, Some(0)), "{}", printed.out);
        assert_eq!(found[0]["severity"], "notice", "{}", printed.out);
        assert_eq!(seen(&found[0], "listeners"), 1);
        let told = text(&found[0]["sentence"]);
        assert!(
            told.ends_with("the process listens there already"),
            "{told}"
        );
        let first = text(&found[0]["application"]);
        assert!(first.starts_with("Its own listener"), "{first}");
    }
}

#[test]
fn a_port_that_somebody_listens_at_is_told_with_its_owner() {
    const TEST: &str = "a_port_that_somebody_listens_at_is_told_with_its_owner";
    if skipped(TEST) || lacks_calls(TEST) || lacks_python(TEST) {
        return;
    }
    own_netns();
    let tool = doctor(&[]);
    let other = Python::start(
        "import socket,sys; s=socket.create_server(('127.0.0.1',7956)); print('up',flush=True); sys.stdin.read()",
    );
    for _ in 0..3 {
        assert_eq!(serve(7956, true).err(), Some(nix::Error::EADDRINUSE));
    }
    let printed = tool.stop();
    let (found, code) = findings(&printed, "bind");
    assert_eq!((found.len(), code), (1, Some(1)), "{}", printed.out);
    assert_eq!(seen(&found[0], "listeners"), 1);
    assert!(
        printed.out.contains(&format!("[{}]", other.pid())),
        "{}",
        printed.out
    );
}

/// The process has a socket whose cgroup is known before it fails.
#[test]
fn the_container_whose_bind_fails_is_told() {
    const TEST: &str = "the_container_whose_bind_fails_is_told";
    if skipped(TEST) || lacks_calls(TEST) || lacks_python(TEST) {
        return;
    }
    own_netns();
    let id = format!("{:064x}", u64::from(std::process::id()) << 32);
    let Some(cgroup) = Cgroup::new(&format!("docker-{id}.scope")) else {
        eprintln!("SKIPPED {TEST}: no cgroup v2 that we may make cgroups in");
        return;
    };
    let (_server, _) = listener(7967);
    let tool = doctor(&[]);
    let program = "
import socket, sys
open(sys.argv[1], 'w').write('0')
first = socket.create_server(('127.0.0.1', 7968))
for _ in range(3):
    try:
        socket.create_server(('127.0.0.1', 7967))
    except OSError:
        pass
";
    let procs = cgroup.0.join("cgroup.procs");
    let status = start(Command::new("python3").args(["-c", program]).arg(procs)).wait();
    assert!(status.expect("it ends").success());
    let printed = tool.stop();
    drop(cgroup);
    let (found, _) = findings(&printed, "bind");
    assert_eq!(found.len(), 1, "{}", printed.out);
    assert_eq!(seen(&found[0], "failed"), 3);
    let container = text(&found[0]["causes"][0]["container"]);
    assert_eq!(container, format!("docker {}", &id[..12]));
}
