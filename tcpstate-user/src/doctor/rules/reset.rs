//! Connections that end by a RST: the peer's, or our own.

use indexmap::IndexMap;

use super::{Checked, NO_COUNTERS, NO_ERRORS, Rule};
use crate::{
    analysis::Opened,
    doctor::{Cause, Ends, Finding, Severity, Shown, Snapshot, Thresholds, plural, share},
    event::Endpoint,
};

pub const RULE: Rule = Rule {
    name: "reset",
    summary: "connections that end by a RST, the peer's or ours",
    explanation: "A RST ends a connection at once: what was on its way is lost, and the other side sees ECONNRESET. The kernel \
        sends one for us when a socket is closed with data that nobody has read, with SO_LINGER 0, or when data comes for a \
        closed one. Some close with SO_LINGER 0 on purpose, to avoid TIME_WAIT; it is the wrong way, since it loses data.

        Connections on which no data has gone either way are left out: health checks of load balancers and port scanners end by \
        RST as a matter of course.

        notice: --failed or more with one service, and --failed-share or more of all with it. high: the same if we reset them and \
        the kernel counted as many close() with unread data (TCPAbortOnClose, of the namespace; not in recordings), or if the peer was \
        not heard any more (ETIMEDOUT): these have lost data.

        What helps: reading until the end before closing; shutdown() and waiting for the peer's end; no SO_LINGER 0. \
        tcp_rfc1337 has to do with RSTs that come in TIME_WAIT only.",
    check,
};

/// What ends a connection so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    ours: u64,
    theirs: u64,
    silent: u64,
    idle: u64,
    lives: u64,
}

/// Network namespace, who opened, and the service.
type Key = (Option<u32>, Opened, Option<Endpoint>);

fn check(snapshot: &Snapshot, thresholds: &Thresholds) -> Checked {
    if !snapshot.errors {
        return Err(NO_ERRORS);
    }
    let mut services: IndexMap<Key, Vec<&Ends>> = IndexMap::default();
    for ends in &snapshot.ends {
        let key = (ends.who.netns, ends.who.opened, ends.who.service);
        services.entry(key).or_default().push(ends);
    }
    let mut found: Vec<_> = services
        .into_values()
        .map(|ends| (Counts::of(&ends), ends))
        .filter(|(counts, _)| {
            counts.all() >= thresholds.failed
                && share(counts.all(), counts.lives.max(counts.all())) >= thresholds.failed_share
        })
        .collect();
    found.sort_by_key(|(counts, ends)| {
        let service = ends.first().and_then(|one| one.who.service);
        (std::cmp::Reverse(counts.all()), service)
    });
    Ok(found
        .into_iter()
        .map(|(counts, ends)| finding(snapshot, thresholds, counts, &ends))
        .collect())
}

impl Counts {
    fn of(ends: &[&Ends]) -> Self {
        let mut all = Self::default();
        for one in ends {
            all.ours += one.rst_sent;
            all.theirs += one.rst_received;
            all.silent += one.timeout;
            all.idle += one.rst_sent_idle + one.rst_received_idle;
            all.lives += one.lives;
        }
        all
    }

    const fn all(self) -> u64 {
        self.ours + self.theirs + self.silent
    }
}

