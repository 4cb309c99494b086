//! Many clients behind one address: their ports come round while the server still has them in TIME_WAIT.

use indexmap::IndexMap;

use super::{Checked, NO_COUNTERS, Rule, UNOBSERVED};
use crate::{
    analysis::Opened,
    doctor::{
        Cause, Ends, Finding, Process, Severity, Shown, Snapshot, Thresholds, Who, plural, whole,
    },
    event::Endpoint,
};

pub const RULE: Rule = Rule {
    name: "nat",
    summary: "many from one address: SYNs into TIME_WAIT, PAWS",
    explanation: "Behind a NAT or a load balancer many clients have one address, and its ports come round: a SYN comes from a port \
        whose last connection this server still has in TIME_WAIT. Linux accepts it if its timestamp, or else its sequence number, \
        is newer than what TIME_WAIT remembers (`tcp_timewait_state_process`): the TIME_WAIT is taken over, and nobody notices.

        If the clients behind the address have clocks of their own (timestamps that are not made alike) some SYNs look old. \
        They are answered with an ACK of the old connection; the client answers with a RST, which ends TIME_WAIT, and gets in \
        with its next SYN, a second later. With tcp_rfc1337=1 the RST is ignored, and it does not get in before TIME_WAIT is over.

        The kernel counts what an old timestamp was refused for in TIME_WAIT (PAWSTimewait; older kernels have PAWSEstab for \
        that and for open connections together), but not of whom, and not SYNs alone; counters are not in recordings.

        notice: --refused-in-wait or more were refused in TIME_WAIT during the watch; on older kernels also as many TIME_WAITs began anew, \
        as they do then. fine: --taken-over SYNs or more took TIME_WAITs \
        over, or one address makes --peer-rate connections a second or more to one service, and nothing was refused.

        What helps: the client closing first (TIME_WAIT is then its own), keep-alive. What was advised: tcp_tw_recycle, which \
        dropped such SYNs everywhere, without an answer; it is gone since Linux 4.12. PAWSPassive went with it.",
    check,
};

/// What one network namespace has.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// Refused in TIME_WAIT, if the kernel counts that.
    refused: Option<u64>,
    /// It counts open connections too.
    mixed: bool,
    taken: u64,
    reset: u64,
    restarted: u64,
}

/// Who makes most connections, to what, and how many.
type Most = (Endpoint, Option<Endpoint>, u64);

fn check(snapshot: &Snapshot, thresholds: &Thresholds) -> Checked {
    if !snapshot.timewait {
        return Err(UNOBSERVED);
    }
    let mut found: Vec<_> = snapshot
        .ends_by_namespace()
        .filter_map(|(netns, ends)| {
            let ends: Vec<_> = ends
                .into_iter()
                .filter(|one| one.who.opened == Opened::Passive)
                .collect();
            let seen = Seen::of(snapshot, netns, &ends);
            let most = most(&ends);
            let many = most.is_some_and(|(.., count)| snapshot.rate(count) >= thresholds.peer_rate);
            let bad = seen.is_refused(thresholds.refused_in_wait);
            let told = bad || many || seen.taken >= thresholds.taken_over;
            told.then(|| finding(snapshot, netns, seen, most, bad, &ends))
        })
        .collect();
    found.sort_by_key(|finding| (finding.severity, finding.netns));
    Ok(found)
}

impl Seen {
    fn of(snapshot: &Snapshot, netns: Option<u32>, ends: &[&Ends]) -> Self {
        let sum = |count: fn(&Ends) -> u64| ends.iter().map(|one| count(one)).sum();
        let counted = |name| snapshot.counted(netns, name);
        let exact = counted("TcpExt.PAWSTimewait");
        Self {
            refused: exact.or_else(|| counted("TcpExt.PAWSEstab")),
            mixed: exact.is_none(),
            taken: sum(|one| one.wait_syn),
            reset: sum(|one| one.wait_rst),
            restarted: sum(|one| one.wait_restarted),
        }
    }

    /// Whether so many were refused in TIME_WAIT. Where open connections are counted too, as many must have begun anew: that
    /// is what an old timestamp does to TIME_WAIT.
    fn is_refused(&self, many: u64) -> bool {
        self.refused.is_some_and(|refused| refused >= many)
            && (!self.mixed || self.restarted >= many)
    }
}

