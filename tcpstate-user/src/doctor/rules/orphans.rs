//! Sockets that no process holds any more and that are not done: orphans.

use super::{Checked, NO_COUNTERS, Rule};
use crate::doctor::{Finding, Namespace, Severity, Snapshot, Thresholds, plural, share};

pub const RULE: Rule = Rule {
    name: "orphans",
    summary: "closed sockets that are not done, and tcp_max_orphans",
    explanation: "An orphan is a socket that its process has closed and whose end the peer has not confirmed: FIN_WAIT1, LAST_ACK, \
        CLOSING, and a short while FIN_WAIT2. It belongs to no process, so no list of descriptors shows it, and holds what was \
        not sent yet. They are counted for the whole machine (`orphan` in /proc/net/sockstat), and so is their limit, \
        tcp_max_orphans, which the first network namespace alone can see.

        If there are more than tcp_max_orphans (orphans that do not get on count two or four times), or TCP has no memory left \
        (tcp_mem), the kernel resets them (TCPAbortOnMemory, of a network namespace).

        high: it has reset some during the watch. notice: there are --orphans-share or more of tcp_max_orphans at its end. Counters \
        are not in recordings; sockets that stay in FIN_WAIT1, LAST_ACK or CLOSING are: see `pile-up`.

        What helps: peers that answer; closing only when all is sent and confirmed (shutdown(), then reading until the end); a smaller \
        tcp_orphan_retries where clients vanish by thousands. What does not: tcp_fin_timeout, except for FIN_WAIT2.",
    check,
};

/// What became of orphans, since when, and what it means.
const COUNTERS: [(&str, &str, &str); 3] = [
    (
        "abort_on_memory",
        "TcpExt.TCPAbortOnMemory",
        "reset, since there were too many or no memory (TCPAbortOnMemory)",
    ),
    (
        "abort_on_timeout",
        "TcpExt.TCPAbortOnTimeout",
        "given up, since the peer did not answer (TCPAbortOnTimeout)",
    ),
    (
        "abort_on_linger",
        "TcpExt.TCPAbortOnLinger",
        "not waited for in FIN_WAIT2, by TCP_LINGER2 (TCPAbortOnLinger)",
    ),
];

fn check(snapshot: &Snapshot, thresholds: &Thresholds) -> Checked {
    if !snapshot.live {
        return Err(NO_COUNTERS);
    }
    let known = |namespace: &&Namespace| namespace.counters.is_some();
    let Some(any) = snapshot.namespaces.iter().find(known) else {
        return Err("no network namespace's counters could be read");
    };
    // Every namespace shows the number of the machine (`sockstat_seq_show`), and one its limit.
    let orphans = any
        .counters
        .as_ref()
        .and_then(|(_, after)| after.get("TCP.orphan"));
    let orphans = orphans.unwrap_or(0);
    let limit = snapshot
        .namespaces
        .iter()
        .find_map(|one| snapshot.number(Some(one.netns), "tcp_max_orphans"));
    let mut reset: Vec<_> = snapshot
        .namespaces
        .iter()
        .map(|one| (one.counted("TcpExt.TCPAbortOnMemory").unwrap_or(0), one))
        .filter(|(count, _)| *count > 0)
        .collect();
    reset.sort_by_key(|(count, one)| (std::cmp::Reverse(*count), one.netns));
    let mut found: Vec<_> = reset
        .into_iter()
        .map(|(count, one)| {
            let sentence = format!(
                "{} by the kernel: too many orphans, or no memory",
                plural(
                    count,
                    "closed socket was reset",
                    "closed sockets were reset"
                )
            );
            finding(Severity::High, sentence, Some(one), (orphans, limit))
        })
        .collect();
    let near =
        limit.filter(|limit| orphans > 0 && share(orphans, *limit) >= thresholds.orphans_share);
    if let (true, Some(limit)) = (found.is_empty(), near) {
        let sentence = format!(
            "{} of at most {limit} on this machine: closed, and not done",
            plural(orphans, "orphan", "orphans")
        );
        found.push(finding(
            Severity::Notice,
            sentence,
            None,
            (orphans, Some(limit)),
        ));
    }
    Ok(found)
}

fn finding(
    severity: Severity,
    sentence: String,
    namespace: Option<&Namespace>,
    (orphans, limit): (u64, Option<u64>),
) -> Finding {
    let mut finding = Finding::new(severity, sentence);
    finding.netns = namespace.map(|one| one.netns);
    let of = limit.map_or_else(
        || "tcp_max_orphans is not to be seen from here".to_owned(),
        |limit| format!("tcp_max_orphans is {limit}"),
    );
    finding.count(
        "orphans",
        orphans,
        format!(
            "{} on the machine now; {of}",
            plural(orphans, "orphan", "orphans")
        ),
    );
    if let Some(limit) = limit {
        finding.count("limit", limit, String::new());
    }
    for (name, counter, text) in COUNTERS {
        let count = namespace.and_then(|one| one.counted(counter)).unwrap_or(0);
        if count > 0 {
            finding.count(name, count, format!("{count} {text}"));
        }
    }
    finding.matters = if severity == Severity::High {
        "What these sockets had not sent yet is lost: their applications have closed them, and hear nothing of it.".into()
    } else {
        "Each keeps what was not sent; if there are too many the kernel resets them, and that is lost.".into()
    };
    finding.application = "Find the peers that do not answer (sockets in FIN_WAIT1, LAST_ACK): a network that is down, or clients that \
        vanish. Servers: shutdown(), read until the end, then close()."
        .into();
    finding.kernel = "tcp_orphan_retries=3, if clients vanish by thousands; then tcp_max_orphans (of the machine), and tcp_mem if \
        `TCP: out of memory` is in the kernel's log."
        .into();
    finding.avoid =
        "tcp_fin_timeout is about those in FIN_WAIT2 only, and TIME_WAITs are no orphans.".into();
    finding.see = vec![
        "tcpstate states --leaks --state fin_wait1,last_ack,closing --by remote".to_owned(),
        "ss -tanoe state fin-wait-1 state last-ack state closing".to_owned(),
    ];
    finding
}

#[cfg(test)]
mod tests {
    use super::{RULE, check};
    use crate::{
        doctor::{Namespace, NetCounters, Severity, Snapshot, Thresholds},
        settings::Settings,
    };

    #[test]
    fn orphans_are_told_when_they_are_reset_or_many() {
        let told = |orphans: u64, limit: Option<&str>, reset: u64| {
            let counters = |reset: u64| {
                let mut counters = NetCounters::new(1);
                counters.insert_table(&format!("TcpExt: TCPAbortOnMemory\nTcpExt: {reset}\n"));
                counters.insert_pairs(&format!("TCP: inuse 5 orphan {orphans} tw 4\n"));
                counters
            };
            let mut settings = Settings {
                netns: 1,
                ..Settings::default()
            };
            if let Some(limit) = limit {
                settings.insert("ipv4/tcp_max_orphans", limit);
            }
            let snapshot = Snapshot {
                live: true,
                namespaces: vec![Namespace {
                    netns: 1,
                    settings: Some(settings),
                    counters: Some((counters(7), counters(7 + reset))),
                }],
                ..Snapshot::default()
            };
            RULE.severity(&snapshot)
        };
        assert_eq!(told(100, Some("1000"), 0), None);
        assert_eq!(told(250, Some("1000"), 0), Some(Severity::Notice));
        assert_eq!(told(250, None, 0), None, "of how many is not known");
        assert_eq!(told(0, None, 1), Some(Severity::High));
        assert!(check(&Snapshot::default(), &Thresholds::default()).is_err());
    }
}
