//! `tcpstate closers` and `tcpstate hist` on the real kernel: processes of which it is known who closes first. The witness
//! is what they did.

use std::{
    collections::HashMap,
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    counters::counter,
    nginx::{Nginx, lacks},
    server::{CHILD_CLOSES, CLOSES_FIRST, LEAKS, NEVER_FIRST, RESETS, Server, greeted},
    support::{Printed, Tool, lacks_timewait, nobody_starts, own_netns, skipped, start, text},
};

/// The server closes first, and the client when it knows.
fn until_the_end(port: u16) -> u64 {
    let (mut client, pid) = greeted(port);
    assert_eq!(client.read(&mut [0]).expect("the end"), 0);
    pid
}

/// The rows of all reports of a view that stand for one group.
pub fn groups(printed: &Printed, view: &str) -> Vec<Value> {
    printed
        .events(view)
        .iter()
        .flat_map(|report| report["rows"].as_array().expect("rows").clone())
        .filter(|row| row["row"] == "group")
        .collect()
}

/// The sum of a column over the rows of one process.
fn of_process(rows: &[Value], pid: u64, column: &str) -> u64 {
    rows.iter()
        .filter(|row| row["pid"] == pid)
        .map(|row| row[column].as_u64().expect("a count"))
        .sum()
}

/// The columns of a process that are not zero.
fn counts(rows: &[Value], pid: u64) -> Vec<(&'static str, u64)> {
    [
        "local_fin",
        "local_rst",
        "remote_fin",
        "remote_rst",
        "none",
        "unknown",
        "simultaneous",
    ]
    .into_iter()
    .map(|column| (column, of_process(rows, pid, column)))
    .filter(|(_, count)| *count > 0)
    .collect()
}

pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// How many sockets of the namespace of this thread are in a state, by its number in hexadecimal.
pub fn in_state(state: &str) -> usize {
    let list = fs::read_to_string("/proc/thread-self/net/tcp").expect("the list of sockets");
    list.lines()
        .filter(|line| line.split_ascii_whitespace().nth(3) == Some(state))
        .count()
}

#[test]
fn closers_names_the_process_that_closes_first() {
    if skipped("closers_names_the_process_that_closes_first") {
        return;
    }
    own_netns();
    let timewait = !lacks_timewait("the TIME_WAITs of closers");
    let tool = Tool::start(&[
        "closers",
        "-j",
        "--netns",
        "self",
        "--by",
        "pid,process",
        "--top",
        "100",
    ]);
    let first = Server::start(CLOSES_FIRST, 7401);
    let never = Server::start(NEVER_FIRST, 7402);
    let leaks = Server::start(LEAKS, 7403);
    let resets = Server::start(RESETS, 7404);
    let parent = Server::start(CHILD_CLOSES, 7405);

    let alone = nobody_starts();
    for _ in 0..20 {
        assert_eq!(until_the_end(7401), first.pid());
    }
    for _ in 0..15 {
        drop(greeted(7402));
    }
    for _ in 0..5 {
        drop(greeted(7403));
    }
    for _ in 0..7 {
        let (mut client, _) = greeted(7404);
        client.write_all(b"!").expect("sent");
        assert!(client.read(&mut [0]).is_err(), "reset");
    }
    let children: Vec<_> = (0..3).map(|_| until_the_end(7405)).collect();
    // The five that leak stay in CLOSE_WAIT, the others come to their end.
    wait_until("LAST_ACK ends", || {
        in_state("08") == 5 && in_state("09") == 0 && in_state("01") == 0
    });
    drop(alone);
    let printed = tool.stop();
    assert_eq!(printed.status.code(), Some(0));

    let rows = groups(&printed, "closers");
    assert_eq!(counts(&rows, first.pid()), [("local_fin", 20)]);
    assert_eq!(counts(&rows, never.pid()), [("remote_fin", 15)]);
    assert_eq!(counts(&rows, leaks.pid()), [("remote_fin", 5)]);
    assert_eq!(counts(&rows, resets.pid()), [("local_rst", 7)]);
    assert_eq!(counts(&rows, parent.pid()), [], "its children closed");
    for child in children {
        assert_eq!(counts(&rows, child), [("local_fin", 1)]);
    }
    let own = std::process::id().into();
    assert_eq!(
        counts(&rows, own),
        [("local_fin", 20), ("remote_fin", 23), ("remote_rst", 7)]
    );
    for row in &rows {
        if row["pid"] == first.pid() {
            assert_eq!(text(&row["comm"]), CLOSES_FIRST);
            assert_eq!(row["active_share"], 1.0);
        }
        if row["pid"] == never.pid() {
            assert_eq!(row["active_share"], 0.0);
            assert_eq!(text(&row["comm"]), NEVER_FIRST);
        }
    }
    if timewait {
        let caused =
            |pid| of_process(&rows, pid, "time_waits") + of_process(&rows, pid, "fin_wait2");
        assert_eq!(caused(first.pid()), 20);
        assert_eq!(caused(never.pid()), 0);
        assert_eq!(caused(resets.pid()), 0);
        // Of those that leak the peer's minisocket waits for a FIN that never comes.
        assert_eq!(caused(own), 20);
        assert!(of_process(&rows, own, "fin_wait2") >= 5);
    }
    let report = &printed.events("closers")[0];
    assert_eq!(report["lost"], 0);
    let hooks = report["hooks"].as_array().expect("hooks");
    assert_eq!(hooks.len(), 1 + usize::from(timewait));
}

