//! The life of TIME_WAIT on the real kernel: how each minisocket was born, restarted and ended. The witnesses are what the
//! test did, and the namespace's own lists and counters.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::Value;

use crate::counters::counter;
use crate::recording::record;
use crate::support::{
    Printed, Tool, for_each_observer, nobody_starts, observers, own_netns, port, probe, skipped,
    start, steps, sysctl, text,
};
use crate::views::wait_until;

/// A connection to a listener on this port; the listener ends with it.
pub(crate) struct Pair {
    pub(crate) client: TcpStream,
    pub(crate) server: TcpStream,
    pub(crate) client_port: u16,
}

pub(crate) fn connect(listener: &TcpListener) -> Pair {
    let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("a connection");
    let (server, _) = listener.accept().expect("the other end");
    Pair {
        client_port: port(client.local_addr()),
        client,
        server,
    }
}

pub(crate) fn listener() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener")
}

/// The client closes, and the server has seen it.
pub(crate) fn half_close(pair: Pair) -> (TcpStream, u16) {
    let Pair {
        client,
        mut server,
        client_port,
    } = pair;
    drop(client);
    assert_eq!(server.read(&mut [0]).expect("the end of the stream"), 0);
    (server, client_port)
}

/// The same, until a minisocket comes of it: a socket whose FIN is acknowledged just as close() lets go of it stays a full one, in
/// FIN_WAIT2 (`sock_owned_by_user` in `tcp_rcv_state_process`).
pub(crate) fn half_closed(listener: &TcpListener) -> (TcpStream, u16) {
    loop {
        let (server, port) = half_close(connect(listener));
        wait_until("the acknowledgement", || !in_the_list(port, &["04"]));
        if !is_full(port) {
            return (server, port);
        }
    }
}

/// Whether the kernel lists a full socket in FIN_WAIT2 with this local port: minisockets have a timer of their own kind (3).
fn is_full(port: u16) -> bool {
    listed(port).any(|words| words[3] == "05" && !words[5].starts_with("03:"))
}

/// What the minisocket of this port did: `old->new` and reason.
pub(crate) fn life(printed: &Printed, port: u16) -> Vec<(String, Option<String>)> {
    let lines: Vec<Value> = printed
        .of_port(port)
        .into_iter()
        .filter(|line| line["minisocket"] == true)
        .collect();
    let reasons = lines
        .iter()
        .map(|line| line["reason"].as_str().map(str::to_owned));
    steps(&lines).into_iter().zip(reasons).collect()
}

/// The end of a life: its last line must be `old->close` for this reason.
pub(crate) fn assert_ended(printed: &Printed, port: u16, old: &str, reason: &str) {
    let life = life(printed, port);
    let last = life.last().cloned();
    assert_eq!(
        last,
        Some((format!("{old}->close"), Some(reason.to_owned()))),
        "{life:?}; {}; {}; {}",
        printed.summary(),
        printed.err,
        printed.out
    );
    // The next connection of this port may have come before.
    let mut lines = printed.of_port(port);
    lines.retain(|line| line["minisocket"] == true);
    assert_eq!(lines.last().expect("the end")["known_by"], "kernel");
}

/// Waits until the namespace of this thread has no minisocket on this port.
pub(crate) fn wait_until_gone(port: u16) {
    let deadline = Instant::now() + Duration::from_secs(90);
    while in_the_list(port, &CLOSING) {
        assert!(Instant::now() < deadline, "still there");
        thread::sleep(Duration::from_millis(20));
    }
    // What follows a cancellation may still come for a while.
    thread::sleep(Duration::from_millis(300));
}

/// The states of actively closing sockets, full or mini, as the kernel numbers them.
pub(crate) const CLOSING: [&str; 3] = ["04", "05", "06"];

/// Whether the namespace of this thread lists a socket with this local port in one of these states.
pub(crate) fn in_the_list(port: u16, states: &[&str]) -> bool {
    listed(port).any(|words| states.contains(&words[3].as_str()))
}

