//! TIME_WAITs that a RST of the peer has ended before their time.

use super::{Checked, Rule, UNOBSERVED};
use crate::doctor::{Cause, Finding, Severity, Snapshot, Thresholds, Waits, plural, share, whole};

pub const RULE: Rule = Rule {
    name: "cut-short",
    summary: "TIME_WAITs that a RST has ended (RFC 1337, tcp_rfc1337)",
    explanation: "A RST that comes for a connection in TIME_WAIT ends it at once, unless tcp_rfc1337 is 1 \
        (`tcp_timewait_state_process`). For the rest of the 60 s nothing keeps late segments of the old connection out of the next \
        one between the same ports, and nobody answers a FIN that comes again: RFC 1337 calls it assassination.

        Two kinds of peers do it. Some reset what they have closed already: close() with data that nobody has read, SO_LINGER \
        0, a load balancer or a firewall that clears its table. Others want the port again: their new SYN is older than what \
        TIME_WAIT remembers, so it is answered with an ACK of the old connection; they answer that with a RST, and try again \
        after a second. The rule `nat` tells of these.

        notice: --cut-short or more in a network namespace. It is never high: data is at risk only if a segment of the old \
        connection is still on its way and fits into the new one.

        tcp_rfc1337=1 lets TIME_WAIT ignore a RST. Then a client whose SYN is older does not get in before TIME_WAIT is over. \
        It has nothing to do with RSTs that we send.",
    check,
};

/// The whole time of TIME_WAIT, in seconds (`TCP_TIMEWAIT_LEN`).
const WHOLE: f64 = 60.0;

fn check(snapshot: &Snapshot, thresholds: &Thresholds) -> Checked {
    if !snapshot.timewait {
        return Err(UNOBSERVED);
    }
    let mut found: Vec<_> = snapshot
        .waits_by_namespace()
        .map(|(netns, waits)| (waits.iter().map(|one| one.rst).sum::<u64>(), netns, waits))
        .filter(|(rst, ..)| *rst >= thresholds.cut_short)
        .collect();
    found.sort_by_key(|(rst, netns, _)| (std::cmp::Reverse(*rst), *netns));
    Ok(found
        .into_iter()
        .map(|(rst, netns, waits)| finding(snapshot, rst, netns, &waits))
        .collect())
}

fn finding(snapshot: &Snapshot, rst: u64, netns: Option<u32>, waits: &[&Waits]) -> Finding {
    let ended = waits.iter().map(|one| one.ended()).sum::<u64>();
    let mut finding = Finding::new(
        Severity::Notice,
        format!(
            "{} ended by a RST of the peer, not by time",
            plural(rst, "TIME_WAIT was", "TIME_WAITs were")
        ),
    );
    finding.netns = netns;
    finding.count(
        "rst",
        rst,
        format!(
            "{rst} of {ended} that ended, {:.0} %",
            share(rst, ended) * 100.0
        ),
    );
    finding.count("ended", ended, String::new());
    let restarted = waits.iter().map(|one| one.restarted).sum::<u64>();
    if restarted > 0 {
        finding.count(
            "restarted",
            restarted,
            format!("begun anew, since an old segment came: {restarted} times"),
        );
    }
    if let Some(value) = snapshot.setting(netns, "tcp_rfc1337") {
        finding.setting("tcp_rfc1337", value, format!("tcp_rfc1337 is {value}"));
    }
    let ends = snapshot.ends.iter().filter(|one| one.who.netns == netns);
    let causes = ends.map(|one| Cause {
        who: one.who.clone(),
        count: one.wait_rst,
    });
    finding.caused_by(
        ["TIME_WAIT ended by RST", "TIME_WAITs ended by RST"],
        causes.collect(),
    );
    finding.matters = "For the rest of the 60 s nothing keeps a late segment out of the next connection between the same ports. \
        That is rare; but somebody sends RSTs for what has been closed properly."
        .into();
    finding.application = "Look at these peers: do they close with data unread, or with SO_LINGER 0, or does a load balancer between \
        forget connections? Those whose SYN was too old for TIME_WAIT do it too: see the rule `nat`."
        .into();
    finding.kernel =
        "tcp_rfc1337=1 lets TIME_WAIT ignore them; not where clients come again from the same port within a minute: with it \
         they wait until TIME_WAIT is over."
            .into();
    finding.effect = format!(
        "With tcp_rfc1337=1 there would be up to {} more TIME_WAITs at this rate.",
        whole(snapshot.rate(rst) * WHOLE).max(rst)
    )
    .into();
    finding.avoid =
        "It is no reason to lower tcp_max_tw_buckets, and tcp_fin_timeout is about FIN_WAIT2."
            .into();
    finding.see = vec!["tcpstate trace -j | jq 'select(.reason == \"rst\")'".to_owned()];
    finding
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::{
        analysis::Opened,
        doctor::{Ends, Severity, Snapshot, Thresholds, Waits},
    };

    #[test]
    fn those_that_expire_are_not_told() {
        let found = |rst, expired| {
            let snapshot = Snapshot {
                timewait: true,
                nanoseconds: 10_000_000_000,
                waits: vec![Waits {
                    rst,
                    expired,
                    ..Waits::of(1)
                }],
                ends: vec![Ends {
                    wait_rst: rst,
                    ..Ends::of(Opened::Passive)
                }],
                ..Snapshot::default()
            };
            check(&snapshot, &Thresholds::default()).unwrap_or_default()
        };
        assert_eq!(found(9, 5000), []);
        assert_eq!(found(0, 5000), []);
        let told = found(20, 20);
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].severity, Severity::Notice);
        assert_eq!(told[0].evidence[0].text, "20 of 40 that ended, 50 %");
        assert_eq!(told[0].causes[0].count, 20);
        assert!(told[0].effect.contains("up to 120 more"));
        assert!(check(&Snapshot::default(), &Thresholds::default()).is_err());
    }
}
