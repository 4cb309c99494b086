//! What the doctor says to machines: one object a finding, and one at the end.

use serde::Serialize;

use super::{Diagnosis, Finding, Severity, Snapshot};

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
struct Last<'a> {
    event: &'static str,
    seconds: f64,
    live: bool,
    hooks: &'a [&'static str],
    counts: &'static str,
    high: usize,
    notice: usize,
    fine: usize,
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
) -> serde_json::Result<String> {
    let mut out = String::new();
    for finding in &diagnosis.findings {
        out += &serde_json::to_string(&Line::new(finding))?;
        out.push('\n');
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
        unknown: diagnosis
            .unknown
            .iter()
            .map(|(rule, why)| Unknown { rule, why })
            .collect(),
    };
    out += &serde_json::to_string(&last)?;
    out.push('\n');
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
            count_of: finding.unit,
            causes: &finding.causes,
            matters: &finding.matters,
            application: &finding.application,
            kernel: &finding.kernel,
            effect: &finding.effect,
            avoid: &finding.avoid,
            see: &finding.see,
        }
    }
}
