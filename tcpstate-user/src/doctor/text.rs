//! What the doctor says to people: as wide as it is read well, worst first.

use std::fmt::Write as _;

use super::{Diagnosis, Finding, Severity, Snapshot, plural, rules};
use crate::sink::{cells, escape};

/// Text whose lines end before the terminal does.
struct Page {
    text: String,
    width: usize,
}

impl Page {
    /// As wide as so many columns, as far as that is read well.
    fn new(columns: usize) -> Self {
        Self {
            text: String::new(),
            width: columns.clamp(40, 100),
        }
    }
}

/// Where the text of a finding begins.
const INDENT: usize = 8;

/// A diagnosis as text for so many columns; `colour` if a terminal shows it.
#[must_use]
pub fn text(
    diagnosis: &Diagnosis,
    snapshot: &Snapshot,
    hooks: &[&'static str],
    columns: usize,
    colour: bool,
) -> String {
    let mut out = Page::new(columns);
    let what = if snapshot.live { "watched" } else { "recorded" };
    let doubt = if snapshot.certain {
        ""
    } else {
        "; something was lost or left out: numbers are about"
    };
    let first = format!(
        "# {what} {:.1} s by {}{doubt}",
        snapshot.seconds(),
        hooks.join(", "),
    );
    wrap(&mut out, "", &first, 2);
    for finding in &diagnosis.findings {
        out.text.push('\n');
        let netns = finding.netns.filter(|_| snapshot.namespaces.len() > 1);
        of_finding(&mut out, finding, netns, colour);
    }
    if diagnosis.findings.is_empty() {
        out.text.push_str("\nnothing found\n");
    }
    out.text.push('\n');
    for (rule, more) in &diagnosis.left_out {
        wrap(
            &mut out,
            "",
            &format!("# {rule}: {more} more like these are left out"),
            2,
        );
    }
    for (rule, why) in &diagnosis.unknown {
        wrap(&mut out, "", &format!("# {rule}: not known, {why}"), 2);
    }
    let count = |severity| diagnosis.count(severity);
    // Writing to a string does not fail.
    let _ = writeln!(
        out.text,
        "# {} high, {} notice, {} fine; {} rules (--list, --explain RULE)",
        count(Severity::High),
        count(Severity::Notice),
        count(Severity::Fine),
        rules::RULES.len(),
    );
    out.text
}

/// All rules, one line each.
#[must_use]
pub fn list() -> String {
    let mut out = String::new();
    for rule in rules::RULES {
        let _ = writeln!(out, "{:12}  {}", rule.name, rule.summary);
    }
    out
}

/// The long text of a rule, for so many columns.
#[must_use]
pub fn explanation(rule: &rules::Rule, columns: usize) -> String {
    let mut out = Page::new(columns);
    let _ = writeln!(out.text, "{}: {}", rule.name, rule.summary);
    for paragraph in rule.explanation.split("\n\n") {
        out.text.push('\n');
        let words: Vec<_> = paragraph.split_ascii_whitespace().collect();
        wrap(&mut out, "", &words.join(" "), 0);
    }
    out.text
}

fn of_finding(out: &mut Page, finding: &Finding, netns: Option<u32>, colour: bool) {
    let mut title = Page::new(out.width);
    let word = finding.severity.word();
    wrap(
        &mut title,
        word,
        &format!("{}: {}", finding.rule, finding.sentence),
        INDENT,
    );
    let paint = match finding.severity {
        Severity::High => "\x1b[1;31m",
        Severity::Notice => "\x1b[1;33m",
        Severity::Fine => "\x1b[32m",
    };
    match title.text.strip_prefix(word) {
        Some(rest) if colour => {
            let _ = write!(out.text, "{paint}{word}\x1b[0m{rest}");
        }
        _ => out.text.push_str(&title.text),
    }
    if let Some(netns) = netns {
        let text = format!("network namespace {netns} (`lsns -t net` shows whose)");
        wrap(out, "where", &text, INDENT);
    }
    let mut label = "seen";
    // Some numbers are in the text of others.
    let shown = finding.evidence.iter();
    for evidence in shown.filter(|evidence| !evidence.text.is_empty()) {
        wrap(out, label, &evidence.text, INDENT);
        label = "";
    }
    label = "who";
    let [one, many] = finding.unit;
    for cause in &finding.causes {
        let count = plural(cause.count, one, many);
        wrap(out, label, &format!("{}: {count}", cause.who), INDENT);
        label = "";
    }
    if finding.more_causes > 0 {
        wrap(
            out,
            label,
            &format!("and {} more", finding.more_causes),
            INDENT,
        );
    }
    for (label, text) in [
        ("why", &finding.matters),
        ("first", &finding.application),
        ("then", &finding.kernel),
        ("effect", &finding.effect),
        ("not", &finding.avoid),
    ] {
        if !text.is_empty() {
            wrap(out, label, text, INDENT);
        }
    }
    label = "more";
    for command in &finding.see {
        // A command is copied as a whole; what is not ours in it is quoted.
        let _ = writeln!(out.text, "{label:INDENT$}{command}");
        label = "";
    }
}

/// Text that begins behind a label and goes on below itself, word by word.
fn wrap(out: &mut Page, label: &str, text: &str, indent: usize) {
    let first = if label.is_empty() && indent <= 2 {
        String::new()
    } else {
        format!("{label:indent$}")
    };
    let mut line = first;
    let mut empty = true;
    // Settings come from strangers, too.
    let text = escape::sentence(text);
    for word in text.split(' ') {
        let longer = cells::width(&line) + cells::width(word) + usize::from(!empty);
        if longer > out.width && !empty {
            out.text.push_str(line.trim_end());
            out.text.push('\n');
            line = if text.starts_with("# ") {
                "# ".to_owned()
            } else {
                " ".repeat(indent)
            };
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    out.text.push_str(line.trim_end());
    out.text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::{Page, wrap};

    #[test]
    fn lines_end_before_the_terminal_does() {
        for (columns, most) in [(80, 80), (60, 60), (90, 90), (200, 100), (1, 40)] {
            let mut out = Page::new(columns);
            wrap(&mut out, "why", &"word ".repeat(40), 8);
            wrap(&mut out, "", &format!("# {}", "word ".repeat(40)), 2);
            wrap(&mut out, "seen", &"x".repeat(101), 8);
            let out = out.text;
            assert!(out.starts_with("why     word word"));
            assert!(out.contains("\n        word word"));
            assert!(out.contains("\n# word word"));
            let long = out.lines().filter(|line| line.len() > most);
            assert_eq!(long.count(), 1, "only what cannot be broken");
            let longest = out.lines().map(str::len).filter(|len| *len <= most).max();
            assert!(longest.is_some_and(|longest| longest + 5 > most), "{out}");
        }
    }
}
