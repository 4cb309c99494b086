//! bind() that finds its address in use: a server that does not come up again.

use super::{Checked, Rule};
use crate::{
    analysis::Opened,
    doctor::{Cause, FailedBind, Finding, Listens, Severity, Snapshot, Thresholds, Who, plural},
};

pub const RULE: Rule = Rule {
    name: "bind",
    summary: "bind() that fails with EADDRINUSE, and what holds the address",
    explanation: "A server that is restarted and says `address already in use` was refused by bind(). Without SO_REUSEADDR \
        bind() fails while any socket has the port, connections of the server before included, and those in TIME_WAIT for 60 s \
        after it closed them. With SO_REUSEADDR only a socket that listens there is in the way.

        Whose bind() fails is told by the end of the system call (--syscalls=off does without, and this rule says so then); what \
        holds the port is counted at that moment.

        high: the same process fails at the same port --failed-binds times or more, and does not listen there in the end. \
        notice: it fails less often, or had a listener of its own there before and still has. fine: it began to listen there \
        after its last failure, so that trying again has helped.

        What helps: SO_REUSEADDR in servers (every server wants it); a new process that takes the listening socket over; ending \
        the process that listens there; SO_REUSEPORT in each listener where one process wants several. What does not: any setting \
        of TIME_WAIT. If any port was asked for (port 0), no port of the range was left: ip_local_port_range, or \
        IP_BIND_ADDRESS_NO_PORT in clients that bind() before connect().",
    check,
};

fn check(snapshot: &Snapshot, thresholds: &Thresholds) -> Checked {
    if !snapshot.calls {
        return Err("system calls were not watched");
    }
    let mut found: Vec<_> = snapshot
        .binds
        .iter()
        .map(|bind| (severity(bind, thresholds), bind))
        .collect();
    found.sort_by_key(|(severity, bind)| (*severity, std::cmp::Reverse(bind.failed)));
    Ok(found
        .into_iter()
        .map(|(severity, bind)| finding(snapshot, bind, severity))
        .collect())
}

fn severity(bind: &FailedBind, thresholds: &Thresholds) -> Severity {
    match bind.listens {
        Listens::After => Severity::Fine,
        Listens::No if bind.failed >= thresholds.failed_binds => Severity::High,
        Listens::Before | Listens::No => Severity::Notice,
    }
}

fn finding(snapshot: &Snapshot, bind: &FailedBind, severity: Severity) -> Finding {
    let any = matches!(bind.at, Some((_, 0)));
    let place = match bind.at {
        None => "an address".to_owned(),
        Some((addr, 0)) => format!("any port of {addr}"),
        Some((addr, port)) if addr.is_ipv6() => format!("[{addr}]:{port}"),
        Some((addr, port)) => format!("{addr}:{port}"),
    };
    let times = if bind.failed == 1 {
        "once"
    } else {
        "again and again"
    };
    let end = match bind.listens {
        Listens::After => ", and listens there now",
        Listens::Before => ": the process listens there already",
        Listens::No if bind.own => ": the process listened there itself",
        Listens::No => "",
    };
    let mut finding = Finding::new(
        severity,
        format!("bind() to {place} finds it in use {times}{end}"),
    );
    finding.netns = bind.netns;
    finding.count(
        "failed",
        bind.failed,
        format!("{} bind() failed with EADDRINUSE", bind.failed),
    );
    finding.count("minisockets", bind.minisockets, String::new());
    finding.count("sockets", bind.sockets, String::new());
    finding.count("listeners", bind.listeners, String::new());
    if !any {
        let listener = bind
            .listener
            .map_or_else(String::new, |listener| format!(" (of {listener})"));
        let held = [
            (bind.listeners, format!("listening{listener}")),
            (
                bind.sockets,
                if bind.sockets == 1 {
                    "connection"
                } else {
                    "connections"
                }
                .to_owned(),
            ),
            (bind.minisockets, "in TIME_WAIT or FIN_WAIT2".to_owned()),
        ];
        let held: Vec<_> = held
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        if let Some(last) = finding.evidence.last_mut() {
            last.text = if held.is_empty() {
                "nothing that is seen holds that address: a socket that is bound only".to_owned()
            } else {
                format!("that port had then: {}", held.join(", "))
            };
        }
    }
    finding.caused_by(
        ["failed bind()", "failed bind()"],
        vec![Cause {
            who: Who {
                process: bind.process,
                container: bind.container.clone(),
                netns: bind.netns,
                opened: Opened::Unknown,
                service: None,
                peer: None,
            },
            count: bind.failed,
        }],
    );
    advice(snapshot, bind, &mut finding, any);
    finding.see = vec!["tcpstate timewait 1".to_owned()];
    finding
}

