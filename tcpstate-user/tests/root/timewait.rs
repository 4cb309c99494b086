//! The life of TIME_WAIT on the real kernel: how each minisocket was born, restarted and ended. The witnesses are what the
//! test did, and the namespace's own lists and counters.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::Value;

use crate::recording::record;
use crate::support::{
    Printed, Tool, lacks_timewait, nobody_starts, own_netns, port, skipped, start, steps, sysctl,
    text,
};

/// A connection to a listener on this port; the listener ends with it.
struct Pair {
    client: TcpStream,
    server: TcpStream,
    client_port: u16,
}

fn connect(listener: &TcpListener) -> Pair {
    let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("a connection");
    let (server, _) = listener.accept().expect("the other end");
    Pair {
        client_port: port(client.local_addr()),
        client,
        server,
    }
}

fn listener() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener")
}

/// The client closes, and the server has seen it.
fn half_close(pair: Pair) -> (TcpStream, u16) {
    let Pair {
        client,
        mut server,
        client_port,
    } = pair;
    drop(client);
    assert_eq!(server.read(&mut [0]).expect("the end of the stream"), 0);
    (server, client_port)
}

/// What the minisocket of this port did: `old->new` and reason.
pub fn life(printed: &Printed, port: u16) -> Vec<(String, Option<String>)> {
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
pub fn assert_ended(printed: &Printed, port: u16, old: &str, reason: &str) {
    let life = life(printed, port);
    let last = life.last().cloned();
    assert_eq!(
        last,
        Some((format!("{old}->close"), Some(reason.to_owned()))),
        "{life:?}"
    );
}

/// Waits until the namespace of this thread has no minisocket on this port.
pub fn wait_until_gone(port: u16) {
    let deadline = Instant::now() + Duration::from_secs(90);
    while in_the_list(port) {
        assert!(Instant::now() < deadline, "still there");
        thread::sleep(Duration::from_millis(20));
    }
    // What follows a cancellation may still come for a while.
    thread::sleep(Duration::from_millis(300));
}

/// Whether the namespace of this thread lists an actively closing socket with this local port, full or mini.
pub fn in_the_list(port: u16) -> bool {
    let list = fs::read_to_string("/proc/thread-self/net/tcp").expect("the list of sockets");
    let local = format!(":{port:04X}");
    list.lines().any(|line| {
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        words.get(1).is_some_and(|end| end.ends_with(&local))
            && matches!(words.get(3), Some(&"04" | &"05" | &"06"))
    })
}

/// A counter of the namespace of this thread.
pub fn counter(name: &str) -> u64 {
    let table = fs::read_to_string("/proc/thread-self/net/netstat").expect("the counters");
    let mut lines = table.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let position = names
        .split(' ')
        .position(|word| word == name)
        .expect("a counter of that name");
    values
        .split(' ')
        .nth(position)
        .and_then(|value| value.parse().ok())
        .expect("a number")
}

pub fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970")
        .as_secs_f64()
}

/// Seconds since 1970 of a line's time.
pub fn time_of(line: &Value) -> f64 {
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
    if skipped("expiry_agrees_with_the_namespaces_own_list")
        || lacks_timewait("expiry_agrees_with_the_namespaces_own_list")
    {
        return;
    }
    own_netns();
    let _recording = record("expiry");
    let tool = Tool::timewait(&[]);
    let listener = listener();
    let (server, client_port) = half_close(connect(&listener));
    drop(server);
    let began = now();
    thread::sleep(Duration::from_secs(59));
    let mut last_seen = now();
    loop {
        let looked = now();
        if !in_the_list(client_port) {
            break;
        }
        last_seen = looked;
        assert!(looked - began < 90.0, "it never ends");
        thread::sleep(Duration::from_millis(1));
    }
    let first_missed = now();
    let printed = tool.stop();
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
    assert!(
        (60.0..=first_missed - began + 0.1).contains(&seconds),
        "{seconds}"
    );
    assert_eq!(end["bound"], "exact");
    assert_eq!(end["pid"], std::process::id());
}

#[test]
fn fin_wait2_of_the_minisocket_lasts_until_the_fin_comes() {
    if skipped("fin_wait2_of_the_minisocket_lasts_until_the_fin_comes")
        || lacks_timewait("fin_wait2_of_the_minisocket_lasts_until_the_fin_comes")
    {
        return;
    }
    own_netns();
    let _recording = record("late_fin");
    let tool = Tool::timewait(&[]);
    let listener = listener();
    let (server, client_port) = half_close(connect(&listener));
    thread::sleep(Duration::from_millis(3500));
    drop(server);
    thread::sleep(Duration::from_millis(300));
    let printed = tool.stop();
    let life = life(&printed, client_port);
    assert_eq!(
        life,
        [
            ("fin_wait2->fin_wait2".into(), None),
            ("fin_wait2->time_wait".into(), None)
        ]
    );
    let lines = printed.of_port(client_port);
    let fin = lines.last().expect("the FIN");
    assert!(fin["seconds"].as_f64().expect("a time") >= 3.4, "{fin}");
    assert_eq!(fin["bound"], "exact");
}