/// The words of each line of the list of sockets with this local port.
fn listed(port: u16) -> impl Iterator<Item = Vec<String>> {
    let list = fs::read_to_string("/proc/thread-self/net/tcp").expect("the list of sockets");
    let local = format!(":{port:04X}");
    let lines: Vec<Vec<_>> = list
        .lines()
        .map(|line| line.split_ascii_whitespace().map(str::to_owned).collect())
        .collect();
    let of_port = lines.into_iter();
    of_port.filter(move |words| words.len() > 5 && words[1].ends_with(&local))
}

fn has_ss() -> bool {
    ["/usr/bin/ss", "/bin/ss", "/usr/sbin/ss", "/sbin/ss"]
        .iter()
        .any(|ss| Path::new(ss).exists())
}

/// Destroys the actively closing sockets with this local port, as an administrator does, and says whether that worked: old
/// kernels do not destroy minisockets (`tcp_abort`). `ss` shows those that the kernel has destroyed.
fn destroy(port: u16) -> bool {
    let filter = format!("sport = :{port}");
    let wanted = ["state", "time-wait", "state", "fin-wait-2"];
    let mut ss = Command::new("ss");
    ss.args(["-K", "-H", "-tn"]).args(wanted).arg(&filter);
    let output = start(ss.stdout(Stdio::piped())).wait_with_output();
    let output = output.expect("ss (iproute2) ends");
    assert!(output.status.success());
    let destroyed = String::from_utf8(output.stdout).expect("text");
    destroyed.contains(&format!(":{port} "))
}

pub(crate) fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970")
        .as_secs_f64()
}

/// Seconds since 1970 of a line's time.
pub(crate) fn time_of(line: &Value) -> f64 {
    let time: SystemTime = text(&line["time"])
        .parse::<jiff::Timestamp>()
        .expect("RFC 3339")
        .into();
    time.duration_since(UNIX_EPOCH)
        .expect("after 1970")
        .as_secs_f64()
}

#[test]
fn expiry_agrees_with_the_namespaces_own_list() {
    for_each_observer("expiry_agrees_with_the_namespaces_own_list", |observer| {
        let _recording = record(observer, "expiry");
        let tool = Tool::timewait(observer);
        let late = thread::spawn(destroyed_late);
        let listener = listener();
        let (server, client_port) = half_closed(&listener);
        // TIME_WAIT begins at some time from here on.
        let began = now();
        drop(server);
        thread::sleep(Duration::from_secs(59));
        let mut last_seen = now();
        loop {
            let looked = now();
            if !in_the_list(client_port, &CLOSING) {
                break;
            }
            last_seen = looked;
            assert!(looked - began < 120.0, "it never ends");
            thread::sleep(Duration::from_millis(1));
        }
        let first_missed = now();
        let (late, destroyed) = late.join().expect("the others ended too");
        let printed = tool.stop();
        let reasons: Vec<_> = late
            .iter()
            .map(|port| life(&printed, *port).pop().and_then(|(_, reason)| reason))
            .collect();
        let all =
            |reason: &Option<String>| matches!(reason.as_deref(), Some("destroyed" | "expired"));
        assert!(reasons.iter().all(all), "{reasons:?}");
        assert!(
            !destroyed || reasons.contains(&Some("destroyed".to_owned())),
            "{reasons:?}"
        );
        assert_ended(&printed, client_port, "time_wait", "expired");
        let lines = printed.of_port(client_port);
        let end = lines.last().expect("the end");
        // It was still listed when we looked last, and was gone when we looked next.
        let ended = time_of(end);
        assert!(
            (last_seen - 0.005..=first_missed + 0.005).contains(&ended),
            "{last_seen} {ended} {first_missed}"
        );
        let seconds = end["seconds"].as_f64().expect("a time");
        // From 59: where ticks come late, jiffies lag behind the clock when the timer is armed.
        assert!(
            (59.0..=first_missed - began + 0.1).contains(&seconds),
            "{seconds}"
        );
        // If the acknowledgement came before the FIN, timers do not tell how often TIME_WAIT was started.
        let silent = observer == "timer" && end["bound"] == "at_least";
        assert!(silent || end["bound"] == "exact", "{end}");
        assert_eq!(end["pid"], std::process::id());
    });
}

