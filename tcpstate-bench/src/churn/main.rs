//! A load of short TCP connections, in network namespaces of its own: what the kernel keeps of them (TIME_WAITs) goes with it, so that
//! one run does not slow down the next.

mod client;
mod existing;
mod link;
mod server;

use std::{
    collections::BTreeMap,
    io,
    process::ExitCode,
    sync::{
        Arc, Barrier,
        atomic::{AtomicU8, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::{Parser, ValueEnum};
use hdrhistogram::Histogram;
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::{TimeVal, TimeValLike as _},
};
use nix::unistd::alarm;
use serde_json::json;
use tcpstate_bench::{Churned, Latency, Link, Mode};

use client::Done;
use link::{MAX_DESTINATIONS, Place};

/// A load of short TCP connections in network namespaces of its own; prints one line of JSON at its end. Needs root.
///
/// Each client connects, reads the byte that its server sends, and one of them closes. No two connections of a run have the same
/// addresses and ports.
#[derive(Parser)]
struct Args {
    /// Who closes first, and how
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,

    /// What the packets go over
    #[arg(long, value_enum, default_value_t)]
    link: Link,

    /// How many clients there are, each with a server thread of its own (default: the number of processors)
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_THREADS)))]
    threads: Option<u16>,

    /// How long to measure
    #[arg(long, default_value_t = 5.0, value_parser = seconds)]
    seconds: f64,

    /// How long to run before
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    warm_up: f64,

    /// How many addresses the clients connect to in turn
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_DESTINATIONS)))]
    destinations: u32,

    /// Instead of a load, keep this many sockets open (two for a connection), and this many TIME_WAITs; implies --hold
    #[arg(long, value_name = "SOCKETS,TIME_WAITS", value_parser = existing::Wanted::parse)]
    existing: Option<existing::Wanted>,

    /// A part of --existing
    #[arg(long, hide = true, value_parser = existing::pair)]
    holder: Option<(u32, u32)>,

    /// Keep the network namespaces, with their TIME_WAITs, until standard input ends
    #[arg(long)]
    hold: bool,
}

const MAX_THREADS: u16 = 256;

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.0..=600.0).contains(&seconds) {
        Ok(seconds)
    } else {
        Err("from 0 to 600".to_owned())
    }
}

/// What the clients are doing.
const WARM_UP: u8 = 0;
const MEASURED: u8 = 1;
const OVER: u8 = 2;

fn main() -> ExitCode {
    match perform(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("churn: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn perform(args: &Args) -> Result<()> {
    if let Some((connections, port)) = args.holder {
        let port = u16::try_from(port).context("that is no port")?;
        let _connections = existing::hold(connections, port)?;
        println!("ready");
        return hold();
    }
    if let Some(wanted) = &args.existing {
        let place = Place::make(Link::Loopback, 0, args.destinations)?;
        let existing = existing::make(wanted)?;
        let line = json!({
            "netns": place.netns,
            "sockets": existing.sockets,
            "time_waits": existing.time_waits,
        });
        println!("{line}");
        return hold();
    }
    println!("{}", serde_json::to_string(&run(args)?)?);
    if args.hold {
        hold()?;
    }
    Ok(())
}

/// Waits for the end of standard input.
fn hold() -> Result<()> {
    alarm::cancel();
    io::copy(&mut io::stdin(), &mut io::sink()).context("standard input cannot be read")?;
    Ok(())
}

fn run(args: &Args) -> Result<Churned> {
    let threads = args.threads.unwrap_or_else(|| {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        u16::try_from(processors).unwrap_or(MAX_THREADS)
    });
    // Whatever happens, this ends: a connection may wait for ever, a load must not.
    let longest = args.warm_up + args.seconds + 30.0;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "at most 1230"
    )]
    alarm::set(longest as u32);
    let Place {
        netns,
        server_netns,
        listeners,
    } = Place::make(args.link, threads, args.destinations)?;
    let phase = Arc::new(AtomicU8::new(WARM_UP));
    let start = Arc::new(Barrier::new(listeners.len() + 1));
    let mut clients = Vec::new();
    let mut servers = Vec::new();
    for (listener, targets) in listeners {
        servers.push(server::start(listener, args.mode)?);
        let (phase, start, mode) = (Arc::clone(&phase), Arc::clone(&start), args.mode);
        let client = thread::Builder::new().name("churn client".to_owned());
        clients.push(
            client
                .spawn(move || {
                    start.wait();
                    client::run(targets, mode, &phase)
                })
                .context("no more threads")?,
        );
    }
    start.wait();
    thread::sleep(Duration::from_secs_f64(args.warm_up));
    let (began, cpu) = (Instant::now(), cpu_seconds()?);
    phase.store(MEASURED, Ordering::Relaxed);
    thread::sleep(Duration::from_secs_f64(args.seconds));
    phase.store(OVER, Ordering::Relaxed);
    let (elapsed, cpu) = (began.elapsed(), cpu_seconds()? - cpu);

    let mut all = Done::new()?;
    for client in clients {
        all.add(&client.join().map_err(|_| anyhow!("a client panicked"))??)?;
    }
    for server in servers {
        all.add_errors(&server.end()?);
    }
    if all.connections_all == 0 {
        bail!("no connection could be made: {:?}", all.errors);
    }
    let seconds = elapsed.as_secs_f64();
    let connections = all.latency.len();
    #[expect(
        clippy::cast_precision_loss,
        reason = "fewer than 2^52 connections in ten minutes"
    )]
    let per_second = connections as f64 / seconds;
    Ok(Churned {
        mode: name(&args.mode),
        link: name(&args.link),
        threads: threads.into(),
        netns,
        server_netns,
        connections_all: all.connections_all,
        connections,
        seconds,
        per_second,
        latency_us: latency(&all.latency),
        errors: all.errors,
        cpu_seconds: cpu,
    })
}

fn name(value: &impl ValueEnum) -> String {
    let value = value.to_possible_value();
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}

fn latency(nanoseconds: &Histogram<u64>) -> Latency {
    let at = |quantile| nanoseconds.value_at_quantile(quantile) / 1000;
    Latency {
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        p999: at(0.999),
        max: nanoseconds.max() / 1000,
    }
}

/// User and system time of this process.
fn cpu_seconds() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).context("getrusage failed")?;
    #[expect(clippy::cast_precision_loss, reason = "fewer than 2^52 microseconds")]
    let seconds = |time: TimeVal| time.num_microseconds() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// Errors by system call and name.
type Errors = BTreeMap<String, u64>;

fn count(errors: &mut Errors, call: &str, error: nix::Error) {
    *errors.entry(format!("{call} {error:?}")).or_default() += 1;
}
