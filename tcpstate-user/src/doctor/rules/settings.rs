//! The settings that are always blamed, as they are, with a verdict each.

use std::collections::BTreeMap;

use super::{Checked, Rule};
use crate::{
    doctor::{Finding, Severity, Snapshot, Thresholds},
    settings::Settings,
};

pub const RULE: Rule = Rule {
    name: "settings",
    summary: "the sysctls that are always blamed, with a verdict each",
    explanation: "The classic advice on TIME_WAIT is a list of settings. Here is each as it is set, and what it really does. A \
        setting alone is no problem, so this is always fine: what it causes is found by the other rules.

        tcp_tw_reuse: connect() may take over a TIME_WAIT older than a second; outgoing connections only, and both sides need \
        timestamps. 2, the default, is for loopback only. tcp_tw_recycle: gone since Linux 4.12; it dropped the SYNs of all but \
        one client behind a NAT. tcp_fin_timeout: how long a closed socket waits in FIN_WAIT2; not the time in TIME_WAIT. \
        tcp_max_tw_buckets: how many minisockets there may be; more are destroyed at once. ip_local_port_range: what connect() picks \
        from, for each destination anew. tcp_timestamps: needed by tcp_tw_reuse, and for telling old segments from new ones. \
        tcp_syncookies, tcp_max_syn_backlog, somaxconn: queues of listeners. tcp_abort_on_overflow: a RST instead of silence if \
        one is full. tcp_keepalive_time: how soon the kernel asks whether a silent peer is still there, where the application has \
        set SO_KEEPALIVE. tcp_rfc1337: whether a RST ends TIME_WAIT (0: it does). tcp_orphan_retries, tcp_max_orphans: sockets \
        that nobody holds any more and that are not done.

        If a setting is not shown, this kernel or this namespace does not have it.",
    check,
};

fn check(snapshot: &Snapshot, _: &Thresholds) -> Checked {
    // Namespaces that have the same set are one finding.
    let mut alike: BTreeMap<&BTreeMap<String, String>, Vec<&Settings>> = BTreeMap::new();
    let known = snapshot.namespaces.iter();
    for settings in known.filter_map(|namespace| namespace.settings.as_ref()) {
        alike.entry(&settings.values).or_default().push(settings);
    }
    if alike.is_empty() {
        return Err("no network namespace's settings could be read");
    }
    // What most have comes first.
    let mut alike: Vec<_> = alike.into_values().collect();
    alike.sort_by_key(|some| std::cmp::Reverse(some.len()));
    Ok(alike.iter().filter_map(|some| finding(some)).collect())
}

fn finding(alike: &[&Settings]) -> Option<Finding> {
    let settings = alike.first()?;
    let changed = settings.changed().count();
    let whose = match alike.len() {
        1 => String::new(),
        many => format!(" in {many} network namespaces"),
    };
    let sentence = match changed {
        0 => format!("nothing of TCP is set otherwise than by default{whose}"),
        1 => format!("1 setting is not the default{whose}; alone that is no problem"),
        _ => format!("{changed} settings are not the default{whose}; alone that is no problem"),
    };
    let mut finding = Finding::new(Severity::Fine, sentence);
    finding.netns = (alike.len() == 1).then_some(settings.netns);
    for (name, verdict) in VERDICTS {
        if let Some(value) = settings.get(name) {
            let verdict = verdict(value, settings);
            finding.setting(name, value, format!("{name} is {value}: {verdict}"));
        }
    }
    if settings.get("tcp_tw_recycle").is_none() {
        finding.avoid = "tcp_tw_recycle=1: this kernel does not have it (removed in Linux 4.12, since it broke clients behind NAT)."
            .into();
    }
    finding.see = vec!["tcpstate doctor --explain settings".to_owned()];
    Some(finding)
}

type Verdict = fn(&str, &Settings) -> &'static str;

