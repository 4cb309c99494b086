//! Simultaneous closes: connections that pass CLOSING.

use indexmap::IndexMap;

use super::{Checked, Rule};
use crate::doctor::{Cause, Closes, Finding, Severity, Snapshot, Thresholds, share};

pub const RULE: Rule = Rule {
    name: "closing",
    summary: "both sides close at the same time: CLOSING",
    explanation: "If both sides send their FIN before they have the other's, both pass CLOSING, and both get TIME_WAIT. It lasts \
        a round trip, so a list of sockets hardly ever shows it. It is common where both sides close after the same event: a \
        server without keep-alive and a client that has read the announced length; two ends with the same idle timeout.

        fine: --closing-share or more of at least --closes connections closed so. It is never more than that: nothing is lost by it. \
        Sockets that stay in CLOSING are told by the rule `pile-up`.

        What it costs: TIME_WAIT on both sides. If one side's idle timeout is longer than the other's, it does not happen.",
    check,
};

#[expect(
    clippy::unnecessary_wraps,
    reason = "other rules cannot always be decided"
)]
fn check(snapshot: &Snapshot, thresholds: &Thresholds) -> Checked {
    let mut namespaces: IndexMap<Option<u32>, Vec<&Closes>> = IndexMap::default();
    for closes in &snapshot.closes {
        namespaces.entry(closes.who.netns).or_default().push(closes);
    }
    let sum = |closes: &[&Closes], count: fn(&Closes) -> u64| {
        closes.iter().map(|one| count(one)).sum::<u64>()
    };
    let mut found: Vec<_> = namespaces
        .into_iter()
        .map(|(netns, closes)| {
            let all = sum(&closes, |one| one.local + one.remote);
            (sum(&closes, |one| one.simultaneous), all, netns, closes)
        })
        .filter(|(both, all, ..)| {
            *all >= thresholds.closes && *both > 0 && share(*both, *all) >= thresholds.closing_share
        })
        .collect();
    found.sort_by_key(|(both, _, netns, _)| (std::cmp::Reverse(*both), *netns));
    Ok(found
        .into_iter()
        .map(|(both, all, netns, closes)| finding((both, all), netns, &closes))
        .collect())
}

fn finding((both, all): (u64, u64), netns: Option<u32>, closes: &[&Closes]) -> Finding {
    let of_all = share(both, all);
    let mut finding = Finding::new(
        Severity::Fine,
        format!(
            "{:.0} % of closes are simultaneous: nothing is lost",
            of_all * 100.0
        ),
    );
    finding.netns = netns;
    finding.count(
        "simultaneous",
        both,
        format!("{both} of {all} ends passed CLOSING; on loopback both ends are counted"),
    );
    finding.count("closes", all, String::new());
    finding.real("share", of_all, String::new());
    let causes = closes.iter().map(|one| Cause {
        who: one.who.clone(),
        count: one.simultaneous,
    });
    finding.caused_by(
        ["simultaneous close", "simultaneous closes"],
        causes.collect(),
    );
    finding.matters =
        "Both sides have sent their FIN before they had the other's: both get TIME_WAIT, no data is lost.".into();
    finding.application = "Nothing has to be done. Different idle timeouts on both sides (the client's shorter) make it rare.".into();
    finding.see = vec!["tcpstate hist --state closing 10".to_owned()];
    finding
}

#[cfg(test)]
mod tests {
    use super::RULE;
    use crate::{
        analysis::Opened,
        doctor::{Closes, Severity, Snapshot},
    };

    #[test]
    fn a_large_share_is_told_and_is_fine() {
        let told = |simultaneous, local| {
            let snapshot = Snapshot {
                closes: vec![Closes {
                    local,
                    simultaneous,
                    ..Closes::of(Opened::Passive)
                }],
                ..Snapshot::default()
            };
            RULE.severity(&snapshot)
        };
        assert_eq!(told(5, 100), Some(Severity::Fine));
        assert_eq!(told(4, 100), None);
        assert_eq!(told(99, 99), None);
        assert_eq!(told(0, 100), None);
    }
}
