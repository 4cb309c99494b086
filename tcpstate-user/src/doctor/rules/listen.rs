//! Listeners that cannot keep up: full queues and SYN cookies, by the kernel's counters.

use super::{Checked, NO_COUNTERS, Rule};
use crate::doctor::{Finding, Namespace, Severity, Snapshot, Thresholds};

pub const RULE: Rule = Rule {
    name: "listen",
    summary: "full listen queues: dropped connections, SYN cookies",
    explanation: "A listener has two queues. Connections that wait for accept(): at most the smaller of listen()'s backlog and \
        somaxconn; if it is full, the kernel drops SYNs and last ACKs, and clients wait a second, then two, then four \
        (ListenOverflows, ListenDrops). Half-open ones, in SYN_RECV: at most the same number (and, without SYN cookies, tcp_max_syn_backlog); if that is \
        full, it answers with SYN cookies (SyncookiesSent, TCPReqQFullDoCookies), or drops (TCPReqQFullDrop).

        SYN_RECV in `netstat` is the second queue. A dead application fills the first; only a flood of SYNs whose handshakes never \
        end fills the second.

        high: an accept queue was full during the watch. notice: only SYN cookies were sent. These are counters of the network \
        namespace: the kernel does not say which listener it was; `ss -ltn` shows those whose Recv-Q is as large as Send-Q. They are not \
        in recordings.

        What helps: accept() faster, more workers, a larger backlog in listen() and then somaxconn. What does not: \
        tcp_max_syn_backlog alone, tcp_abort_on_overflow=1 (clients see a RST instead of waiting).",
    check,
};

/// Counters since when, and what they count.
const COUNTERS: [(&str, &str, &str); 5] = [
    (
        "listen_overflows",
        "TcpExt.ListenOverflows",
        "SYNs or ACKs found a full accept queue (ListenOverflows)",
    ),
    (
        "listen_drops",
        "TcpExt.ListenDrops",
        "were dropped at listeners, for that or another reason (ListenDrops)",
    ),
    (
        "syncookies_sent",
        "TcpExt.SyncookiesSent",
        "SYN cookies were sent",
    ),
    (
        "syncookies_failed",
        "TcpExt.SyncookiesFailed",
        "ACKs had no valid SYN cookie",
    ),
    (
        "request_queue_drops",
        "TcpExt.TCPReqQFullDrop",
        "SYNs were dropped, since the queue of half-open connections was full",
    ),
];

fn check(snapshot: &Snapshot, _: &Thresholds) -> Checked {
    if !snapshot.live {
        return Err(NO_COUNTERS);
    }
    let known = |namespace: &&Namespace| namespace.counters.is_some();
    if !snapshot.namespaces.iter().any(|one| known(&one)) {
        return Err("no network namespace's counters could be read");
    }
    let mut found: Vec<_> = snapshot
        .namespaces
        .iter()
        .filter(known)
        .map(|one| (Counted::of(one), one))
        .filter(|(counted, _)| counted.full + counted.cookies > 0)
        .collect();
    found.sort_by_key(|(counted, one)| (std::cmp::Reverse(counted.full), one.netns));
    Ok(found
        .into_iter()
        .map(|(counted, one)| finding(snapshot, counted, one))
        .collect())
}

#[derive(Clone, Copy)]
struct Counted {
    full: u64,
    cookies: u64,
}

impl Counted {
    fn of(namespace: &Namespace) -> Self {
        let counted = |name| namespace.counted(name).unwrap_or(0);
        Self {
            full: counted("TcpExt.ListenOverflows"),
            cookies: counted("TcpExt.SyncookiesSent") + counted("TcpExt.TCPReqQFullDrop"),
        }
    }
}

fn finding(snapshot: &Snapshot, counted: Counted, namespace: &Namespace) -> Finding {
    let Counted { full, cookies } = counted;
    let (severity, sentence) = if full > 0 {
        (
            Severity::High,
            format!("a listen queue was full {full} times: clients wait a second or more"),
        )
    } else {
        (
            Severity::Notice,
            format!("{cookies} SYNs came faster than handshakes ended: SYN cookies or drops"),
        )
    };
    let mut finding = Finding::new(severity, sentence);
    finding.netns = Some(namespace.netns);
    for (name, counter, text) in COUNTERS {
        let count = namespace.counted(counter).unwrap_or(0);
        let text = if count > 0 {
            format!("{count} {text}")
        } else {
            String::new()
        };
        finding.count(name, count, text);
    }
    let netns = Some(namespace.netns);
    for name in [
        "somaxconn",
        "tcp_max_syn_backlog",
        "tcp_syncookies",
        "tcp_abort_on_overflow",
    ] {
        if let Some(value) = snapshot.setting(netns, name) {
            finding.setting(name, value, format!("{name} is {value}"));
        }
    }
    if full > 0 {
        finding.matters = "The application does not call accept() fast enough: dropped SYNs come again after 1, 2, 4 s, so some \
            clients see a slow server, others a timeout."
            .into();
        finding.application = "Find the listener: `ss -ltn` where Recv-Q has reached Send-Q. Let it accept() sooner (a loop or thread \
            that is blocked, too few workers), then give listen() a larger backlog."
            .into();
        if let Some(most) = snapshot.setting(netns, "somaxconn") {
            finding.kernel =
                format!("somaxconn, now {most}, if the backlog of listen() is larger than that.")
                    .into();
        }
        finding.effect =
            "A longer queue bridges a burst; it does not help who is too slow all the time.".into();
    } else {
        finding.matters = "Half-open connections were too many for a moment: a burst, or a flood of SYNs. With cookies nobody is \
            turned away."
            .into();
        finding.application = "A larger backlog in listen(), if the clients are real.".into();
        finding.kernel = "tcp_syncookies=1 is right; then somaxconn and tcp_max_syn_backlog together with the backlog.".into();
    }
    finding.avoid = "tcp_abort_on_overflow=1 turns waiting into errors; tcp_syncookies=2 sends cookies to everybody.".into();
    finding.see = vec![
        "ss -ltn".to_owned(),
        "nstat -az | grep -E 'Listen|Syncookies|ReqQ'".to_owned(),
    ];
    finding
}

#[cfg(test)]
mod tests {
    use super::{RULE, check};
    use crate::doctor::{Namespace, NetCounters, Severity, Snapshot, Thresholds};

    #[test]
    fn only_what_was_counted_during_the_watch_is_told() {
        let counters = |overflows: u64, cookies: u64| {
            let mut counters = NetCounters::new(1);
            counters.insert_table(&format!(
                "TcpExt: SyncookiesSent ListenOverflows\nTcpExt: {cookies} {overflows}\n"
            ));
            counters
        };
        let told = |overflows: u64, cookies: u64| {
            let snapshot = Snapshot {
                live: true,
                namespaces: vec![Namespace {
                    netns: 1,
                    settings: None,
                    counters: Some((counters(500, 70), counters(500 + overflows, 70 + cookies))),
                }],
                ..Snapshot::default()
            };
            RULE.severity(&snapshot)
        };
        assert_eq!(told(0, 0), None);
        assert_eq!(told(3, 0), Some(Severity::High));
        assert_eq!(told(0, 9), Some(Severity::Notice));
        assert!(check(&Snapshot::default(), &Thresholds::default()).is_err());
    }
}