/// The address that made most connections to one service.
fn most(ends: &[&Ends]) -> Option<Most> {
    let mut pairs: IndexMap<_, u64> = IndexMap::default();
    for one in ends {
        if let Some(peer) = one.who.peer {
            *pairs.entry((peer, one.who.service)).or_default() += one.established;
        }
    }
    let all = pairs.into_iter().filter(|(_, count)| *count > 0);
    all.map(|((peer, service), count)| (peer, service, count))
        .max_by_key(|(peer, service, count)| (*count, std::cmp::Reverse((*peer, *service))))
}

fn finding(
    snapshot: &Snapshot,
    netns: Option<u32>,
    seen: Seen,
    most: Option<Most>,
    bad: bool,
    ends: &[&Ends],
) -> Finding {
    let refused = seen.refused.unwrap_or(0);
    let or_open = if seen.mixed {
        " or open connections"
    } else {
        ""
    };
    let (severity, sentence) = if bad {
        (
            Severity::Notice,
            format!("{refused} segments with an old timestamp were refused in TIME_WAIT{or_open}"),
        )
    } else if seen.taken > 0 {
        (
            Severity::Fine,
            format!(
                "{} took over a port in TIME_WAIT: that is as it should be",
                plural(seen.taken, "SYN", "SYNs")
            ),
        )
    } else {
        (
            Severity::Fine,
            "many connections come from one address: no harm is seen".to_owned(),
        )
    };
    let mut finding = Finding::new(severity, sentence);
    finding.netns = netns;
    evidence(snapshot, netns, seen, most, &mut finding);
    causes(seen, ends, &mut finding);
    advice(snapshot, netns, bad, &mut finding);
    finding.see = vec![
        "tcpstate timewait --by service,remote 10".to_owned(),
        "nstat -az | grep PAWS".to_owned(),
    ];
    finding
}

fn evidence(
    snapshot: &Snapshot,
    netns: Option<u32>,
    seen: Seen,
    most: Option<Most>,
    finding: &mut Finding,
) {
    match (seen.refused, seen.mixed) {
        (Some(count), false) => {
            let then = if count > 0 {
                "; SYNs among them come again after a second"
            } else {
                ""
            };
            let text = format!("{count} refused in TIME_WAIT (PAWSTimewait){then}");
            finding.count("refused", count, text);
        }
        (Some(count), true) => {
            finding.count(
                "refused",
                count,
                format!("{count} refused in TIME_WAIT or open connections (PAWSEstab)"),
            );
        }
        (None, _) => {}
    }
    finding.count(
        "reused_syn",
        seen.taken,
        format!(
            "{} by new SYNs, which were accepted",
            plural(seen.taken, "TIME_WAIT taken over", "TIME_WAITs taken over")
        ),
    );
    for (name, count, text) in [
        ("restarted", seen.restarted, "begun anew by an old segment"),
        (
            "rst",
            seen.reset,
            "ended by a RST, as by clients that were refused",
        ),
    ] {
        if count > 0 {
            let many = plural(count, "TIME_WAIT", "TIME_WAITs");
            finding.count(name, count, format!("{many} {text}"));
        }
    }
    if let Some((peer, service, count)) = most {
        let to = service.map_or_else(String::new, |to| format!(" to {}", Shown(to)));
        let rate = snapshot.rate(count);
        finding.count(
            "most_from_one",
            count,
            format!(
                "{} from {}{to}, {rate:.1} a second: {} ports a minute",
                plural(count, "connection", "connections"),
                peer.addr,
                whole(rate * 60.0)
            ),
        );
    }
    for name in ["tcp_timestamps", "tcp_rfc1337"] {
        if let Some(value) = snapshot.setting(netns, name) {
            finding.setting(name, value, format!("{name} is {value}"));
        }
    }
}

/// Addresses, whatever process serves them: those whose SYNs took over, else those with most connections.
fn causes(seen: Seen, ends: &[&Ends], finding: &mut Finding) {
    let mut peers: IndexMap<Who, u64> = IndexMap::default();
    for one in ends {
        let count = if seen.taken + seen.reset > 0 {
            one.wait_syn + one.wait_rst
        } else {
            one.established
        };
        let who = Who {
            process: Process {
                pid: None,
                ..one.who.process
            },
            ..one.who.clone()
        };
        *peers.entry(who).or_default() += count;
    }
    let mut causes: Vec<_> = peers
        .into_iter()
        .map(|(who, count)| Cause { who, count })
        .collect();
    causes.sort_by_key(|cause| (cause.who.service, cause.who.peer));
    let unit = if seen.taken + seen.reset > 0 {
        [
            "TIME_WAIT ended by SYN or RST",
            "TIME_WAITs ended by SYN or RST",
        ]
    } else {
        ["connection", "connections"]
    };
    finding.caused_by(unit, causes);
}

