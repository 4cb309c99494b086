//! `tcpstate info`.

use std::{collections::BTreeSet, fmt::Write as _, path::PathBuf};

use anyhow::{Context as _, Result, anyhow};
use clap::{
    Args as ClapArgs,
    builder::{PathBufValueParser, TypedValueParser as _},
};
use jiff::tz::TimeZone;
use serde::Serialize;

use super::{Outcome, args::OutputArgs, interrupt, progress::Progress, values};
use crate::{
    clock::Clock,
    event::{Event, TimeWaitStep},
    kernel::{Missing, drop_privileges},
    message::{self, say},
    recording::{Course, Header, Mark, Parts, ReadError, Step},
    settings::Settings,
    sink::{escape, json_line, seconds},
};

const INFO_HELP: &str = "\
The whole recording is read and checked. Exit code: 0 it is whole; 2 it is not, or cannot \
be read: what is said of it is what comes before the damage; 130 ended by Ctrl-C.";

/// Flags of `tcpstate info`.
#[derive(Debug, ClapArgs)]
#[command(after_help = INFO_HELP)]
pub struct InfoArgs {
    /// The recording
    #[arg(value_parser = PathBufValueParser::new().try_map(values::recording))]
    pub file: PathBuf,

    /// One JSON object
    #[arg(short, long)]
    pub json: bool,
}

/// What a recording is of.
#[derive(Debug, Default, Serialize)]
struct Info {
    tcpstate: String,
    format: u32,
    layout: u32,
    kernel: String,
    host: String,
    boot: String,
    from: String,
    to: String,
    seconds: f64,
    hooks: Vec<&'static str>,
    missing: Vec<Missing>,
    filter: String,
    settings: Vec<Settings>,
    anonymized: Vec<String>,
    part: u32,
    parts: usize,
    transitions: u64,
    minisockets: u64,
    /// Of system calls: accepts, and binds that failed.
    calls: u64,
    /// In the list of sockets that was read at first.
    found: u64,
    /// That list has ended.
    #[serde(skip)]
    listed: bool,
    undecodable: u64,
    netns: BTreeSet<u32>,
    /// There were more namespaces than are listed.
    more_netns: bool,
    lost: Lost,
    damage: Option<String>,
}

/// What is not in it.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Lost {
    ring_full: u64,
    not_found: u64,
    unrecorded: u64,
    unread: u64,
    /// What nobody saw, at most, but for what came after the last block began and was taken twice.
    missed: u64,
}

/// Prints what is in a recording.
pub fn run(args: &InfoArgs) -> Result<Outcome> {
    let mut parts = Parts::open(&args.file)
        .map_err(|(path, error)| anyhow!(error).context(escape::path(&path)))?;
    drop_privileges();
    interrupt::watch();
    let header = parts.header().clone();
    let (info, damage) = read(&mut parts, &header);
    if interrupt::came() {
        say(format_args!(
            "{}: not read to its end, so nothing is said of it",
            escape::path(&args.file)
        ));
        return Ok(Outcome::Interrupted);
    }
    let text = if args.json {
        json_line(&info)?
    } else {
        text(&info).into_bytes()
    };
    message::print(&text).context("the output cannot be written")?;
    match damage {
        Some(damage) => Err(anyhow!(damage).context(escape::path(parts.path()))),
        None => Ok(Outcome::Done),
    }
}

fn read(parts: &mut Parts, header: &Header) -> (Info, Option<ReadError>) {
    let clock = Clock::new(header.begins, header.zero.into(), TimeZone::UTC);
    let mut info = Info {
        tcpstate: header.tcpstate.clone(),
        format: parts.format(),
        layout: header.layout,
        kernel: header.kernel.clone(),
        host: header.host.clone(),
        boot: Clock::new(0, header.boot.into(), TimeZone::UTC).rfc3339(0),
        from: clock.rfc3339(header.begins),
        hooks: header.hooks(),
        missing: header.missing.clone(),
        filter: header.filter.clone(),
        settings: header.settings.clone(),
        anonymized: header.anonymized.clone(),
        part: header.part,
        parts: parts.count(),
        ..Info::default()
    };
    let mut end = header.begins;
    let mut before: Option<Mark> = None;
    let mut course = Course::new(header.begins);
    let mut progress = Progress::new(parts.total(), false, &OutputArgs::default());
    let damage = loop {
        progress.at(parts.done());
        if interrupt::came() {
            break None;
        }
        let block = match parts.next_block() {
            Ok(Some(block)) => block,
            Ok(None) => break None,
            Err(damage) => break Some(damage),
        };
        let begun = match before {
            None => course.begin(block.mark.now),
            Some(_) => Ok(()),
        };
        let before = *before.get_or_insert(block.mark);
        info.missed(block.mark.missed, &before);
        let right = begun.and_then(|()| {
            let mut steps = parts.steps();
            while let Some(step) = steps.step() {
                let step = course.take(step)?;
                info.count(&step, &before, &mut end, course.now())?;
            }
            Ok(())
        });
        if let Err(what) = right {
            let offset = block.offset;
            break Some(ReadError::Damaged { offset, what });
        }
    };
    info.to = clock.rfc3339(end);
    info.seconds = seconds(end.saturating_sub(header.begins));
    info.damage = damage.as_ref().map(ToString::to_string);
    (info, damage)
}

impl Info {
    fn missed(&mut self, until: u64, before: &Mark) {
        let since = until.saturating_sub(before.missed);
        self.lost.missed = self.lost.missed.max(since);
    }

