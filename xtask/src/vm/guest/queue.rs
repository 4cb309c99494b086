//! The tests of all plans: each a process of its own, some at a time.

use std::{
    collections::{BTreeSet, VecDeque},
    io,
    process::Command,
    thread,
};

use crate::{
    orders::{Orders, Plan},
    process::{self, Ended, Watched},
    protocol::{Report, TESTS, Verdict},
};

/// One test of one plan.
struct Test {
    plan: usize,
    name: String,
    /// It takes no lane: it waits more than it works.
    waiting: bool,
}

/// A test that runs.
struct Running {
    test: Test,
    watched: Watched,
}

/// Runs them all. `observers` are the ways of observing TIME_WAIT that work here.
pub fn run(
    orders: &Orders,
    observers: &str,
    report: &mut dyn FnMut(Report) -> io::Result<()>,
) -> io::Result<()> {
    let mut queue = VecDeque::new();
    let asked_for = listed(orders, &orders.arguments)?;
    for (plan, filters) in orders.plans.iter().map(|plan| &plan.filters).enumerate() {
        let names = listed(orders, filters)?;
        let names: Vec<_> = names.intersection(&asked_for).collect();
        report(Report::Tests(names.len()))?;
        for name in names {
            let begins = |beginning: &String| name.starts_with(beginning.as_str());
            let test = Test {
                plan,
                name: name.clone(),
                waiting: orders.waiting.iter().any(begins),
            };
            if test.waiting {
                queue.push_front(test);
            } else {
                queue.push_back(test);
            }
        }
    }
    let mut running: Vec<Running> = Vec::new();
    let mut started = 0;
    loop {
        while let Some(next) = queue.front() {
            let lanes = running.iter().filter(|running| !running.test.waiting);
            if !next.waiting && lanes.count() >= orders.lanes.max(1) {
                break;
            }
            let Some(test) = queue.pop_front() else { break };
            started += 1;
            report(Report::Test(test.plan, test.name.clone()))?;
            let watched = start(
                &test,
                &orders.plans[test.plan],
                observers,
                started,
                orders.limit,
            )?;
            running.push(Running { test, watched });
        }
        if running.is_empty() {
            return Ok(());
        }
        let mut still = Vec::new();
        for mut running in running {
            match running.watched.ended()? {
                None => still.push(running),
                Some((ended, output)) => tell(&running, ended, &output, report)?,
            }
        }
        running = still;
        thread::sleep(process::PAUSE);
    }
}

/// The names of the tests that these arguments of the test program mean.
fn listed(orders: &Orders, arguments: &[String]) -> io::Result<BTreeSet<String>> {
    let mut list = Command::new(TESTS);
    list.args(["--list", "--format", "terse"]).args(arguments);
    let (ended, output) = process::run(&mut list, orders.limit)?;
    if ended != Ended::By(0) {
        return Err(io::Error::other(format!(
            "the tests cannot be listed: {output}"
        )));
    }
    let names = output
        .lines()
        .filter_map(|line| line.strip_suffix(": test"));
    Ok(names.map(str::to_owned).collect())
}

fn start(
    test: &Test,
    plan: &Plan,
    observers: &str,
    number: usize,
    limit: u64,
) -> io::Result<Watched> {
    let mut command = Command::new(TESTS);
    command.args(["--exact", &test.name, "--nocapture", "--test-threads", "1"]);
    process::surrounded(&mut command)
        .env("TCPSTATE_TEST_OBSERVERS", observers)
        .envs(plan.variables.iter().cloned());
    Watched::start(&mut command, number, limit)
}

fn tell(
    running: &Running,
    ended: Ended,
    output: &str,
    report: &mut dyn FnMut(Report) -> io::Result<()>,
) -> io::Result<()> {
    let skipped = output.lines().any(|line| {
        line.starts_with("SKIPPED ")
            || line.contains(" ... SKIPPED ")
            || line.contains(" ... ignored")
    });
    let verdict = match ended {
        Ended::TooLate => Verdict::TimedOut,
        Ended::By(0) if skipped => Verdict::Skipped,
        Ended::By(0) => Verdict::Passed,
        Ended::By(_) => Verdict::Failed,
    };
    let took = u64::try_from(running.watched.took().as_millis()).unwrap_or(u64::MAX);
    let Test { plan, name, .. } = &running.test;
    report(Report::Ended(*plan, name.clone(), verdict, took))?;
    if verdict != Verdict::Passed {
        for line in output.lines() {
            report(Report::Output(line.to_owned()))?;
        }
    }
    Ok(())
}
