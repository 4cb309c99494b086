//! Connections that do not come to be: refused, unreachable, not answered.

use indexmap::IndexMap;

use super::{Checked, NO_ERRORS, Rule, TOO_SHORT};
use crate::{
    analysis::Opened,
    doctor::{Cause, Ends, Finding, Severity, Shown, Snapshot, Stay, Thresholds, plural, share},
    event::Endpoint,
};

pub const RULE: Rule = Rule {
    name: "failed",
    summary: "connect() refused, not answered, unreachable, or given up",
    explanation: "What becomes of connect(): refused (ECONNREFUSED: a RST came, nobody listens there, or the listener's queue is \
        full and tcp_abort_on_overflow is set), not answered (ETIMEDOUT, after tcp_syn_retries, two minutes by default; before, those that have waited for --stay seconds or \
        more), \
        unreachable (EHOSTUNREACH, ENETUNREACH: a router or a firewall said so), or given up (the application had a timeout of \
        its own and closed the socket). connect() that finds no local port is the rule `ports`.

        high: --failed or more to one destination, and --failed-share or more of all that were made to it. notice: --failed \
        or more, but a smaller share: retries hide them.

        One that nobody answers tells of a firewall, a dead host, or SYNs that a full listen queue dropped; then the peer's own \
        doctor knows more. What does not help: tcp_syn_retries and timeouts only decide how long it takes to fail.",
    check,
};

fn check(snapshot: &Snapshot, thresholds: &Thresholds) -> Checked {
    if !snapshot.errors {
        return Err(NO_ERRORS);
    }
    let mut destinations: IndexMap<(Option<u32>, Option<Endpoint>), To<'_>> = IndexMap::default();
    let active = snapshot
        .ends
        .iter()
        .filter(|ends| ends.who.opened == Opened::Active);
    for ends in active {
        let key = (ends.who.netns, ends.who.service);
        destinations.entry(key).or_default().ends.push(ends);
    }
    let waiting = snapshot.stays.iter();
    for stay in waiting.filter(|stay| stay.state == "syn_sent") {
        let key = (stay.who.netns, stay.who.service);
        destinations.entry(key).or_default().waiting.push(stay);
    }
    let mut found: Vec<_> = destinations
        .into_iter()
        .map(|((_, service), to)| (to.failed(), service, to))
        .filter(|(failed, ..)| *failed >= thresholds.failed)
        .collect();
    if found.is_empty() && snapshot.short {
        return Err(TOO_SHORT);
    }
    found.sort_by_key(|(failed, service, _)| (std::cmp::Reverse(*failed), *service));
    Ok(found
        .into_iter()
        .map(|(failed, service, to)| finding(snapshot, thresholds, failed, service, &to))
        .collect())
}

/// What was tried towards one destination.
#[derive(Debug, Default)]
struct To<'a> {
    ends: Vec<&'a Ends>,
    /// Nobody has answered these yet.
    waiting: Vec<&'a Stay>,
}

impl To<'_> {
    fn sum(&self, count: impl Fn(&Ends) -> u64) -> u64 {
        self.ends.iter().map(|one| count(one)).sum()
    }

    fn waiting(&self) -> u64 {
        self.waiting.iter().map(|stay| stay.sockets).sum()
    }

    fn failed(&self) -> u64 {
        self.sum(Ends::failed) + self.waiting()
    }

    fn netns(&self) -> Option<u32> {
        let ended = self.ends.first().map(|one| &one.who);
        ended.or(self.waiting.first().map(|stay| &stay.who))?.netns
    }
}

