//! Connections that get no minisocket, because there are too many: told apart from those that want none.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{Shutdown, TcpStream},
    os::fd::AsRawFd as _,
    thread,
    time::{Duration, Instant},
};

use crate::{
    counters::counter,
    support::{Tool, for_each_observer, sysctl, text},
    timewait::{connect, half_close, in_the_list, listener, wait_until_gone},
};

/// Waits until something holds that packets bring about; what is checked afterwards tells if it never did.
fn wait_until(holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(20));
    }
    thread::sleep(Duration::from_millis(100));
}

fn overflows() -> u64 {
    counter("TCPTimeWaitOverflow")
}

/// `tw` of the namespace's /proc/net/sockstat.
fn minisockets() -> u64 {
    let table = std::fs::read_to_string("/proc/thread-self/net/sockstat").expect("counts");
    let mut words = table.split_whitespace().skip_while(|word| *word != "tw");
    words
        .nth(1)
        .and_then(|count| count.parse().ok())
        .expect("a count")
}

/// Waits until the full socket with this local port is in FIN_WAIT2.
fn wait_for_fin_wait2(port: u16) {
    wait_until(|| in_the_list(port, &["05"]));
}

#[test]
fn overflow_is_counted_as_the_kernel_counts() {
    const FREE: u64 = 3;
    const DROPPED: u64 = 10;
    for_each_observer("overflow_is_counted_as_the_kernel_counts", |observer| {
        let tool = Tool::timewait(observer);
        let conns = Tool::start(&["conns", "-j", "--netns", "self", "--timewait", observer]);
        let before = overflows();
        let listener = listener();
        // What is closed waits for the peer's FIN in a minisocket: for some there is room, then for none, also when the first
        // have ended.
        let mut peers = Vec::new();
        for _ in 0..FREE {
            peers.push(half_close(connect(&listener)).0);
        }
        wait_until(|| minisockets() == FREE);
        sysctl("net/ipv4/tcp_max_tw_buckets", "0");
        for _ in 0..2 * DROPPED {
            if overflows() - before == DROPPED {
                break;
            }
            let (peer, port) = half_close(connect(&listener));
            peers.push(peer);
            // One whose acknowledgement comes between the last two looks of close() at what has come waits in the full socket:
            // it wants no minisocket (`sock_owned_by_user` in tcp_rcv_state_process).
            wait_until(|| in_the_list(port, &["05"]) || !in_the_list(port, &["04", "05", "06"]));
        }
        let dropped = overflows() - before;
        // What is only shut down waits in a full socket, and would become a minisocket when the peer's FIN comes.
        let mut shut = Vec::new();
        for _ in 0..DROPPED {
            let pair = connect(&listener);
            pair.client.shutdown(Shutdown::Write).expect("shut down");
            close_after(pair.server);
            shut.push(pair.client);
        }
        wait_until(|| overflows() - before >= 2 * DROPPED);
        let all = overflows() - before;
        assert_eq!((dropped, all), (DROPPED, 2 * DROPPED));

        let printed = tool.stop();
        let told: Vec<_> = printed
            .transitions()
            .into_iter()
            .filter(|line| line["reason"] == "overflow")
            .collect();
        assert_eq!(told.len() as u64, all, "the kernel's own count");
        for line in &told {
            assert_eq!(
                (text(&line["old"]), text(&line["new"]), &line["minisocket"]),
                ("fin_wait2", "close", &false.into())
            );
            let known_by = if observer == "fentry" {
                "kernel"
            } else {
                "inferred"
            };
            assert_eq!(text(&line["known_by"]), known_by);
        }
        assert_eq!(printed.summary()["loss"]["ring_full"], 0);

        let mut ends: BTreeMap<String, u64> = BTreeMap::new();
        for connection in conns.stop().events("connection") {
            if connection["time_wait"]["end"] == "overflow" {
                assert_eq!(connection["time_wait"]["seconds"], 0.0, "{connection}");
                assert_eq!(connection["closed_first"], "local", "{connection}");
                *ends.entry(text(&connection["how"]).to_owned()).or_default() += 1;
            }
        }
        let expected = [("fin".to_owned(), DROPPED), ("unknown".to_owned(), dropped)];
        assert_eq!(ends, BTreeMap::from(expected));
        drop((peers, shut));
    });
}

/// The other end has shut down: this one closes as well.
fn close_after(mut server: TcpStream) {
    assert_eq!(server.read(&mut [0]).expect("the end of the stream"), 0);
    drop(server);
}

#[test]
fn ends_without_a_minisocket_that_are_no_overflow() {
    for_each_observer(
        "ends_without_a_minisocket_that_are_no_overflow",
        |observer| {
            // There is room for none, and nobody asks for any.
            sysctl("net/ipv4/tcp_max_tw_buckets", "0");
            // Above a minute the first part of it is spent in the full socket.
            sysctl("net/ipv4/tcp_fin_timeout", "120");
            let tool = Tool::timewait(observer);
            let before = overflows();
            let listener = listener();
            let (mut server, data_port) = half_close(connect(&listener));
            wait_for_fin_wait2(data_port);
            server.write_all(b"too late").expect("sent");

            let (server, reset_port) = half_close(connect(&listener));
            wait_for_fin_wait2(reset_port);
            crate::socket::abort(server);

            let pair = connect(&listener);
            let impatient_port = pair.client_port;
            no_fin_wait2(&pair.client);
            pair.client.shutdown(Shutdown::Write).expect("shut down");
            wait_for_fin_wait2(impatient_port);
            drop(pair.client);
            let ports = [data_port, reset_port, impatient_port];
            ports.into_iter().for_each(wait_until_gone);
            assert_eq!(overflows(), before);
            let printed = tool.stop();
            for port in ports {
                let lines = printed.of_port(port);
                let end = lines.last().expect("the end");
                assert_eq!(
                    (text(&end["old"]), text(&end["new"]), &end["reason"]),
                    ("fin_wait2", "close", &serde_json::Value::Null),
                    "{lines:?}"
                );
            }
        },
    );
}

/// `TCP_LINGER2` below zero: close() does not wait for the peer's FIN.
fn no_fin_wait2(socket: &TcpStream) {
    let value: libc::c_int = -1;
    // SAFETY: the value lives through the call, and is of the size that is told.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_LINGER2,
            (&raw const value).cast(),
            libc::socklen_t::try_from(size_of_val(&value)).expect("small"),
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}
