//! Every minisocket of many, against the counters of the namespace.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read as _,
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::{
    counters::counter,
    support::{Tool, connections_asked_for, for_each_observer, port, sysctl},
    timewait::in_the_list,
};

/// Connections before ports are used again.
fn round() -> u16 {
    connections_asked_for().unwrap_or(20_000) / 2
}

/// Opens connections one after the other and closes each on both ends, the client first: every other one by shutdown(), so
/// that the full socket is there until the server's FIN comes and the minisocket is born in TIME_WAIT, not in FIN_WAIT2.
fn churn(listener: &TcpListener, connections: u16) {
    let to = (Ipv4Addr::LOCALHOST, port(listener.local_addr()));
    for number in 0..connections {
        let mut client = TcpStream::connect(to).expect("a connection");
        let (mut server, _) = listener.accept().expect("the other end");
        if number % 2 == 0 {
            drop(client);
            assert_eq!(server.read(&mut [0]).expect("the end"), 0);
            acknowledge(&server);
        } else {
            client.shutdown(Shutdown::Write).expect("a half-close");
            assert_eq!(server.read(&mut [0]).expect("the end"), 0);
            drop(server);
            assert_eq!(client.read(&mut [0]).expect("the end"), 0);
        }
    }
}

/// Sends the acknowledgement that the kernel would send later, with our FIN.
fn acknowledge(socket: &TcpStream) {
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of_val(&on)).expect("small");
    // SAFETY: the value lives through the call and has the size given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_QUICKACK,
            (&raw const on).cast(),
            length,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// Whether the kernel counts TW and TWKilled when a minisocket is born; old ones do when it expires.
fn counts_births(listener: &TcpListener) -> bool {
    let before = counter("TW");
    let to = (Ipv4Addr::LOCALHOST, port(listener.local_addr()));
    let client = TcpStream::connect(to).expect("a connection");
    let (server, _) = listener.accept().expect("the other end");
    let client_port = port(client.local_addr());
    client.shutdown(Shutdown::Write).expect("a half-close");
    drop(server);
    while !in_the_list(client_port, &["06"]) {
        thread::sleep(Duration::from_millis(5));
    }
    counter("TW") > before
}

#[test]
fn every_minisocket_is_counted_as_the_kernel_counts() {
    const TEST: &str = "every_minisocket_is_counted_as_the_kernel_counts";
    for_each_observer(TEST, |observer| {
        const COUNTERS: [&str; 3] = ["TW", "TWKilled", "TWRecycled"];
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
        let counts_births = counts_births(&listener);
        sysctl("net/ipv4/tcp_max_tw_buckets", "65536");
        // As many ports as one round needs, so that the second round takes over what the first has left.
        let round = round();
        let range = format!("10000 {}", 10_000 + round / 5 * 6);
        sysctl("net/ipv4/ip_local_port_range", &range);
        sysctl("net/ipv4/tcp_tw_reuse", "1");
        // What waits for a FIN no longer than four seconds counts as TWKilled.
        sysctl("net/ipv4/tcp_fin_timeout", "3");
        let tool = Tool::start(&[
            "trace",
            "-j",
            "--netns",
            "self",
            "--skip-existing",
            "--timewait",
            observer,
            "--state",
            "fin_wait2,time_wait",
        ]);
        let before = COUNTERS.map(counter);
        churn(&listener, round);
        // The kernel takes over only what is older than a second.
        thread::sleep(Duration::from_millis(2100));
        churn(&listener, round);
        thread::sleep(Duration::from_millis(300));
        let after = COUNTERS.map(counter);
        let printed = tool.stop();

        let mut born = BTreeMap::new();
        let mut ended = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for line in printed.transitions() {
            if line["minisocket"] != true {
                continue;
            }
            // At its birth the full socket gives way: the first line of its cookie.
            if seen.insert(line["cookie"].as_u64()) {
                *born.entry(line["new"].clone().to_string()).or_insert(0) += 1;
            }
            if line["new"] == "close" {
                let reason = line["reason"].clone();
                *ended.entry(reason.to_string()).or_insert(0) += 1;
            }
        }
        let of = |counts: &BTreeMap<String, u64>, what: &str| {
            let what = Value::from(what).to_string();
            counts.get(&what).copied().unwrap_or_default()
        };
        let ours = [
            of(&born, "time_wait"),
            of(&born, "fin_wait2"),
            of(&ended, "reused_connect"),
        ];
        let kernels = [0, 1, 2].map(|index| after[index] - before[index]);
        assert_eq!(printed.summary()["loss"]["ring_full"], 0);
        let missed = printed.missed();
        if missed > 0 {
            eprintln!("SKIPPED {TEST} by {observer}: the kernel left out {missed}");
            return;
        }
        assert_eq!(printed.summary()["damaged"], 0);
        let compared = if counts_births { 0.. } else { 2.. };
        assert_eq!(
            ours[compared.clone()],
            kernels[compared],
            "{COUNTERS:?} {born:?} {ended:?}"
        );
        assert_eq!(ours[0] + ours[1], u64::from(round) * 2);
        assert!(ours.iter().all(|count| *count > 0), "{ours:?}");
        // Where a FIN is sent again because the machine is slow, a RST answers the TIME_WAIT's second acknowledgement.
        let reset = of(&ended, "rst");
        assert!(reset <= counter("RetransSegs"), "{ended:?}");
        assert_eq!(
            ours[2] + of(&ended, "expired") + reset,
            ended.values().sum::<u64>(),
            "nothing else ends here: {ended:?}"
        );
    });
}
