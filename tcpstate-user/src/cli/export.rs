//! `tcpstate export`: a recording as files for other tools.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, BufWriter, IsTerminal as _, Write},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};
use clap::{
    Args as ClapArgs, ValueEnum,
    builder::{PathBufValueParser, TypedValueParser as _},
};
use jiff::tz::TimeZone;

use super::{
    Outcome,
    args::{FilterArgs, KernelArgs, LiveArgs, MAX_CONNECTIONS, OutputArgs, hidden},
    output::Named,
    record::{self, RecordingArgs},
    replay,
    shape::Shape,
    values::{self, connections},
};
use crate::{
    clock::Clock,
    disguise::Secret,
    message::say,
    recording::{self, Header},
    sink::{Both, Csv, Disguised, Json, Parquet, Perfetto, Rows, Sink, escape},
};

const EXPORT_HELP: &str = "\
perfetto: a trace for ui.perfetto.dev. Each connection is a track with its states as slices, below the process it belongs to.
csv:      connections.csv and transitions.csv in the folder OUT, with the columns of `conns -s` and `trace -s`.
parquet:  the same two tables for data frames: connections.parquet and transitions.parquet, with types, null for what is not known.
jsonl:    what `trace -j` and `conns -j --running` print, in one file.
docs/export.md describes them. Connections that had not ended are in all of them. Files are new, and only their owner may \
read them. Those of an export that fails, or is ended by Ctrl-C, are removed.

Exit code: 0 something was exported; 1 nothing matched; 2 an error, or the recording is damaged: what comes before the \
damage is exported; 130 ended by Ctrl-C.

Examples:
  tcpstate export incident.tcps --to perfetto -o incident.pftrace
  tcpstate export incident.tcps --to parquet --anonymize=addresses,names -o tables
  tcpstate export incident.tcps --to jsonl --since 13:30 --until 13:35 | jq .";

/// Flags of `tcpstate export`.
#[derive(Debug, ClapArgs)]
#[command(after_help = EXPORT_HELP, mut_arg("state", hidden))]
pub struct ExportArgs {
    /// The recording
    #[arg(value_parser = PathBufValueParser::new().try_map(values::recording))]
    pub file: PathBuf,

    /// What to make of it
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub to: ExportFormat,

    /// Where to write: a file (perfetto, jsonl; standard output otherwise), or a folder for two files (parquet, csv)
    #[arg(short, long, value_name = "OUT", value_parser = PathBufValueParser::new().try_map(values::output))]
    pub output: Option<PathBuf>,

    /// Only what happened at this time or later: 13:30, 13:30:05.5, 2026-11-22T13:30:05Z, or +90s from the beginning
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,

    /// Only what happened until this time
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,

    /// Do not read what came long before --since: faster, but times and owners that it would tell are bounds or unknown
    #[arg(long, requires = "since")]
    pub skip_earlier: bool,

    /// How many open connections to remember; the longest silent are forgotten first
    #[arg(long, value_name = "N", default_value_t = MAX_CONNECTIONS, value_parser = connections)]
    pub max_connections: usize,

    /// Replace addresses, prefix-preserving, and with addresses,names also names; filters are by the real ones
    #[arg(long, value_name = "WHAT", value_enum, value_delimiter = ',', num_args = 0..=1, require_equals = true, default_missing_value = "addresses")]
    pub anonymize: Vec<Secret>,

    /// What to export.
    #[command(flatten)]
    pub filter: FilterArgs,
}

/// What to make of a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// A trace for ui.perfetto.dev
    Perfetto,
    /// Two tables for data frames: connections and transitions
    Parquet,
    /// The same tables as text
    Csv,
    /// One JSON object a line, of both kinds
    Jsonl,
}

/// The files that were opened.
enum Outputs {
    One(Box<dyn Write>),
    Tables {
        connections: BufWriter<Named>,
        transitions: BufWriter<Named>,
    },
}

/// What was made for an export, the folder first: it goes if the export does not come to its end. What was there stays.
#[derive(Default)]
struct Made(Vec<PathBuf>);

impl Made {
    fn remove(&self) {
        for path in self.0.iter().rev() {
            let removed = if path.is_dir() {
                fs::remove_dir(path)
            } else {
                fs::remove_file(path)
            };
            if let Err(error) = removed {
                say(format_args!(
                    "{}: is no whole export, and cannot be removed: {error}",
                    escape::path(path)
                ));
            }
        }
    }
}

