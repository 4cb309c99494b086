//! How a guest fared, for people.

use std::path::Path;
use std::time::Duration;

use super::golden::{self, Comparison};
use super::kernel::Kernel;
use super::orders::Plan;
use super::protocol::Verdict;
use super::qemu::{Took, shown};
use super::readme::{Row, Support};
use super::results::{Results, Tests};
use super::variant::Variant;

/// A guest that was run.
pub struct Outcome {
    pub kernel: &'static Kernel,
    pub variant: &'static Variant,
    pub plans: Vec<Plan>,
    pub results: Results,
    /// It did all it was asked to.
    pub whole: bool,
    pub took: Took,
}

impl Outcome {
    fn title(&self) -> String {
        self.variant.title(self.kernel.name)
    }

    fn of_plans(&self) -> impl Iterator<Item = (&Plan, &Tests)> {
        self.plans.iter().zip(&self.results.plans)
    }

    /// Some test did not pass.
    pub fn failed(&self) -> bool {
        let tests = &self.results.plans;
        tests
            .iter()
            .any(|tests| tests.failed() + tests.missing() > 0)
    }

    /// The probe, and why tests failed or were skipped.
    pub fn print_details(&self) {
        let title = self.title();
        let block = |heading: &str, lines: &[String]| {
            println!("{title}: {heading}");
            for line in lines {
                println!("    {}", shown(line));
            }
        };
        if let Some(probe) = &self.results.probe {
            block("tcpstate probe", &probe.lines);
        }
        if !self.results.troubles.is_empty() {
            block("trouble", &self.results.troubles);
        }
        for (plan, tests) in self.of_plans() {
            for test in &tests.tests {
                match test.verdict {
                    Some(Verdict::Passed) | None => {}
                    Some(Verdict::Skipped) => println!(
                        "{title}: skipped: {}: {}",
                        shown(&test.name),
                        shown(test.reason())
                    ),
                    Some(verdict) => block(
                        &format!("{} {} ({})", shown(&test.name), verdict.word(), plan.label),
                        &test.output,
                    ),
                }
            }
        }
    }

    /// The guest's lines of the table: one for itself, one for each plan.
    pub fn print_rows(&self) {
        println!(
            "{}: Linux {}, {} ({} of processor time)",
            self.title(),
            self.results
                .kernel
                .as_deref()
                .map_or_else(|| "did not start".into(), shown),
            seconds(self.took.time),
            seconds(self.took.processor)
        );
        println!("    passed failed skipped not run  tests");
        for (plan, tests) in self.of_plans() {
            println!(
                "    {:>6} {:>6} {:>7} {:>7}  {}",
                tests.count(&[Verdict::Passed]),
                tests.failed(),
                tests.count(&[Verdict::Skipped]),
                tests.missing(),
                plan.label
            );
        }
    }

    /// For README.md. Plans of which a kernel can run nothing are not named.
    pub fn row(&self) -> Option<Row> {
        let passed = |(_, tests): &(&Plan, &Tests)| tests.count(&[Verdict::Passed]) > 0;
        let plans = self.of_plans().filter(passed);
        Some(Row {
            kernel: self.kernel.name.to_owned(),
            guest: self.variant.name.to_owned(),
            support: Support::read(&golden::text(self.kernel, &self.results)?),
            plans: plans.map(|(plan, _)| plan.label.clone()).collect(),
        })
    }
}

/// Says how `tcpstate probe` differs from what is kept. True if it does not.
pub fn tell_difference(path: &Path, comparison: &Comparison) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match comparison {
        Comparison::Same => return true,
        Comparison::New => println!("tcpstate probe: there is no {name} to compare with"),
        Comparison::Changed(lines) => {
            println!("tcpstate probe differs from {name}:");
            for line in lines {
                println!("    {}", shown(line));
            }
        }
    }
    println!("    `cargo xtask vm --bless` keeps what it says now; review the difference");
    false
}

pub fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
