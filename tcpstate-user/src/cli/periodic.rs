//! Periodic views: `tcpstate closers`, `tcpstate hist`, and what all of them share. Their flags, checked, become a [`Tally`].

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args as ClapArgs;
use tcpstate_common::state::TcpState;

use super::{
    Outcome,
    args::{LiveArgs, hidden},
    live,
    shape::{Conditions, Periodic, Shape},
    values::{count, duration, state},
};
use crate::analysis::{
    By, Closers, Column, Dimension, Hist, HistOptions, Measure, Order, Scale, Shown, Tally,
};

/// When to report, and how much.
#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Reports")]
pub struct PeriodArgs {
    /// Report whenever so many seconds have passed (fractions are allowed, or a unit: 0.5, 10, 1m); else once, at the end
    #[arg(help_heading = None, value_parser = interval)]
    pub interval: Option<Duration>,

    /// End after so many reports
    #[arg(help_heading = None, value_name = "COUNT", value_parser = count::<u64>)]
    pub reports: Option<u64>,

    /// How many groups to show; the others are summed up
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = count::<usize>)]
    pub top: usize,

    /// The networks of --by cidr: bits of the prefix in IPv4 and in IPv6
    #[arg(long, value_name = "V4,V6", default_value = "24,64", value_parser = prefixes)]
    pub prefix: (u8, u8),
}

const CLOSERS_HELP: &str = "\
A connection is counted when its first close happens.
  COMM     the process: if this side closed first, the one that did so in its
           own system call; else the one that the socket belongs to, or its
           listener; `unknown` where the kernel did not tell
  SERVICE  the listening end: `<-` ours (the peer connected), `->` the peer's
           (we did), `?` opened before we looked
  FIN RST  this side closed first, with that
  PEER     the peer closed first, with either
  ACTIVE%  how many of both this side closed first
  TW       TIME_WAITs that began. `>=`: minisockets were born in FIN_WAIT2, and
           the kernel may tell only when they end that the peer's FIN came
           before. `-`: not observed
  /S       closes a second
-w and -j also have closes by nobody (NONE: timed out, destroyed), those whose \
first close was lost (UNKNOWN), and crossed FINs (SIMULT, counted in FIN too).
--by remote has a port only where we connected: others are picked by the peer.

Exit code: 0 something was counted, or ended by Ctrl-C; 1 nothing; 2 an error.

Examples:
  tcpstate closers 10             who closes first, every ten seconds
  tcpstate closers -L 443 --by container 60 5
                                  of a server, by container, for five minutes
  tcpstate closers --by pid,remote --sort time_waits -j --duration 60";

const HIST_HELP: &str = "\
Times are milliseconds, of what has ended while we looked:
  SYN_SENT       connect() that succeeded; `connect failed`: the others
  ESTABLISHED    open on both sides
  FIN_WAIT1      until the peer has acknowledged our FIN
  FIN_WAIT2      until the peer's FIN, in the full socket and the minisocket
  CLOSING        the FINs crossed, until ours is acknowledged
  TIME_WAIT      from its first start to its real end
  CLOSE_WAIT     until our application has closed
  LAST_ACK       until the peer has acknowledged our FIN
  active close   from our FIN to the start of TIME_WAIT, or else CLOSE
  passive close  from the peer's FIN to CLOSE
Quantiles are at most 1 % too large, MAX is exact. NOT EXACT: only a bound is known \
(begun before we looked, or events were lost); these are in no other column.
--state selects: states, and `close` for the two closes. --by is as in closers; \
COMM is the process that `trace` shows.

Exit code: 0 something was measured, or ended by Ctrl-C; 1 nothing; 2 an error.

Examples:
  tcpstate hist --state syn_sent -D 5432     connect latency, until Ctrl-C
  tcpstate hist --state close_wait --by process --no-bars 10
  tcpstate hist --state close --linear -j --duration 60";

/// Flags of `tcpstate closers`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = CLOSERS_HELP,
    mut_arg("state", hidden),
    mut_arg("time", hidden),
    mut_arg("timestamp", hidden),
    mut_arg("wide", |arg| arg.help("Every column: closes by nobody, lost and crossed ones too; names in full")),
)]
pub struct ClosersArgs {
    /// What periodic views have.
    #[command(flatten)]
    pub period: PeriodArgs,