#[test]
fn closers_tells_listeners_on_one_port_apart() {
    if skipped("closers_tells_listeners_on_one_port_apart") {
        return;
    }
    own_netns();
    let tool = Tool::start(&[
        "closers",
        "-j",
        "--netns",
        "self",
        "--timewait",
        "off",
        "--by",
        "pid,service",
    ]);
    let servers = [(); 3].map(|()| Server::start(CLOSES_FIRST, 7411));
    let never = Server::start(NEVER_FIRST, 7412);
    let mut met: HashMap<u64, u64> = HashMap::new();
    let alone = nobody_starts();
    for _ in 0..60 {
        *met.entry(until_the_end(7411)).or_default() += 1;
    }
    drop(greeted(7412));
    wait_until("CLOSE_WAIT ends", || {
        in_state("08") == 0 && in_state("09") == 0
    });
    drop(alone);
    let printed = tool.stop();
    assert!(met.len() > 1, "the kernel spreads connections: {met:?}");
    let rows = groups(&printed, "closers");
    for server in &servers {
        let expected = met.get(&server.pid()).copied().unwrap_or(0);
        assert_eq!(of_process(&rows, server.pid(), "local_fin"), expected);
        assert_eq!(of_process(&rows, server.pid(), "closes"), expected);
    }
    for row in &rows {
        let passive = row["pid"] != u64::from(std::process::id());
        let port = if row["pid"] == never.pid() || row["closes"] == 1 {
            7412
        } else {
            7411
        };
        assert_eq!(row["service"], format!("127.0.0.1:{port}"), "{row}");
        assert_eq!(row["opened"], if passive { "passive" } else { "active" });
        assert_eq!(
            row["time_waits"],
            Value::Null,
            "minisockets are not observed"
        );
    }
}

#[test]
fn reports_come_at_their_time_and_miss_nothing() {
    if skipped("reports_come_at_their_time_and_miss_nothing") {
        return;
    }
    own_netns();
    let tool = Tool::start(&[
        "closers", "-j", "--netns", "self", "--by", "pid", "0.1", "30",
    ]);
    let server = Server::start(CLOSES_FIRST, 7421);
    let alone = nobody_starts();
    let began = Instant::now();
    let mut made = 0;
    while began.elapsed() < Duration::from_secs(1) {
        until_the_end(7421);
        made += 1;
    }
    drop(alone);
    let printed = tool.wait();
    assert_eq!(printed.status.code(), Some(0));
    let reports = printed.events("closers");
    assert_eq!(reports.len(), 30);
    for pair in reports.windows(2) {
        assert_eq!(pair[0]["to"], pair[1]["from"]);
    }
    for report in &reports {
        assert_eq!(report["seconds"], 0.1);
    }
    let rows = groups(&printed, "closers");
    assert_eq!(of_process(&rows, server.pid(), "local_fin"), made);
    assert_eq!(
        of_process(&rows, std::process::id().into(), "remote_fin"),
        made
    );
    assert_eq!(printed.summary()["shown"], 30);
}

#[test]
fn without_connections_there_is_one_empty_report() {
    if skipped("without_connections_there_is_one_empty_report") {
        return;
    }
    own_netns();
    for view in ["closers", "hist"] {
        let printed =
            Tool::start_early(&[view, "-j", "--netns", "self", "--duration", "0.2"]).wait();
        assert_eq!(printed.status.code(), Some(1), "as grep has it");
        assert_eq!(printed.events(view).len(), 1);
        assert!(groups(&printed, view).is_empty());
        let tool = Tool::start_early(&[view, "-s", "--netns", "self"]);
        tool.signal(Signal::SIGINT);
        let printed = tool.wait();
        assert_eq!(printed.status.code(), Some(0), "asked to end");
        assert!(
            printed
                .out
                .starts_with("from,to,seconds,hooks,lost,row,groups,")
        );
    }
}

