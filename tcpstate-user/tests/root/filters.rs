//! The filters of `tcpstate trace`, one by one, on the real kernel: what is wanted is shown, nothing else is, and what
//! is shown is complete from its first event.

use std::{
    fs,
    io::Read as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
    time::Duration,
};

use crate::{
    folder::Folder,
    support::{Printed, Tool, nobody_starts, own_netns, port, skipped, start, steps, text},
};
use serde_json::{Value, json};

/// What one connection of [`live`] gives, without the listener.
const STEPS_OF_A_CONNECTION: usize = 10;

/// A connection from `from` to a listener at `to`, closed by the client; returns the client's and the server's port.
fn live(from: IpAddr, to: IpAddr, port_wanted: u16) -> (u16, u16) {
    let listener = TcpListener::bind((to, port_wanted)).expect("a listener");
    let address = listener.local_addr().expect("bound");
    let client = bound_connect(SocketAddr::new(from, 0), address);
    let (mut server, _) = listener.accept().expect("the other end");
    let client_port = port(client.local_addr());
    drop(client);
    assert_eq!(server.read(&mut [0]).expect("the end"), 0);
    (client_port, address.port())
}

/// Any address of 127.0.0.0/8 can be connected from, once it is bound to.
pub fn bound_connect(from: SocketAddr, to: SocketAddr) -> TcpStream {
    if from.port() == 0 && (from.ip().is_ipv6() || from.ip() == Ipv4Addr::LOCALHOST) {
        return TcpStream::connect(to).expect("a connection");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    let stream = runtime.expect("an event loop").block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket
            .set_reuseaddr(true)
            .expect("a port that was used before");
        socket.bind(from).expect("a local address");
        socket
            .connect(to)
            .await
            .expect("a connection")
            .into_std()
            .expect("a plain socket")
    });
    stream.set_nonblocking(false).expect("a blocking socket");
    stream
}

fn v4(last: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, last).into()
}

/// The transitions without those of listeners.
fn connections(printed: &Printed) -> Vec<Value> {
    let mut lines = printed.transitions();
    lines.retain(|line| {
        line["new"] != "listen" && !(line["old"] == "listen" && line["new"] == "close")
    });
    lines
}

#[test]
fn local_port_keeps_the_first_events_of_both_ends() {
    if skipped("local_port_keeps_the_first_events_of_both_ends") {
        return;
    }
    own_netns();
    // The active end's port is chosen after its first event: take one from a range that holds only it.
    crate::support::sysctl("net/ipv4/ip_local_port_range", "4000 4001");
    let passive = Tool::trace(&["-L", "7201"]);
    let active = Tool::trace(&["-L", "4000-4001"]);
    let (client_port, _) = live(v4(1), v4(1), 7201);
    live(v4(1), v4(1), 7202);

    let printed = passive.stop();
    let lines = connections(&printed);
    assert_eq!(lines.len(), STEPS_OF_A_CONNECTION / 2);
    assert_eq!(steps(&lines)[0], "listen->syn_recv");
    assert!(lines.iter().all(|line| line["lport"] == 7201));
    assert_eq!(
        printed.transitions().len(),
        lines.len() + 2,
        "the listener has that port too"
    );

    let printed = active.stop();
    let lines = connections(&printed);
    assert_eq!(
        lines.len(),
        STEPS_OF_A_CONNECTION,
        "two active ends: {:?}",
        steps(&lines)
    );
    assert_eq!(steps(&lines)[0], "close->syn_sent");
    assert_eq!(lines[0]["lport"], client_port, "known when it was shown");
    assert_eq!(printed.summary()["undecided"], 0);
}

#[test]
fn a_connect_that_hangs_is_undecided_and_counted() {
    if skipped("a_connect_that_hangs_is_undecided_and_counted") {
        return;
    }
    own_netns();
    let tool = Tool::trace(&["-L", "7203"]);
    // A listener whose queue is full answers no SYN.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 7204)).expect("a listener");
    let address = listener.local_addr().expect("bound");
    crate::support::sysctl("net/ipv4/tcp_syncookies", "0");
    // SAFETY: a call without pointers.
    let result = unsafe { libc::listen(std::os::fd::AsRawFd::as_raw_fd(&listener), 0) };
    assert_eq!(result, 0);
    let _first = TcpStream::connect(address).expect("one fits");
    assert!(TcpStream::connect_timeout(&address, Duration::from_millis(100)).is_err());
    let hanging = std::thread::spawn(move || {
        TcpStream::connect_timeout(&address, Duration::from_millis(700))
    });
    std::thread::sleep(Duration::from_millis(300));
    let printed = tool.stop();
    assert_eq!(connections(&printed).len(), 0);
    // One connect() came through and one has failed: both have shown their ports. The third hangs.
    assert_eq!(printed.summary()["undecided"], 1, "{}", printed.out);
    assert!(hanging.join().expect("the thread ends").is_err());
}