fn finding(
    snapshot: &Snapshot,
    thresholds: &Thresholds,
    counts: Counts,
    ends: &[&Ends],
) -> Finding {
    let Counts {
        ours,
        theirs,
        silent,
        idle,
        lives,
    } = counts;
    let first = ends.first().map(|one| &one.who);
    // The kernel counts why it sent a RST at close(), but not for whom.
    let namespace = first.and_then(|who| snapshot.namespace(who.netns?));
    let unread = namespace.and_then(|namespace| namespace.counted("TcpExt.TCPAbortOnClose"));
    let lost = ours.min(unread.unwrap_or(0)) + silent;
    let severity = if lost >= thresholds.failed {
        Severity::High
    } else {
        Severity::Notice
    };
    let service = first.and_then(|who| who.service);
    let with = service.map_or_else(
        || "one service".to_owned(),
        |service| Shown(service).to_string(),
    );
    let how = if ours >= theirs && ours >= silent {
        "are reset by this host"
    } else if theirs >= silent {
        "are reset by the peer"
    } else {
        "end since the peer is silent"
    };
    let mut finding = Finding::new(
        severity,
        format!(
            "{} with {with} {} without a proper close: most {how}",
            plural(counts.all(), "connection", "connections"),
            if counts.all() == 1 { "ends" } else { "end" },
        ),
    );
    finding.netns = first.and_then(|who| who.netns);
    let shown = |count: u64, text: &str| {
        if count > 0 {
            format!("{count} {text}")
        } else {
            String::new()
        }
    };
    finding.count(
        "rst_sent",
        ours,
        shown(ours, "reset by this host (unread data, SO_LINGER 0)"),
    );
    finding.count(
        "rst_received",
        theirs,
        shown(theirs, "reset by the peer (ECONNRESET)"),
    );
    finding.count(
        "timeout",
        silent,
        shown(silent, "given up by the kernel (ETIMEDOUT)"),
    );
    finding.count(
        "idle",
        idle,
        shown(idle, "more by RST before any data: not counted"),
    );
    if let Some(unread) = unread.filter(|_| ours > 0) {
        finding.count(
            "unread",
            unread,
            format!("{unread} close() in this namespace left data unread (TCPAbortOnClose)"),
        );
    }
    finding.count("lives", lives, format!("of {lives} that were open"));
    let causes = ends.iter().map(|one| Cause {
        who: one.who.clone(),
        count: one.rst_sent + one.rst_received + one.timeout,
    });
    finding.caused_by(["connection", "connections"], causes.collect());
    advice(snapshot, (ours, theirs), &mut finding);
    finding.see = vec!["tcpstate conns -j | jq 'select(.how | startswith(\"rst\"))'".to_owned()];
    finding
}

fn advice(snapshot: &Snapshot, (ours, theirs): (u64, u64), finding: &mut Finding) {
    if ours >= theirs {
        let unknown = if snapshot.live {
            String::new()
        } else {
            // It would be high if as many were closed with data unread.
            format!(" How many left data unread is not known: {NO_COUNTERS}.")
        };
        finding.matters = format!(
            "What the peer had not read yet may be lost to it: a RST overtakes data. Its application sees ECONNRESET.{unknown}"
        )
        .into();
        finding.application = "Read until the end before close(), or shutdown() and wait for the peer's end; take SO_LINGER 0 out if \
            it was put in against TIME_WAIT."
            .into();
        finding.effect = format!(
            "{ours} connections would end by FIN, and get TIME_WAIT if this host closes first."
        )
        .into();
    } else {
        finding.matters =
            "The peer did not want what we sent, or died; what it had not read is lost.".into();
        finding.application = "Look at the peers listed here: a timeout of theirs that is shorter than our answers take, a proxy's \
            idle timeout, or a crash."
            .into();
    }
    finding.avoid = "SO_LINGER 0 against TIME_WAIT: TIME_WAIT costs 256 bytes, a RST costs data. tcp_rfc1337 is about RSTs in \
        TIME_WAIT only."
        .into();
}

#[cfg(test)]
mod tests {
    use super::RULE;
    use crate::{
        analysis::Opened,
        doctor::{Ends, Severity, Snapshot},
    };

    #[test]
    fn health_checks_are_no_loss() {
        let told = |ends: Ends| {
            let snapshot = Snapshot {
                errors: true,
                ends: vec![ends],
                ..Snapshot::default()
            };
            RULE.severity(&snapshot)
        };
        let none = Ends {
            lives: 100,
            ..Ends::of(Opened::Passive)
        };
        let theirs = Ends {
            rst_received: 20,
            ..none.clone()
        };
        assert_eq!(told(theirs), Some(Severity::Notice));
        let ours = Ends {
            rst_sent: 20,
            ..none.clone()
        };
        assert_eq!(told(ours.clone()), Some(Severity::Notice));
        let silent = Ends {
            timeout: 10,
            ..none.clone()
        };
        assert_eq!(told(silent), Some(Severity::High));
        let few = Ends {
            lives: 10_000,
            ..ours
        };
        assert_eq!(told(few), None);
        let checks = Ends {
            rst_received_idle: 90,
            rst_sent_idle: 10,
            ..none
        };
        assert_eq!(told(checks), None);
    }
}
