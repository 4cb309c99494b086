//! Where output goes, and in which shape.

use std::{
    env,
    fs::{self, File},
    io::{self, BufWriter, IsTerminal as _, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::args::{Format, OutputArgs};
use crate::{
    clock::Clock,
    message::say,
    recording,
    sink::{Csv, Json, Layout, Rows, Sink, Text, escape},
};

/// Where output goes.
pub enum Target {
    /// Standard output.
    Stdout,
    /// A file.
    File {
        /// What is written to.
        file: Named,
        /// None if it was there before.
        made: Option<Made>,
    },
}

/// A file that we made. It goes if nothing comes of it.
pub struct Made(Option<PathBuf>);

impl Made {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(error) = fs::remove_file(path)
        {
            let path = escape::path(path);
            say(format_args!(
                "{path}: is empty, and cannot be removed: {error}"
            ));
        }
    }
}

/// A file whose errors say which it is.
pub struct Named {
    file: File,
    path: PathBuf,
}

impl Named {
    /// The file of this name.
    pub fn new(file: File, path: &Path) -> Self {
        let path = path.to_owned();
        Self { file, path }
    }
}

impl Write for Named {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes).map_err(|error| {
            let path = escape::path(&self.path);
            io::Error::new(error.kind(), format!("{path}: {error}"))
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Columns where nothing says how many.
pub const NARROW: usize = 80;

/// Opens the output before anything is attached, so that a bad path fails first. What is in the file stays until
/// [`Target::begin`], and without that a file that was not there is gone with the target.
pub fn open(args: &OutputArgs) -> Result<Target> {
    let Some(path) = &args.output else {
        return Ok(Target::Stdout);
    };
    if recording::is_there(path) {
        bail!(
            "--output {}: it is a recording, perhaps the one that is read, and would be lost; give another name",
            escape::path(path)
        );
    }
    let opened = match File::options().write(true).create_new(true).open(path) {
        Ok(file) => Ok((file, Some(Made(Some(path.clone()))))),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let mut there = File::options();
            // A link to what is not there yet is there, too.
            there.write(true).create(true).truncate(false);
            there.open(path).map(|file| (file, None))
        }
        Err(error) => Err(error),
    };
    let (file, made) =
        opened.with_context(|| format!("--output {}: cannot be written", escape::path(path)))?;
    let file = Named::new(file, path);
    Ok(Target::File { file, made })
}

impl Target {
    /// Replaces what was in the file.
    pub fn begin(self) -> Box<dyn Write> {
        match self {
            Self::Stdout => buffered(io::stdout()),
            Self::File { file, made } => {
                if let Some(made) = made {
                    made.keep();
                }
                // Devices and pipes have nothing to replace.
                let _ = file.file.set_len(0);
                buffered(file)
            }
        }
    }
}

/// One write for many lines.
fn buffered(out: impl Write + 'static) -> Box<dyn Write> {
    const BYTES: usize = 64 << 10;
    Box::new(BufWriter::with_capacity(BYTES, out))
}

/// The sink that was asked for.
pub fn sink(
    args: &OutputArgs,
    rows: Rows,
    out: Box<dyn Write>,
    clock: Clock,
) -> Result<Box<dyn Sink>> {
    Ok(match args.format() {
        Format::Text => {
            let layout = Layout {
                wide: args.wide,
                time_of_day: args.time,
                since_start: args.timestamp,
                rows,
                columns: room(args),
            };
            Box::new(Text::new(out, clock, layout)?)
        }
        Format::Json => Box::new(Json::new(out, clock)),
        Format::Csv => Box::new(Csv::new(out, clock, rows)?),
    })
}

/// Columns of the terminal that we write to; for what is none, those that COLUMNS asks for.
pub fn columns(args: &OutputArgs) -> Option<usize> {
    if args.output.is_none() && io::stdout().is_terminal() {
        let size = terminal_size::terminal_size_of(io::stdout());
        return Some(size.map_or(NARROW, |(width, _)| usize::from(width.0)));
    }
    let columns = env::var("COLUMNS").ok()?.parse().ok();
    columns.filter(|columns| *columns > 0)
}

/// The same for rows, of which nothing is cut where nobody says how wide it is.
pub fn room(args: &OutputArgs) -> usize {
    columns(args).unwrap_or(usize::MAX)
}
