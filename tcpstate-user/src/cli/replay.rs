//! Views of a recording: told the same steps as a view of what happens now, they show the same.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail};
use jiff::{Timestamp, ToSpan as _, civil};

use super::{
    Outcome,
    args::{FilterArgs, LiveArgs, OutputArgs},
    interrupt, live,
    names::Names,
    output,
    progress::Progress,
    shape::Shape,
    values::duration,
    view::{Losses, Taken, View},
    window::Window,
    zone::zone,
};
use crate::{
    filter::Filter,
    kernel::{Missing, drop_privileges},
    message::say,
    recording::{Block, BlockSteps, Course, Header, NoStep, Parts, ReadError, Step},
    sink::{Sink, escape},
};

/// So long after `--until` everything that happened until then has been read.
const AFTERWARDS: u64 = 1_000_000_000;

/// Shows a recording.
pub fn run(args: &LiveArgs, shape: Shape, path: &Path) -> Result<Outcome> {
    let shown = run_into(args, shape, path, || {
        let target = output::open(&args.output)?;
        Ok(|shape: &Shape, header: &Header| live::sink(args, shape, target, header))
    })?;
    shown.map(|outcome| match outcome {
        // As a view of what happens now.
        Outcome::Interrupted => Outcome::Done,
        other => other,
    })
}

/// Shows a recording through the sink that what is opened makes. It is opened when all else is right, but still with all powers.
/// The inner error is damage: what comes before it was shown.
pub fn run_into<F>(
    args: &LiveArgs,
    shape: Shape,
    path: &Path,
    open: impl FnOnce() -> Result<F>,
) -> Result<Result<Outcome>>
where
    F: FnOnce(&Shape, &Header) -> Result<Box<dyn Sink>>,
{
    let mut filter = args.filter.resolve_recorded()?;
    let netns = netns(&args.filter)?;
    let mut parts =
        Parts::open(path).map_err(|(path, error)| anyhow!(error).context(escape::path(&path)))?;
    let mut header = parts.header().clone();
    live::check(&filter, header.hook)?;
    let time = |text: &Option<String>, flag: &str| -> Result<Option<u64>> {
        let moment = |text| moment(text, &header).map_err(|why| anyhow!("{flag} {text}: {why}"));
        text.as_deref().map(moment).transpose()
    };
    let since = time(&args.recording.since, "--since")?;
    let until = time(&args.recording.until, "--until")?;
    if since.zip(until).is_some_and(|(since, until)| since > until) {
        bail!("--since is later than --until: nothing happened then");
    }
    let sink = open()?;
    // Whoever made the file, root reads it without its powers.
    drop_privileges();
    interrupt::watch();
    if !header.filter.is_empty() {
        say(format_args!(
            "recorded with {}",
            escape::text(&header.filter)
        ));
        filter.recorded = recorded(&header.filter);
    }
    for Missing { what, loses } in &header.missing {
        let (what, loses) = (escape::text(what), escape::text(loses));
        say(format_args!("warning: lost: {loses} (no {what})"));
    }
    let skipped = match since {
        Some(since) if args.recording.skip_earlier => {
            let skipped = parts.skip_to(since);
            skipped.with_context(|| escape::path(parts.path()))?
        }
        _ => false,
    };
    let first = parts.next_block();
    if let (true, Ok(Some(block))) = (skipped, &first) {
        header.begins = block.mark.now;
    }
    let progress = Progress::new(parts.total(), shape.shows_meanwhile(), &args.output);
    let sink = sink(&shape, &header)?;
    let mut view = View::new(args, filter, Names::recorded(), sink, &header, shape);
    view.look_through(Window::new(since, until, netns));
    let mut replay = Replay {
        view,
        from_the_beginning: header.part == 1 && !skipped,
        losses: Losses::new(header.begins),
        until: until.unwrap_or(u64::MAX),
        course: Course::new(header.begins),
        end: None,
        interrupted: false,
        progress,
    };
    let damage = replay.all(&mut parts, first).map_err(live::explain)?;
    if !replay.interrupted {
        say_outside(since, until, parts.header(), replay.course.now());
    }
    let began = since.map_or(header.begins, |since| since.max(header.begins));
    replay
        .sum_up(began, header.hooks(), &args.output)
        .map_err(live::explain)?;
    if let Some(damage) = damage {
        return Ok(Err(anyhow!(damage).context(format!(
            "{}: what comes before the damage was shown",
            escape::path(parts.path())
        ))));
    }
    Ok(Ok(if replay.interrupted {
        Outcome::Interrupted
    } else if replay.view.has_shown() {
        Outcome::Done
    } else {
        Outcome::Nothing
    }))
}

