//! TIME_WAITs: who causes them, what they cost, and whether that matters.

use super::{Checked, Rule, UNOBSERVED};
use crate::{
    analysis::Opened,
    doctor::{Cause, Finding, Ports, Severity, Shown, Snapshot, Thresholds, Waits, share, whole},
};

pub const RULE: Rule = Rule {
    name: "time-wait",
    summary: "TIME_WAITs: who closes first, what they cost, if it matters",
    explanation: "Whoever closes first, by FIN, gets TIME_WAIT: 60 s on Linux (TCP_TIMEWAIT_LEN, a constant, not 2 MSL of anything), so \
        that a late segment of the old connection is not taken for one of the next, and a lost last ACK is sent again. R closes a \
        second hold 60 R of them.

        A TIME_WAIT is a small object of the kernel (some 250 bytes), no socket, no descriptor and no process. On a server it \
        holds no port: the listening port is shared by all, and a new SYN of the same client port is accepted if it is newer. On a \
        client it holds a local port towards that destination: the rule `ports` says whether that matters.

        fine: there are --many-time-waits or more in a network namespace, and the ports are free. notice: those that this host \
        opened hold more than half of the local ports towards one destination. This rule is never high: the harm is in `ports`, \
        `bind` and `overflow`, which say so themselves.

        What helps if it matters: keep-alive; the client closing first, if it is the server that does now. What does not: \
        tcp_fin_timeout (FIN_WAIT2 of closed sockets), tcp_tw_recycle (gone since Linux 4.12; broke clients behind NAT before), \
        a small tcp_max_tw_buckets (destroys them unseen), SO_LINGER 0 (a RST: what is on its way is lost).",
    check,
};

/// What a minisocket takes with its share of the bind bucket, about (`tw_sock_TCP` in `/proc/slabinfo` has 256 bytes).
const BYTES: u64 = 256;

fn check(snapshot: &Snapshot, thresholds: &Thresholds) -> Checked {
    if !snapshot.timewait {
        return Err(UNOBSERVED);
    }
    let mut found: Vec<_> = snapshot
        .waits_by_namespace()
        .map(|(netns, waits)| {
            (
                waits.iter().map(|one| one.minisockets()).sum::<u64>(),
                netns,
                waits,
            )
        })
        .filter(|(now, ..)| *now >= thresholds.many_time_waits)
        .collect();
    found.sort_by_key(|(now, netns, _)| (std::cmp::Reverse(*now), *netns));
    Ok(found
        .into_iter()
        .map(|(now, netns, waits)| finding(snapshot, now, netns, &waits))
        .collect())
}

fn finding(snapshot: &Snapshot, now: u64, netns: Option<u32>, waits: &[&Waits]) -> Finding {
    // The destination whose ports TIME_WAITs fill most.
    let fullest = snapshot
        .ports
        .iter()
        .filter(|ports| ports.netns == netns)
        .max_by(|left, right| f64::total_cmp(&held(left), &held(right)));
    let matters = fullest.is_some_and(|ports| held(ports) >= 0.5);
    let sum = |count: fn(&Waits) -> u64, passive: bool| {
        let some = waits
            .iter()
            .filter(|one| (one.who.opened == Opened::Passive) == passive);
        some.map(|one| count(one)).sum::<u64>()
    };
    let served = sum(Waits::minisockets, true);
    let waiting = waits.iter().map(|one| one.fin_wait2).sum::<u64>();
    let upto = if waiting > 0 { "up to " } else { "" };
    let born = waits.iter().map(|one| one.born).sum::<u64>();
    let (severity, sentence) = if matters {
        let to = fullest.and_then(|ports| ports.destination);
        let to = to.map_or_else(|| "a destination".to_owned(), |to| Shown(to).to_string());
        (
            Severity::Notice,
            format!("{upto}{now} TIME_WAITs hold most local ports towards {to}"),
        )
    } else {
        (
            Severity::Fine,
            format!("{upto}{now} TIME_WAITs do no harm: local ports are free"),
        )
    };
    let mut finding = Finding::new(severity, sentence);
    finding.netns = netns;
    finding.count(
        "now",
        now,
        format!(
            "{now} now: {served} of connections that peers opened, {} that this host did",
            now - served
        ),
    );
    finding.count("served", served, String::new());
    if waiting > 0 {
        finding.count(
            "fin_wait2",
            waiting,
            format!("of them {waiting} may be in FIN_WAIT2 still: the kernel tells when they end"),
        );
    }
    let least = if waiting > 0 { "at least " } else { "" };
    finding.count(
        "born",
        born,
        format!(
            "{least}{born} began, {:.1} a second: {} a minute at this rate",
            snapshot.rate(born),
            whole(snapshot.rate(born) * 60.0),
        ),
    );
    let memory = now * BYTES;
    finding.count(
        "bytes",
        memory,
        format!("about {} kB of memory, {BYTES} bytes each", memory / 1000),
    );
    if let Some(ports) = fullest {
        ports_evidence(ports, &mut finding);
    }
    ended_evidence(waits, &mut finding);
    finding.caused_by(["TIME_WAIT", "TIME_WAITs"], causes(snapshot, netns, waits));
    advice(snapshot, netns, waits, &mut finding, matters);
    finding
}

