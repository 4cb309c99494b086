//! `tcpstate states` on the real kernel: its counts against the kernel's own list of the namespace, and the process that
//! leaks.

use std::{
    collections::HashMap,
    fs,
    net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::{
    server::{LEAKS, NEVER_FIRST, Server, greeted},
    support::{Printed, Tool, nobody_starts, own_netns, skipped, text},
    views::{groups, wait_until},
};

/// The sockets of the namespace of this thread by the kernel's number of their state.
fn listed() -> HashMap<String, u64> {
    let mut states = HashMap::new();
    for list in ["tcp", "tcp6"] {
        let list = fs::read_to_string(format!("/proc/thread-self/net/{list}")).expect("the list");
        for line in list.lines().skip(1) {
            let state = line.split_ascii_whitespace().nth(3).expect("a state");
            *states.entry(state.to_owned()).or_default() += 1;
        }
    }
    states
}

/// The last report of a view.
fn last_report(printed: &Printed, view: &str) -> Value {
    printed.events(view).pop().expect("a report")
}

fn total(report: &Value) -> &Value {
    let rows = report["rows"].as_array().expect("rows");
    let total = rows.last().expect("a total");
    assert_eq!(total["row"], "total");
    total
}

/// Sockets in every state that lasts, some of them there before the tool, some after it.
struct Sockets {
    listener: TcpListener,
    kept: Vec<TcpStream>,
}

impl Sockets {
    fn new() -> Self {
        Self {
            listener: TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).expect("a listener"),
            kept: Vec::new(),
        }
    }

    fn connect(&self) -> (TcpStream, TcpStream) {
        let port = self.listener.local_addr().expect("bound").port();
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("a connection");
        (client, self.listener.accept().expect("the other end").0)
    }

    fn grow(&mut self) {
        for _ in 0..3 {
            let both = self.connect();
            self.kept.extend([both.0, both.1]);
        }
        // CLOSE_WAIT here, FIN_WAIT2 of a full socket there.
        for _ in 0..2 {
            let (client, server) = self.connect();
            client.shutdown(std::net::Shutdown::Write).expect("shut");
            self.kept.extend([client, server]);
        }
        // CLOSE_WAIT, and FIN_WAIT2 of a minisocket.
        let (client, server) = self.connect();
        drop(client);
        self.kept.push(server);
        // TIME_WAIT.
        for _ in 0..4 {
            drop(self.connect());
        }
    }
}

#[test]
fn counts_are_those_of_the_kernels_list() {
    if skipped("counts_are_those_of_the_kernels_list") {
        return;
    }
    own_netns();
    let alone = nobody_starts();
    let mut sockets = Sockets::new();
    sockets.grow();
    drop(alone);
    let tool = Tool::start(&["states", "-j", "--netns", "self", "--by", "process"]);
    let alone = nobody_starts();
    sockets.grow();
    sockets.kept.remove(0);
    wait_until("closes come through", || {
        let listed = listed();
        !listed.contains_key("04") && !listed.contains_key("09")
    });
    drop(alone);
    let printed = tool.stop();
    let expected = listed();
    let report = last_report(&printed, "states");
    let told = total(&report);
    let of = |number: &str| expected.get(number).copied().unwrap_or(0);
    for (column, number) in [
        ("established", "01"),
        ("syn_sent", "02"),
        ("fin_wait1", "04"),
        ("close_wait", "08"),
        ("last_ack", "09"),
        ("listen", "0A"),
        ("closing", "0B"),
    ] {
        assert_eq!(told[column], of(number), "{column}: {told}, {expected:?}");
    }
    assert_eq!(told["listen"], 1);
    assert_eq!(told["counts"], "exact");
    // That a minisocket has gone from FIN_WAIT2 to TIME_WAIT may be told at its end only.
    let waiting = told["fin_wait2_minisockets"].as_u64();
    if let Some(waiting) = waiting {
        let number = |column: &str| told[column].as_u64().expect("a count");
        let (fin_wait2, time_wait) = (number("fin_wait2"), number("time_wait"));
        assert_eq!(
            fin_wait2 + time_wait,
            of("05") + of("06"),
            "{told}, {expected:?}"
        );
        assert!(time_wait <= of("06"), "{told}, {expected:?}");
        assert!(time_wait + waiting >= of("06"), "{told}, {expected:?}");
    }
    assert_eq!(report["lost"], 0);
}