/// In the order of the classic advice.
const VERDICTS: [(&str, Verdict); 14] = [
    ("tcp_tw_reuse", |value, settings| {
        match (value, settings.get("tcp_timestamps")) {
            ("0", _) => "connect() never takes over a TIME_WAIT",
            (_, Some("0")) => "without effect, since tcp_timestamps is 0",
            ("1", _) => "connect() takes over TIME_WAITs older than a second",
            ("2", _) => "connect() takes over TIME_WAITs on loopback only (the default)",
            _ => "a value that is not known",
        }
    }),
    ("tcp_tw_recycle", |value, _| match value {
        "0" => "leave it: it drops clients behind NAT",
        _ => "take it back: it drops clients behind NAT",
    }),
    (
        "tcp_fin_timeout",
        |_, _| "seconds in FIN_WAIT2 of closed sockets, not in TIME_WAIT",
    ),
    (
        "tcp_max_tw_buckets",
        |_, _| "more minisockets than that are destroyed; see overflow",
    ),
    (
        "ip_local_port_range",
        |_, _| "for each destination anew; see ports",
    ),
    ("tcp_timestamps", |value, _| match value {
        "0" => "no tcp_tw_reuse, and old segments are told by sequence numbers only",
        _ => "needed by tcp_tw_reuse",
    }),
    ("tcp_syncookies", |value, _| match value {
        "0" => "a flood of SYNs turns clients away",
        "2" => "cookies for everybody: only for tests",
        _ => "only when a queue is full (the default)",
    }),
    (
        "tcp_max_syn_backlog",
        |_, _| "half-open connections, without SYN cookies",
    ),
    (
        "somaxconn",
        |_, _| "the most that listen() may ask for; see listen",
    ),
    ("tcp_abort_on_overflow", |value, _| match value {
        "0" => "clients of a full listener wait and try again (the default)",
        _ => "clients of a full listener are refused",
    }),
    (
        "tcp_keepalive_time",
        |_, _| "seconds; only for sockets with SO_KEEPALIVE",
    ),
    ("tcp_rfc1337", |value, _| match value {
        "0" => "a RST ends TIME_WAIT (the default)",
        _ => "a RST does not end TIME_WAIT",
    }),
    ("tcp_orphan_retries", |value, _| match value {
        "0" => "means 8 (the default)",
        _ => "so often a FIN is sent again for nobody",
    }),
    (
        "tcp_max_orphans",
        |_, _| "closed and not done, of the machine; more are reset",
    ),
];

#[cfg(test)]
mod tests {
    use super::check;
    use crate::{
        doctor::{Namespace, Severity, Snapshot, Thresholds},
        settings::Settings,
    };

    #[test]
    fn odd_settings_are_no_alarm() {
        let namespace = |netns, reuse: &str, timestamps: &str| {
            let mut settings = Settings {
                netns,
                ..Settings::default()
            };
            settings.insert("ipv4/tcp_tw_reuse", reuse);
            settings.insert("ipv4/tcp_timestamps", timestamps);
            settings.insert("ipv4/tcp_fin_timeout", "1");
            Namespace {
                netns,
                settings: Some(settings),
                counters: None,
            }
        };
        let snapshot = Snapshot {
            namespaces: vec![
                namespace(1, "1", "1"),
                namespace(2, "1", "0"),
                namespace(3, "1", "1"),
            ],
            ..Snapshot::default()
        };
        let found = check(&snapshot, &Thresholds::default()).unwrap_or_default();
        let texts: Vec<_> = found
            .iter()
            .map(|finding| {
                (
                    finding.severity,
                    finding.netns,
                    finding.evidence[0].text.as_str(),
                )
            })
            .collect();
        assert_eq!(
            texts,
            [
                (
                    Severity::Fine,
                    None,
                    "tcp_tw_reuse is 1: connect() takes over TIME_WAITs older than a second"
                ),
                (
                    Severity::Fine,
                    Some(2),
                    "tcp_tw_reuse is 1: without effect, since tcp_timestamps is 0"
                ),
            ]
        );
        assert!(found[0].avoid.contains("tcp_tw_recycle"));
        assert!(check(&Snapshot::default(), &Thresholds::default()).is_err());
    }
}