/// Why they ended, each way that occurred.
fn ended_evidence(waits: &[&Waits], finding: &mut Finding) {
    type Count = fn(&Waits) -> u64;
    let ways: [(&str, Count, &str); 7] = [
        ("expired", |one| one.expired, "after their time"),
        (
            "reused_connect",
            |one| one.reused_connect,
            "taken over by connect()",
        ),
        ("reused_syn", |one| one.reused_syn, "by a new SYN"),
        ("rst", |one| one.rst, "by a RST"),
        ("destroyed", |one| one.destroyed, "by an administrator"),
        (
            "namespace_gone",
            |one| one.namespace_gone,
            "with their network namespace",
        ),
        (
            "unknown",
            |one| one.unknown,
            "before their time, unseen why",
        ),
    ];
    let counts: Vec<_> = ways
        .iter()
        .map(|(name, count, text)| {
            let count: u64 = waits.iter().map(|one| count(one)).sum();
            (*name, count, *text)
        })
        .filter(|(_, count, _)| *count > 0)
        .collect();
    let texts: Vec<_> = counts
        .iter()
        .map(|(_, count, text)| format!("{count} {text}"))
        .collect();
    for (at, (name, count, _)) in counts.iter().enumerate() {
        // One line tells all of them.
        let text = if at == 0 {
            format!("ended: {}", texts.join(", "))
        } else {
            String::new()
        };
        finding.count(name, *count, text);
    }
    let restarted: u64 = waits.iter().map(|one| one.restarted).sum();
    if restarted > 0 {
        finding.count(
            "restarted",
            restarted,
            format!("begun anew, since an old segment came: {restarted}"),
        );
    }
}

/// The share of the ports that TIME_WAITs hold.
fn held(ports: &Ports) -> f64 {
    ports
        .limit
        .map_or(0.0, |limit| share(ports.minisockets, limit))
}

fn ports_evidence(ports: &Ports, finding: &mut Finding) {
    let Some((limit, to)) = ports.limit.zip(ports.destination) else {
        return;
    };
    finding.real(
        "ports_share",
        held(ports),
        format!(
            "they hold {} of {limit} local ports towards {}, the fullest destination",
            ports.minisockets,
            Shown(to)
        ),
    );
}

/// Who closed first; and if nobody did while we looked, whose they are.
fn causes(snapshot: &Snapshot, netns: Option<u32>, waits: &[&Waits]) -> Vec<Cause> {
    let with_waits = snapshot
        .closes
        .iter()
        .filter(|one| one.who.netns == netns && one.minisockets() > 0);
    let causes: Vec<_> = with_waits
        .map(|one| Cause {
            who: one.who.clone(),
            count: one.minisockets(),
        })
        .collect();
    if !causes.is_empty() {
        return causes;
    }
    let held = waits.iter().map(|one| Cause {
        who: one.who.clone(),
        count: one.minisockets(),
    });
    held.collect()
}

