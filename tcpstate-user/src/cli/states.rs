//! `tcpstate states` and `tcpstate states --leaks`.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args as ClapArgs;
use tcpstate_common::state::TcpState;

use super::{
    Outcome,
    args::{LiveArgs, hidden},
    periodic::{PeriodArgs, dimension, order, run},
    shape::Conditions,
    values::{duration, labels, state},
};
use crate::analysis::{By, Dimension, Leaks, LeaksOptions, States, StatesOptions, Tally};

const STATES_HELP: &str = "\
Sockets by state as they are when the interval ends: kept by events, seeded with \
those that were there at the start. As /proc/net/tcp has them, but of all network \
namespaces, and with the minisockets' process. SYN_S is SYN_SENT, ESTAB ESTABLISHED, \
FIN_W1 FIN_WAIT1 and so on; -w adds SYN_RECV, CLOSING, and how many of FIN_WAIT2 are \
minisockets (MINI). Half-open connections of a listener (its SYN queue) are not seen.
`>=`: some of those minisockets may be in TIME_WAIT, which the kernel tells when they end.
COMM: the process that a socket, or its listener, belongs to; `unknown` where the \
kernel did not tell, as of minisockets found at the start. Of sockets found at the \
start --by listener, service and remote take as accepted what has the port of a listener.

--leaks lists sockets that stay: in CLOSE_WAIT (the application does not close), \
FIN_WAIT2 (the peer does not; no minisockets, which end by themselves), SYN_SENT \
(nobody answers), FIN_WAIT1, CLOSING and LAST_ACK (our FIN is not acknowledged).
AGE(s): seconds in that state; `>=` it was there at the start, `<=` something was \
lost since.

Exit code: 0 there was a socket, or ended by Ctrl-C; 1 none; 2 an error.

Examples:
  tcpstate states 1 1                 now, once
  tcpstate states --by state,cidr 10
  tcpstate states --leaks 10          who leaks, every ten seconds
  tcpstate states --leaks --older 5m --by pid,remote --state close_wait 60";

/// Flags of `tcpstate states`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = STATES_HELP,
    mut_arg("state", |arg| {
        arg.help("States to have columns for; with --leaks, to list sockets of")
            .help_heading("Reports")
            .value_parser(states_state)
    }),
    mut_arg("time", hidden),
    mut_arg("timestamp", hidden),
    mut_arg("wide", |arg| arg.help("Every column: SYN_RECV, CLOSING and minisockets too; names in full")),
)]
pub struct StatesArgs {
    /// What periodic views have.
    #[command(flatten)]
    pub period: PeriodArgs,

    /// What to tell apart: process, pid, cgroup, container, uid, netns, listener, service, remote, cidr, state [default:
    /// process; with --leaks every socket]
    #[arg(long, value_delimiter = ',', value_parser = states_dimension)]
    pub by: Vec<Dimension>,

    /// Sort by this column (its name in -j) [default: sockets; with --leaks age]
    #[arg(long, value_name = "COLUMN")]
    pub sort: Option<String>,

    /// List the sockets that stay in CLOSE_WAIT, SYN_SENT, FIN_WAIT1, FIN_WAIT2, CLOSING or LAST_ACK
    #[arg(long)]
    pub leaks: bool,

    /// With --leaks: those that are in their state at least so long (seconds, or with a unit; 0 for all)
    #[arg(long, value_name = "TIME", requires = "leaks", default_value = "60s", value_parser = age)]
    pub older: Duration,

    /// What all views have.
    #[command(flatten)]
    pub live: LiveArgs,
}

/// Runs `tcpstate states`.
pub fn states(args: &StatesArgs) -> Result<Outcome> {
    let states = args.live.filter.state.clone();
    if args.leaks {
        return leaks(args, states);
    }
    let by = match args.by.as_slice() {
        [] => &[Dimension::Process],
        by => by,
    };
    let by = By::new(by, args.period.prefix);
    let sort = args.sort.as_deref().unwrap_or(States::SORT);
    let order = order(
        sort,
        args.period.top,
        &by.columns(),
        &States::columns(&by, &states),
    )?;
    let tally = move |conditions: &Conditions<'_>| -> Box<dyn Tally> {
        Box::new(States::new(StatesOptions {
            by,
            order,
            states,
            timewait: conditions.timewait,
            limit: conditions.limit,
        }))
    };
    run(&args.live, &args.period, tally)
}

fn leaks(args: &StatesArgs, states: Vec<TcpState>) -> Result<Outcome> {
    if let Some(state) = states.iter().find(|state| !Leaks::looks_at(**state)) {
        let (state, labels) = (state.label(), labels(Leaks::looks_at));
        bail!("--state {state}: --leaks looks at {labels}");
    }
    let by = (!args.by.is_empty()).then(|| By::new(&args.by, args.period.prefix));
    let sort = args.sort.as_deref().unwrap_or(Leaks::SORT);
    let order = order(sort, args.period.top, &[], &Leaks::columns(by.as_ref()))?;
    let least = u64::try_from(args.older.as_nanos()).unwrap_or(u64::MAX);
    let tally = move |conditions: &Conditions<'_>| -> Box<dyn Tally> {
        Box::new(Leaks::new(LeaksOptions {
            by,
            order,
            states,
            older: least,
            limit: conditions.limit,
        }))
    };
    run(&args.live, &args.period, tally)
}

/// An age, which may be nothing.
fn age(text: &str) -> Result<Duration, String> {
    match text.trim() {
        "0" | "0s" => Ok(Duration::ZERO),
        text => duration(text).map_err(|_| {
            "give seconds, or a number with a unit, or 0 for all: 90, 1.5, 60s, 2m".to_owned()
        }),
    }
}

fn states_dimension(text: &str) -> Result<Dimension, String> {
    dimension(text, &States::DIMENSIONS, |_| "states cannot tell it")
}

fn states_state(text: &str) -> Result<TcpState, String> {
    // Whether --leaks is given is not known here.
    state(text, States::counts, "no socket is counted in it")
        .map_err(|why| format!("{why}; with --leaks, {}", labels(Leaks::looks_at)))
}