fn finding(
    snapshot: &Snapshot,
    thresholds: &Thresholds,
    failed: u64,
    service: Option<Endpoint>,
    made: &To<'_>,
) -> Finding {
    let established = made.sum(|one| one.established);
    let of_all = share(failed, failed + established);
    let kinds = [
        ("refused", made.sum(|one| one.refused)),
        ("connect_timeout", made.sum(|one| one.connect_timeout)),
        ("unreachable", made.sum(|one| one.unreachable)),
        ("given_up", made.sum(|one| one.given_up)),
        ("waiting", made.waiting()),
    ];
    let most = kinds.iter().max_by_key(|(_, count)| *count);
    let most = most.map_or("refused", |(kind, _)| *kind);
    let severity = if of_all >= thresholds.failed_share {
        Severity::High
    } else {
        Severity::Notice
    };
    let to = service.map_or_else(|| "one destination".to_owned(), |to| Shown(to).to_string());
    let how = match most {
        "refused" => "are refused",
        "connect_timeout" | "waiting" => "are not answered",
        "unreachable" => "do not reach it",
        _ => "are given up before it answers",
    };
    let mut finding = Finding::new(
        severity,
        format!(
            "{failed} of {} to {to} fail: most {how}",
            plural(failed + established, "connection", "connections")
        ),
    );
    finding.netns = made.netns();
    finding.count(
        "failed",
        failed,
        format!("{failed} failed, {:.0} % of all to it", of_all * 100.0),
    );
    for (name, count) in kinds {
        let text = match name {
            "refused" => format!("{count} refused (ECONNREFUSED)"),
            "connect_timeout" => format!("{count} not answered (ETIMEDOUT)"),
            "unreachable" => format!("{count} unreachable (EHOSTUNREACH, ENETUNREACH)"),
            "waiting" => format!(
                "{count} not answered for {} s or more, and waiting still",
                snapshot.stay
            ),
            _ => format!("{count} given up by the application"),
        };
        let text = if count > 0 { text } else { String::new() };
        finding.count(name, count, text);
    }
    finding.count(
        "established",
        established,
        format!("{established} succeeded"),
    );
    let ended = made.ends.iter().map(|one| Cause {
        who: one.who.clone(),
        count: one.failed(),
    });
    let waiting = made.waiting.iter().map(|stay| Cause {
        who: stay.who.clone(),
        count: stay.sockets,
    });
    let causes = ended.chain(waiting).collect();
    finding.caused_by(["failed connect()", "failed connect()"], causes);
    advice(&mut finding, most, &to);
    finding.see = vec![service.map_or_else(
        || "tcpstate conns -w".to_owned(),
        |service| format!("tcpstate conns -w -D {}", service.port),
    )];
    finding
}

fn advice(finding: &mut Finding, most: &str, to: &str) {
    let (matters, application, kernel) = match most {
        "refused" => (
            "The peer's host answers and says no: nobody listens there, or it wants nobody more.",
            format!("Is the server at {to} running, and is that its port? If it is restarting, let clients wait longer from try to try."),
            "On the peer: somaxconn and the backlog of listen() if its queue overflows and tcp_abort_on_overflow is 1.",
        ),
        "connect_timeout" | "waiting" => (
            "No answer comes at all: the host is gone, a firewall drops SYNs, or a full listen queue does.",
            format!("Look at {to} itself; give connect() a timeout of its own, so that it fails while somebody waits."),
            "On the peer: its doctor's rule for full listen queues; here tcp_syn_retries only decides how long it takes to fail.",
        ),
        "unreachable" => (
            "A router or a firewall says that there is no way.",
            "Look at the route and at the firewalls on the way: `ip route get` shows the first step.".to_owned(),
            "",
        ),
        _ => (
            "The application closed the socket before the handshake was over: its timeout is shorter than the way and the queue.",
            format!("Look at how long connections to {to} take that succeed (`tcpstate hist --state syn_sent`), then at the timeout."),
            "",
        ),
    };
    finding.matters = matters.into();
    finding.application = application.into();
    finding.kernel = kernel.into();
    finding.avoid =
        "Neither local ports nor TIME_WAIT have to do with these; more retries make more load."
            .into();
}

#[cfg(test)]
mod tests {
    use super::{RULE, check};
    use crate::{
        analysis::Opened,
        doctor::{Ends, Severity, Snapshot, Stay, Thresholds, Who},
    };

    #[test]
    fn many_and_a_large_share_are_bad() {
        let told = |refused, established| {
            let ends = Ends {
                established,
                refused,
                ..Ends::of(Opened::Active)
            };
            let snapshot = Snapshot {
                errors: true,
                ends: vec![ends],
                ..Snapshot::default()
            };
            RULE.severity(&snapshot)
        };
        assert_eq!(told(10, 0), Some(Severity::High));
        assert_eq!(told(10, 1000), Some(Severity::Notice));
        assert_eq!(told(9, 0), None);
        assert_eq!(told(0, 1000), None);
        assert!(check(&Snapshot::default(), &Thresholds::default()).is_err());
    }

    #[test]
    fn those_that_nobody_has_answered_yet_have_failed() {
        let told = |state: &str, sockets| {
            let snapshot = Snapshot {
                errors: true,
                stays: vec![Stay {
                    who: Who::nobody(Opened::Active),
                    state: state.to_owned(),
                    sockets,
                    age: Some(20.0),
                    at_least: false,
                }],
                ..Snapshot::default()
            };
            RULE.severity(&snapshot)
        };
        assert_eq!(told("syn_sent", 10), Some(Severity::High));
        assert_eq!(told("syn_sent", 9), None);
        assert_eq!(told("close_wait", 10), None);
    }
}
