//! A recording of a machine that never was, as large as one likes: `cargo xtask generate OUT`. Same numbers, same bytes.

mod machine;

use std::{fs::File, io::BufWriter, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::Parser;
use machine::lives::{Scale, generate};

/// Generates a recording
#[derive(Parser)]
struct Args {
    /// The file to write, which must not be there
    out: PathBuf,

    /// Different connections (addresses and ports); each may live several times
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    connections: u32,

    /// Records of events
    #[arg(long, default_value_t = 20_000_000)]
    events: u64,

    /// Another number, another recording
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let path = args.out.display();
    let file = File::create_new(&args.out)
        .with_context(|| format!("{path}: cannot be made; remove it if it is there"))?;
    let scale = Scale {
        connections: args.connections,
        events: args.events,
        seed: args.seed,
    };
    let file = generate(scale, BufWriter::new(file)).with_context(|| path.to_string())?;
    let bytes = file.get_ref().metadata()?.len();
    println!("{path}: {} events, {bytes} bytes", args.events);
    Ok(())
}