#[test]
fn remote_port_keeps_the_first_events_of_both_ends() {
    if skipped("remote_port_keeps_the_first_events_of_both_ends") {
        return;
    }
    own_netns();
    let tool = Tool::trace(&["-D", "7211,7300-7400"]);
    live(v4(1), v4(1), 7211);
    live(v4(1), v4(1), 7350);
    live(v4(1), v4(1), 7212);
    let printed = tool.stop();
    let lines = connections(&printed);
    assert_eq!(lines.len(), STEPS_OF_A_CONNECTION, "{:?}", steps(&lines));
    assert!(
        lines
            .iter()
            .all(|line| line["rport"] == 7211 || line["rport"] == 7350)
    );
    assert_eq!(
        printed.transitions().len(),
        lines.len(),
        "a listener has no remote port"
    );

    crate::support::sysctl("net/ipv4/ip_local_port_range", "4002 4003");
    let tool = Tool::trace(&["-D", "4002,4003"]);
    live(v4(1), v4(1), 7213);
    let lines = connections(&tool.stop());
    assert_eq!(steps(&lines)[0], "listen->syn_recv");
    assert_eq!(
        lines.len(),
        STEPS_OF_A_CONNECTION / 2,
        "{:?}",
        steps(&lines)
    );
}

#[test]
fn cidr_looks_at_both_ends() {
    if skipped("cidr_looks_at_both_ends") {
        return;
    }
    own_netns();
    let shown = |nets: &str| {
        let tool = Tool::trace(&["--cidr", nets]);
        live(v4(20), v4(1), 7221);
        live(v4(1), v4(40), 7222);
        live(v4(1), v4(1), 7223);
        live(Ipv6Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into(), 7224);
        let mut ports: Vec<_> = connections(&tool.stop())
            .iter()
            .flat_map(|line| [line["lport"].clone(), line["rport"].clone()])
            .filter_map(|port| port.as_u64())
            .filter(|port| (7221..=7224).contains(port))
            .collect();
        ports.sort_unstable();
        let counts = (7221..=7224).map(|port| ports.iter().filter(|seen| **seen == port).count());
        counts.collect::<Vec<_>>()
    };
    assert_eq!(shown("127.0.0.16/28"), [10, 0, 0, 0]);
    assert_eq!(shown("127.0.0.40"), [0, 10, 0, 0]);
    assert_eq!(shown("127.0.0.20/32,127.0.0.40/32"), [10, 10, 0, 0]);
    assert_eq!(shown("::1"), [0, 0, 0, 10]);
    assert_eq!(shown("::ffff:127.0.0.0/104"), [10, 10, 10, 0]);
    assert_eq!(shown("10.0.0.0/8,192.168.0.0/16"), [0, 0, 0, 0]);
    // More networks than the kernel side holds: decided in user space.
    let many: Vec<_> = (30..45).map(|last| format!("127.0.0.{last}")).collect();
    assert_eq!(shown(&many.join(",")), [0, 10, 0, 0]);
}

#[test]
fn ip_versions() {
    if skipped("ip_versions") {
        return;
    }
    own_netns();
    let (v4_only, v6_only) = (Tool::trace(&["-4"]), Tool::trace(&["-6"]));
    live(v4(1), v4(1), 7231);
    live(Ipv6Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into(), 7232);
    let (v4_only, v6_only) = (v4_only.stop().transitions(), v6_only.stop().transitions());
    assert_eq!(
        (v4_only.len(), v6_only.len()),
        (STEPS_OF_A_CONNECTION + 2, STEPS_OF_A_CONNECTION + 2)
    );
    assert!(v4_only.iter().all(|line| line["family"] == "ipv4"));
    assert!(v6_only.iter().all(|line| line["family"] == "ipv6"));
}

#[test]
fn states_old_or_new() {
    if skipped("states_old_or_new") {
        return;
    }
    own_netns();
    let tool = Tool::trace(&["--state", "close_wait,SYN-SENT"]);
    live(v4(1), v4(1), 7241);
    let lines = tool.stop().transitions();
    let mut seen = steps(&lines);
    seen.sort();
    assert_eq!(
        seen,
        [
            "close->syn_sent",
            "close_wait->last_ack",
            "established->close_wait",
            "syn_sent->established"
        ]
    );
    // Filtering by state loses no time: the event that began the phase was seen all the same.
    let established = lines
        .iter()
        .find(|line| line["new"] == "close_wait")
        .expect("seen");
    assert_eq!(established["bound"], "exact");
}