#[test]
fn without_the_sockets_that_were_there_counts_are_about() {
    if skipped("without_the_sockets_that_were_there_counts_are_about") {
        return;
    }
    own_netns();
    let before = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
    let tool = Tool::start(&["states", "-j", "--netns", "self", "--skip-existing"]);
    let after = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
    let report = last_report(&tool.stop(), "states");
    assert_eq!(total(&report)["listen"], 1);
    assert_eq!(total(&report)["counts"], "about");
    drop((before, after));
}

#[test]
fn filters_on_connections_leave_out_other_listeners() {
    if skipped("filters_on_connections_leave_out_other_listeners") {
        return;
    }
    own_netns();
    let wanted = TcpListener::bind((Ipv4Addr::LOCALHOST, 7701)).expect("a listener");
    let other = TcpListener::bind((Ipv4Addr::LOCALHOST, 7702)).expect("a listener");
    let tool = Tool::start(&["states", "-j", "--netns", "self", "-L", "7701"]);
    let later = TcpListener::bind((Ipv4Addr::LOCALHOST, 7703)).expect("a listener");
    let report = last_report(&tool.stop(), "states");
    assert_eq!(total(&report)["sockets"], 1);
    drop((wanted, other, later));
}

#[test]
fn leaks_names_the_process_that_does_not_close() {
    if skipped("leaks_names_the_process_that_does_not_close") {
        return;
    }
    own_netns();
    let before = Server::start(LEAKS, 7711);
    let alone = nobody_starts();
    for _ in 0..2 {
        drop(greeted(7711));
    }
    drop(alone);
    let tool = Tool::start(&[
        "states", "--leaks", "--older", "0.2", "--top", "100", "-j", "--netns", "self",
    ]);
    let leaks = Server::start(LEAKS, 7712);
    let never = Server::start(NEVER_FIRST, 7713);
    let alone = nobody_starts();
    for _ in 0..7 {
        drop(greeted(7712));
    }
    for _ in 0..5 {
        drop(greeted(7713));
    }
    thread::sleep(Duration::from_millis(400));
    // Too young to be listed.
    drop(greeted(7712));
    drop(alone);
    let printed = tool.stop();
    let report = last_report(&printed, "leaks");
    let rows: Vec<Value> = groups(&printed, "leaks");
    let of = |pid: u64| {
        rows.iter()
            .filter(|row| row["pid"] == pid)
            .collect::<Vec<_>>()
    };
    assert_eq!(of(leaks.pid()).len(), 7, "{rows:?}");
    assert_eq!(of(never.pid()).len(), 0, "{rows:?}");
    for row in of(leaks.pid()) {
        assert_eq!(text(&row["comm"]), LEAKS);
        assert_eq!(row["state"], "close_wait");
        assert_eq!(row["bound"], "exact");
        assert_eq!(row["local"], "127.0.0.1:7712");
        let age = row["age"].as_f64().expect("an age");
        let seconds = report["seconds"].as_f64().expect("a time");
        assert!((0.2..=seconds).contains(&age), "{row}");
    }
    let found = of(before.pid());
    assert_eq!(found.len(), 2, "{rows:?}");
    for row in found {
        assert_eq!(row["bound"], "at_least", "{row}");
        assert_eq!(text(&row["comm"]), LEAKS);
    }
    assert_eq!(total(&report)["sockets"], rows.len());
}