fn advice(snapshot: &Snapshot, bind: &FailedBind, finding: &mut Finding, any: bool) {
    finding.matters = match bind.listens {
        Listens::After => "It has tried until the address was free.",
        Listens::Before => "The listener that it has serves; the socket that was refused does not.",
        Listens::No => "A server that cannot bind() does not serve.",
    }
    .into();
    let avoid =
        "No setting of TIME_WAIT is needed for a restart; tcp_tw_reuse is about connect() only.";
    if any {
        finding.application = "Clients that bind() an address before connect(): IP_BIND_ADDRESS_NO_PORT, so that the port is \
            picked by destination; or leave bind() out.".into();
        let range = snapshot.setting(bind.netns, "ip_local_port_range");
        if let Some(range) = range {
            finding.kernel = format!("A wider ip_local_port_range (now {range}).").into();
        }
        finding.effect = "bind() to port 0 needs a port that no other socket has; connect() only one that is free towards its \
            destination.".into();
    } else if bind.own {
        finding.application = "Its own listener was in the way: look for a second instance of it, for start-up code that runs twice, \
            or for listeners that are meant to share the port, each of which needs SO_REUSEPORT before bind()."
            .into();
        finding.effect = "SO_REUSEADDR alone would not help: a listener is in the way.".into();
    } else if bind.listeners > 0 && bind.listener.is_none() {
        finding.application = "A socket listens there whose process is not known: `ss -ltnp` may show it. End it, or give this one \
            another port; SO_REUSEPORT only if both are meant to share it, and in both."
            .into();
        finding.effect = "SO_REUSEADDR alone would not help: a listener is in the way.".into();
    } else if bind.listeners > 0 {
        finding.application = "Another process listens there: end it, or give this one another port; SO_REUSEPORT only if both \
            are meant to share it, and in both.".into();
        finding.effect = "SO_REUSEADDR alone would not help: a listener is in the way.".into();
    } else if bind.minisockets + bind.sockets > 0 {
        finding.application =
            "Set SO_REUSEADDR before bind(): then connections and TIME_WAITs are not in the way."
                .into();
        finding.effect = format!(
            "With it bind() would have succeeded in spite of {} and {}.",
            plural(bind.sockets, "connection", "connections"),
            plural(bind.minisockets, "TIME_WAIT", "TIME_WAITs"),
        )
        .into();
    } else {
        finding.application = "Look for a socket that is bound and neither listens nor is connected: it has no state to be seen \
            by; `ss -tanp state unconnected` may show it.".into();
    }
    finding.avoid = avoid.into();
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::doctor::{FailedBind, Listens, Process, Severity, Snapshot, Thresholds};

    fn found(binds: Vec<FailedBind>) -> Vec<(Severity, String)> {
        let snapshot = Snapshot {
            calls: true,
            binds,
            ..Snapshot::default()
        };
        let found = check(&snapshot, &Thresholds::default()).unwrap_or_default();
        let told =
            |finding: &crate::doctor::Finding| (finding.severity, finding.application.to_string());
        found.iter().map(told).collect()
    }

    #[test]
    fn who_listens_in_the_end_has_no_problem() {
        let bind = FailedBind {
            failed: 3,
            minisockets: 7,
            ..FailedBind::at(9000)
        };
        let once = FailedBind {
            failed: 1,
            ..bind.clone()
        };
        let up = FailedBind {
            listens: Listens::After,
            ..bind.clone()
        };
        let unknown = FailedBind {
            listeners: 1,
            ..bind.clone()
        };
        let taken = FailedBind {
            listener: Some(Process::default()),
            ..unknown.clone()
        };
        let own = FailedBind {
            own: true,
            listens: Listens::Before,
            ..taken.clone()
        };
        let left = FailedBind {
            listens: Listens::No,
            ..own.clone()
        };
        let told = found(vec![bind]);
        assert!(
            matches!(&told[..], [(Severity::High, first)] if first.contains("SO_REUSEADDR before")),
            "{told:?}"
        );
        assert!(matches!(&found(vec![once])[..], [(Severity::Notice, _)]));
        assert!(matches!(&found(vec![up])[..], [(Severity::Fine, _)]));
        assert!(
            matches!(&found(vec![taken])[..], [(Severity::High, first)] if first.contains("Another process"))
        );
        assert!(
            matches!(&found(vec![unknown])[..], [(Severity::High, first)] if first.contains("not known"))
        );
        let itself = "Its own listener";
        assert!(
            matches!(&found(vec![own])[..], [(Severity::Notice, first)] if first.contains(itself))
        );
        assert!(
            matches!(&found(vec![left])[..], [(Severity::High, first)] if first.contains(itself))
        );
        assert!(check(&Snapshot::default(), &Thresholds::default()).is_err());
    }
}
