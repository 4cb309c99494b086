//! connect() that finds no local port, now or soon.

use indexmap::IndexMap;

use super::{Checked, Rule};
use crate::{
    analysis::Opened,
    doctor::{
        Cause, Ends, Finding, Portless, Ports, Severity, Shown, Snapshot, Thresholds, Who, share,
        whole,
    },
    event::Endpoint,
};

pub const RULE: Rule = Rule {
    name: "ports",
    summary: "connect() that finds no local port, and when there will be none",
    explanation: "A connection is its four numbers: source address and port, destination address and port. connect() \
        picks a source port that is free towards this destination, out of ip_local_port_range without \
        ip_local_reserved_ports; so ports run out for each source, destination and destination port by itself, and the \
        whole machine having many connections says nothing. If none is free, connect() fails with EADDRNOTAVAIL (not \
        with EADDRINUSE, as is often written; that is bind()).

        A port is held while the connection is open, and for the 60 s of its TIME_WAIT if this side closed first (by FIN). So a \
        client that opens R connections a second to one destination and closes first needs 60 R ports: with 28,232 ports \
        (32768 to 60999) that is 470 a second.

        high: connect() has failed for want of a port; or more than --ports-share of the ports are in use and the rest is \
        gone within --ports-soon seconds as things go; or none is left. notice: fewer are in use, but they run out within \
        that time; or more than --ports-share are in use. Where tcp_tw_reuse lets connect() take over TIME_WAITs (by \
        default on loopback), only failures are high.

        What helps, in this order: keep connections open (keep-alive, a pool); let the other side close first; more \
        destination or source addresses; a wider ip_local_port_range; tcp_tw_reuse=1. What does not: tcp_fin_timeout (it is \
        not the time in TIME_WAIT), tcp_tw_recycle (gone since Linux 4.12), more file descriptors.",
    check,
};

/// All ports that are not reserved for root, as `ip_local_port_range` may have them.
const WIDEST: u64 = 65_535 - 1024 + 1;

#[expect(
    clippy::unnecessary_wraps,
    reason = "other rules cannot always be decided"
)]
fn check(snapshot: &Snapshot, thresholds: &Thresholds) -> Checked {
    let mut found: Vec<_> = snapshot
        .ports
        .iter()
        .filter_map(|ports| Some((severity(ports, thresholds)?, ports)))
        .collect();
    found.sort_by_key(|(severity, ports)| {
        let free = ports.limit.map(|limit| limit.saturating_sub(ports.used));
        (*severity, std::cmp::Reverse(ports.failed), free)
    });
    let towards = Towards::each(snapshot);
    let none = Towards::default();
    let finding = |(severity, ports): (_, &Ports)| {
        let towards = towards.get(&(ports.netns, ports.destination));
        finding(snapshot, ports, severity, towards.unwrap_or(&none))
    };
    Ok(found.into_iter().map(finding).collect())
}

/// What is known of connections to one destination.
#[derive(Default)]
struct Towards<'a> {
    portless: Vec<&'a Portless>,
    ends: Vec<&'a Ends>,
}

impl<'a> Towards<'a> {
    /// Of each destination in each namespace: there may be tens of thousands.
    fn each(snapshot: &'a Snapshot) -> IndexMap<(Option<u32>, Option<Endpoint>), Self> {
        let key = |who: &Who| (who.netns, who.service);
        let mut all = IndexMap::<_, Self>::default();
        for one in &snapshot.portless {
            all.entry(key(&one.who)).or_default().portless.push(one);
        }
        for one in &snapshot.ends {
            all.entry(key(&one.who)).or_default().ends.push(one);
        }
        all
    }
}

fn severity(ports: &Ports, thresholds: &Thresholds) -> Option<Severity> {
    if ports.failed > 0 {
        return Some(Severity::High);
    }
    let limit = ports.limit?;
    let full = share(ports.used, limit) >= thresholds.ports_share;
    let soon = ports
        .until_none
        .is_some_and(|seconds| seconds <= thresholds.ports_soon);
    let bad = full && soon;
    match (bad, full || soon && ports.used > limit / 10) {
        // TIME_WAITs can be taken over: it is not known to be bad.
        (true, _) if ports.reuse && ports.minisockets > 0 => Some(Severity::Notice),
        (true, _) => Some(Severity::High),
        (false, true) => Some(Severity::Notice),
        (false, false) => None,
    }
}

