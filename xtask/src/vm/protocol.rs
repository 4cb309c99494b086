//! What the host leaves in the guest, and what the guest reports over its second serial line, one fact a line.

use std::fmt;

/// What the guest is to do.
pub const ORDERS: &str = "/orders";
/// The folder of the modules, named so that their order is the one to load them in.
pub const MODULES: &str = "/modules";
/// The test program.
pub const TESTS: &str = "/tests";

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Passed,
    Failed,
    Skipped,
    /// It did not end in the time it has.
    TimedOut,
}

impl Verdict {
    pub const fn word(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::TimedOut => "timed-out",
        }
    }
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The guest is up, with this release of the kernel.
    Kernel(String),
    /// Something that did not go as wished, and does not end the run.
    Trouble(String),
    /// `tcpstate probe` has ended with this status, and what follows is its output.
    Probe(i32),
    /// So many tests will be run for the next plan of the orders.
    Tests(usize),
    /// This test of the plan of this number is started.
    Test(usize, String),
    /// It has ended so, after so many milliseconds, and what follows is its output.
    Ended(usize, String, Verdict, u64),
    /// A line of output.
    Output(String),
    /// The guest has done all it was asked to.
    Done,
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel(release) => write!(out, "kernel {release}"),
            Self::Trouble(what) => write!(out, "trouble {what}"),
            Self::Probe(status) => write!(out, "probe {status}"),
            Self::Tests(count) => write!(out, "tests {count}"),
            Self::Test(plan, name) => write!(out, "test {plan} {name}"),
            Self::Ended(plan, name, verdict, milliseconds) => {
                write!(out, "ended {plan} {} {milliseconds} {name}", verdict.word())
            }
            Self::Output(line) => write!(out, "| {line}"),
            Self::Done => write!(out, "done"),
        }
    }
}
