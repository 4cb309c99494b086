//! Who closes first at each listening port.

use std::collections::BTreeMap;

use super::{Checked, Rule};
use crate::{
    analysis::Opened,
    doctor::{Cause, Closes, Finding, Severity, Snapshot, Thresholds, plural, share, whole},
};

pub const RULE: Rule = Rule {
    name: "first-close",
    summary: "who closes first at each listening port",
    explanation: "Who closes first, by FIN, gets TIME_WAIT, the other one CLOSE_WAIT until its application closes. At a listening \
        port that is decided by keep-alive: a server that closes after each answer (HTTP/1.0, `Connection: close`, \
        keepalive_timeout 0), or whose idle timeout is shorter than the client's, closes first. A close by RST (SO_LINGER 0, data \
        that nobody has read) leaves no TIME_WAIT on either side, and loses data.

        fine: most connections at the port are closed first by the client. notice: the server closes first most of them, and at this \
        rate holds --many-time-waits TIME_WAITs or more. They cost no port there, and so are no alarm; but each connection was \
        set up for one request, and its client may find it closed while it sends the next. Ports with fewer closes than \
        --closes during the watch are left out.

        What helps: keep-alive on the server with an idle timeout longer than that of its clients; then clients close first. \
        What does not: any setting of the kernel.",
    check,
};

#[expect(
    clippy::unnecessary_wraps,
    reason = "other rules cannot always be decided"
)]
fn check(snapshot: &Snapshot, thresholds: &Thresholds) -> Checked {
    let mut ports: BTreeMap<(Option<u32>, u16), Vec<&Closes>> = BTreeMap::new();
    for closes in &snapshot.closes {
        let service = closes.who.service;
        if let (Opened::Passive, Some(service)) = (closes.who.opened, service) {
            let key = (closes.who.netns, service.port);
            ports.entry(key).or_default().push(closes);
        }
    }
    let mut found: Vec<_> = ports
        .into_iter()
        .map(|(key, closes)| (Counts::of(&closes), key, closes))
        .filter(|(counts, ..)| counts.all() >= thresholds.closes)
        .collect();
    found.sort_by_key(|(counts, key, _)| (std::cmp::Reverse(counts.all()), *key));
    Ok(found
        .into_iter()
        .map(|(counts, (netns, port), closes)| {
            finding(snapshot, thresholds, counts, (netns, port), &closes)
        })
        .collect())
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    local: u64,
    local_rst: u64,
    remote: u64,
    remote_rst: u64,
    minisockets: u64,
}

impl Counts {
    fn of(closes: &[&Closes]) -> Self {
        let mut all = Self::default();
        for one in closes {
            all.local += one.local;
            all.local_rst += one.local_rst;
            all.remote += one.remote;
            all.remote_rst += one.remote_rst;
            all.minisockets += one.minisockets();
        }
        all
    }

    const fn all(self) -> u64 {
        self.local + self.remote
    }
}

fn finding(
    snapshot: &Snapshot,
    thresholds: &Thresholds,
    counts: Counts,
    (netns, port): (Option<u32>, u16),
    closes: &[&Closes],
) -> Finding {
    let ours = share(counts.local, counts.all());
    // What a minute of closes leaves in TIME_WAIT.
    let minute = whole(snapshot.rate(counts.minisockets) * 60.0);
    let server = ours > 0.5;
    let many = server && minute > 0 && minute >= thresholds.many_time_waits;
    let severity = if many {
        Severity::Notice
    } else {
        Severity::Fine
    };
    let percent = |share: f64| format!("{:.0} %", share * 100.0);
    let sentence = if server {
        format!(
            "on port {port} the server closes first ({} of {})",
            percent(ours),
            plural(counts.all(), "connection", "connections")
        )
    } else {
        format!(
            "on port {port} clients close first ({} of {})",
            percent(1.0 - ours),
            plural(counts.all(), "connection", "connections")
        )
    };
    let mut finding = Finding::new(severity, sentence);
    finding.netns = netns;
    finding.count(
        "local_first",
        counts.local,
        format!(
            "closed first by the server: {}",
            by_rst(counts.local, counts.local_rst)
        ),
    );
    finding.count("local_rst", counts.local_rst, String::new());
    finding.count(
        "remote_first",
        counts.remote,
        format!("by clients: {}", by_rst(counts.remote, counts.remote_rst)),
    );
    finding.count("remote_rst", counts.remote_rst, String::new());
    if snapshot.timewait {
        finding.count(
            "time_waits",
            counts.minisockets,
            format!(
                "{} on this side, {minute} a minute at this rate",
                plural(counts.minisockets, "TIME_WAIT", "TIME_WAITs")
            ),
        );
    }
    let causes = closes.iter().map(|one| Cause {
        who: one.who.clone(),
        count: if server { one.local } else { one.remote },
    });
    finding.caused_by(["close", "closes"], causes.collect());
    finding.matters = matters(server, counts).into();
    if many {
        finding.application = "Keep-alive with an idle timeout longer than the clients' (nginx: keepalive_timeout above 0 and a large \
            keepalive_requests; a load balancer in front: longer than its own)."
            .into();
        finding.effect =
            format!("Up to {minute} TIME_WAITs fewer here; clients that close first get them.")
                .into();
        finding.avoid =
            "SO_LINGER 0 in the server: it saves TIME_WAIT and loses the end of the answer.".into();
    }
    finding.see = vec![format!("tcpstate closers -L {port} 10")];
    finding
}