fn finding(
    snapshot: &Snapshot,
    ports: &Ports,
    severity: Severity,
    towards: &Towards<'_>,
) -> Finding {
    let to = ports.destination.map_or_else(
        || "one destination".to_owned(),
        |destination| Shown(destination).to_string(),
    );
    let sentence = match (ports.failed, ports.until_none) {
        (0, Some(seconds)) => {
            format!("local ports towards {to} run out in {seconds:.0} s as things go")
        }
        (0, None) => format!("most local ports towards {to} are in use"),
        (failed, _) => {
            format!("connect() to {to} found no local port {failed} times (EADDRNOTAVAIL)")
        }
    };
    let mut finding = Finding::new(severity, sentence);
    finding.netns = ports.netns;
    evidence(snapshot, ports, &mut finding);
    let unit = if ports.failed > 0 {
        "failed connect()"
    } else {
        "connect()"
    };
    finding.caused_by([unit; 2], causes(towards));
    finding.matters = if ports.failed > 0 {
        "These connections were never made: the application saw an error at once, and the peer \
         knows nothing of it."
    } else {
        "When none is left, connect() fails at once with EADDRNOTAVAIL; before, it searches the \
         range for a free one and gets slow."
    }
    .into();
    finding.application = if holds_waits(ports) {
        "Keep connections to this destination open and use them again (keep-alive, a pool); or let \
         the peer close first: TIME_WAIT is then its own, and costs it no port."
    } else {
        "These are open connections, not TIME_WAITs: bound the pool, or look for connections that \
         are never closed."
    }
    .into();
    advice(snapshot, ports, towards, &mut finding);
    finding.avoid =
        "tcp_fin_timeout does not shorten TIME_WAIT (60 s, a constant); tcp_tw_recycle is \
                     gone since Linux 4.12; a smaller tcp_max_tw_buckets destroys TIME_WAITs that \
                     protect the next connection."
            .into();
    finding.see = vec![
        "tcpstate timewait 1".to_owned(),
        ports.destination.map_or_else(
            || "tcpstate closers 10".to_owned(),
            |destination| format!("tcpstate closers -D {} 10", destination.port),
        ),
    ];
    finding
}

/// Whether most ports in use are so by minisockets.
fn holds_waits(ports: &Ports) -> bool {
    share(ports.minisockets, ports.used) >= 0.5
}

fn evidence(snapshot: &Snapshot, ports: &Ports, finding: &mut Finding) {
    let limit = ports.limit;
    finding.count(
        "used",
        ports.used,
        match limit {
            Some(limit) => format!(
                "{} of {limit} local ports in use, {} of them by TIME_WAIT or FIN_WAIT2",
                ports.used, ports.minisockets
            ),
            None => format!(
                "{} local ports in use, {} of them by TIME_WAIT or FIN_WAIT2; how many there are is not known",
                ports.used, ports.minisockets
            ),
        },
    );
    finding.count("minisockets", ports.minisockets, String::new());
    if let Some(limit) = limit {
        finding.count("limit", limit, String::new());
    }
    if let Some(range) = snapshot.setting(ports.netns, "ip_local_port_range") {
        finding.setting(
            "ip_local_port_range",
            range,
            format!("ip_local_port_range is {range}"),
        );
    }
    if ports.failed > 0 {
        finding.count("failed", ports.failed, String::new());
    }
    if let Some(growth) = ports.growth.filter(|growth| *growth > 0.0) {
        finding.real("growth", growth, format!("{growth:.1} more a second"));
    }
    if let Some(seconds) = ports.until_none {
        finding.real("seconds_until_none", seconds, String::new());
    }
}

/// Who could not connect; and if everybody could, who opens the connections.
fn causes(towards: &Towards<'_>) -> Vec<Cause> {
    let failed = towards.portless.iter().map(|one| Cause {
        who: one.who.clone(),
        count: one.failed,
    });
    let failed: Vec<_> = failed.collect();
    if !failed.is_empty() {
        return failed;
    }
    let opens = towards.ends.iter();
    let opens = opens.filter(|one| one.who.opened == Opened::Active);
    let cause = |one: &&Ends| Cause {
        who: one.who.clone(),
        count: one.attempts,
    };
    opens.map(cause).collect()
}