/// Minisockets that are destroyed when their time is over, but before the bucket of the timer wheel is emptied that they lie
/// in, which is about two seconds wide; who comes too late finds it expired. Their ports, and whether any
/// was destroyed.
fn destroyed_late() -> (Vec<u16>, bool) {
    let listener = listener();
    let mut begun = Vec::new();
    for _ in 0..5 {
        let (server, port) = half_closed(&listener);
        drop(server);
        begun.push((Instant::now(), port));
        thread::sleep(Duration::from_millis(370));
    }
    let mut destroyed = false;
    for (began, port) in &begun {
        thread::sleep(Duration::from_millis(60_030).saturating_sub(began.elapsed()));
        destroyed |= has_ss() && destroy(*port);
    }
    let ports: Vec<_> = begun.into_iter().map(|(_, port)| port).collect();
    for port in &ports {
        wait_until_gone(*port);
    }
    (ports, destroyed)
}

#[test]
fn fin_wait2_of_the_minisocket_lasts_until_the_fin_comes() {
    for_each_observer(
        "fin_wait2_of_the_minisocket_lasts_until_the_fin_comes",
        |observer| {
            let _recording = record(observer, "late_fin");
            let tool = Tool::timewait(observer);
            let listener = listener();
            let (prompt, prompt_port) = half_closed(&listener);
            thread::sleep(Duration::from_millis(300));
            drop(prompt);
            let (server, client_port) = half_closed(&listener);
            thread::sleep(Duration::from_millis(3500));
            drop(server);
            thread::sleep(Duration::from_millis(300));
            let printed = tool.stop();
            let born = ("fin_wait2->fin_wait2".to_owned(), None);
            let fin = ("fin_wait2->time_wait".to_owned(), None);
            assert_eq!(life(&printed, client_port), [born.clone(), fin.clone()]);
            // Timers are silent if the FIN comes within two seconds.
            let prompt = life(&printed, prompt_port);
            if observer == "timer" {
                assert!(
                    prompt == [born.clone()] || prompt == [born, fin],
                    "{prompt:?}"
                );
            } else {
                assert_eq!(prompt, [born, fin]);
            }
            let lines = printed.of_port(client_port);
            let fin = lines.last().expect("the FIN");
            assert!(fin["seconds"].as_f64().expect("a time") >= 3.4, "{fin}");
            assert_eq!(fin["bound"], "exact");
        },
    );
}

#[test]
fn fin_wait2_that_times_out() {
    for_each_observer("fin_wait2_that_times_out", |observer| {
        sysctl("net/ipv4/tcp_fin_timeout", "1");
        let tool = Tool::timewait(observer);
        let listener = listener();
        let (_server, client_port) = half_closed(&listener);
        wait_until_gone(client_port);
        let printed = tool.stop();
        assert_ended(&printed, client_port, "fin_wait2", "expired");
        assert!(!steps(&printed.of_port(client_port)).contains(&"fin_wait2->time_wait".to_owned()));
    });
}

#[test]
fn what_ends_a_half_closed_minisocket() {
    for_each_observer("what_ends_a_half_closed_minisocket", |observer| {
        let tool = Tool::timewait(observer);
        let listener = listener();
        let (mut server, data_port) = half_closed(&listener);
        thread::sleep(Duration::from_millis(100));
        server.write_all(b"too late").expect("sent");
        wait_until_gone(data_port);
        let (server, reset_port) = half_closed(&listener);
        thread::sleep(Duration::from_millis(100));
        crate::socket::abort(server);
        wait_until_gone(reset_port);
        let printed = tool.stop();
        assert_ended(&printed, data_port, "fin_wait2", "reset_half_close");
        assert_ended(&printed, reset_port, "fin_wait2", "rst");
    });
}

