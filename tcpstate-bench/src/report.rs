//! BENCHMARKS.md.

use std::fmt::Write as _;

use crate::{
    added::AddedTimes,
    bench::Bench,
    bpf::Floor,
    figures::number,
    goal::Verdict,
    kernel::Cost,
    memory::Kept,
    profile::{self, Part, Profile},
    rates::Rates,
    replay::Replay,
    start::Start,
    subject::Subject,
};

/// Everything that was measured.
#[derive(Debug, Default)]
pub struct Results {
    pub rates: Option<Rates>,
    pub costs: Option<Vec<Cost>>,
    pub added: Option<AddedTimes>,
    pub profiles: Option<Vec<Profile>>,
    pub starts: Option<Vec<Start>>,
    pub replays: Option<Vec<Replay>>,
    pub kept: Option<Vec<Kept>>,
    /// What cannot run here, and why.
    pub absent: Vec<String>,
}

/// As Markdown.
pub fn markdown(
    bench: &Bench,
    command: &str,
    machine: &[String],
    subjects: &[Subject],
    results: &Results,
    verdicts: &[Verdict],
) -> String {
    let mut page = Page(String::new());
    page.line("# What it costs\n");
    page.line(&format!("Written by `{command}`.\n"));
    if bench.quick {
        page.line("**Quick: runs are too short and too few to conclude anything from.**\n");
    }
    for line in machine {
        page.line(&format!("- {line}"));
    }
    page.line(&format!(
        "- Load: `{}`, its threads as many as cores; client and server are on this machine, in a network namespace that is new for each run \
         (so no TIME_WAIT is left of the one before), with tcp_max_tw_buckets at 4,000,000 and destinations in turn, so that no addresses and ports come twice",
        bench.load.shown()
    ));
    page.line(&format!(
        "- The measurement took {} min {} s",
        bench.began.elapsed().as_secs() / 60,
        bench.began.elapsed().as_secs() % 60
    ));
    page.line("\nFigures are medians, in brackets the least and the greatest.");
    if !verdicts.is_empty() {
        page.goals(verdicts);
    }
    if let Some(rates) = &results.rates {
        page.rates(bench, subjects, rates);
    }
    if let Some(costs) = &results.costs {
        page.costs(subjects, costs);
    }
    if let (Some(rates), Some(costs)) = (&results.rates, &results.costs) {
        page.bounds(bench, subjects, rates, costs);
    }
    if let Some(added) = &results.added {
        page.added(subjects, added);
    }
    if let Some(profiles) = &results.profiles {
        page.profiles(profiles);
    }
    if let Some(starts) = &results.starts {
        page.starts(starts);
    }
    if let Some(replays) = &results.replays {
        page.replays(replays);
    }
    if let Some(kept) = &results.kept {
        page.kept(kept);
    }
    page.absent(subjects, results);
    page.0
}

struct Page(String);

impl Page {
    fn line(&mut self, line: &str) {
        self.0 += line;
        self.0.push('\n');
    }

    fn head(&mut self, title: &str, text: &str, columns: &[&str]) {
        // Writing to a String cannot fail.
        let _ = write!(self.0, "\n## {title}\n\n{text}\n\n");
        self.row(columns);
        self.line(&format!("|{}", " --- |".repeat(columns.len())));
    }

    fn row<T: AsRef<str>>(&mut self, cells: &[T]) {
        let cells: Vec<_> = cells
            .iter()
            .map(|cell| cell.as_ref().replace('|', "\\|"))
            .collect();
        self.line(&format!("| {} |", cells.join(" | ")));
    }

    fn goals(&mut self, verdicts: &[Verdict]) {
        let met = verdicts.iter().filter(|verdict| verdict.met).count();
        self.head(
            "Goals",
            &format!("{met} of {} met.", verdicts.len()),
            &["figure", "goal", "measured", ""],
        );
        for verdict in verdicts {
            let word = if verdict.met { "met" } else { "**not met**" };
            self.row(&[&verdict.figure, &verdict.goal, &verdict.measured, word]);
        }
    }