fn advice(
    snapshot: &Snapshot,
    netns: Option<u32>,
    waits: &[&Waits],
    finding: &mut Finding,
    matters: bool,
) {
    if matters {
        finding.matters = "Each holds a local port towards its destination for 60 s; the rule `ports` says when there is none.".into();
        finding.application =
            "Keep connections open (keep-alive, a pool), or let the peer close first.".into();
    } else {
        finding.matters = "TIME_WAIT is no socket: it costs its bytes for 60 s, no descriptor, and on the side that listens no \
            port. It ends by itself.".into();
        finding.application = "Nothing has to be done. Fewer connections (keep-alive) would save handshakes, not TIME_WAITs.".into();
    }
    let reuse = snapshot.setting(netns, "tcp_tw_reuse");
    let active: u64 = waits
        .iter()
        .filter(|one| one.who.opened != Opened::Passive)
        .map(|one| one.minisockets())
        .sum();
    let effect = match reuse {
        Some("1") => {
            format!(
                "tcp_tw_reuse is 1 already: connect() may take over the {active} of connections this host opened"
            )
        }
        Some(value) if matters => format!(
            "tcp_tw_reuse=1 (now {value}) would let connect() take over {active} of them, those of connections this host opened"
        ),
        _ => String::new(),
    };
    finding.effect = effect.into();
    let waiting: u64 = waits.iter().map(|one| one.fin_wait2).sum();
    let timeout = snapshot
        .setting(netns, "tcp_fin_timeout")
        .map_or_else(String::new, |value| format!(" (now {value})"));
    finding.avoid = format!(
        "tcp_fin_timeout{timeout} does not touch TIME_WAIT, but {waiting} minisockets in FIN_WAIT2; tcp_tw_recycle is gone since \
         Linux 4.12; a smaller tcp_max_tw_buckets destroys TIME_WAITs; SO_LINGER 0 loses data."
    ).into();
    finding.see = vec![
        "tcpstate timewait 10".to_owned(),
        "tcpstate closers 10".to_owned(),
    ];
}

#[cfg(test)]
mod tests {
    use super::{RULE, check};
    use crate::{
        analysis::Opened,
        doctor::{Ports, Severity, Snapshot, Thresholds, Waits, Who},
    };

    fn snapshot(opened: Opened, now: u64, limit: u64) -> Snapshot {
        let active = opened == Opened::Active;
        Snapshot {
            timewait: true,
            nanoseconds: 10_000_000_000,
            waits: vec![Waits {
                who: Who::nobody(opened),
                now,
                born: now,
                ..Waits::of(1)
            }],
            ports: vec![Ports {
                netns: Some(1),
                source: None,
                destination: None,
                used: 0,
                minisockets: if active { now } else { 0 },
                limit: Some(limit),
                growth: None,
                until_none: None,
                failed: 0,
                reuse: false,
            }],
            ..Snapshot::default()
        }
    }

    #[test]
    fn thousands_on_a_server_are_fine() {
        let server = snapshot(Opened::Passive, 20_000, 28_232);
        assert_eq!(RULE.severity(&server), Some(Severity::Fine));
        let client = snapshot(Opened::Active, 20_000, 28_232);
        assert_eq!(RULE.severity(&client), Some(Severity::Notice));
        assert_eq!(
            RULE.severity(&snapshot(Opened::Active, 5000, 28_232)),
            Some(Severity::Fine)
        );
        assert_eq!(RULE.severity(&snapshot(Opened::Active, 100, 120)), None);
        assert!(check(&Snapshot::default(), &Thresholds::default()).is_err());
    }

    #[test]
    fn every_way_that_they_ended_is_told() {
        let mut snapshot = snapshot(Opened::Passive, 2000, 28_232);
        snapshot.waits[0] = Waits {
            expired: 1,
            rst: 2,
            destroyed: 3,
            namespace_gone: 4,
            unknown: 5,
            restarted: 6,
            ..snapshot.waits[0].clone()
        };
        let found = check(&snapshot, &Thresholds::default()).unwrap_or_default();
        let texts: Vec<_> = found[0]
            .evidence
            .iter()
            .map(|evidence| evidence.text.as_str())
            .collect();
        let ended = "ended: 1 after their time, 2 by a RST, 3 by an administrator, 4 with their network namespace, \
            5 before their time, unseen why";
        assert!(texts.contains(&ended), "{texts:?}");
        assert!(texts.contains(&"begun anew, since an old segment came: 6"));
    }
}
