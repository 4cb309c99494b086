//! `tcpstate record`, and what views have to do with recordings.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::{
    Args as ClapArgs,
    builder::{PathBufValueParser, TypedValueParser as _},
};

use super::{
    Outcome,
    args::{FilterArgs, KernelArgs, LiveArgs, MAX_CONNECTIONS, OutputArgs, hidden},
    live,
    shape::Shape,
    values::{self, duration},
};
use crate::{
    analysis::{Connection, Report},
    disguise::{Disguise, Secret},
    lifecycle::Transition,
    loss::{Loss, LossKind},
    message::{plural, say},
    recording::{self, Astray, Header, Rotation, Tape, part_name},
    sink::{Sink, Summary, escape},
};

const RECORD_HELP: &str = "\
The file is new, and only its owner may read it. It has everything that trace, conns, \
states, timewait, closers, hist and doctor show, and they show it with --from FILE: the \
same as they would have shown then, as `tcpstate export` does for other tools. Filters \
decide what is recorded: not by process, cgroup and state, which are for --from. The kernel \
side cannot tell yet of a connection that begins, so the file has the first events of \
others too, with their addresses; nothing shows them. A crash costs a second at most. If the \
disk is too slow, records are left out, and counted (`unrecorded`).

Exit code: 0 something was recorded, or ended by Ctrl-C; 1 nothing; 2 an error.

Examples:
  tcpstate record incident.tcps --duration 60
  tcpstate record -L 443 --rotate 256M,8 incident.tcps
                           the last 2 GiB, in incident.000001.tcps and so on
  tcpstate conns --from incident.tcps -w";

/// Flags of `tcpstate record`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = RECORD_HELP,
    mut_arg("pid", hidden),
    mut_arg("comm", hidden),
    mut_arg("cgroup", hidden),
    mut_arg("state", hidden),
)]
pub struct RecordArgs {
    /// The file to record in, which must not be there
    #[arg(value_parser = PathBufValueParser::new().try_map(values::recording))]
    pub file: PathBuf,

    /// Begin another file after so many bytes, and keep so many files: 256M,8
    #[arg(long, value_name = "SIZE,FILES", value_parser = rotation)]
    pub rotate: Option<Rotation>,

    /// End after this time: seconds, or with a unit (90, 1.5, 60s, 2m)
    #[arg(long, value_name = "SECS", value_parser = duration)]
    pub duration: Option<Duration>,

    /// Replace addresses before they are written, prefix-preserving, and with addresses,names also names
    #[arg(long, value_name = "WHAT", value_enum, value_delimiter = ',', num_args = 0..=1, require_equals = true, default_missing_value = "addresses")]
    pub anonymize: Vec<Secret>,

    /// What to record.
    #[command(flatten)]
    pub filter: FilterArgs,

    /// How to look.
    #[command(flatten)]
    pub kernel: KernelArgs,
}

/// What views have to do with recordings.
#[derive(Clone, Debug, Default, ClapArgs)]
#[command(next_help_heading = "Recordings")]
pub struct RecordingArgs {
    /// Show what was recorded in this file instead of what happens now; no root needed
    #[arg(long, value_name = "FILE", value_parser = PathBufValueParser::new().try_map(values::recording), conflicts_with_all = ["record", "anonymize", "buffer", "skip_existing", "hook", "timewait", "syscalls"])]
    pub from: Option<PathBuf>,

    /// Show only what happened at this time or later: 13:30, 13:30:05.5, 2026-11-22T13:30:05Z, or +90s from the beginning
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,

    /// Show only what happened until this time
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,

    /// Do not read what came long before --since: faster, but times and owners that it would tell are bounds or unknown
    #[arg(long, requires = "since")]
    pub skip_earlier: bool,

    /// Record in this file meanwhile, which must not be there
    #[arg(long, value_name = "FILE", value_parser = PathBufValueParser::new().try_map(values::recording))]
    pub record: Option<PathBuf>,

    /// Replace addresses in the recording, prefix-preserving, and with addresses,names also names
    #[arg(long, value_name = "WHAT", value_enum, value_delimiter = ',', num_args = 0..=1, require_equals = true, default_missing_value = "addresses", requires = "record")]
    pub anonymize: Vec<Secret>,

    /// When to begin another file.
    #[arg(skip)]
    pub rotate: Option<Rotation>,
}