    fn rates(&mut self, bench: &Bench, subjects: &[Subject], rates: &Rates) {
        self.head(
            "Connection rate",
            &format!(
                "Runs without and with the tool in turn, {} pairs; each run with it is compared with the two beside it. Without: {} connections/s, \
                 p99 {} us, {} CPU seconds a second. User and system: CPU seconds of the tool itself for a million transitions of the load; a tool that loses some has less to do for them.{}",
                bench.pairs,
                rates.without.shown(0),
                rates.p99.shown(0),
                rates.cpu.shown(2),
                errors(rates)
            ),
            &["", "command", "ratio", "connections/s", "p99 (us)", "user (s)", "system (s)", "peak memory (MiB)"],
        );
        for (subject, rate) in subjects.iter().zip(&rates.rows) {
            if rate.ratio.0.is_empty() {
                continue;
            }
            let peak = rate.peak.median().unwrap_or_default() / f64::from(1 << 20);
            self.row(&[
                subject.name.clone(),
                command(subject),
                rate.ratio.shown(2),
                rate.with.shown(0),
                rate.p99.shown(0),
                rate.user.shown(2),
                rate.system.shown(2),
                format!("{peak:.1}"),
            ]);
        }
    }

    fn costs(&mut self, subjects: &[Subject], costs: &[Cost]) {
        self.head(
            "Time in the kernel, and losses",
            "What the kernel counts of each program (run_time_ns, run_cnt; the counting itself takes time, and calling a program is not in it), all \
             programs together for each transition of the load, and each: runs for a transition, and how long one takes. \
             Lost: what the load has made and the tool's output does not have, in another run without that counting; more than there was if others used the machine.",
            &["", "ns a transition", "programs", "lost"],
        );
        for (subject, cost) in subjects.iter().zip(costs) {
            if cost.failed.is_some() {
                continue;
            }
            let programs = cost.programs.iter().map(|program| {
                format!(
                    "{} {:.2} x {:.0} ns",
                    program.name,
                    number(program.times) / number(cost.transitions),
                    number(program.nanoseconds) / number(program.times)
                )
            });
            let lost = cost.seen.map_or_else(
                || "not told".to_owned(),
                |(seen, made)| {
                    let more = seen.saturating_sub(made);
                    if more > 0 {
                        format!("{more} more than {made}")
                    } else {
                        let lost = made - seen;
                        format!(
                            "{lost} of {made} ({:.2} %)",
                            100.0 * number(lost) / number(made.max(1))
                        )
                    }
                },
            );
            self.row(&[
                subject.name.clone(),
                cost.each()
                    .map_or_else(|| "-".to_owned(), |each| format!("{each:.0}")),
                programs.collect::<Vec<_>>().join("; "),
                lost,
            ]);
        }
    }

    /// What the goals leave for a transition, beside what it takes.
    fn bounds(&mut self, bench: &Bench, subjects: &[Subject], rates: &Rates, costs: &[Cost]) {
        let (Some(cpu), Some(rate)) = (rates.cpu.median(), rates.without.median()) else {
            return;
        };
        let transitions = number(bench.load.mode.transitions());
        let each = 1e9 * cpu / rate / transitions;
        self.head(
            "What bounds the connection rate",
            &format!(
                "Processors are busy all the time, so what is done for a transition is not done for connections. A connection of this load takes {:.1} us of \
                 processor time, and has {transitions:.0} transitions: {each:.0} ns each. Left: what the goal allows for a transition, for everything. \
                 Programs and process: what it takes, from the two tables above. Alone: the ratio that these would give; calling the programs, and what they \
                 and the process push out of the caches, comes on top. The rows `empty`, `empties` and `count` of the table of rates are what programs cost \
                 that send nothing and have no process that reads it. At its goal: the ratio if programs took no time at all, and the process just \
                 what its own goal (user CPU) allows it.",
                each * transitions / 1e3,
            ),
            &["", "left (ns)", "programs (ns)", "process (ns)", "alone", "measured", "at its goal"],
        );
        for ((subject, rate), cost) in subjects.iter().zip(&rates.rows).zip(costs) {
            let (Some(goal), Some(user), Some(system), Some(programs)) = (
                subject.goals.ratio,
                rate.user.median(),
                rate.system.median(),
                cost.each(),
            ) else {
                continue;
            };
            let process = 1e3 * (user + system);
            let allowed = subject.goals.user_seconds.map(|seconds| 1e3 * seconds);
            self.row(&[
                subject.name.clone(),
                format!("{:.0}", each * (1.0 / goal - 1.0)),
                format!("{programs:.0}"),
                format!("{process:.0}"),
                format!("{:.2}", each / (each + programs + process)),
                rate.ratio.shown(2),
                allowed.map_or_else(
                    || "-".to_owned(),
                    |allowed| format!("{:.2}", each / (each + allowed)),
                ),
            ]);
        }
    }

