//! What the doctor says to machines: one object a finding, and one at the end.

use std::io;

use serde::Serialize;

use super::{Diagnosis, Finding, Severity, Snapshot};
use crate::sink::json_line;

/// The fields of a finding, as `docs/formats.md` has them.
#[derive(Serialize)]
struct Line<'a> {
    event: &'static str,
    rule: &'static str,
    severity: Severity,
    sentence: &'a str,
    netns: Option<u32>,
    evidence: &'a [super::Evidence],
    count_of: &'static str,
    causes: &'a [super::Cause],
    more_causes: usize,
    matters: &'a str,
    application: &'a str,
    kernel: &'a str,
    effect: &'a str,
    avoid: &'a str,
    see: &'a [String],
}

#[derive(Serialize)]
struct Unknown {
    rule: &'static str,
    why: &'static str,
}

#[derive(Serialize)]
struct LeftOut {
    rule: &'static str,
    count: usize,
}

#[derive(Serialize)]
struct Last<'a> {
    event: &'static str,
    seconds: f64,
    live: bool,
    hooks: &'a [&'static str],
    counts: &'static str,
    high: usize,
    notice: usize,
    fine: usize,
    left_out: Vec<LeftOut>,
    unknown: Vec<Unknown>,
}

/// A diagnosis as JSON lines.
///
/// # Errors
/// If it cannot be written as JSON.
pub fn json(
    diagnosis: &Diagnosis,
    snapshot: &Snapshot,
    hooks: &[&'static str],
) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    for finding in &diagnosis.findings {
        out.extend(json_line(&Line::new(finding))?);
    }
    let last = Last {
        event: "diagnosis",
        seconds: snapshot.seconds(),
        live: snapshot.live,
        hooks,
        counts: if snapshot.certain { "exact" } else { "about" },
        high: diagnosis.count(Severity::High),
        notice: diagnosis.count(Severity::Notice),
        fine: diagnosis.count(Severity::Fine),
        left_out: diagnosis
            .left_out
            .iter()
            .map(|(rule, count)| LeftOut {
                rule,
                count: *count,
            })
            .collect(),
        unknown: diagnosis
            .unknown
            .iter()
            .map(|(rule, why)| Unknown { rule, why })
            .collect(),
    };
    out.extend(json_line(&last)?);
    Ok(out)
}

impl<'a> Line<'a> {
    fn new(finding: &'a Finding) -> Self {
        Self {
            event: "finding",
            rule: finding.rule,
            severity: finding.severity,
            sentence: &finding.sentence,
            netns: finding.netns,
            evidence: &finding.evidence,
            count_of: finding.unit[1],
            causes: &finding.causes,
            more_causes: finding.more_causes,
            matters: &finding.matters,
            application: &finding.application,
            kernel: &finding.kernel,
            effect: &finding.effect,
            avoid: &finding.avoid,
            see: &finding.see,
        }
    }
}
