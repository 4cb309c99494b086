//! A client or a proxy that opens a connection for each request.

use indexmap::IndexMap;

use super::{Checked, Rule};
use crate::{
    analysis::Opened,
    doctor::{
        Cause, Ends, Finding, Process, Severity, Shown, Snapshot, Thresholds, plural, share, whole,
    },
    event::Endpoint,
};

pub const RULE: Rule = Rule {
    name: "churn",
    summary: "a client or proxy that opens a connection for each request",
    explanation: "A proxy without upstream keep-alive, or a client without a pool, opens a connection for each request: a \
        round trip more before every answer, slow start from the beginning, and, if it closes first (by FIN), a local port for a \
        minute each. The numbers are connections of one process to one destination, and how long they were open.

        notice: --connection-rate a second or more, of which four in five were open for less than --short-life. It is never \
        high: what fails by it is told by `ports` and `overflow`.

        nginx: `keepalive 32;` in the upstream, and `proxy_http_version 1.1;` with `proxy_set_header Connection \"\";`. HAProxy: \
        `http-reuse`. Clients: one pool for the process, not one for each request. The server has to let connections live too: its \
        keep-alive timeout should be longer than the client's, so that the client closes first.",
    check,
};

/// Four in five.
const MOST_ARE_SHORT: f64 = 0.8;

#[expect(
    clippy::unnecessary_wraps,
    reason = "other rules cannot always be decided"
)]
fn check(snapshot: &Snapshot, thresholds: &Thresholds) -> Checked {
    type Key = (Option<u32>, Process, Option<Endpoint>);
    let mut pairs: IndexMap<Key, Vec<&Ends>> = IndexMap::default();
    let active = snapshot
        .ends
        .iter()
        .filter(|ends| ends.who.opened == Opened::Active);
    for ends in active {
        let who = &ends.who;
        // Workers of one server are one cause.
        let process = Process {
            pid: None,
            ..who.process
        };
        let key = (who.netns, process, who.service);
        pairs.entry(key).or_default().push(ends);
    }
    let sum = |ends: &[&Ends], count: fn(&Ends) -> u64| ends.iter().map(|one| count(one)).sum();
    let mut found: Vec<(u64, u64, Process, Vec<&Ends>)> = pairs
        .into_iter()
        .map(|((_, process, _), ends)| {
            let lives = sum(&ends, |one| one.lives);
            let short = sum(&ends, |one| one.short_lives);
            (lives, short, process, ends)
        })
        .filter(|(lives, short, ..)| {
            snapshot.rate(*lives) >= thresholds.connection_rate
                && share(*short, *lives) >= MOST_ARE_SHORT
        })
        .collect();
    found.sort_by_key(|(lives, _, _, ends)| {
        let service = ends.first().and_then(|one| one.who.service);
        (std::cmp::Reverse(*lives), service)
    });
    Ok(found
        .into_iter()
        .map(|(lives, short, process, ends)| {
            finding(snapshot, thresholds, (lives, short), process, &ends)
        })
        .collect())
}

fn finding(
    snapshot: &Snapshot,
    thresholds: &Thresholds,
    (lives, short): (u64, u64),
    process: Process,
    ends: &[&Ends],
) -> Finding {
    let who = ends.first().map(|one| &one.who);
    let service = who.and_then(|who| who.service);
    let netns = who.and_then(|who| who.netns);
    let to = service.map_or_else(|| "one destination".to_owned(), |to| Shown(to).to_string());
    let rate = snapshot.rate(lives);
    let mut finding = Finding::new(
        Severity::Notice,
        format!("{process} opens {rate:.1} connections a second to {to}, one for each request"),
    );
    finding.netns = netns;
    finding.count(
        "lives",
        lives,
        format!(
            "{}, {short} of them open for less than {} s",
            plural(lives, "connection", "connections"),
            thresholds.short_life
        ),
    );
    finding.count("short_lives", short, String::new());
    finding.real("rate", rate, format!("{rate:.1} a second"));
    let closes = snapshot.closes.iter().filter(|one| {
        one.who.opened == Opened::Active
            && one.who.service == service
            && one.who.netns == netns
            && one.who.process.comm == process.comm
    });
    let (local, rst, remote) = closes.fold((0, 0, 0), |(local, rst, remote), one| {
        (local + one.local, rst + one.local_rst, remote + one.remote)
    });
    let by_rst = if rst > 0 {
        format!(" ({rst} by RST)")
    } else {
        String::new()
    };
    finding.count(
        "local_first",
        local,
        format!("closed first by this side {local}{by_rst}, by the peer {remote}"),
    );
    finding.count("local_rst", rst, String::new());
    finding.count("remote_first", remote, String::new());
    let causes = ends.iter().map(|one| Cause {
        who: one.who.clone(),
        count: one.lives,
    });
    finding.caused_by(["connection", "connections"], causes.collect());
    finding.matters = "Each costs a round trip before its answer; and each that this side closes first, by FIN, holds a local port \
        for a minute."
        .into();
    finding.application = "Keep connections open: in nginx `keepalive` in the upstream, in clients one pool for all requests; and a \
        keep-alive timeout on the server that is longer than the client's."
        .into();
    finding.effect = format!(
        "With keep-alive {} connections a minute become as many as requests run at once.",
        whole(rate * 60.0)
    )
    .into();
    finding.avoid = "tcp_tw_reuse or a wider port range: they hide it until the rate grows.".into();
    let port = service.map_or_else(String::new, |service| format!(" -D {}", service.port));
    finding.see = vec![
        format!("tcpstate closers{port} 10"),
        format!("tcpstate hist --state established{port} 10"),
    ];
    finding
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::{
        analysis::Opened,
        doctor::{Ends, Snapshot, Thresholds},
    };

    #[test]
    fn many_short_ones_are_told_and_long_ones_are_not() {
        let found = |lives, short_lives, opened| {
            let ends = Ends {
                lives,
                short_lives,
                ..Ends::of(opened)
            };
            let snapshot = Snapshot {
                nanoseconds: 10_000_000_000,
                ends: vec![ends],
                ..Snapshot::default()
            };
            check(&snapshot, &Thresholds::default()).map_or(0, |found| found.len())
        };
        assert_eq!(found(200, 200, Opened::Active), 1);
        assert_eq!(found(199, 199, Opened::Active), 0);
        assert_eq!(found(200, 100, Opened::Active), 0);
        assert_eq!(found(200, 200, Opened::Passive), 0);
    }
}