    fn added(&mut self, subjects: &[Subject], added: &AddedTimes) {
        self.head(
            "Added to a transition",
            &format!(
                "A listener is opened and shut in bursts, on one processor; with and without the tool in turn. Without: {} ns for half a round.",
                added.without.shown(0)
            ),
            &["", "added ns a transition"],
        );
        for (subject, row) in subjects.iter().zip(&added.rows) {
            if !row.nanoseconds.0.is_empty() {
                self.row(&[subject.name.clone(), row.nanoseconds.shown(0)]);
            }
        }
    }

    fn profiles(&mut self, profiles: &[Profile]) {
        self.head(
            "Where the time goes",
            "Samples of all processors under the load (`perf record -a -g -F 1999`), in a run of its own: how many of them were in the tool's process, \
             and in its programs in the kernel with what those call; the rest is the load. And the functions in which most of both were taken, \
             in hundredths of all samples.",
            &["", "process", "programs", "functions of the process", "functions of the programs"],
        );
        for profile in profiles {
            let share = |samples| profile::share(samples, profile.samples);
            let functions = |part: &Part| {
                let most = part.most().into_iter();
                most.map(|(name, samples)| format!("`{}` {:.1}", short(name), share(samples)))
                    .collect::<Vec<_>>()
                    .join(", ")
            };
            self.row(&[
                profile.name.clone(),
                format!("{:.1} %", share(profile.tool.samples)),
                format!("{:.1} %", share(profile.programs.samples)),
                functions(&profile.tool),
                functions(&profile.programs),
            ]);
        }
    }

    fn starts(&mut self, starts: &[Start]) {
        self.head(
            "Start",
            "Attached: from before exec to the first listener that is seen, of one opened every half millisecond. Idle: from before exec to the last \
             tick of CPU time; ticks are 10 ms. Found: sockets that the summary says were there.",
            &["", "attached (ms)", "idle (ms)", "CPU (ms)", "memory (MiB)", "found"],
        );
        for start in starts {
            if start.failed.is_none() {
                let memory = start.memory.median().unwrap_or_default() / f64::from(1 << 20);
                self.row(&[
                    start.title.clone(),
                    start.attached.shown(0),
                    start.idle.shown(0),
                    start.cpu.shown(0),
                    format!("{memory:.1}"),
                    start.found.shown(0),
                ]);
            }
        }
    }

    fn replays(&mut self, replays: &[Replay]) {
        self.head(
            "From a recording",
            "Recordings of `cargo xtask generate`, without the output. A view runs on one core; what is counted is its processor time.",
            &["command", "connections open, at most", "events", "million events/s"],
        );
        for replay in replays {
            self.row(&[
                format!("`{}`", replay.command),
                replay.connections.to_string(),
                replay.events.to_string(),
                replay.rate.times(1e-6).shown(2),
            ]);
        }
    }

