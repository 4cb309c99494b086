//! `tcpstate timewait`.

use anyhow::{Result, bail};
use clap::Args as ClapArgs;

use super::{
    Outcome,
    args::{LiveArgs, hidden},
    live,
    periodic::{PeriodArgs, dimension, order, periodic},
    shape::{Conditions, Periodic, Shape},
};
use crate::analysis::{By, Dimension, Tally, Waits, WaitsOptions};

const WAITS_HELP: &str = "\
  NOW      sockets in TIME_WAIT; `>=`: minisockets in FIN_WAIT2 may be there too
  BORN     TIME_WAITs that began; then those that ended:
  EXPIRED  after their time; REUSED: connect() or a SYN took the 4-tuple over;
  OTHER    rst, destroyed, namespace gone, not known (-w and -j tell them apart)
  OVERFL   connections that got none (tcp_max_tw_buckets)
  P50 MAX  how long they really took, of exact times only
Then, for each source and destination, the local ports that connections opened by \
this host hold: USED, of them by minisockets (MINI: TIME_WAIT or FIN_WAIT2), out of \
PORTS (ip_local_port_range without ip_local_reserved_ports and ports of listeners, as \
set in that network namespace at the start), FREE, change a second, and when there \
will be NONE if it goes on like that; TIME_WAITs that end meanwhile are thought of.
FAILED: connect() that found no port (EADDRNOTAVAIL), and whose. That is known without \
a hook of its own: the socket enters SYN_SENT and leaves it, still without a port.
Connections that were there at the start count if no listener has their local port.
And bind() that found its address in use (EADDRINUSE), and whose; PORT `any`: it asked \
for any port of that address, and there was none (--syscalls=off does without).

Exit code: 0 something was counted, or ended by Ctrl-C; 1 nothing; 2 an error.

Examples:
  tcpstate timewait 10
  tcpstate timewait --by container,remote --sort born 60
  tcpstate timewait -j 1 | jq '.ports[]? | select(.seconds_until_none < 60)'";

/// Flags of `tcpstate timewait`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = WAITS_HELP,
    mut_arg("state", hidden),
    mut_arg("time", hidden),
    mut_arg("timestamp", hidden),
    mut_arg("wide", |arg| arg.help("Every column: each reason why they end, FIN_WAIT2, restarts, rates too; names in full")),
)]
pub struct WaitsArgs {
    /// What periodic views have.
    #[command(flatten)]
    pub period: PeriodArgs,

    /// What to tell apart: process, pid, cgroup, container, uid, netns, listener, service, remote, cidr
    #[arg(long, value_delimiter = ',', default_value = "process", value_parser = waits_dimension)]
    pub by: Vec<Dimension>,

    /// Sort by this column (its name in -j)
    #[arg(long, value_name = "COLUMN", default_value = Waits::SORT)]
    pub sort: String,

    /// What all views have.
    #[command(flatten)]
    pub live: LiveArgs,
}

/// Runs `tcpstate timewait`.
pub fn timewait(args: &WaitsArgs) -> Result<Outcome> {
    if !args.live.filter.state.is_empty() {
        bail!("--state: timewait shows TIME_WAIT; `tcpstate states` shows the others");
    }
    let by = By::new(&args.by, args.period.prefix);
    let order = order(
        &args.sort,
        args.period.top,
        &by.columns(),
        &Waits::columns(),
    )?;
    let tally = move |conditions: &Conditions<'_>| -> Box<dyn Tally> {
        let ports = conditions.settings.iter();
        let ports = ports.filter_map(|settings| {
            Some((settings.netns, settings.local_ports(conditions.addresses)?))
        });
        Box::new(Waits::new(WaitsOptions {
            by,
            order,
            timewait: conditions.timewait,
            calls: conditions.calls,
            ports: ports.collect(),
            limit: conditions.limit,
        }))
    };
    let periodic = Periodic {
        calls: true,
        settings: true,
        ..periodic(&args.live, &args.period, tally)?
    };
    live::run(&args.live, Shape::Reports(periodic))
}

fn waits_dimension(text: &str) -> Result<Dimension, String> {
    dimension(text, &Waits::DIMENSIONS, |dimension| match dimension {
        Dimension::State => "timewait is of one state; `tcpstate states --by state` has the others",
        _ => "timewait cannot tell it",
    })
}