/// How many, and how many of them by RST.
fn by_rst(closes: u64, rst: u64) -> String {
    match closes {
        0 => "0".to_owned(),
        _ => format!("{closes}, {rst} of them by RST"),
    }
}

/// What it means for both sides; a RST leaves no TIME_WAIT (`__tcp_close`, `tcp_reset`).
fn matters(server: bool, counts: Counts) -> String {
    let (first, rst) = if server {
        (counts.local, counts.local_rst)
    } else {
        (counts.remote, counts.remote_rst)
    };
    let whose = if server {
        "the server's: no port of it, some 256 bytes each for 60 s"
    } else {
        "the clients', each for itself; this server has none of it"
    };
    let waits = match (first > rst, rst > 0) {
        (_, false) => format!("Any TIME_WAIT of these is {whose}."),
        (true, true) => format!(
            "Any TIME_WAIT of those by FIN is {whose}. Those by RST leave none on either side, and may lose what the peer has not read yet."
        ),
        (false, true) => "A close by RST leaves no TIME_WAIT on either side. But what the other side has not read yet may be lost \
            to it, and it sees ECONNRESET."
            .to_owned(),
    };
    if !server {
        return waits;
    }
    format!(
        "{waits} A client that sends its next request just then finds the connection closed, and one that has to connect anew for \
         each waits a round trip more."
    )
}

#[cfg(test)]
mod tests {
    use super::{Counts, check, matters};
    use crate::{
        analysis::Opened,
        doctor::{Closes, Severity, Snapshot, Thresholds},
        event::Endpoint,
    };

    #[test]
    fn it_is_told_for_each_port_and_is_worth_a_look_only_with_time_waits() {
        let closes = |port, local, remote, opened| {
            let mut closes = Closes {
                local,
                remote,
                time_waits: local,
                ..Closes::of(opened)
            };
            closes.who.service = Some(Endpoint {
                addr: [192, 0, 2, 1].into(),
                port,
            });
            closes
        };
        let snapshot = Snapshot {
            timewait: true,
            nanoseconds: 10_000_000_000,
            closes: vec![
                closes(80, 10, 300, Opened::Passive),
                closes(443, 290, 0, Opened::Passive),
                // The same port at another address.
                closes(443, 100, 5, Opened::Passive),
                closes(25, 120, 0, Opened::Passive),
                closes(22, 50, 49, Opened::Passive),
                closes(5432, 5000, 0, Opened::Active),
            ],
            ..Snapshot::default()
        };
        let found = check(&snapshot, &Thresholds::default()).unwrap_or_default();
        let told: Vec<_> = found
            .iter()
            .map(|finding| (finding.severity, finding.sentence.as_str()))
            .collect();
        assert_eq!(
            told,
            [
                (
                    Severity::Notice,
                    "on port 443 the server closes first (99 % of 395 connections)"
                ),
                (
                    Severity::Fine,
                    "on port 80 clients close first (97 % of 310 connections)"
                ),
                (
                    Severity::Fine,
                    "on port 25 the server closes first (100 % of 120 connections)"
                ),
            ]
        );
    }

    #[test]
    fn a_close_by_rst_leaves_no_time_wait() {
        let told = |server, local_rst, remote_rst| {
            let counts = Counts {
                local: 20,
                local_rst,
                remote: 10,
                remote_rst,
                minisockets: 20 - local_rst,
            };
            matters(server, counts)
        };
        let none = "leaves no TIME_WAIT on either side";
        assert!(told(true, 0, 10).starts_with("Any TIME_WAIT of these is the server's"));
        assert!(told(true, 1, 0).starts_with("Any TIME_WAIT of those by FIN is the server's"));
        assert!(told(true, 20, 0).contains(none));
        assert!(!told(true, 20, 0).contains("server's"));
        assert!(told(false, 20, 0).starts_with("Any TIME_WAIT of these is the clients'"));
        assert!(told(false, 0, 9).starts_with("Any TIME_WAIT of those by FIN is the clients'"));
        assert!(told(false, 0, 10).contains(none));
    }
}