/// What a connection ends with tells neither who it was nor where it has been.
#[test]
fn states_that_connections_were_in() {
    if skipped("states_that_connections_were_in") {
        return;
    }
    own_netns();
    let conns = |flags: &[&str]| {
        let always = ["conns", "-j", "--netns", "self", "--timewait", "off"];
        Tool::start(&[&always, flags].concat())
    };
    let tools = [
        conns(&["--state", "fin_wait1"]),
        conns(&["--state", "syn_recv"]),
        conns(&["--state", "close"]),
        conns(&["--state", "closing"]),
        conns(&["--running", "--state", "fin_wait2"]),
    ];
    live(v4(1), v4(1), 7242);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 7243)).expect("a listener");
    let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("a connection");
    client
        .shutdown(std::net::Shutdown::Write)
        .expect("half closed");
    std::thread::sleep(Duration::from_millis(100));
    let shown = tools.map(|tool| {
        let lines = tool.stop().events("connection");
        let mut ports: Vec<_> = lines
            .iter()
            .map(|line| (line["opened"].clone(), line["state"].clone()))
            .map(|(opened, state)| format!("{opened} {state}"))
            .collect();
        ports.sort();
        ports
    });
    drop((client, listener));
    let [active, passive, ended, closing, running] = shown;
    assert_eq!(active, ["\"active\" null"]);
    assert_eq!(passive, ["\"passive\" null"]);
    assert_eq!(ended.len(), 2, "{ended:?}");
    assert_eq!(closing.len(), 0, "{closing:?}");
    let expected = ["\"active\" \"fin_wait2\"", "\"active\" null"];
    assert_eq!(running, expected);
}

#[test]
fn pids_and_comms() {
    if skipped("pids_and_comms") {
        return;
    }
    own_netns();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 7251)).expect("a listener");
    let own = std::process::id();
    let tools = [
        Tool::trace(&["--comm", "bash"]),
        Tool::trace(&["--comm", "bash", "--comm", "nobody"]),
        Tool::trace(&["--comm", "bash", "-p", &own.to_string()]),
        Tool::trace(&["-p", &own.to_string(), "--skip-existing"]),
    ];
    bash_connects("bash", "7251");
    let (mut server, _) = listener.accept().expect("the other end");
    assert_eq!(server.read(&mut [0]).expect("the end"), 0);
    let alone = nobody_starts();
    drop(server);
    drop(alone);
    let [by_name, by_names, neither, by_pid] = tools.map(Tool::stop);
    for printed in [by_name, by_names] {
        let lines = printed.transitions();
        assert_eq!(
            steps(&lines)[..2],
            ["close->syn_sent", "syn_sent->established"]
        );
        assert!(
            lines
                .iter()
                .all(|line| line["comm"] == "bash" && line["rport"] == 7251),
            "{}",
            printed.out
        );
    }
    assert_eq!(neither.transitions().len(), 0);
    // The listener was there before, and nobody looked for its owner: its child belongs to nobody we know until we close it ourselves.
    let lines = by_pid.transitions();
    assert!(
        lines
            .iter()
            .all(|line| line["pid"] == own && line["lport"] == 7251)
    );
    assert_eq!(steps(&lines)[0], "close_wait->last_ack");
    assert!(
        by_pid.summary()["unattributed"].as_u64().expect("a count") >= 3,
        "{}",
        by_pid.out
    );
}

/// bash opens a connection to a local port and ends.
fn bash_connects(bash: &str, port: &str) {
    let status = start(
        Command::new(bash)
            .args(["-c", &format!("exec 3<>/dev/tcp/127.0.0.1/{port}; exit 0")])
            .stdin(Stdio::null()),
    )
    .wait()
    .expect("bash ends");
    assert!(status.success());
}