/// Runs `tcpstate record`.
pub fn run(args: &RecordArgs) -> Result<Outcome> {
    let filter = &args.filter;
    let later = [
        ("--pid", filter.pid.is_empty()),
        ("--comm", filter.comm.is_empty()),
        ("--cgroup", filter.cgroup.is_empty()),
        ("--state", filter.state.is_empty()),
    ];
    if let Some((flag, _)) = later.iter().find(|(_, empty)| !empty) {
        bail!(
            "{flag}: what is recorded is told by connections only; use it with --from, when you look at the recording"
        );
    }
    let live = LiveArgs {
        filter: args.filter.clone(),
        output: OutputArgs::default(),
        duration: args.duration,
        count: None,
        max_connections: MAX_CONNECTIONS,
        kernel: args.kernel.clone(),
        recording: RecordingArgs {
            record: Some(args.file.clone()),
            rotate: args.rotate,
            anonymize: args.anonymize.clone(),
            ..RecordingArgs::default()
        },
    };
    live::run(&live, Shape::Recording)
}

/// Fails early where a live view would ignore what it was told, or its recording would fail later.
pub fn check(args: &RecordingArgs, output: Option<&Path>) -> Result<()> {
    // clap lets a missing flag pass where something excludes it: `--from` where there is `--for`.
    let past = [("--since", &args.since), ("--until", &args.until)];
    if let Some((flag, _)) = past.iter().find(|(_, time)| time.is_some()) {
        bail!(
            "{flag}: it is for a recording, and this would show what happens now; give one with --from"
        );
    }
    let Some(path) = &args.record else {
        return Ok(());
    };
    let first = match args.rotate {
        Some(_) => part_name(path, 1),
        None => path.clone(),
    };
    for path in [path, &first] {
        if path.exists() || recording::is_there(path) {
            bail!("{}", refusal(path, &io::ErrorKind::AlreadyExists.into()));
        }
    }
    if output.is_some_and(|output| place(output) == place(path)) {
        bail!(
            "{}: --record and --output are the same file; give one of them another name",
            escape::path(path)
        );
    }
    if args.rotate.is_none()
        && let Some(whole) = whole_of(path)
    {
        bail!(
            "{}: it would be taken for a part of {}, of which there are parts already; give another name",
            escape::path(path),
            escape::path(&whole)
        );
    }
    Ok(())
}

/// Where a file is that is not there yet, however its folder is spelled.
fn place(path: &Path) -> PathBuf {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    match (fs::canonicalize(folder), path.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => path.to_owned(),
    }
}

/// The rotated recording that a file of this name would be a part of, if there is one.
fn whole_of(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let number = |digits: &str| digits.parse().ok();
    let parts = name.match_indices('.').filter_map(|(at, _)| {
        let (stem, rest) = (&name[..at], &name[at + 1..]);
        let (digits, extension) = match rest.split_once('.') {
            Some((digits, extension)) => (digits, format!(".{extension}")),
            None => (rest, String::new()),
        };
        let whole = path.with_file_name(format!("{stem}{extension}"));
        (part_name(&whole, number(digits)?) == path).then_some(whole)
    });
    let mut there = parts.filter(|whole| !whole.exists() && recording::is_there(whole));
    there.next()
}

/// Begins the recording that was asked for, if one was.
pub fn begin(args: &RecordingArgs, header: &Header) -> Result<Option<Tape>> {
    let Some(path) = &args.record else {
        return Ok(None);
    };
    let mut disguise = disguise(&args.anonymize)?;
    let header = match &mut disguise {
        Some(disguise) => disguise.header(header),
        None => header.clone(),
    };
    match Tape::begin(path, args.rotate, header) {
        Ok(tape) => Ok(Some(tape.with_disguise(disguise))),
        Err(error) => bail!("{}", refusal(path, &error)),
    }
}

/// What replaces what is secret, if that was asked for.
pub fn disguise(secrets: &[Secret]) -> Result<Option<Disguise>> {
    if secrets.is_empty() {
        return Ok(None);
    }
    let disguise = Disguise::new(secrets).context("--anonymize: there are no random numbers")?;
    Ok(Some(disguise))
}

/// Why nothing can be written there.
pub fn refusal(path: &Path, error: &io::Error) -> String {
    let path = escape::path(path);
    if error.kind() == io::ErrorKind::AlreadyExists {
        format!(
            "{path}: it is there already, and may be the only copy of something; remove it, or give another name"
        )
    } else {
        format!("{path}: cannot be written: {error}")
    }
}