    fn kept(&mut self, kept: &[Kept]) {
        self.head(
            "Memory, and many connections",
            "Made-up events through decoding and the lifecycle, without kernel and output. The event: one connection begins and one ends, of so many.",
            &["connections", "bytes each, open", "bytes each, TIME_WAIT", "ns an event"],
        );
        for row in kept {
            self.row(&[
                row.connections.to_string(),
                format!("{:.0}", row.open),
                format!("{:.0}", row.time_wait),
                format!("{:.0}", row.event),
            ]);
        }
    }

    fn absent(&mut self, subjects: &[Subject], results: &Results) {
        let rates = results.rates.iter().flat_map(|rates| &rates.rows);
        let rates = subjects.iter().zip(rates.map(|rate| &rate.failed));
        let costs = results.costs.iter().flatten().map(|cost| &cost.failed);
        let costs = subjects.iter().zip(costs);
        let added = results.added.iter().flat_map(|added| &added.rows);
        let added = subjects.iter().zip(added.map(|row| &row.failed));
        let mut reasons = results.absent.clone();
        for (subject, failed) in rates.chain(costs).chain(added) {
            reasons.extend(
                failed
                    .as_ref()
                    .map(|reason| format!("{}: {reason}", subject.name)),
            );
        }
        for start in results.starts.iter().flatten() {
            reasons.extend(
                start
                    .failed
                    .as_ref()
                    .map(|reason| format!("{}: {reason}", start.title)),
            );
        }
        reasons.sort();
        reasons.dedup();
        if !reasons.is_empty() {
            self.line("\n## Not measured here\n");
            for reason in reasons {
                self.line(&format!("- {reason}"));
            }
        }
    }
}

fn command(subject: &Subject) -> String {
    let floor = Floor::ALL.iter().find(|(_, name, _)| *name == subject.name);
    floor.map_or_else(
        || format!("`{}`", subject.shown()),
        |(_, _, what)| (*what).to_owned(),
    )
}

/// The name of a function without where it is, and without the fingerprint of a BPF program.
fn short(name: &str) -> String {
    let name = name.strip_prefix("bpf_prog_").map_or(name, |program| {
        program.split_once('_').map_or(program, |(_, name)| name)
    });
    let mut short = String::new();
    let mut path = String::new();
    for character in name.chars() {
        if character.is_alphanumeric() || matches!(character, '_' | ':') {
            path.push(character);
        } else {
            short.push_str(last(&path));
            short.push(character);
            path.clear();
        }
    }
    short.push_str(last(&path));
    short
}

/// `Ring::head` of `tcpstate_user::kernel::rings::Ring::head`.
fn last(path: &str) -> &str {
    let mut parts = path.rmatch_indices("::");
    let is_type = |part: &str| part.starts_with(|first: char| first.is_uppercase());
    let Some((at, _)) = parts.next().filter(|(at, _)| *at > 0) else {
        return path;
    };
    let before = parts.next().map_or(0, |(before, _)| before + 2);
    if is_type(&path[before..at]) {
        &path[before..]
    } else {
        &path[at + 2..]
    }
}

fn errors(rates: &Rates) -> String {
    if rates.errors.is_empty() {
        return String::new();
    }
    let errors: Vec<_> = rates
        .errors
        .iter()
        .map(|(what, count)| format!("{what}: {count}"))
        .collect();
    format!(" Errors of the load: {}.", errors.join(", "))
}

#[cfg(test)]
mod tests {
    use super::short;

    #[test]
    fn names_of_functions_are_short() {
        for (long, expected) in [
            ("tcpstate_user::kernel::rings::Ring::head", "Ring::head"),
            ("tcpstate_user::cli::live::turn", "turn"),
            (
                "bpf_prog_82f0bf50ba61ca17_transition_missed",
                "transition_missed",
            ),
            (
                "__memmove_avx512_unaligned_erms",
                "__memmove_avx512_unaligned_erms",
            ),
            (
                "<tcpstate_user::analysis::key::Key as core::cmp::PartialEq>::eq",
                "<Key as PartialEq>::eq",
            ),
            (
                "indexmap::map::IndexMap<K,V,S>::get",
                "IndexMap<K,V,S>::get",
            ),
        ] {
            assert_eq!(short(long), expected);
        }
    }
}