#[test]
fn hist_measures_what_the_application_did() {
    if skipped("hist_measures_what_the_application_did") {
        return;
    }
    own_netns();
    let tool = Tool::start(&[
        "hist",
        "-j",
        "--netns",
        "self",
        "--by",
        "pid",
        "--state",
        "close_wait,syn_sent,close",
    ]);
    let never = Server::start(NEVER_FIRST, 7431);
    let leaks = Server::start(LEAKS, 7432);
    let alone = nobody_starts();
    let began = Instant::now();
    for _ in 0..4 {
        let (client, _) = greeted(7431);
        drop(client);
    }
    drop(greeted(7432));
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, 7439)).is_err());
    wait_until("LAST_ACK ends", || {
        in_state("08") == 1 && in_state("09") == 0
    });
    let whole = began.elapsed().as_secs_f64();
    drop(alone);
    let printed = tool.stop();
    let rows = groups(&printed, "hist");
    let of = |state: &str, pid: u64| {
        let mut rows = rows
            .iter()
            .filter(|row| row["state"] == state && row["pid"] == pid);
        let row = rows.next().cloned();
        assert!(rows.next().is_none(), "once");
        row
    };
    for state in ["close_wait", "passive_close"] {
        let row = of(state, never.pid()).expect("measured");
        assert_eq!(row["count"], 4, "{row}");
        assert_eq!(row["not_exact"], 0);
        for column in ["p50", "p90", "p99", "p999", "max"] {
            let seconds = row[column].as_f64().expect("a time");
            assert!(
                (0.050..=whole * 1.01).contains(&seconds),
                "{column} of {row}"
            );
        }
        let buckets = row["buckets"].as_array().expect("buckets");
        let sum: u64 = buckets
            .iter()
            .filter_map(|bucket| bucket["count"].as_u64())
            .sum();
        assert_eq!(sum, 4);
    }
    assert_eq!(of("close_wait", leaks.pid()), None, "it has not ended");
    let own = std::process::id().into();
    assert_eq!(of("syn_sent", own).expect("measured")["count"], 5);
    assert_eq!(of("connect_failed", own).expect("measured")["count"], 1);
    let states: Vec<_> = rows.iter().map(|row| text(&row["state"])).collect();
    assert!(!states.contains(&"established"), "{states:?}");
}

/// A connection that was there before has no exact time, and is not mixed with the others.
#[test]
fn hist_leaves_out_what_began_before() {
    if skipped("hist_leaves_out_what_began_before") {
        return;
    }
    own_netns();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
    let address = listener.local_addr().expect("bound");
    let connect = || {
        let client = TcpStream::connect(address).expect("a connection");
        (client, listener.accept().expect("the other end").0)
    };
    let before = connect();
    let tool = Tool::start(&[
        "hist",
        "-j",
        "--netns",
        "self",
        "--state",
        "established",
        "--no-bars",
    ]);
    let alone = nobody_starts();
    drop(before);
    drop(connect());
    drop(alone);
    let printed = tool.stop();
    let rows = groups(&printed, "hist");
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0]["count"], 2, "{rows:?}");
    assert_eq!(rows[0]["not_exact"], 2, "{rows:?}");
    assert!(rows[0].get("buckets").is_none());
}

/// Asks nginx 400 times over eight connections at a time, and tells what `closers` says of the two: closes, and how many of
/// them this side's.
fn nginx_and_ab(port: u16, keep_alive: &str, flags: &[&str]) -> HashMap<String, (u64, u64)> {
    let tool = Tool::start(&[
        "closers",
        "-j",
        "--netns",
        "self",
        "--by",
        "process,service",
    ]);
    let configuration = format!(
        "keepalive_timeout {keep_alive}; keepalive_requests 100000;
         server {{ listen 127.0.0.1:{port}; location / {{ return 200 hello; }} }}"
    );
    let nginx = Nginx::start(&port.to_string(), &configuration, 1);
    let output = start(
        Command::new("ab")
            .args(["-q", "-n", "400", "-c", "8"])
            .args(flags)
            .arg(format!("http://127.0.0.1:{port}/"))
            .stdout(Stdio::piped()),
    )
    .wait_with_output()
    .expect("ab ends");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("Failed requests:        0"), "{said}");
    wait_until("connections end", || {
        ["01", "04", "08", "09"]
            .into_iter()
            .all(|state| in_state(state) == 0)
    });
    let printed = tool.stop();
    drop(nginx);
    let mut closed = HashMap::new();
    for row in groups(&printed, "closers") {
        assert_eq!(row["service"], format!("127.0.0.1:{port}"));
        let number = |column: &str| row[column].as_u64().expect("a count");
        let name = text(&row["comm"]).to_owned();
        let entry: &mut (u64, u64) = closed.entry(name).or_default();
        entry.0 += number("closes");
        entry.1 += number("local_first");
    }
    closed
}

#[test]
fn nginx_closes_first_without_keep_alive_and_its_client_with() {
    const TEST: &str = "nginx_closes_first_without_keep_alive_and_its_client_with";
    if skipped(TEST) {
        return;
    }
    if lacks(TEST) {
        return;
    }
    own_netns();
    // Besides its requests ab opens up to eight connections that it closes unused: the kernel counts them.
    let before = counter("PassiveOpens");
    let off = nginx_and_ab(7441, "0", &[]);
    let opened = counter("PassiveOpens") - before;
    assert!((400..=408).contains(&opened), "{opened}");
    assert_eq!(off["nginx"], (opened, 400), "{off:?}");
    assert_eq!(off["ab"], (opened, opened - 400), "{off:?}");
    let before = counter("PassiveOpens");
    let on = nginx_and_ab(7442, "60", &["-k"]);
    let opened = counter("PassiveOpens") - before;
    assert!((8..=16).contains(&opened), "{opened}");
    assert_eq!(on["nginx"], (opened, 0), "{on:?}");
    assert_eq!(on["ab"], (opened, opened), "{on:?}");
}
