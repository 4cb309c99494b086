//! Delay, loss, duplication and disorder between two namespaces, so that what is rare on loopback happens for real. The
//! witnesses are the delay that was asked for, the test's own clock, and the namespaces' counters.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns};
use serde_json::Value;

use crate::{
    counters::counter,
    support::{Printed, Tool, nobody_starts, own_netns, port, skipped, start, steps, text},
    trace::{ACTIVE, PASSIVE},
};

const HERE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const THERE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
const PORT: u16 = 7400;

/// Times of ours and of the kernel's are read one after the other, and packets leave a queue when a timer fires.
const ROUNDING: f64 = 0.002;

/// The namespace of this thread, and another one at the other end of a cable.
struct Cable {
    here: File,
    there: File,
}

impl Cable {
    /// None where the kernel or the programs for it are missing; says so.
    fn new(test: &str) -> Option<Self> {
        if skipped(test) {
            return None;
        }
        let namespace = || File::open("/proc/thread-self/ns/net").expect("our namespace");
        own_netns();
        let there = namespace();
        own_netns();
        let cable = Self {
            here: namespace(),
            there,
        };
        let peer = format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            cable.there.as_raw_fd()
        );
        let (near, far) = (format!("{HERE}/24"), format!("{THERE}/24"));
        let made = [
            run(
                "ip",
                &[
                    "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", &peer,
                ],
            ),
            run("ip", &["addr", "add", &near, "dev", "cable"]),
            run("ip", &["link", "set", "cable", "up"]),
            cable.there(|| run("ip", &["addr", "add", &far, "dev", "cable"])),
            cable.there(|| run("ip", &["link", "set", "cable", "up"])),
            run(
                "tc",
                &[
                    "qdisc", "replace", "dev", "cable", "root", "netem", "delay", "1ms",
                ],
            ),
        ];
        if let Some(why) = made.into_iter().find_map(Result::err) {
            eprintln!("SKIPPED {test}: no cable with netem can be had here: {why}");
            return None;
        }
        Some(cable)
    }

    /// Does something in the other namespace.
    fn there<T>(&self, work: impl FnOnce() -> T) -> T {
        setns(&self.there, CloneFlags::CLONE_NEWNET).expect("the other namespace");
        let result = work();
        setns(&self.here, CloneFlags::CLONE_NEWNET).expect("our namespace");
        result
    }

    /// What happens to packets that leave our end.
    fn near(&self, what: &str) {
        let _ = self;
        let arguments = format!("qdisc replace dev cable root netem {what}");
        run("tc", &arguments.split(' ').collect::<Vec<_>>()).expect("netem does that");
    }

    /// What happens to packets that leave the other end.
    fn far(&self, what: &str) {
        self.there(|| self.near(what));
    }

    fn listener(&self) -> TcpListener {
        self.there(|| TcpListener::bind((THERE, PORT)).expect("a listener"))
    }

    /// A connection from here to there. The first one makes both ends known to each other.
    fn connect(&self, listener: &TcpListener) -> (TcpStream, TcpStream, u16) {
        let _ = self;
        let client = TcpStream::connect((THERE, PORT)).expect("a connection");
        let (server, _) = listener.accept().expect("the other end");
        let client_port = port(client.local_addr());
        (client, server, client_port)
    }

    /// Packets must not wait for the hardware address of the other end while they are timed.
    fn warm_up(&self, listener: &TcpListener) {
        let (client, mut server, _) = self.connect(listener);
        drop(client);
        assert_eq!(server.read(&mut [0]).expect("the end"), 0);
    }
}

/// Runs a program in the namespace of this thread; what it complained about.
fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let found = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
    });
    if !found {
        return Err(format!("there is no {program} (iproute2)"));
    }
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let output = start(&mut command).wait_with_output().expect("it ends");
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    Err(format!(
        "{program} {}: {}",
        arguments.join(" "),
        message.trim()
    ))
}

fn retransmitted() -> u64 {
    counter("RetransSegs")
}