/// Ends a recording, and says what became of it.
pub fn end(args: &RecordingArgs, tape: Option<&mut Tape>) -> Result<()> {
    let (Some(path), Some(tape)) = (&args.record, tape) else {
        return Ok(());
    };
    let recorded = tape.close().with_context(|| {
        format!(
            "{}: the recording ends early (what was written can be read); it cannot be written",
            escape::path(path)
        )
    })?;
    let parts = match recorded.parts {
        1 => String::new(),
        many if many == recorded.left => format!(" in {many} parts"),
        many => format!(
            " in {many} parts, of which the last {} are left",
            recorded.left
        ),
    };
    let left_out = match recorded.unrecorded {
        0 => String::new(),
        some => format!("; LOST {some}: {}", LossKind::Unrecorded.advice()),
    };
    // Of the only file the error says it all.
    if recorded.parts > 1 || recorded.astray.is_none() {
        say(format_args!(
            "{} in {}: {}{parts}{left_out}",
            plural(recorded.records, "record"),
            escape::path(path),
            plural(recorded.bytes, "byte")
        ));
    }
    let Some((path, astray)) = &recorded.astray else {
        return Ok(());
    };
    let (path, what) = (escape::path(path), astray.what());
    match astray {
        Astray::Moved => {
            bail!("{path}: {what}, and is whole; it has the name that it was given then{left_out}")
        }
        Astray::Removed => {
            bail!("{path}: {what}, and what was in it is gone; leave it where it is until the end")
        }
    }
}

/// Shows nothing but a summary.
pub struct Silent;

impl Sink for Silent {
    fn transition(&mut self, _: &Transition) -> io::Result<()> {
        Ok(())
    }

    fn connection(&mut self, _: &Connection) -> io::Result<()> {
        Ok(())
    }

    fn report(&mut self, _: &Report) -> io::Result<()> {
        Ok(())
    }

    fn loss(&mut self, _: &Loss) -> io::Result<()> {
        Ok(())
    }

    fn summary(&mut self, summary: &Summary) -> io::Result<()> {
        if summary.interrupted {
            say(format_args!(
                "ended early: the rest of the recording was not read"
            ));
        }
        if summary.loss.is_none() {
            say(format_args!("nothing lost"));
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn rotation(text: &str) -> Result<Rotation, String> {
    const HINT: &str = "give the size of a file, and how many to keep, two or more: 256M,8";
    let (size, keep) = text.split_once(',').ok_or(HINT)?;
    let size = size.trim().to_ascii_uppercase();
    let size = size.trim_end_matches("IB").trim_end_matches('B');
    let (digits, shift) = match size.char_indices().next_back() {
        Some((end, 'K')) => (&size[..end], 10),
        Some((end, 'M')) => (&size[..end], 20),
        Some((end, 'G')) => (&size[..end], 30),
        _ => (size, 0),
    };
    let bytes = digits.parse::<u64>().map_err(|_| HINT)?;
    let bytes = bytes.checked_mul(1 << shift).ok_or(HINT)?;
    if bytes < 1 << 16 {
        return Err(format!("a file needs 64K at least; {HINT}"));
    }
    let keep = keep.trim().parse().ok().filter(|keep| *keep >= 2);
    Ok(Rotation {
        bytes,
        keep: keep.ok_or(HINT)?,
    })
}

#[cfg(test)]
mod tests {
    use super::{Rotation, rotation};

    #[test]
    fn rotations() {
        let bytes = 256 << 20;
        assert_eq!(rotation("256MiB,8"), Ok(Rotation { bytes, keep: 8 }));
        assert_eq!(rotation("256m, 2"), Ok(Rotation { bytes, keep: 2 }));
        let why = |bad| rotation(bad).err().unwrap_or_default();
        assert!(why("1K,8").starts_with("a file needs 64K"));
        assert!(why("1T,8").starts_with("give the size"));
        for bad in [
            "",
            "256M",
            "256M,",
            "256M,1",
            ",8",
            "1K,8",
            "M,8",
            "-1M,8",
            "1e9,8",
            "99999999999G,2",
            "ü,2",
        ] {
            assert!(rotation(bad).is_err(), "{bad}");
        }
    }
}