    /// What to tell apart: process, pid, cgroup, container, uid, netns, listener, service, remote, cidr
    #[arg(long, value_delimiter = ',', default_value = "process,service", value_parser = closers_dimension)]
    pub by: Vec<Dimension>,

    /// Sort by this column (its name in -j)
    #[arg(long, value_name = "COLUMN", default_value = Closers::SORT)]
    pub sort: String,

    /// What all views have.
    #[command(flatten)]
    pub live: LiveArgs,
}

/// Flags of `tcpstate hist`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = HIST_HELP,
    mut_arg("state", |arg| {
        arg.help("What to measure: states, and `close` for the two closes")
            .help_heading("Reports")
            .value_parser(hist_state)
    }),
    mut_arg("time", hidden),
    mut_arg("timestamp", hidden),
    mut_arg("wide", |arg| arg.help("Names in full, however wide the terminal is")),
)]
pub struct HistArgs {
    /// What periodic views have.
    #[command(flatten)]
    pub period: PeriodArgs,

    /// What to tell apart besides the states: process, pid, cgroup, container, uid, netns, listener, service, remote, cidr
    #[arg(long, value_delimiter = ',', value_parser = hist_dimension)]
    pub by: Vec<Dimension>,

    /// Sort the groups of a state by this column (its name in -j)
    #[arg(long, value_name = "COLUMN", default_value = Hist::SORT)]
    pub sort: String,

    /// Buckets of equal width, instead of 1, 2, 5, 10, 20, 50 ...
    #[arg(long)]
    pub linear: bool,

    /// Only quantiles, one line each
    #[arg(long)]
    pub no_bars: bool,

    /// What all views have.
    #[command(flatten)]
    pub live: LiveArgs,
}

/// Runs `tcpstate closers`.
pub fn closers(args: &ClosersArgs) -> Result<Outcome> {
    if !args.live.filter.state.is_empty() {
        bail!(
            "--state: closers counts closes, which are no states; `tcpstate hist --state` measures them"
        );
    }
    let by = By::new(&args.by, args.period.prefix);
    let order = order(&args.sort, args.period.top, &by.columns(), Closers::COLUMNS)?;
    let tally = move |conditions: &Conditions<'_>| -> Box<dyn Tally> {
        Box::new(Closers::new(
            by,
            order,
            conditions.timewait,
            conditions.limit,
        ))
    };
    run(&args.live, &args.period, tally)
}

/// Runs `tcpstate hist`.
pub fn hist(args: &HistArgs) -> Result<Outcome> {
    let by = By::new(&args.by, args.period.prefix);
    let order = order(&args.sort, args.period.top, &by.columns(), Hist::COLUMNS)?;
    let options = HistOptions {
        by,
        order,
        states: args.live.filter.state.clone(),
        scale: if args.linear {
            Scale::Linear
        } else {
            Scale::Logarithmic
        },
        buckets: !args.no_bars,
        timewait: true,
        limit: 0,
    };
    let tally = move |conditions: &Conditions<'_>| -> Box<dyn Tally> {
        Box::new(Hist::new(HistOptions {
            timewait: conditions.timewait,
            limit: conditions.limit,
            ..options
        }))
    };
    run(&args.live, &args.period, tally)
}

