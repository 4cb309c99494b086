//! Sockets that stay in CLOSE_WAIT: an application that does not close.

use indexmap::IndexMap;

use super::{Checked, Rule, TOO_SHORT};
use crate::doctor::{Cause, Finding, Process, Severity, Snapshot, Stay, Thresholds, plural};

pub const RULE: Rule = Rule {
    name: "close-wait",
    summary: "applications that do not close what the peer has closed",
    explanation: "CLOSE_WAIT begins when the peer's FIN comes and ends when our application closes. No timer of the kernel \
        ends it: sockets that stay there are descriptors that the application has forgotten, until it runs out of them (EMFILE) \
        or ends. Half-close is the exception: the peer has shut down its sending side only, and still waits for our answer.

        high: --staying sockets or more of one process have been in CLOSE_WAIT for --stay seconds or more. notice: fewer. \
        CLOSE_WAITs that are closed sooner are not counted: each connection that the peer closes first has one.

        What helps: closing in the application, in every path through it, those of errors and timeouts included; reading until \
        the end of the stream tells that the peer has closed. What does not: any setting of the kernel. tcp_keepalive_time does \
        not end CLOSE_WAIT as long as the peer's kernel answers, and tcp_fin_timeout is about another state.",
    check,
};

fn check(snapshot: &Snapshot, thresholds: &Thresholds) -> Checked {
    let mut processes: IndexMap<(Process, Option<u32>), Vec<&Stay>> = IndexMap::default();
    for stay in snapshot
        .stays
        .iter()
        .filter(|stay| stay.state == "close_wait")
    {
        let key = (stay.who.process, stay.who.netns);
        processes.entry(key).or_default().push(stay);
    }
    if processes.is_empty() && snapshot.short {
        return Err(TOO_SHORT);
    }
    let sum = |stays: &[&Stay]| stays.iter().map(|stay| stay.sockets).sum::<u64>();
    let mut found: Vec<_> = processes
        .into_values()
        .map(|stays| (sum(&stays), stays))
        .collect();
    found.sort_by_key(|(sockets, stays)| {
        let pid = stays.first().and_then(|stay| stay.who.process.pid);
        (std::cmp::Reverse(*sockets), pid)
    });
    Ok(found
        .into_iter()
        .map(|(sockets, stays)| {
            let severity = if sockets >= thresholds.staying {
                Severity::High
            } else {
                Severity::Notice
            };
            finding(sockets, &stays, severity, snapshot.stay)
        })
        .collect())
}

fn finding(sockets: u64, stays: &[&Stay], severity: Severity, stay: f64) -> Finding {
    let process = stays
        .first()
        .map_or_else(Process::default, |stay| stay.who.process);
    let verb = if sockets == 1 { "stays" } else { "stay" };
    let mut finding = Finding::new(
        severity,
        format!(
            "{} of {process} {verb} in CLOSE_WAIT: it does not close",
            plural(sockets, "socket", "sockets")
        ),
    );
    finding.netns = stays.first().and_then(|stay| stay.who.netns);
    finding.count(
        "sockets",
        sockets,
        format!("{sockets} in CLOSE_WAIT for {stay} s or more"),
    );
    let oldest = stays
        .iter()
        .max_by(|left, right| f64::total_cmp(&left.age.unwrap_or(0.0), &right.age.unwrap_or(0.0)));
    if let Some((age, at_least)) = oldest.and_then(|stay| Some((stay.age?, stay.at_least))) {
        let least = if at_least { "at least " } else { "" };
        finding.real("oldest", age, format!("the oldest for {least}{age:.1} s"));
    }
    let causes = stays.iter().map(|stay| Cause {
        who: stay.who.clone(),
        count: stay.sockets,
    });
    finding.caused_by(["socket", "sockets"], causes.collect());
    finding.matters = "Nothing but this process ends them, so they only get more, until it has no descriptors left (EMFILE). \
        Unless the peer has only half-closed, and still waits for an answer.".into();
    finding.application =
        "Close the socket when reading returns the end (0 bytes) or an error, in every path; a restart frees them for today.".into();
    finding.effect = format!(
        "{} buffers are freed.",
        plural(sockets, "descriptor and its", "descriptors and their")
    )
    .into();
    finding.avoid = "No sysctl ends CLOSE_WAIT: neither tcp_keepalive_time (the peer's kernel answers) nor tcp_fin_timeout \
        (FIN_WAIT2 only).".into();
    finding.see = vec![process.pid.map_or_else(
        || "tcpstate states --leaks --state close_wait".to_owned(),
        |pid| format!("tcpstate states --leaks --state close_wait -p {pid}"),
    )];
    finding
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::{
        analysis::Opened,
        doctor::{Process, Severity, Snapshot, Stay, Thresholds, Who},
    };

    fn stay(pid: u32, state: &str, sockets: u64) -> Stay {
        Stay {
            who: Who {
                process: Process {
                    pid: Some(pid),
                    comm: None,
                },
                ..Who::nobody(Opened::Passive)
            },
            state: state.to_owned(),
            sockets,
            age: Some(30.0),
            at_least: true,
        }
    }

    #[test]
    fn many_of_one_process_are_a_leak() {
        let stays = vec![
            stay(1, "close_wait", 6),
            stay(1, "close_wait", 5),
            stay(2, "close_wait", 9),
            stay(3, "fin_wait2", 50),
        ];
        let snapshot = Snapshot {
            stays,
            ..Snapshot::default()
        };
        let found = check(&snapshot, &Thresholds::default()).unwrap_or_default();
        let told: Vec<_> = found
            .iter()
            .map(|finding| (finding.severity, finding.causes.len()))
            .collect();
        assert_eq!(told, [(Severity::High, 2), (Severity::Notice, 1)]);
        let short = Snapshot {
            short: true,
            ..Snapshot::default()
        };
        assert!(check(&short, &Thresholds::default()).is_err());
    }
}