/// Runs `tcpstate export`.
pub fn run(args: &ExportArgs) -> Result<Outcome> {
    if !args.filter.state.is_empty() {
        bail!(
            "--state: an export has whole connections; select states where you read it, or use `trace --from` with --state"
        );
    }
    let live = LiveArgs {
        filter: args.filter.clone(),
        output: OutputArgs {
            // The summary is for standard error.
            csv: true,
            output: args.output.clone(),
            ..OutputArgs::default()
        },
        duration: None,
        count: None,
        max_connections: args.max_connections,
        kernel: KernelArgs::default(),
        recording: RecordingArgs {
            since: args.since.clone(),
            until: args.until.clone(),
            skip_earlier: args.skip_earlier,
            ..RecordingArgs::default()
        },
    };
    let to = args.to;
    let shape = Shape::Export {
        transitions: to != ExportFormat::Perfetto,
        stays: to == ExportFormat::Perfetto,
    };
    let mut made = Made::default();
    let open = || {
        let outputs = open(to, args.output.as_deref(), &mut made)?;
        let disguise = record::disguise(&args.anonymize)?;
        Ok(move |_: &Shape, header: &Header| match disguise {
            Some(mut disguise) => {
                let sink = sink(to, outputs, &disguise.header(header))?;
                let disguised: Box<dyn Sink> = Box::new(Disguised::new(sink, disguise));
                Ok(disguised)
            }
            None => sink(to, outputs, header),
        })
    };
    let exported = replay::run_into(&live, shape, &args.file, open);
    match exported {
        Err(error) if made.0.is_empty() => Err(error),
        Err(error) => {
            made.remove();
            Err(error.context("nothing is exported"))
        }
        Ok(Ok(Outcome::Interrupted)) => {
            made.remove();
            if args.output.is_some() {
                say(format_args!("ended early: nothing is exported"));
            }
            Ok(Outcome::Interrupted)
        }
        // What comes before the damage is worth having.
        Ok(exported) => exported,
    }
}

fn open(to: ExportFormat, output: Option<&Path>, made: &mut Made) -> Result<Outputs> {
    Ok(match (to, output) {
        (ExportFormat::Parquet | ExportFormat::Csv, None) => {
            bail!(
                "--to {}: give a folder for its two files, with --output",
                extension(to)
            )
        }
        (ExportFormat::Parquet | ExportFormat::Csv, Some(folder)) => {
            tables(folder, extension(to), made)?
        }
        (ExportFormat::Perfetto, None) if io::stdout().is_terminal() => {
            bail!("--to perfetto: a trace is not for a terminal; give a file, with --output")
        }
        (ExportFormat::Perfetto | ExportFormat::Jsonl, None) => {
            Outputs::One(Box::new(BufWriter::with_capacity(BYTES, io::stdout())))
        }
        (ExportFormat::Perfetto | ExportFormat::Jsonl, Some(path)) => {
            Outputs::One(Box::new(create(path, made)?))
        }
    })
}

/// What the names of its tables end with.
const fn extension(to: ExportFormat) -> &'static str {
    match to {
        ExportFormat::Parquet => "parquet",
        _ => "csv",
    }
}

/// One write for so many bytes.
const BYTES: usize = 64 << 10;

/// A new file. What is there and is no file (a pipe, a device) is written to.
fn create(path: &Path, made: &mut Made) -> Result<BufWriter<Named>> {
    let mut new = OpenOptions::new();
    // Who talked to whom is nobody else's business.
    new.write(true).create_new(true).mode(0o600);
    if recording::is_there(path) {
        bail!(
            "{}",
            record::refusal(path, &io::ErrorKind::AlreadyExists.into())
        );
    }
    let file = match new.open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match fs::metadata(path) {
            Ok(there) if !there.is_file() => File::options().write(true).open(path),
            _ => Err(error),
        },
        file => file.inspect(|_| made.0.push(path.to_owned())),
    };
    match file {
        Ok(file) => Ok(BufWriter::with_capacity(BYTES, Named::new(file, path))),
        Err(error) => bail!("{}", record::refusal(path, &error)),
    }
}

fn tables(folder: &Path, extension: &str, made: &mut Made) -> Result<Outputs> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && !folder.is_dir() => {
            bail!(
                "{}: it is no folder, and --to {extension} writes two files into one",
                escape::path(folder)
            )
        }
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            bail!("{}: cannot be made: {error}", escape::path(folder))
        }
        Err(_) => {}
        Ok(()) => made.0.push(folder.to_owned()),
    }
    let table = |name: &str| folder.join(name).with_extension(extension);
    let (connections, transitions) = (table("connections"), table("transitions"));
    // Both or none.
    for path in [&connections, &transitions] {
        if path.is_file() {
            bail!(
                "{}",
                record::refusal(path, &io::ErrorKind::AlreadyExists.into())
            );
        }
    }
    Ok(Outputs::Tables {
        connections: create(&connections, made)?,
        transitions: create(&transitions, made)?,
    })
}

fn sink(to: ExportFormat, outputs: Outputs, header: &Header) -> Result<Box<dyn Sink>> {
    let clock = Clock::new(header.begins, header.zero.into(), TimeZone::UTC);
    Ok(match outputs {
        Outputs::One(out) if to == ExportFormat::Perfetto => {
            Box::new(Perfetto::new(out, clock, header)?)
        }
        Outputs::One(out) => Box::new(Json::new(out, clock)),
        Outputs::Tables {
            connections,
            transitions,
        } if to == ExportFormat::Parquet => {
            Box::new(Parquet::new(connections, transitions, clock, header)?)
        }
        Outputs::Tables {
            connections,
            transitions,
        } => Box::new(Both {
            connections: Csv::new(connections, clock.clone(), Rows::Connections)?,
            transitions: Csv::new(transitions, clock, Rows::Transitions)?,
        }),
    })
}