pub(super) fn run(
    live: &LiveArgs,
    period: &PeriodArgs,
    tally: impl FnOnce(&Conditions<'_>) -> Box<dyn Tally> + 'static,
) -> Result<Outcome> {
    live::run(live, Shape::Reports(periodic(live, period, tally)?))
}

/// A periodic view with these flags.
pub(super) fn periodic(
    live: &LiveArgs,
    period: &PeriodArgs,
    tally: impl FnOnce(&Conditions<'_>) -> Box<dyn Tally> + 'static,
) -> Result<Periodic> {
    let output = &live.output;
    for (flag, given) in [("--time", output.time), ("--timestamp", output.timestamp)] {
        if given {
            bail!(
                "{flag}: every report tells when it was made, and how long it is of; leave it out"
            );
        }
    }
    let reports = match (period.interval, period.reports, live.count) {
        (_, Some(_), Some(_)) => {
            bail!("--count: the number of reports is given twice; leave one of the two out")
        }
        (None, _, Some(_)) => {
            bail!("--count: there is one report, at the end; give an interval too: `10 --count 6`")
        }
        (_, reports, count) => reports.or(count),
    };
    Ok(Periodic {
        tally: Box::new(tally),
        calls: false,
        every: period.interval,
        reports,
        settings: false,
        silent: false,
    })
}

/// The order of groups; the column must be there.
pub(super) fn order(sort: &str, top: usize, keys: &[Column], columns: &[Column]) -> Result<Order> {
    let sortable = || {
        let all = keys.iter().chain(columns);
        all.filter(|column| column.shown != Shown::Text)
    };
    let Some(column) = sortable().find(|column| column.name == sort) else {
        let names: Vec<_> = sortable().map(|column| column.name).collect();
        bail!(
            "--sort {sort}: there is no such column; with this --by there are {}",
            names.join(", ")
        );
    };
    Ok(Order {
        column: column.name,
        top,
    })
}

fn hist_state(text: &str) -> Result<TcpState, String> {
    let measured = |state| !Measure::of_state(state).is_empty();
    state(text, measured, "no time is measured in it")
}

fn interval(text: &str) -> Result<Duration, String> {
    const LEAST: Duration = Duration::from_millis(10);
    let interval = duration(text)?;
    if interval < LEAST {
        return Err("give 0.01 seconds or more".to_owned());
    }
    Ok(interval)
}

fn closers_dimension(text: &str) -> Result<Dimension, String> {
    dimension(text, &Closers::DIMENSIONS, |dimension| match dimension {
        Dimension::State => "a close has no state of its own",
        _ => "closers cannot tell it",
    })
}

fn hist_dimension(text: &str) -> Result<Dimension, String> {
    dimension(text, &Hist::DIMENSIONS, |dimension| match dimension {
        Dimension::State => "hist always tells states apart; --state selects some",
        _ => "hist cannot tell it",
    })
}

/// One word of `--by`; `why` says why a view does not have it.
pub(super) fn dimension(
    text: &str,
    allowed: &[Dimension],
    why: impl Fn(Dimension) -> &'static str,
) -> Result<Dimension, String> {
    let text = text.trim();
    let known = Dimension::ALL
        .into_iter()
        .find(|dimension| dimension.label().eq_ignore_ascii_case(text));
    let names: Vec<_> = allowed.iter().map(|dimension| dimension.label()).collect();
    match known {
        Some(dimension) if allowed.contains(&dimension) => Ok(dimension),
        Some(dimension) => Err(format!("{}; give {}", why(dimension), names.join(", "))),
        None => Err(format!("give {}", names.join(", "))),
    }
}

fn prefixes(text: &str) -> Result<(u8, u8), String> {
    const HINT: &str = "give the bits for IPv4, up to 32, and for IPv6, up to 128: 24,64";
    let bits = |text: &str, most: u8| {
        text.trim()
            .parse::<u8>()
            .ok()
            .filter(|bits| *bits <= most)
            .ok_or(HINT)
    };
    match text.split_once(',') {
        Some((v4, v6)) => Ok((bits(v4, 32)?, bits(v6, 128)?)),
        None => Ok((bits(text, 32)?, 64)),
    }
}

#[cfg(test)]
mod tests {
    use super::{closers_dimension, hist_dimension, prefixes};
    use crate::analysis::Dimension;

    #[test]
    fn dimensions_by_name() {
        assert_eq!(closers_dimension("process"), Ok(Dimension::Process));
        assert_eq!(hist_dimension("CIDR"), Ok(Dimension::Cidr));
        for bad in ["", "state", "port", "process pid"] {
            assert!(closers_dimension(bad).is_err(), "{bad}");
            assert!(hist_dimension(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn prefixes_of_networks() {
        assert_eq!(prefixes("24,64"), Ok((24, 64)));
        assert_eq!(prefixes("16"), Ok((16, 64)));
        assert_eq!(prefixes("0,0"), Ok((0, 0)));
        for bad in ["", "33", "24,129", "-1", "24,", "a,b"] {
            assert!(prefixes(bad).is_err(), "{bad}");
        }
    }
}