/// What decided what was recorded. The network namespace was decided by the kernel side for everything that it sent.
fn recorded(given: &str) -> Option<Box<Filter>> {
    let filter = FilterArgs::read_given(given).and_then(|given| given.resolve_recorded());
    if filter.is_err() {
        say(format_args!(
            "warning: these filters are not understood, so connections are shown that they would have left out; give them again"
        ));
    }
    filter.ok().map(Box::new)
}

/// A view that is told what was recorded.
struct Replay {
    view: View,
    /// Nothing is missing before what is read: else what is left of the list of sockets is not all of it.
    from_the_beginning: bool,
    losses: Losses,
    /// Nothing later is wanted.
    until: u64,
    course: Course,
    /// When the run ended, if it has.
    end: Option<u64>,
    /// A signal ended it before the recording did.
    interrupted: bool,
    progress: Progress,
}

/// What comes after a step.
enum Next {
    /// The next one.
    Step,
    /// Nothing that is wanted.
    End,
    /// It cannot have been recorded like that.
    Wrong(&'static str),
}

impl Replay {
    /// Shows all blocks, or those before the damage that is returned.
    fn all(
        &mut self,
        parts: &mut Parts,
        first: Result<Option<Block>, ReadError>,
    ) -> Result<Option<ReadError>> {
        let mut next = first;
        if let Ok(Some(block)) = &next {
            if let Err(what) = self.course.begin(block.mark.now) {
                let offset = block.offset;
                return Ok(Some(ReadError::Damaged { offset, what }));
            }
            self.losses.forget(&block.mark);
            self.view.unrecorded = block.mark.unrecorded;
        }
        loop {
            let offset = match next {
                Ok(Some(block)) => block.offset,
                Ok(None) => return Ok(None),
                Err(damage) => return Ok(Some(damage)),
            };
            if interrupt::came() {
                self.interrupted = true;
                return Ok(None);
            }
            self.progress.at(parts.done());
            match self.steps(parts.steps())? {
                Next::Step => {}
                Next::End => return Ok(None),
                Next::Wrong(what) => return Ok(Some(ReadError::Damaged { offset, what })),
            }
            next = parts.next_block();
        }
    }

    /// Shows the steps of a block.
    fn steps(&mut self, mut steps: BlockSteps<'_>) -> Result<Next> {
        loop {
            let other = loop {
                match steps.step() {
                    Some(Ok(Step::Record(record))) => {
                        if let Err(what) = self.course.record() {
                            return Ok(Next::Wrong(what));
                        }
                        if !self.view.look_ahead(record) {
                            break None;
                        }
                    }
                    other => break Some(other),
                }
            };
            match self.view.take_ahead(self.course.now())? {
                Taken::All => {}
                Taken::Enough => return Ok(Next::End),
                Taken::Younger => return Ok(Next::Wrong(Course::YOUNGER)),
            }
            match other {
                None => {}
                Some(None) => return Ok(Next::Step),
                Some(Some(step)) => match self.step(step)? {
                    Next::Step => {}
                    other => return Ok(other),
                },
            }
        }
    }

    fn step(&mut self, step: Result<Step<'_>, NoStep>) -> Result<Next> {
        if interrupt::came() {
            self.interrupted = true;
            return Ok(Next::End);
        }
        let before = self.course.now();
        let step = match self.course.take(step) {
            Ok(step) => step,
            Err(what) => return Ok(Next::Wrong(what)),
        };
        let view = &mut self.view;
        match step {
            Step::Losses {
                now,
                counters,
                unread,
            } => {
                // The turn that ends here has read everything until then.
                if before > self.until.saturating_add(AFTERWARDS) {
                    return Ok(Next::End);
                }
                view.unread = unread;
                self.losses.check(&counters, view, now)?;
            }
            Step::Settled(now) => view.settle(now)?,
            Step::Holders(holders) => view.add_owners(holders),
            Step::Listed if self.from_the_beginning => {
                view.end_finding();
            }
            // Records come together.
            Step::Listed | Step::Record(_) => {}
            Step::Round(round) => view.end_round(round)?,
            Step::Refresh => view.begin_refresh(),
            Step::Cgroup(id, path) => view.learn_cgroup(id, path),
            Step::Unrecorded(total) => {
                view.unrecorded = total;
                self.losses.not_recorded(view, self.course.now())?;
            }
            Step::End(end) => self.finish(end)?,
        }
        Ok(Next::Step)
    }