    /// Counts a step of the turn at `now`, unless it cannot be of it.
    fn count(
        &mut self,
        step: &Step<'_>,
        before: &Mark,
        end: &mut u64,
        now: u64,
    ) -> Result<(), &'static str> {
        const NAMESPACES: usize = 1000;
        match step {
            Step::Record(bytes) => {
                let event = Event::decode(bytes);
                if event.as_ref().is_ok_and(|event| event.time() > now) {
                    return Err(Course::YOUNGER);
                }
                let netns = match event {
                    Ok(Event::Transition(event)) => {
                        self.transitions += 1;
                        event.netns
                    }
                    Ok(Event::TimeWait(event)) if event.step == TimeWaitStep::Found => {
                        self.found += u64::from(!self.listed);
                        event.netns
                    }
                    Ok(Event::TimeWait(event)) => {
                        self.minisockets += 1;
                        event.netns
                    }
                    Ok(Event::Socket(event)) => {
                        self.found += u64::from(!self.listed);
                        event.netns
                    }
                    Ok(Event::Call(event)) => {
                        self.calls += 1;
                        event.netns
                    }
                    Err(_) => {
                        self.undecodable += 1;
                        None
                    }
                };
                if let Some(netns) = netns.filter(|netns| !self.netns.contains(netns)) {
                    if self.netns.len() < NAMESPACES {
                        self.netns.insert(netns);
                    } else {
                        self.more_netns = true;
                    }
                }
            }
            Step::Losses {
                now,
                counters,
                unread,
            } => {
                *end = (*end).max(*now);
                self.lost.ring_full = counters.lost.saturating_sub(before.lost);
                self.lost.not_found = counters.not_found.saturating_sub(before.not_found);
                self.lost.unread = *unread;
                self.missed(counters.missed(0), before);
            }
            Step::Unrecorded(total) => {
                self.lost.unrecorded = total.saturating_sub(before.unrecorded);
            }
            // Lists that are read later are of minisockets that are known, but for a few.
            Step::Listed | Step::Round(_) | Step::Refresh => self.listed = true,
            Step::End(at) => *end = *at,
            _ => {}
        }
        Ok(())
    }
}

/// What somebody has changed; `-j` has all of them.
fn settings(info: &Info) -> Vec<(&'static str, String)> {
    const SHOWN: usize = 10;
    let known = info.settings.iter();
    let known: Vec<_> = known.filter(|of| info.netns.contains(&of.netns)).collect();
    let changed = known.iter().filter_map(|of| {
        let all = of.changed();
        let all: Vec<_> = all.map(|(name, value)| format!("{name} {value}")).collect();
        (!all.is_empty()).then(|| format!("{}: {}", of.netns, escape::text(&all.join(", "))))
    });
    let mut lines = vec![("settings", format!("of {} of them", known.len()))];
    lines.extend(changed.clone().take(SHOWN).map(|text| ("  changed", text)));
    let more = changed.count().saturating_sub(SHOWN);
    if more > 0 {
        lines.push(("  changed", format!("and in {more} more: see --json")));
    }
    lines
}

/// The same for people.
fn text(info: &Info) -> String {
    let mut out = String::new();
    let mut line = |name: &str, text: std::fmt::Arguments<'_>| {
        // Writing to a string does not fail.
        let _ = writeln!(out, "{name:<18}{text}");
    };
    line(
        "recorded by",
        format_args!(
            "tcpstate {} (format {}, records {})",
            escape::text(&info.tcpstate),
            info.format,
            info.layout
        ),
    );
    let (host, kernel) = (escape::text(&info.host), escape::text(&info.kernel));
    line("host", format_args!("{host}, Linux {kernel}"));
    line("started", format_args!("{}", info.boot));
    line("from", format_args!("{}", info.from));
    line("to", format_args!("{}", info.to));
    line("time", format_args!("{:.1} s", info.seconds));
    line("hooks", format_args!("{}", info.hooks.join(", ")));
    if info.parts > 1 {
        line("parts", format_args!("{}", info.parts));
    }
    if info.part > 1 {
        line(
            "first part",
            format_args!("{}: without the parts before it", info.part),
        );
    }
    if !info.anonymized.is_empty() {
        line(
            "anonymized",
            format_args!("{}", escape::text(&info.anonymized.join(", "))),
        );
    }
    if !info.filter.is_empty() {
        line("only", format_args!("{}", escape::text(&info.filter)));
    }
    line("transitions", format_args!("{}", info.transitions));
    line("of minisockets", format_args!("{}", info.minisockets));
    if info.calls > 0 {
        line("of system calls", format_args!("{}", info.calls));
    }
    line("sockets before", format_args!("{}", info.found));
    let more = if info.more_netns { " and more" } else { "" };
    line("namespaces", format_args!("{}{more}", info.netns.len()));
    for (name, text) in settings(info) {
        line(name, format_args!("{text}"));
    }
    for Missing { what, loses } in &info.missing {
        let (what, loses) = (escape::text(what), escape::text(loses));
        line("not known", format_args!("{loses} (no {what})"));
    }
    let Lost {
        ring_full,
        not_found,
        unrecorded,
        unread,
        missed,
    } = info.lost;
    let lost = [
        (ring_full, "the ring buffer was full"),
        (not_found, "sockets before, the ring buffer was full"),
        (unrecorded, "the disk was too slow"),
        (unread, "not waited for at the end"),
        (missed, "at most, they interrupted our programs"),
        (info.undecodable, "could not be decoded"),
    ];
    for (count, why) in lost {
        if count > 0 {
            line("LOST", format_args!("{count}: {why}"));
        }
    }
    if lost.iter().all(|(count, _)| *count == 0) {
        line("lost", format_args!("nothing"));
    }
    match &info.damage {
        Some(damage) => line("DAMAGED", format_args!("{damage}")),
        None => line("whole", format_args!("yes")),
    }
    out
}