fn advice(snapshot: &Snapshot, ports: &Ports, towards: &Towards<'_>, finding: &mut Finding) {
    let waits = holds_waits(ports);
    let reuse = snapshot.setting(ports.netns, "tcp_tw_reuse");
    let stamps = snapshot.setting(ports.netns, "tcp_timestamps");
    let mut kernel = Vec::new();
    let mut effect = Vec::new();
    if let Some(limit) = ports.limit.filter(|limit| *limit < WIDEST / 2) {
        kernel
            .push("ip_local_port_range=\"1024 65535\" (reserve what servers listen on)".to_owned());
        effect.push(format!(
            "a full range has {WIDEST} ports instead of {limit}"
        ));
    }
    match (waits, ports.reuse, reuse, stamps) {
        (true, true, _, _) => effect.push(
            "tcp_tw_reuse already lets connect() take over TIME_WAITs older than a second here"
                .to_owned(),
        ),
        (true, _, _, Some("0")) => {
            kernel.push("tcp_tw_reuse would need tcp_timestamps=1, which is 0 here".to_owned());
        }
        (true, false, Some(value), _) => {
            kernel.push(format!(
                "tcp_tw_reuse=1 (now {value}) lets connect() take over TIME_WAITs older than a second"
            ));
            effect.push(format!(
                "with tcp_tw_reuse up to {} of the {} ports in use could be taken over",
                ports.minisockets, ports.used
            ));
        }
        _ => {}
    }
    let rate: u64 = towards.ends.iter().map(|one| one.attempts).sum();
    if waits && rate > 0 {
        let minute = whole(snapshot.rate(rate) * 60.0);
        effect.push(format!(
            "connections that are kept open need a port each, these need {minute} a minute"
        ));
    }
    finding.kernel = sentence(&kernel).into();
    finding.effect = sentence(&effect).into();
}

/// Parts of a sentence, or nothing.
fn sentence(parts: &[String]) -> String {
    if parts.is_empty() {
        return String::new();
    }
    let text = parts.join("; ");
    let mut characters = text.chars();
    let first = characters.next().map(|first| first.to_ascii_uppercase());
    // The names of settings stay as they are.
    let first = first.filter(|_| !text.starts_with("tcp_") && !text.starts_with("ip_"));
    match first {
        Some(first) => format!("{first}{}.", characters.as_str()),
        None => format!("{text}."),
    }
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::doctor::{Diagnosis, Ports, Severity, Snapshot, Thresholds};

    fn ports(used: u64, limit: u64) -> Ports {
        Ports {
            netns: Some(1),
            source: None,
            destination: None,
            used,
            minisockets: used,
            limit: Some(limit),
            growth: None,
            until_none: None,
            failed: 0,
            reuse: false,
        }
    }

    fn severities(ports: Vec<Ports>) -> Vec<Severity> {
        let snapshot = Snapshot {
            ports,
            ..Snapshot::default()
        };
        let found = check(&snapshot, &Thresholds::default()).unwrap_or_default();
        found.iter().map(|finding| finding.severity).collect()
    }

    #[test]
    fn severity_follows_the_ports_that_are_left() {
        use Severity::{High, Notice};
        assert_eq!(severities(vec![ports(20_000, 28_232)]), []);
        assert_eq!(severities(vec![ports(25_000, 28_232)]), [Notice]);
        let soon = |used, seconds| Ports {
            until_none: Some(seconds),
            ..ports(used, 28_232)
        };
        assert_eq!(severities(vec![soon(25_000, 60.0)]), [High]);
        assert_eq!(severities(vec![soon(25_000, 6000.0)]), [Notice]);
        assert_eq!(severities(vec![soon(5_000, 60.0)]), [Notice]);
        // A start-up of a few connections is no forecast.
        assert_eq!(severities(vec![soon(500, 60.0)]), []);
        let reused = Ports {
            reuse: true,
            ..soon(28_232, 0.0)
        };
        assert_eq!(severities(vec![reused.clone()]), [Notice]);
        let failed = Ports {
            failed: 1,
            ..reused
        };
        // The worst comes first, and what is more than can be read is counted.
        let all = vec![soon(5_000, 60.0), failed];
        assert_eq!(severities(all), [High, Notice]);
        let snapshot = Snapshot {
            ports: vec![soon(28_232, 0.0); 9],
            ..Snapshot::default()
        };
        let diagnosis = Diagnosis::of(&snapshot, &Thresholds::default());
        assert_eq!(diagnosis.count(High), 5);
        assert_eq!(diagnosis.left_out, [("ports", 4)]);
    }
}