    fn finish(&mut self, end: u64) -> Result<()> {
        let end = end.min(self.until);
        self.end = Some(end);
        // What is shown at the end may go to the same terminal.
        self.progress.end();
        Ok(self.view.finish(end)?)
    }

    fn sum_up(&mut self, began: u64, hooks: Vec<&'static str>, args: &OutputArgs) -> Result<()> {
        if self.end.is_none() {
            self.finish(self.course.now())?;
        }
        let end = self.end.unwrap_or(self.course.now());
        let interrupted = self.interrupted;
        live::sum_up(
            &mut self.view,
            &mut self.losses,
            hooks,
            began..end,
            args,
            interrupted,
        )
    }
}

/// Says of what time a recording is if none of it is shown; it was read until `now`.
fn say_outside(since: Option<u64>, until: Option<u64>, header: &Header, now: u64) {
    let time = |at| {
        let time = i128::from(at) + i128::from(header.zero);
        let time = Timestamp::from_nanosecond(time).unwrap_or_default();
        time.to_zoned(zone())
            .strftime("%Y-%m-%dT%H:%M:%S%.3f%:z")
            .to_string()
    };
    if until.is_some_and(|until| until < header.begins) {
        say(format_args!(
            "--until is before the recording, which begins at {}: nothing of it is shown",
            time(header.begins)
        ));
    } else if since.is_some_and(|since| since > now) {
        say(format_args!(
            "--since is after the recording, which is from {} to {}: nothing of it is shown",
            time(header.begins),
            time(now)
        ));
    }
}

/// The namespace to look at, which has no other name than its number in a recording.
fn netns(args: &FilterArgs) -> Result<Option<u32>> {
    let number = |name: &String| {
        name.parse().map_err(|_| {
            anyhow!(
                "--netns {name}: a recording knows network namespaces by their inode numbers only; `trace -j` shows them"
            )
        })
    };
    args.netns.as_ref().map(number).transpose()
}

/// A moment of a run, in nanoseconds of its `CLOCK_MONOTONIC`.
fn moment(text: &str, header: &Header) -> Result<u64, String> {
    const HINT: &str = "give a time of day (13:30, 13:30:05.5), a date and time (2026-11-22T13:30:05, with Z in UTC), \
         or a time from the beginning of the recording (+90s)";
    if let Some(after) = text.strip_prefix('+') {
        let after = match after {
            "0" | "0s" => Duration::ZERO,
            after => duration(after)?,
        };
        let after = u64::try_from(after.as_nanos()).unwrap_or(u64::MAX);
        return Ok(header.begins.saturating_add(after));
    }
    let zone = zone();
    let of_day = |time: civil::Time| -> Option<Timestamp> {
        let begins = i128::from(header.begins) + i128::from(header.zero);
        let begins = Timestamp::from_nanosecond(begins).ok()?;
        let same_day = begins
            .to_zoned(zone.clone())
            .with()
            .time(time)
            .build()
            .ok()?;
        // Long before it began must be meant of the day after.
        let meant = if same_day.timestamp() < begins.checked_sub(12.hours()).ok()? {
            same_day.checked_add(1.day()).ok()?
        } else {
            same_day
        };
        Some(meant.timestamp())
    };
    let local = |time: civil::DateTime| -> Option<Timestamp> {
        time.to_zoned(zone.clone())
            .ok()
            .map(|time| time.timestamp())
    };
    let time = match (
        text.parse::<Timestamp>(),
        text.parse::<civil::Time>(),
        text.parse::<civil::DateTime>(),
    ) {
        (Ok(time), ..) => Some(time),
        (_, Ok(time), Err(_)) => of_day(time),
        (.., Ok(time)) => local(time),
        _ => None,
    };
    let since_1970 = time.ok_or(HINT)?.as_nanosecond();
    let monotonic = since_1970 - i128::from(header.zero);
    Ok(u64::try_from(monotonic.max(0)).unwrap_or(u64::MAX))
}
