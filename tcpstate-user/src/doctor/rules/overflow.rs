//! TIME_WAITs that there is no room for: tcp_max_tw_buckets.

use super::{Checked, Rule, UNOBSERVED};
use crate::doctor::{Cause, Finding, Severity, Snapshot, Thresholds, Waits, plural, share, whole};

pub const RULE: Rule = Rule {
    name: "overflow",
    summary: "connections that get no TIME_WAIT (tcp_max_tw_buckets)",
    explanation: "When a network namespace has tcp_max_tw_buckets minisockets, the next connection that closes gets none: the \
        socket is gone at once, without a trace but the line `TCP: time wait bucket table overflow` in the kernel's log. A peer \
        whose last ACK was lost then gets a RST for its FIN, and a late segment may be taken for one of the next connection.

        high: it has happened during the watch. notice: --buckets-share or more of tcp_max_tw_buckets are there. The value that is \
        needed is the rate of closes in a second times 60, and room for a peak.

        Lowering tcp_max_tw_buckets to be rid of TIME_WAITs (5000 is an old advice) makes this happen on purpose. The default \
        depends on the memory; each costs some 256 bytes.",
    check,
};

/// Connections that got none, in a network namespace.
const COUNTER: &str = "TcpExt.TCPTimeWaitOverflow";

/// Seconds, and half as much for peaks.
const MINUTE_AND_PEAK: f64 = 90.0;

fn check(snapshot: &Snapshot, thresholds: &Thresholds) -> Checked {
    if !snapshot.timewait {
        return Err(UNOBSERVED);
    }
    let mut found: Vec<_> = snapshot
        .waits_by_namespace()
        .filter_map(|(netns, waits)| {
            let seen = waits.iter().map(|one| one.overflow).sum::<u64>();
            // Some observers only infer it; the kernel's counter is the witness.
            let overflow = seen.min(snapshot.counted(netns, COUNTER).unwrap_or(u64::MAX));
            let now = waits.iter().map(|one| one.minisockets()).sum::<u64>();
            let limit = snapshot.number(netns, "tcp_max_tw_buckets");
            let near = limit.is_some_and(|limit| share(now, limit) >= thresholds.buckets_share);
            let bad = overflow > 0 || near && now > 0;
            bad.then_some((overflow, netns, now, limit, waits))
        })
        .collect();
    found.sort_by_key(|(overflow, netns, ..)| (std::cmp::Reverse(*overflow), *netns));
    Ok(found
        .into_iter()
        .map(|(overflow, netns, now, limit, waits)| {
            finding(snapshot, overflow, netns, (now, limit), &waits)
        })
        .collect())
}

fn finding(
    snapshot: &Snapshot,
    overflow: u64,
    netns: Option<u32>,
    (now, limit): (u64, Option<u64>),
    waits: &[&Waits],
) -> Finding {
    let born = waits.iter().map(|one| one.born).sum::<u64>();
    let needed = whole(snapshot.rate(born + overflow) * MINUTE_AND_PEAK);
    let of = limit.map_or_else(String::new, |limit| {
        format!(" (tcp_max_tw_buckets is {limit})")
    });
    let (severity, sentence) = if overflow > 0 {
        (
            Severity::High,
            format!(
                "{} no TIME_WAIT: there was no room{of}",
                plural(overflow, "connection got", "connections got")
            ),
        )
    } else {
        (
            Severity::Notice,
            format!("room for TIME_WAITs is nearly used up: {now}{of}"),
        )
    };
    let mut finding = Finding::new(severity, sentence);
    finding.netns = netns;
    finding.count("overflow", overflow, format!("{overflow} got none"));
    finding.count("now", now, format!("{now} minisockets are there"));
    if let Some(limit) = limit {
        finding.count("limit", limit, String::new());
    }
    if let Some(counted) = snapshot.counted(netns, COUNTER) {
        finding.count(
            "counter",
            counted,
            format!("the kernel's counter TCPTimeWaitOverflow went up by {counted}"),
        );
    }
    finding.count(
        "needed",
        needed,
        format!("at this rate {needed} would be needed, peaks included"),
    );
    let causes = waits.iter().map(|one| Cause {
        who: one.who.clone(),
        count: one.overflow + one.born,
    });
    finding.caused_by(["close", "closes"], causes.collect());
    finding.matters = "Without TIME_WAIT a lost last ACK is answered with a RST, and a late segment may be taken for one of the \
        next connection between the same ports."
        .into();
    finding.application = "Fewer connections: keep-alive, pools.".into();
    finding.kernel = format!("tcp_max_tw_buckets={}.", needed.max(limit.unwrap_or(0) * 2)).into();
    finding.effect = format!(
        "{} kB of memory at most.",
        needed.max(limit.unwrap_or(0) * 2) * 256 / 1000
    )
    .into();
    finding.avoid = "Do not lower it to see fewer TIME_WAITs: they are destroyed unseen, and what they protect with them.".into();
    finding.see = vec!["tcpstate timewait 10".to_owned()];
    finding
}

#[cfg(test)]
mod tests {
    use super::{RULE, check};
    use crate::doctor::{Namespace, NetCounters, Severity, Snapshot, Thresholds, Waits};
    use crate::settings::Settings;

    #[test]
    fn what_got_none_is_bad_and_what_nearly_did_is_near() {
        let mut settings = Settings {
            netns: 1,
            ..Settings::default()
        };
        settings.insert("ipv4/tcp_max_tw_buckets", "1000\n");
        let told = |now, overflow, counted: Option<u64>| {
            let counters = |count: u64| {
                let mut counters = NetCounters::new(1);
                counters.insert_table(&format!("TcpExt: TCPTimeWaitOverflow\nTcpExt: {count}\n"));
                counters
            };
            let snapshot = Snapshot {
                timewait: true,
                nanoseconds: 10_000_000_000,
                namespaces: vec![Namespace {
                    netns: 1,
                    settings: Some(settings.clone()),
                    counters: counted.map(|counted| (counters(3), counters(3 + counted))),
                }],
                waits: vec![Waits {
                    now,
                    overflow,
                    ..Waits::of(1)
                }],
                ..Snapshot::default()
            };
            RULE.severity(&snapshot)
        };
        assert_eq!(told(1000, 1, None), Some(Severity::High));
        assert_eq!(told(900, 0, None), Some(Severity::Notice));
        assert_eq!(told(700, 0, None), None);
        assert_eq!(told(700, 5, Some(5)), Some(Severity::High));
        assert_eq!(told(700, 2, Some(0)), None, "the kernel says otherwise");
        assert!(check(&Snapshot::default(), &Thresholds::default()).is_err());
    }
}