#[test]
fn hostile_process_names_are_harmless() {
    const NAME: &str = "a\u{1b}[2J\"\n,;\u{9b}1m";
    if skipped("hostile_process_names_are_harmless") {
        return;
    }
    own_netns();
    let folder = Folder::new("hostile");
    let hostile = folder.join(NAME);
    fs::copy("/bin/bash", &hostile).expect("a copy of bash");
    fs::set_permissions(&hostile, fs::Permissions::from_mode(0o755)).expect("executable");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 7261)).expect("a listener");
    let tool = |flags: &[&str]| {
        Tool::start(&[&["trace", "--netns", "self", "-D", "7261"], flags].concat())
    };
    let tools = [tool(&["-j"]), tool(&["-s"]), tool(&[]), tool(&["-w"])];
    bash_connects(hostile.to_str().expect("UTF-8"), "7261");
    drop(folder);
    drop(listener);
    let [json, csv, narrow, wide] = tools.map(Tool::stop);

    for printed in [&json, &csv, &narrow, &wide] {
        assert!(printed.out.contains("syn_sent") || printed.out.contains("SYN_SENT"));
        let hostile: Vec<_> = printed
            .out
            .chars()
            .filter(|c| c.is_control() && *c != '\n')
            .collect();
        assert!(hostile.is_empty(), "{hostile:?} in {}", printed.out);
    }
    let lines = json.transitions();
    let named = |line: &Value| line["comm"] == NAME;
    // Where the kernel did not tell how FIN_WAIT1 ended, its minisocket is nobody's, and marked.
    assert!(
        lines
            .iter()
            .all(|line| named(line) || line["damaged"] == true)
            && lines.iter().any(named),
        "JSON keeps the name: {}",
        json.out
    );
    let mut rows = csv::Reader::from_reader(csv.out.as_bytes());
    let rows: Vec<_> = rows
        .records()
        .map(|row| row.expect("a row of the same length"))
        .collect();
    assert_eq!(rows.len(), lines.len());
    assert_eq!(
        csv.out.lines().count(),
        rows.len() + 1,
        "no row is broken in two"
    );
    assert_eq!(rows[0].get(17), Some("a\\u{1b}[2J\"\\u{a},;\\u{9b}1m"));
    let narrow_rows = narrow
        .out
        .lines()
        .filter(|line| line.contains("->"))
        .count();
    assert_eq!(
        narrow_rows,
        lines.len() + 1,
        "one line each, and the header: {}",
        narrow.out
    );
}

#[test]
fn cgroups_and_what_is_below_them() {
    if skipped("cgroups_and_what_is_below_them") {
        return;
    }
    own_netns();
    let own = Tool::trace(&[]);
    live(v4(1), v4(1), 7271);
    let cgroup = text(&own.stop().transitions()[0]["cgroup"]).to_owned();
    let shown = |filter: &str| {
        let tool = Tool::trace(&["--cgroup", filter]);
        live(v4(1), v4(1), 7272);
        tool.stop().transitions().len()
    };
    assert_eq!(shown("/"), STEPS_OF_A_CONNECTION + 2);
    assert_eq!(shown(&cgroup), STEPS_OF_A_CONNECTION + 2);
}

#[test]
fn count_and_duration_end_the_run() {
    if skipped("count_and_duration_end_the_run") {
        return;
    }
    own_netns();
    let tool = Tool::trace(&["--count", "3"]);
    live(v4(1), v4(1), 7281);
    let printed = tool.wait();
    assert_eq!(printed.transitions().len(), 3);
    assert_eq!(printed.status.code(), Some(0));
    assert_eq!(printed.summary()["shown"], 3);

    let tool = Tool::start_early(&["trace", "-j", "--netns", "self", "--duration", "0.2"]);
    let printed = tool.wait();
    assert_eq!(
        (printed.transitions().len(), printed.status.code()),
        (0, Some(1))
    );
    assert!(printed.summary()["seconds"].as_f64().expect("a number") >= 0.2);

    let printed = Tool::trace(&[]).stop();
    assert_eq!(printed.status.code(), Some(0), "ended by Ctrl-C");
}

#[test]
fn the_classic_tracepoint_sees_the_same_and_says_what_it_cannot() {
    if skipped("the_classic_tracepoint_sees_the_same_and_says_what_it_cannot") {
        return;
    }
    own_netns();
    crate::support::tracefs();
    let tool = Tool::start_early(&["trace", "-j", "--hook", "classic", "--cidr", "127.0.3.0/24"]);
    live(v4(1), Ipv4Addr::new(127, 0, 3, 1).into(), 7291);
    let printed = tool.stop();
    let lines = connections(&printed);
    assert_eq!(lines.len(), STEPS_OF_A_CONNECTION, "{:?}", steps(&lines));
    let mut active: Vec<_> = lines
        .iter()
        .filter(|line| line["rport"] == 7291)
        .cloned()
        .collect();
    active.dedup_by_key(|line| line["cookie"].clone());
    assert_eq!(active.len(), 1, "one identity for the whole life");
    assert!(
        lines[0]["cookie"].as_u64().expect("a number") >= 1 << 52,
        "one of our own"
    );
    for field in [
        "pid",
        "comm",
        "via",
        "uid",
        "netns",
        "netns_cookie",
        "cgroup",
        "error",
    ] {
        assert!(
            lines.iter().all(|line| line[field] == json!(null)),
            "{field}"
        );
    }
    assert_eq!(printed.summary()["damaged"], 0);
    assert!(
        printed.err.contains(
            "the classic tracepoint does not tell:\n  processes: no event says whose it is"
        ),
        "{}",
        printed.err
    );
}