fn advice(snapshot: &Snapshot, netns: Option<u32>, bad: bool, finding: &mut Finding) {
    let ignores = snapshot.setting(netns, "tcp_rfc1337") == Some("1");
    if bad && ignores {
        finding.matters = "A SYN that is refused is answered with an ACK, and the client's RST is ignored (tcp_rfc1337 is 1): it does \
            not get in before TIME_WAIT is over, up to a minute."
            .into();
        finding.kernel =
            "tcp_rfc1337=0: then the client's RST ends TIME_WAIT, and it gets in after a second."
                .into();
    } else if bad {
        finding.matters = "A SYN that is refused is answered with an ACK; the client sends a RST, and gets in with its next SYN, a \
            second later. Other old segments cost nothing."
            .into();
    } else {
        let unknown = if snapshot.live {
            String::new()
        } else {
            format!(" Whether others were refused is not known: {NO_COUNTERS}.")
        };
        finding.matters = format!(
            "A port that comes again within a minute is no problem as long as its SYN is newer: the TIME_WAIT makes room for it.\
             {unknown}"
        )
        .into();
    }
    finding.application = if bad {
        "Keep connections open, or let the client close first: TIME_WAIT is then its own. A NAT that picks ports at random and \
         uses them late helps too."
            .into()
    } else {
        "Nothing has to be done.".into()
    };
    finding.avoid = "tcp_tw_recycle (gone since Linux 4.12) dropped the SYNs of all but one client behind an address; tcp_tw_reuse is \
        about our own connect(); tcp_timestamps=0 leaves only sequence numbers to tell old from new."
        .into();
}

#[cfg(test)]
mod tests {
    use super::{RULE, check};
    use crate::{
        analysis::Opened,
        doctor::{Ends, Namespace, NetCounters, Severity, Snapshot, Thresholds},
        event::Endpoint,
    };

    fn snapshot(name: &str, counted: u64, ends: Ends) -> Snapshot {
        let counters = |count: u64| {
            let mut counters = NetCounters::new(1);
            counters.insert_table(&format!("TcpExt: {name}\nTcpExt: {count}\n"));
            counters
        };
        Snapshot {
            timewait: true,
            live: true,
            nanoseconds: 10_000_000_000,
            namespaces: vec![Namespace {
                netns: 1,
                settings: None,
                counters: Some((counters(7), counters(7 + counted))),
            }],
            ends: vec![ends],
            ..Snapshot::default()
        }
    }

    #[test]
    fn syns_that_were_accepted_are_fine_and_refused_ones_are_not() {
        let none = || Ends::of(Opened::Passive);
        assert_eq!(RULE.severity(&snapshot("PAWSTimewait", 0, none())), None);
        assert_eq!(RULE.severity(&snapshot("PAWSTimewait", 2, none())), None);
        let notice = Some(Severity::Notice);
        assert_eq!(RULE.severity(&snapshot("PAWSTimewait", 3, none())), notice);
        // Older kernels count open connections with them: only what began TIME_WAIT anew is sure.
        assert_eq!(RULE.severity(&snapshot("PAWSEstab", 1000, none())), None);
        let restarted = Ends {
            wait_restarted: 3,
            ..none()
        };
        assert_eq!(
            RULE.severity(&snapshot("PAWSEstab", 1000, restarted)),
            notice
        );
        let taken = Ends {
            wait_syn: 100,
            ..none()
        };
        let fine = Some(Severity::Fine);
        assert_eq!(RULE.severity(&snapshot("PAWSTimewait", 0, taken)), fine);
        assert!(check(&Snapshot::default(), &Thresholds::default()).is_err());
    }

    #[test]
    fn one_address_with_many_connections_is_told_and_many_addresses_are_not() {
        let from = |addr: [u8; 4], established| {
            let mut ends = Ends {
                established,
                ..Ends::of(Opened::Passive)
            };
            ends.who.peer = Some(Endpoint {
                addr: addr.into(),
                port: 0,
            });
            ends
        };
        let mut one = snapshot("PAWSTimewait", 0, from([192, 0, 2, 1], 5000));
        assert_eq!(RULE.severity(&one), Some(Severity::Fine));
        one.ends = (1..9).map(|last| from([192, 0, 2, last], 1000)).collect();
        assert_eq!(RULE.severity(&one), None);
    }
}
