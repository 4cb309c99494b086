//! Sockets that stay in a state of the close: the peer does not close, or nobody acknowledges our FIN.

use indexmap::IndexMap;

use super::{Checked, Rule, TOO_SHORT};
use crate::doctor::{Cause, Finding, Severity, Snapshot, Stay, Thresholds, plural};

pub const RULE: Rule = Rule {
    name: "pile-up",
    summary: "FIN_WAIT, CLOSING, LAST_ACK that stay: the peer or the network",
    explanation: "FIN_WAIT2: we have closed, the peer's kernel has acknowledged it, and its application has not closed. \
        FIN_WAIT1, CLOSING, LAST_ACK: nobody acknowledges our FIN, or the data before it: the peer or the way to it is gone, or it \
        does not read. In CLOSING and LAST_ACK the peer has closed too.

        In FIN_WAIT2 a socket that the application has closed ends after tcp_fin_timeout (60 s), most of the time as a \
        minisocket; one of which only the sending side was shut down stays as long as the application lets it. These are counted \
        here: full sockets. Without an \
        acknowledgement the kernel sends again, tcp_orphan_retries times (0 means 8): a minute or two. What it sent again is counted \
        (RetransSegs), but not how much of it was a FIN.

        notice: --staying or more of one process and service are in such a state for --stay seconds or more. It is never \
        high: the kernel ends them.

        What helps in FIN_WAIT2: closing instead of shutdown() alone, or a timeout on reading after it. tcp_fin_timeout shortens \
        only that of closed sockets, and never TIME_WAIT.",
    check,
};

const STATES: [&str; 4] = ["fin_wait1", "fin_wait2", "closing", "last_ack"];

fn check(snapshot: &Snapshot, thresholds: &Thresholds) -> Checked {
    let mut piles: IndexMap<(Option<u32>, &str), Vec<&Stay>> = IndexMap::default();
    for stay in &snapshot.stays {
        if let Some(state) = STATES.iter().find(|state| **state == stay.state) {
            piles.entry((stay.who.netns, state)).or_default().push(stay);
        }
    }
    let mut found: Vec<_> = piles
        .into_iter()
        .filter(|(_, stays)| stays.iter().any(|stay| stay.sockets >= thresholds.staying))
        .map(|((netns, state), stays)| {
            let sockets = stays.iter().map(|stay| stay.sockets).sum::<u64>();
            (sockets, netns, state, stays)
        })
        .collect();
    if found.is_empty() && snapshot.short {
        return Err(TOO_SHORT);
    }
    found.sort_by_key(|(sockets, netns, state, _)| (std::cmp::Reverse(*sockets), *netns, *state));
    Ok(found
        .into_iter()
        .map(|(sockets, netns, state, stays)| finding(snapshot, (sockets, netns, state), &stays))
        .collect())
}

fn finding(
    snapshot: &Snapshot,
    (sockets, netns, state): (u64, Option<u32>, &str),
    stays: &[&Stay],
) -> Finding {
    let waits = state == "fin_wait2";
    let name = state.to_ascii_uppercase();
    let why = match state {
        "fin_wait2" => "their peers do not close",
        "fin_wait1" => "nobody acknowledges data or FIN",
        _ => "nobody acknowledges the end",
    };
    let stay = plural(sockets, "socket stays", "sockets stay");
    let sentence = format!("{stay} in {name}: {why}");
    let mut finding = Finding::new(Severity::Notice, sentence);
    finding.netns = netns;
    finding.count(
        "sockets",
        sockets,
        format!("{sockets} for {} s or more", snapshot.stay),
    );
    let ages = stays.iter().filter_map(|stay| stay.age);
    if let Some(oldest) = ages.max_by(f64::total_cmp) {
        finding.real(
            "oldest",
            oldest,
            format!("the oldest for {oldest:.1} s or more"),
        );
    }
    let retries = if waits {
        "tcp_fin_timeout"
    } else {
        "tcp_orphan_retries"
    };
    if let Some(value) = snapshot.setting(netns, retries) {
        finding.setting(retries, value, format!("{retries} is {value}"));
    }
    let again = snapshot.counted(netns, "Tcp.RetransSegs");
    if let Some(again) = again.filter(|again| !waits && *again > 0) {
        finding.count(
            "retransmitted",
            again,
            format!("{again} segments sent again in this namespace, data or FIN (RetransSegs)"),
        );
    }
    let causes = stays.iter().map(|stay| Cause {
        who: stay.who.clone(),
        count: stay.sockets,
    });
    finding.caused_by(["socket", "sockets"], causes.collect());
    if waits {
        finding.matters = "Our application still holds these sockets after shutdown(); no timer of the kernel ends them, the peer's \
            close does."
            .into();
        finding.application = "Here: close() instead of shutdown() alone, or a timeout for reading after it. At the peer: it leaks \
            (its CLOSE_WAIT)."
            .into();
        finding.kernel = "Nothing: tcp_fin_timeout is for sockets that are closed.".into();
        finding.avoid =
            "tcp_fin_timeout neither ends these nor shortens TIME_WAIT; it does for orphans."
                .into();
    } else {
        finding.matters = "The peer is gone, or the way to it, or it does not read: what we sent last is sent again and again. The kernel gives up in a minute or two."
            .into();
        finding.application = "Look at the peers and at the network; many peers at once are the network, one is itself.".into();
        finding.kernel =
            "tcp_orphan_retries (0 means 8) decides how long; a smaller one frees memory sooner."
                .into();
        finding.avoid = "It has to do with neither TIME_WAIT nor tcp_fin_timeout.".into();
    }
    finding.see = vec![format!(
        "tcpstate states --leaks --state {state} --by remote"
    )];
    finding
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::{
        analysis::Opened,
        doctor::{Ends, Snapshot, Stay, Thresholds},
    };

    #[test]
    fn only_what_piles_up_is_told() {
        let found = |state: &str, sockets| {
            let stay = Stay {
                who: Ends::of(Opened::Passive).who,
                state: state.to_owned(),
                sockets,
                age: Some(30.0),
                at_least: true,
            };
            let snapshot = Snapshot {
                stays: vec![stay],
                ..Snapshot::default()
            };
            check(&snapshot, &Thresholds::default()).map_or(0, |found| found.len())
        };
        assert_eq!(found("fin_wait2", 10), 1);
        assert_eq!(found("last_ack", 10), 1);
        assert_eq!(found("fin_wait1", 10), 1);
        assert_eq!(found("closing", 10), 1);
        assert_eq!(found("fin_wait2", 9), 0);
        assert_eq!(found("close_wait", 50), 0);
    }
}