#[test]
fn fin_wait2_that_times_out() {
    if skipped("fin_wait2_that_times_out") || lacks_timewait("fin_wait2_that_times_out") {
        return;
    }
    own_netns();
    sysctl("net/ipv4/tcp_fin_timeout", "1");
    let tool = Tool::timewait(&[]);
    let listener = listener();
    let (_server, client_port) = half_close(connect(&listener));
    wait_until_gone(client_port);
    let printed = tool.stop();
    assert_ended(&printed, client_port, "fin_wait2", "expired");
    assert!(!steps(&printed.of_port(client_port)).contains(&"fin_wait2->time_wait".to_owned()));
}

#[test]
fn what_ends_a_half_closed_minisocket() {
    if skipped("what_ends_a_half_closed_minisocket")
        || lacks_timewait("what_ends_a_half_closed_minisocket")
    {
        return;
    }
    own_netns();
    let tool = Tool::timewait(&[]);
    let listener = listener();
    let (mut server, data_port) = half_close(connect(&listener));
    thread::sleep(Duration::from_millis(100));
    server.write_all(b"too late").expect("sent");
    wait_until_gone(data_port);
    let (server, reset_port) = half_close(connect(&listener));
    thread::sleep(Duration::from_millis(100));
    crate::trace::abort(server);
    wait_until_gone(reset_port);
    let printed = tool.stop();
    assert_ended(&printed, data_port, "fin_wait2", "reset_half_close");
    assert_ended(&printed, reset_port, "fin_wait2", "rst");
}

#[test]
fn reuse_by_connect() {
    if skipped("reuse_by_connect") || lacks_timewait("reuse_by_connect") {
        return;
    }
    own_netns();
    let _recording = record("reuse_by_connect");
    sysctl("net/ipv4/tcp_tw_reuse", "1");
    sysctl("net/ipv4/tcp_timestamps", "1");
    sysctl("net/ipv4/ip_local_port_range", "4500 4500");
    let tool = Tool::timewait(&[]);
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
}

#[test]
fn reuse_by_syn() {
    if skipped("reuse_by_syn") || lacks_timewait("reuse_by_syn") {
        return;
    }
    own_netns();
    let _recording = record("reuse_by_syn");
    let tool = Tool::timewait(&[]);
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
}

#[test]
fn destroyed_by_an_administrator() {
    if skipped("destroyed_by_an_administrator") || lacks_timewait("destroyed_by_an_administrator") {
        return;
    }
    if !["/usr/bin/ss", "/bin/ss", "/usr/sbin/ss", "/sbin/ss"]
        .iter()
        .any(|ss| Path::new(ss).exists())
    {
        eprintln!("SKIPPED destroyed_by_an_administrator: there is no ss (iproute2)");
        return;
    }
    own_netns();
    let _recording = record("destroyed");
    let tool = Tool::timewait(&[]);
    let listener = listener();
    let (server, client_port) = half_close(connect(&listener));
    drop(server);
    let filter = format!("sport = :{client_port}");
    let status = start(Command::new("ss").args([
        "-K",
        "-tn",
        "state",
        "time-wait",
        "state",
        "fin-wait-2",
        &filter,
    ]))
    .wait()
    .expect("ss (iproute2) runs");
    assert!(status.success());
    wait_until_gone(client_port);
    assert_ended(&tool.stop(), client_port, "time_wait", "destroyed");
}

#[test]
fn whole_connections_with_everything_the_kernel_counts() {
    if skipped("whole_connections_with_everything_the_kernel_counts")
        || lacks_timewait("whole_connections_with_everything_the_kernel_counts")
    {
        return;
    }
    own_netns();
    let _recording = record("totals");
    sysctl("net/ipv4/tcp_fin_timeout", "1");
    let tool = Tool::start(&[
        "conns",
        "-j",
        "--netns",
        "self",
        "--timewait",
        "timer",
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
    assert!(
        client["states"]["fin_wait2"].as_f64().expect("a time") >= 1.0,
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
}

#[test]
fn a_namespace_takes_its_minisockets_along() {
    const PORT: u16 = 4801;
    if skipped("a_namespace_takes_its_minisockets_along")
        || lacks_timewait("a_namespace_takes_its_minisockets_along")
    {
        return;
    }
    own_netns();
    let tool = Tool::start(&["trace", "-j", "-D", "4801", "--timewait", "timer"]);
    // The recording is of the other namespace, and goes on when that one is gone.
    let (client_port, _recording) = thread::spawn(|| {
        own_netns();
        let recording = record("namespace_gone");
        let _alone = nobody_starts();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)).expect("a listener");
        let (server, client_port) = half_close(connect(&listener));
        drop(server);
        (client_port, recording)
    })
    .join()
    .expect("the other namespace");
    // The kernel takes namespaces down in the background.
    thread::sleep(Duration::from_secs(3));
    let printed = tool.stop();
    assert_ended(&printed, client_port, "time_wait", "namespace_gone");
}
