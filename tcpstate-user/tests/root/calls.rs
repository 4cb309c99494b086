//! What no state tells: who accepts a connection, and bind() that finds its address in use. The witness is what the calls
//! themselves said.

use std::{
    io::{ErrorKind, Read as _},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket},
    process::Command,
};

use serde_json::Value;

use crate::{
    server::{CHILD_ACCEPTS, Server, greeted},
    support::{Printed, Tool, lacks_calls, own_netns, port, run, skipped, sysctl},
    views::{groups, in_state, wait_until},
};

/// The transitions of the server's end of a connection from this port.
fn of_server(printed: &Printed, client: u16) -> Vec<Value> {
    let all = printed.transitions().into_iter();
    all.filter(|line| line["rport"] == client).collect()
}

#[test]
fn who_accepts_is_the_owner() {
    const TEST: &str = "who_accepts_is_the_owner";
    if skipped(TEST) || lacks_calls(TEST) {
        return;
    }
    own_netns();
    for (port_of_server, watched) in [(7911, true), (7912, false)] {
        let flag = if watched {
            "--syscalls"
        } else {
            "--syscalls=off"
        };
        let trace = Tool::trace(&[flag]);
        let states = Tool::start(&["states", "-j", "--netns", "self", "--by", "pid", flag]);
        let leaks = &[
            "states", "-j", "--netns", "self", "--leaks", "--older", "0", flag,
        ];
        let leaks = Tool::start(leaks);
        let server = Server::start(CHILD_ACCEPTS, port_of_server);
        let (client, child) = greeted(port_of_server);
        let (owner, via) = if watched {
            (child, "accept")
        } else {
            (server.pid(), "listener")
        };
        let rows = groups(&states.stop(), "states");
        let row = rows.iter().find(|row| row["pid"] == owner);
        let row = row.unwrap_or_else(|| panic!("{flag}: {rows:?}"));
        assert_eq!(row["established"], 1, "{flag}");

        client.shutdown(Shutdown::Write).expect("shut");
        let rows = groups(&leaks.stop(), "leaks");
        let row = rows.iter().find(|row| row["state"] == "close_wait");
        let row = row.unwrap_or_else(|| panic!("{flag}: {rows:?}"));
        assert_eq!(row["pid"], owner, "{flag}");

        // With its parent dies the child, which closes.
        drop(server);
        wait_until("its end", || in_state("08") == 0);
        let server = of_server(&trace.stop(), port(client.local_addr()));
        let to = |state: &str| {
            let line = server.iter().find(|line| line["new"] == state);
            line.unwrap_or_else(|| panic!("{flag}: {server:?}"))
        };
        assert_eq!(to("established")["via"], "listener", "{flag}");
        assert_eq!(
            (&to("close_wait")["via"], &to("close_wait")["pid"]),
            (&via.into(), &owner.into())
        );
        assert_eq!(
            (&to("last_ack")["via"], &to("last_ack")["pid"]),
            (&"close".into(), &child.into())
        );
    }
}

/// The peer has closed before anybody accepts: the leak is that of who accepts then.
#[test]
fn what_is_accepted_late_has_its_owner() {
    const TEST: &str = "what_is_accepted_late_has_its_owner";
    if skipped(TEST) || lacks_calls(TEST) {
        return;
    }
    own_netns();
    let leaks = Tool::start(&[
        "states",
        "-j",
        "--netns",
        "self",
        "--leaks",
        "--older",
        "0",
        "--syscalls",
    ]);
    let _server = Server::start(CHILD_ACCEPTS, 7913);
    let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, 7913)).expect("a connection");
    client.shutdown(Shutdown::Write).expect("shut");
    let mut child = [0; 4];
    client.read_exact(&mut child).expect("a process id");
    let rows = groups(&leaks.stop(), "leaks");
    let row = rows.iter().find(|row| row["state"] == "close_wait");
    let row = row.unwrap_or_else(|| panic!("{rows:?}"));
    assert_eq!(row["pid"], u32::from_be_bytes(child));
}

/// bind() that finds no port, one that finds its port taken, and others that are none of ours.
fn fail_to_bind(listener: &TcpListener) {
    let address = listener.local_addr().expect("bound");
    for _ in 0..3 {
        let error = TcpListener::bind(address).expect_err("it is in use");
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
    }
    let full: Vec<_> = (0..2)
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port"))
        .collect();
    for _ in 0..2 {
        let error = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect_err("no port is left");
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
    }
    drop(full);
    let datagrams = UdpSocket::bind((Ipv4Addr::LOCALHOST, 7902)).expect("a socket");
    assert!(UdpSocket::bind(datagrams.local_addr().expect("bound")).is_err());
    let error = TcpListener::bind((Ipv4Addr::new(192, 0, 2, 1), 0)).expect_err("not ours");
    assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
}

#[test]
fn bind_that_fails_is_counted_with_its_process() {
    const TEST: &str = "bind_that_fails_is_counted_with_its_process";
    if skipped(TEST) || lacks_calls(TEST) {
        return;
    }
    own_netns();
    sysctl("net/ipv4/ip_local_port_range", "5000 5001");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 7901)).expect("a listener");
    let wanted =
        |flags: &[&str]| Tool::start(&[&["timewait", "-j", "--netns", "self"], flags].concat());
    let tools = [
        wanted(&[]),
        wanted(&["-L", "7901"]),
        wanted(&["--comm", "nobody"]),
    ];
    let without = wanted(&["--syscalls=off"]);
    fail_to_bind(&listener);
    let failed = tools.map(|tool| {
        let report = tool.stop().events("timewait").pop().expect("a report");
        let rows = report["failed_binds"].as_array().expect("rows").clone();
        let row = |row: &Value| {
            assert_eq!(row["pid"], std::process::id());
            (
                row["address"].clone(),
                row["port"].as_u64(),
                row["failed"].as_u64(),
            )
        };
        let mut rows: Vec<_> = rows.iter().map(row).collect();
        rows.sort_by_key(|row| row.1);
        rows
    });
    let at = |port: u64, failed: u64| (Value::from("127.0.0.1"), Some(port), Some(failed));
    assert_eq!(
        failed,
        [vec![at(0, 2), at(7901, 3)], vec![at(7901, 3)], vec![]]
    );
    let report = without.stop().events("timewait").pop().expect("a report");
    assert_eq!(report.get("failed_binds"), None, "not watched, so not told");
}

#[test]
fn without_btf_it_says_that_calls_are_not_watched() {
    if skipped("without_btf_it_says_that_calls_are_not_watched") {
        return;
    }
    let mut tool = Command::new(env!("CARGO_BIN_EXE_tcpstate"));
    let output = run(tool.args(["trace", "--hook", "classic", "--syscalls"]));
    assert_eq!(output.status.code(), Some(2));
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(
        message.contains("--syscalls does not work here"),
        "{message}"
    );
}