#[test]
fn reuse_by_connect() {
    for_each_observer("reuse_by_connect", |observer| {
        sysctl("net/ipv4/tcp_tw_reuse", "1");
        sysctl("net/ipv4/tcp_timestamps", "1");
        sysctl("net/ipv4/ip_local_port_range", "4500 4500");
        let _recording = record(observer, "reuse_by_connect");
        let tool = Tool::timewait(observer);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 4600)).expect("a listener");
        let (server, client_port) = half_close(connect(&listener));
        drop(server);
        // The kernel wants the timestamps of a second in between.
        thread::sleep(Duration::from_millis(1500));
        let recycled = counter("TWRecycled");
        let again = connect(&listener);
        assert_eq!(
            (client_port, again.client_port),
            (4500, 4500),
            "there is no other"
        );
        assert_eq!(counter("TWRecycled"), recycled + 1);
        thread::sleep(Duration::from_millis(300));
        let printed = tool.stop();
        let ends: Vec<_> = printed
            .transitions()
            .into_iter()
            .filter(|line| line["minisocket"] == true && line["new"] == "close")
            .collect();
        assert_eq!(ends.len(), 1, "{ends:?}");
        assert_eq!(
            (&ends[0]["reason"], &ends[0]["old"]),
            (&"reused_connect".into(), &"time_wait".into())
        );
    });
}

#[test]
fn reuse_by_syn() {
    for_each_observer("reuse_by_syn", |observer| {
        let _recording = record(observer, "reuse_by_syn");
        let tool = Tool::timewait(observer);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 4700)).expect("a listener");
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, 4700));
        let from = SocketAddr::from((Ipv4Addr::LOCALHOST, 4701));
        // The server closes first, so TIME_WAIT is on its side; the client comes again from the same port.
        for _ in 0..2 {
            let mut client = crate::filters::bound_connect(from, to);
            let (server, _) = listener.accept().expect("the other end");
            drop(server);
            assert_eq!(client.read(&mut [0]).expect("the end"), 0);
            drop(client);
            thread::sleep(Duration::from_millis(1500));
        }
        let printed = tool.stop();
        let ends: Vec<_> = printed
            .transitions()
            .into_iter()
            .filter(|line| line["minisocket"] == true && line["new"] == "close")
            .collect();
        assert_eq!(ends.len(), 1, "{ends:?}");
        assert_eq!(
            (&ends[0]["reason"], &ends[0]["lport"]),
            (&"reused_syn".into(), &4700.into())
        );
    });
}

#[test]
fn destroyed_by_an_administrator() {
    for_each_observer("destroyed_by_an_administrator", |observer| {
        if !has_ss() {
            eprintln!("SKIPPED destroyed_by_an_administrator: there is no ss (iproute2)");
            return;
        }
        let _recording = record(observer, "destroyed");
        let tool = Tool::timewait(observer);
        let listener = listener();
        let (server, client_port) = half_closed(&listener);
        drop(server);
        if !destroy(client_port) {
            eprintln!("SKIPPED destroyed_by_an_administrator: this kernel destroys no minisockets");
            return;
        }
        wait_until_gone(client_port);
        assert_ended(&tool.stop(), client_port, "time_wait", "destroyed");
    });
}

