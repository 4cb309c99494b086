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

impl Test {
    /// Why it was skipped, as it said itself.
    pub fn reason(&self) -> &str {
        let said = self.output.iter().find_map(|line| {
            let (_, rest) = line.split_once("SKIPPED ")?;
            Some(rest.split_once(": ").map_or(rest, |(_, reason)| reason))
        });
        said.unwrap_or("ignored")
    }
}

/// The tests of one plan.
#[derive(Debug, Default)]
pub struct Tests {
    /// How many there are.
    pub announced: usize,
    pub tests: Vec<Test>,
}

impl Tests {
    pub fn count(&self, verdicts: &[Verdict]) -> usize {
        let ended = self.tests.iter().filter_map(|test| test.verdict);
        ended.filter(|verdict| verdicts.contains(verdict)).count()
    }

    pub fn failed(&self) -> usize {
        self.count(&[Verdict::Failed, Verdict::TimedOut])
    }

    /// The tests that were announced and did not come to their end.
    pub fn missing(&self) -> usize {
        let ended = self.tests.iter().filter(|test| test.verdict.is_some());
        self.announced.saturating_sub(ended.count())
    }
}

/// What `tcpstate probe` said.
#[derive(Debug, Default)]
pub struct Probe {
    pub status: i32,
    pub lines: Vec<String>,
}

/// The report so far.
#[derive(Debug, Default)]
pub struct Results {
    /// Release of the kernel; none before the guest is up.
    pub kernel: Option<String>,
    pub probe: Option<Probe>,
    pub troubles: Vec<String>,
    /// In the order of the orders.
    pub plans: Vec<Tests>,
    /// The guest came to its end.
    pub done: bool,
    /// Plan and number of the test that the lines of output belong to; the probe before there is one.
    speaking: Option<(usize, usize)>,
}

impl Results {
    /// Lines that are none of a report are the kernel's, and of no interest. Returns the test that has ended, and its plan.
    pub fn take(&mut self, line: &str) -> Option<(usize, &Test)> {
        match parse(line)? {
            Report::Kernel(release) => self.kernel = Some(release),
            Report::Trouble(what) => self.troubles.push(what),
            Report::Probe(status) => {
                let lines = Vec::new();
                self.probe = Some(Probe { status, lines });
            }
            Report::Tests(announced) => self.plans.push(Tests {
                announced,
                tests: Vec::new(),
            }),
            Report::Test(plan, name) => self.plans.get_mut(plan)?.tests.push(Test {
                name,
                verdict: None,
                milliseconds: 0,
                output: Vec::new(),
            }),
            Report::Ended(plan, name, verdict, milliseconds) => {
                let tests = &mut self.plans.get_mut(plan)?.tests;
                let number = tests.iter().position(|test| test.name == name)?;
                let test = tests.get_mut(number)?;
                test.verdict = Some(verdict);
                test.milliseconds = milliseconds;
                self.speaking = Some((plan, number));
                return Some((plan, test));
            }
            Report::Output(line) => match self.speaking {
                Some((plan, test)) => self
                    .plans
                    .get_mut(plan)?
                    .tests
                    .get_mut(test)?
                    .output
                    .push(line),
                None => self.probe.as_mut()?.lines.push(line),
            },
            Report::Done => self.done = true,
        }
        None
    }

    /// All tests of all plans.
    pub fn tests(&self) -> impl Iterator<Item = &Test> {
        self.plans.iter().flat_map(|plan| &plan.tests)
    }

    /// How many tests there are.
    pub fn announced(&self) -> usize {
        self.plans.iter().map(|plan| plan.announced).sum()
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
        "probe" => Report::Probe(rest.parse().ok()?),
        "tests" => Report::Tests(rest.parse().ok()?),
        "test" => {
            let (plan, name) = rest.split_once(' ')?;
            Report::Test(plan.parse().ok()?, name.to_owned())
        }
        "|" => Report::Output(rest.to_owned()),
        "ended" => {
            let mut words = rest.splitn(4, ' ');
            let plan = words.next()?.parse().ok()?;
            let word = words.next()?;
            let verdict = VERDICTS.into_iter().find(|known| known.word() == word)?;
            let milliseconds = words.next()?.parse().ok()?;
            Report::Ended(plan, words.next()?.to_owned(), verdict, milliseconds)
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
            Report::Probe(2),
            Report::Tests(26),
            Report::Test(1, "trace::half_close".to_owned()),
            Report::Output("ended 0 passed 1 x".to_owned()),
            Report::Output(String::new()),
            Report::Ended(2, "trace::x".to_owned(), Verdict::TimedOut, 60_001),
            Report::Done,
        ] {
            assert_eq!(parse(&format!("{report}\r\n")), Some(report));
        }
        assert_eq!(parse("[    1.0] Kernel panic"), None);
        assert_eq!(parse("ended well 1"), None);
    }

    #[test]
    fn output_belongs_to_what_ended_last_and_what_did_not_end_is_missing() {
        let mut results = Results::default();
        for line in [
            "kernel 7",
            "probe 0",
            "| works",
            "tests 2",
            "tests 3",
            "test 1 b",
            "test 0 a",
            "ended 0 passed 5 a",
            "test 1 a",
            "ended 1 skipped 1 a",
            "| test a ... SKIPPED a: there is no ss: none",
            "test 1 c",
            "ended 1 timed-out 9 b",
            "| why",
            "ended 9 passed 1 nonsense",
        ] {
            results.take(line);
        }
        assert_eq!(
            results.probe.map(|probe| probe.lines).unwrap_or_default(),
            ["works"]
        );
        let [first, second] = &results.plans[..] else {
            unreachable!("two plans were announced")
        };
        assert_eq!((first.missing(), second.missing()), (1, 1));
        assert_eq!((first.failed(), second.failed()), (0, 1));
        assert_eq!(second.tests[0].output, ["why"]);
        assert_eq!(second.tests[1].reason(), "there is no ss: none");
        assert!(!results.done);
    }
}
