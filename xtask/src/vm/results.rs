//! What one guest has reported.

use super::protocol::{Report, Verdict};

/// A test that was run, or is running.
#[derive(Debug, PartialEq, Eq)]
pub struct Test {
    pub name: String,
    /// None while it runs.
    pub verdict: Option<Verdict>,
    pub milliseconds: u64,
    /// Kept unless it passed.
    pub output: Vec<String>,
}

/// The report so far.
#[derive(Debug, Default)]
pub struct Results {
    /// Release of the kernel; none before the guest is up.
    pub kernel: Option<String>,
    /// The output of `tcpstate probe`.
    pub probe: Vec<String>,
    pub troubles: Vec<String>,
    /// How many tests there are.
    pub announced: usize,
    pub tests: Vec<Test>,
    /// The guest came to its end.
    pub done: bool,
}

impl Results {
    /// Lines that are none of a report are the kernel's, and of no interest.
    pub fn take(&mut self, line: &str) {
        match parse(line) {
            Some(Report::Kernel(release)) => self.kernel = Some(release),
            Some(Report::Trouble(what)) => self.troubles.push(what),
            Some(Report::Tests(count)) => self.announced = count,
            Some(Report::Test(name)) => self.tests.push(Test {
                name,
                verdict: None,
                milliseconds: 0,
                output: Vec::new(),
            }),
            Some(Report::Output(line)) => match self.tests.last_mut() {
                Some(test) => test.output.push(line),
                None => self.probe.push(line),
            },
            Some(Report::Ended(verdict, milliseconds)) => {
                if let Some(test) = self.tests.last_mut() {
                    test.verdict = Some(verdict);
                    test.milliseconds = milliseconds;
                }
            }
            Some(Report::Done) => self.done = true,
            Some(Report::Probe) | None => {}
        }
    }

    pub fn count(&self, verdicts: &[Verdict]) -> usize {
        let ended = self.tests.iter().filter_map(|test| test.verdict);
        ended.filter(|verdict| verdicts.contains(verdict)).count()
    }

    /// The tests that were announced and did not come to their end.
    pub fn missing(&self) -> usize {
        let ended = self.tests.iter().filter(|test| test.verdict.is_some());
        self.announced.saturating_sub(ended.count())
    }

    /// The hook that `tcpstate probe` would use.
    pub fn hook(&self) -> &str {
        self.probe
            .iter()
            .find_map(|line| Some(line.trim_end().strip_suffix("used")?.split_once("works")?.0))
            .map_or("none", str::trim)
    }
}

fn parse(line: &str) -> Option<Report> {
    const VERDICTS: [Verdict; 4] = [
        Verdict::Passed,
        Verdict::Failed,
        Verdict::Skipped,
        Verdict::TimedOut,
    ];
    let line = line.trim_end_matches(['\r', '\n']);
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    Some(match word {
        "kernel" => Report::Kernel(rest.to_owned()),
        "trouble" => Report::Trouble(rest.to_owned()),
        "probe" => Report::Probe,
        "tests" => Report::Tests(rest.parse().ok()?),
        "test" => Report::Test(rest.to_owned()),
        "|" => Report::Output(rest.to_owned()),
        "ended" => {
            let (word, milliseconds) = rest.split_once(' ')?;
            let verdict = VERDICTS.into_iter().find(|known| known.word() == word)?;
            Report::Ended(verdict, milliseconds.parse().ok()?)
        }
        "done" => Report::Done,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_guest_writes() {
        for report in [
            Report::Kernel("6.1.0-1-cloud-amd64".to_owned()),
            Report::Trouble("x cannot be loaded: File exists".to_owned()),
            Report::Probe,
            Report::Tests(26),
            Report::Test("trace::half_close".to_owned()),
            Report::Output("ended passed 1".to_owned()),
            Report::Output(String::new()),
            Report::Ended(Verdict::TimedOut, 60_001),
            Report::Done,
        ] {
            assert_eq!(parse(&format!("{report}\r\n")), Some(report));
        }
        assert_eq!(parse("[    1.0] Kernel panic"), None);
        assert_eq!(parse("ended well 1"), None);
    }

    #[test]
    fn what_did_not_end_is_missing() {
        let mut results = Results::default();
        for line in [
            "kernel 7",
            "probe",
            "|   BTF tracepoint      no     ",
            "|   classic tracepoint  works  used",
            "tests 3",
            "test a",
            "ended passed 5",
            "test b",
            "| why",
            "ended timed-out 9",
            "test c",
        ] {
            results.take(line);
        }
        assert_eq!(results.hook(), "classic tracepoint");
        assert_eq!(results.missing(), 1);
        assert_eq!(results.count(&[Verdict::Failed, Verdict::TimedOut]), 1);
        assert_eq!(results.tests[1].output, ["why"]);
        assert!(!results.done);
    }
}