#[test]
fn whole_connections_with_everything_the_kernel_counts() {
    for_each_observer(
        "whole_connections_with_everything_the_kernel_counts",
        |observer| {
            sysctl("net/ipv4/tcp_fin_timeout", "1");
            let _recording = record(observer, "totals");
            let tool = Tool::start(&[
                "conns",
                "-j",
                "--netns",
                "self",
                "--timewait",
                observer,
                "--running",
            ]);
            let listener = listener();
            let alone = nobody_starts();
            let Pair {
                mut client,
                mut server,
                client_port,
            } = connect(&listener);
            client.write_all(&[1; 5000]).expect("sent");
            server.read_exact(&mut [0; 5000]).expect("received");
            server.write_all(&[2; 300]).expect("sent");
            client.read_exact(&mut [0; 300]).expect("received");
            let (_server, client_port) = half_close(Pair {
                client,
                server,
                client_port,
            });
            drop(alone);
            wait_until_gone(client_port);
            let printed = tool.stop();
            let connections = printed.events("connection");
            assert_eq!(connections.len(), 2, "{}", printed.out);
            let client = connections
                .iter()
                .find(|line| line["lport"] == client_port)
                .expect("ours");
            assert_eq!(
                (&client["opened"], &client["closed_first"]),
                (&"active".into(), &"local".into())
            );
            assert_eq!(
                (&client["how"], &client["time_wait"]),
                (&"timeout".into(), &Value::Null)
            );
            // As the kernel counts: the SYN and the FIN are one each.
            assert_eq!(
                (&client["bytes_acked"], &client["bytes_received"]),
                (&5002.into(), &300.into())
            );
            assert_eq!(client["closer"]["pid"], std::process::id());
            assert_eq!(client["owner"]["via"], "connect");
            assert_eq!(client["bounds"], serde_json::json!({}));
            // The minisocket's time is in it. Not quite the second of the timer: where ticks come late, as in an emulated
            // machine, jiffies lag behind the clock when it is armed.
            assert!(
                client["states"]["fin_wait2"].as_f64().expect("a time") > 0.5,
                "{client}"
            );
            let server = connections
                .iter()
                .find(|line| line["rport"] == client_port)
                .expect("the peer");
            assert_eq!(
                (&server["opened"], &server["closed_first"]),
                (&"passive".into(), &"remote".into())
            );
            assert_eq!(
                (&server["end"], &server["how"]),
                (&Value::Null, &"unknown".into()),
                "still open"
            );
            assert_eq!(server["owner"]["via"], "listener");
        },
    );
}

#[test]
fn a_namespace_takes_its_minisockets_along() {
    for_each_observer("a_namespace_takes_its_minisockets_along", |observer| {
        // The namespace to come cannot be filtered by, and the other observers are at it too.
        let position = observers().iter().position(|other| other == observer);
        let position = position.and_then(|position| u16::try_from(position).ok());
        let server_port = 4801 + position.expect("one of them");
        let remote = server_port.to_string();
        let one = ["--count", "1", "--duration", "50"];
        let conns = ["conns", "-j", "-D", &remote, "--timewait", observer];
        let tool = Tool::start(&[&conns[..], &one].concat());
        let name = observer.to_owned();
        // The recording is of the other namespace, and goes on when that one is gone.
        let (client_port, _recording) = thread::spawn(move || {
            own_netns();
            let recording = record(&name, "namespace_gone");
            let _alone = nobody_starts();
            let listener =
                TcpListener::bind((Ipv4Addr::LOCALHOST, server_port)).expect("a listener");
            let (server, client_port) = half_closed(&listener);
            drop(server);
            (client_port, recording)
        })
        .join()
        .expect("the other namespace");
        // The kernel takes namespaces down in the background.
        let printed = tool.wait();
        let connections = printed.events("connection");
        let ends: Vec<_> = connections
            .iter()
            .map(|line| (&line["lport"], &line["time_wait"]["end"]))
            .collect();
        assert_eq!(ends, [(&client_port.into(), &"namespace_gone".into())]);
    });
}

#[test]
fn an_observer_that_does_not_work_is_an_error_that_says_why() {
    if skipped("an_observer_that_does_not_work_is_an_error_that_says_why") {
        return;
    }
    let report = probe();
    let all = report["timewait_observers"].as_array().expect("a list");
    let best = all.iter().find(|report| report["works"] == true);
    assert_eq!(
        report["timewait"],
        best.map_or(Value::Null, |report| report["observer"].clone())
    );
    for observer in all {
        let mut tool = Command::new(env!("CARGO_BIN_EXE_tcpstate"));
        let word = text(&observer["observer"]);
        tool.args(["trace", "-j", "--duration", "0.1", "--timewait", word]);
        tool.stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = start(&mut tool).wait_with_output().expect("it ends");
        let messages = String::from_utf8_lossy(&output.stderr);
        if observer["works"] == true {
            assert_ne!(output.status.code(), Some(2), "{messages}");
        } else {
            assert_eq!(output.status.code(), Some(2), "{messages}");
            assert!(messages.contains(text(&observer["reason"])), "{messages}");
        }
    }
}