/// Waits until the namespace of this thread has no full socket in one of these states (`04`).
fn wait_until_none(states: &[&str]) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let list = fs::read_to_string("/proc/thread-self/net/tcp").expect("the list of sockets");
        let there = list.lines().any(|line| {
            let state = line.split_ascii_whitespace().nth(3);
            state.is_some_and(|state| states.contains(&state))
        });
        if !there {
            // The last event is on its way.
            thread::sleep(Duration::from_millis(200));
            return;
        }
        assert!(Instant::now() < deadline, "still there: {list}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// FIN_WAIT1, LAST_ACK and CLOSING.
const UNACKNOWLEDGED: [&str; 3] = ["04", "09", "0B"];

/// Seconds spent in a state of a connection, whole.
fn spent(lines: &[Value], state: &str) -> f64 {
    let line = lines
        .iter()
        .find(|line| line["old"] == state)
        .unwrap_or_else(|| panic!("no {state} in {lines:?}"));
    assert_eq!(line["bound"], "exact", "{line}");
    line["seconds"].as_f64().expect("a time")
}

/// The lines of the connection whose other end has this port, without those of the listener.
fn of_peer(printed: &Printed, client_port: u16) -> Vec<Value> {
    let mut lines = printed.of_port(PORT);
    let cookie = lines
        .iter()
        .find(|line| line["rport"] == client_port)
        .map(|line| line["cookie"].clone());
    lines.retain(|line| Some(&line["cookie"]) == cookie.as_ref());
    lines
}

fn assert_within(seconds: f64, from: f64, to: f64, what: &str) {
    assert!(
        (from - ROUNDING..=to + ROUNDING).contains(&seconds),
        "{what}: {seconds} is not within {from} and {to}"
    );
}

#[test]
fn fin_wait1_and_last_ack_last_a_round_trip() {
    const ROUND_TRIP: f64 = 0.4;
    let Some(cable) = Cable::new("fin_wait1_and_last_ack_last_a_round_trip") else {
        return;
    };
    let listener = cable.listener();
    cable.warm_up(&listener);
    let tools = [Tool::trace(&[]), cable.there(|| Tool::trace(&[]))];
    cable.near("delay 200ms");
    cable.far("delay 200ms");
    let alone = nobody_starts();
    let before = [retransmitted(), cable.there(retransmitted)];
    let began = Instant::now();
    let (client, mut server, client_port) = cable.connect(&listener);
    assert!(began.elapsed().as_secs_f64() >= ROUND_TRIP, "the handshake");
    drop(client);
    assert_eq!(server.read(&mut [0]).expect("the end"), 0);
    drop(server);
    cable.there(|| wait_until_none(&UNACKNOWLEDGED));
    wait_until_none(&UNACKNOWLEDGED);
    let after = [retransmitted(), cable.there(retransmitted)];
    drop(alone);
    let [near, far] = tools.map(Tool::stop);
    let client = near.of_port(client_port);
    assert_eq!(steps(&client), ACTIVE);
    let server = of_peer(&far, client_port);
    assert_eq!(steps(&server[1..]), PASSIVE[1..]);
    // With such a round trip the kernel waits three times as long before it sends again (RFC 6298, 2.2), and has not.
    assert_eq!(before, after, "sent again");
    let patience = 3.0 * ROUND_TRIP;
    assert_within(spent(&client, "syn_sent"), ROUND_TRIP, patience, "SYN_SENT");
    assert_within(
        spent(&client, "fin_wait1"),
        ROUND_TRIP,
        patience,
        "FIN_WAIT1",
    );
    assert_within(spent(&server, "last_ack"), ROUND_TRIP, patience, "LAST_ACK");
}

#[test]
fn a_lost_fin_is_sent_again_and_fin_wait1_lasts_until_it_arrives() {
    let Some(cable) = Cable::new("a_lost_fin_is_sent_again_and_fin_wait1_lasts_until_it_arrives")
    else {
        return;
    };
    let listener = cable.listener();
    cable.warm_up(&listener);
    let tool = Tool::trace(&[]);
    let (client, mut server, client_port) = cable.connect(&listener);
    let before = retransmitted();
    cable.near("loss 100%");
    let closing = Instant::now();
    {
        let _alone = nobody_starts();
        drop(client);
    }
    let closed = Instant::now();
    thread::sleep(Duration::from_millis(700));
    let lost = closed.elapsed().as_secs_f64();
    cable.near("delay 1ms");
    assert_eq!(server.read(&mut [0]).expect("the end"), 0);
    drop(server);
    wait_until_none(&UNACKNOWLEDGED);
    let whole = closing.elapsed().as_secs_f64();
    assert!(retransmitted() > before, "the witness");
    let lines = tool.stop().of_port(client_port);
    assert_eq!(steps(&lines), ACTIVE);
    assert_within(spent(&lines, "fin_wait1"), lost, whole, "FIN_WAIT1");
}

#[test]
fn a_lost_acknowledgement_keeps_last_ack_and_restarts_time_wait() {
    let Some(cable) = Cable::new("a_lost_acknowledgement_keeps_last_ack_and_restarts_time_wait")
    else {
        return;
    };
    let listener = cable.listener();
    cable.warm_up(&listener);
    let near = Tool::start(&["trace", "-j", "--netns", "self", "--timewait", "auto"]);
    let far = cable.there(|| Tool::trace(&[]));
    let (client, mut server, client_port) = cable.connect(&listener);
    {
        let _alone = nobody_starts();
        drop(client);
    }
    assert_eq!(server.read(&mut [0]).expect("the end"), 0);
    wait_until_none(&UNACKNOWLEDGED);
    let before = cable.there(retransmitted);
    cable.near("loss 100%");
    let closing = Instant::now();
    {
        let _alone = nobody_starts();
        drop(server);
    }
    let closed = Instant::now();
    // The FIN comes again after 0.2, 0.6, 1.4, 3.0 and 6.2 s: late enough for the timer wheel to see a difference.
    thread::sleep(Duration::from_secs(4));
    let lost = closed.elapsed().as_secs_f64();
    cable.near("delay 1ms");
    cable.there(|| wait_until_none(&UNACKNOWLEDGED));
    let whole = closing.elapsed().as_secs_f64();
    let again = cable.there(retransmitted) - before;
    assert!(again >= 2, "the witness: {again}");
    let lines = of_peer(&far.stop(), client_port);
    assert_eq!(steps(&lines[1..]), PASSIVE[1..]);
    assert_within(spent(&lines, "last_ack"), lost, whole, "LAST_ACK");
    let near = near.stop();
    let client = near.of_port(client_port);
    let hooks = near.summary()["hooks"].as_array().map_or(0, Vec::len);
    if hooks == 1 {
        // This kernel does not let TIME_WAIT be observed.
        assert_eq!(steps(&client), ACTIVE);
        return;
    }
    let restarts = client
        .iter()
        .filter(|line| line["reason"] == "restarted")
        .count() as u64;
    assert!(
        (1..=again).contains(&restarts),
        "{restarts} restarts, {again} FINs came again: {client:?}"
    );
    assert_eq!(text(&client.last().expect("lines")["new"]), "time_wait");
}

#[test]
fn a_simultaneous_close_lasts_one_way_and_back() {
    const ONE_WAY: f64 = 0.4;
    let Some(cable) = Cable::new("a_simultaneous_close_lasts_one_way_and_back") else {
        return;
    };
    let listener = cable.listener();
    cable.warm_up(&listener);
    let tools = [Tool::trace(&[]), cable.there(|| Tool::trace(&[]))];
    cable.near("delay 400ms");
    cable.far("delay 400ms");
    let (client, server, client_port) = cable.connect(&listener);
    let alone = nobody_starts();
    let first = Instant::now();
    drop(client);
    drop(server);
    let apart = first.elapsed().as_secs_f64();
    drop(alone);
    assert!(apart < ONE_WAY, "this machine is too busy: {apart}");
    wait_until_none(&UNACKNOWLEDGED);
    cable.there(|| wait_until_none(&UNACKNOWLEDGED));
    let [near, far] = tools.map(Tool::stop);
    for lines in [near.of_port(client_port), of_peer(&far, client_port)] {
        assert_eq!(
            steps(&lines[2..]),
            [
                "established->fin_wait1",
                "fin_wait1->closing",
                "closing->close"
            ]
        );
        // The peer's FIN was on its way for so long; the answer to ours comes after a round trip.
        let (fin_wait1, closing) = (spent(&lines, "fin_wait1"), spent(&lines, "closing"));
        assert_within(fin_wait1, ONE_WAY - apart, 3.0 * ONE_WAY, "FIN_WAIT1");
        assert_within(
            fin_wait1 + closing,
            2.0 * ONE_WAY,
            6.0 * ONE_WAY,
            "CLOSING too",
        );
    }
}

/// Both ends' lives of the connections from these ports must be what they are without netem.
fn are_whole(test: &str, tools: [Tool; 2], ports: &[u16]) {
    let [near, far] = tools.map(Tool::stop);
    let missed = near.missed() + far.missed();
    if missed > 0 {
        eprintln!("SKIPPED {test}: the kernel left out {missed}");
        return;
    }
    for client_port in ports {
        assert_eq!(steps(&near.of_port(*client_port)), ACTIVE);
        assert_eq!(steps(&of_peer(&far, *client_port)[1..]), PASSIVE[1..]);
    }
    for printed in [near, far] {
        assert_eq!(printed.summary()["damaged"], 0, "{}", printed.out);
    }
}

/// Ten connections with many small segments, one after the other.
fn lives_are_as_ever(test: &str, cable: &Cable, listener: &TcpListener) {
    const SEGMENTS: usize = 60;
    let tools = [Tool::trace(&[]), cable.there(|| Tool::trace(&[]))];
    let alone = nobody_starts();
    let mut ports = Vec::new();
    for _ in 0..10 {
        let (mut client, mut server, client_port) = cable.connect(listener);
        client.set_nodelay(true).expect("small segments");
        for _ in 0..SEGMENTS {
            client.write_all(&[1]).expect("sent");
        }
        drop(client);
        let mut received = Vec::new();
        server.read_to_end(&mut received).expect("everything");
        assert_eq!(received.len(), SEGMENTS);
        drop(server);
        ports.push(client_port);
    }
    cable.there(|| wait_until_none(&UNACKNOWLEDGED));
    drop(alone);
    are_whole(test, tools, &ports);
}

#[test]
fn what_arrives_twice_happens_once() {
    const TEST: &str = "what_arrives_twice_happens_once";
    let Some(cable) = Cable::new(TEST) else {
        return;
    };
    let listener = cable.listener();
    cable.warm_up(&listener);
    cable.near("delay 5ms duplicate 100%");
    cable.far("delay 5ms duplicate 100%");
    lives_are_as_ever(TEST, &cable, &listener);
    let twice = cable.there(|| counter("TCPDSACKOldSent"));
    assert!(twice > 0, "the witness");
}

#[test]
fn what_arrives_in_disorder_happens_in_order() {
    const TEST: &str = "what_arrives_in_disorder_happens_in_order";
    let Some(cable) = Cable::new(TEST) else {
        return;
    };
    let listener = cable.listener();
    cable.warm_up(&listener);
    cable.near("delay 20ms reorder 50%");
    lives_are_as_ever(TEST, &cable, &listener);
    let early = cable.there(|| counter("TCPOFOQueue"));
    assert!(early > 0, "the witness");
}

#[test]
fn under_loss_every_life_is_whole() {
    const TEST: &str = "under_loss_every_life_is_whole";
    const CONNECTIONS: usize = 20;
    let Some(cable) = Cable::new(TEST) else {
        return;
    };
    let listener = cable.listener();
    cable.warm_up(&listener);
    let tools = [Tool::trace(&[]), cable.there(|| Tool::trace(&[]))];
    cable.near("delay 5ms loss 15%");
    cable.far("delay 5ms loss 15%");
    let before = retransmitted() + cable.there(retransmitted);
    let alone = nobody_starts();
    // At the same time: each may wait for seconds.
    let clients: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            thread::spawn(|| {
                let mut client = TcpStream::connect((THERE, PORT)).expect("a connection");
                client.write_all(b"request").expect("sent");
                port(client.local_addr())
            })
        })
        .collect();
    let servers: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let (mut server, _) = listener.accept().expect("the other end");
            thread::spawn(move || server.read_to_end(&mut Vec::new()).expect("everything"))
        })
        .collect();
    let ports: Vec<_> = clients
        .into_iter()
        .map(|client| client.join().expect("a client"))
        .collect();
    for server in servers {
        assert_eq!(server.join().expect("a server"), b"request".len());
    }
    cable.there(|| wait_until_none(&UNACKNOWLEDGED));
    wait_until_none(&UNACKNOWLEDGED);
    drop(alone);
    let after = retransmitted() + cable.there(retransmitted);
    assert!(after > before, "the witness");
    are_whole(TEST, tools, &ports);
}
