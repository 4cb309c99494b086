//! The flags. Those that tcpstates and tcplife have mean the same here.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail};
use clap::{
    Arg, Args as ClapArgs, FromArgMatches as _, Parser, Subcommand, ValueEnum,
    builder::{PathBufValueParser, TypedValueParser as _},
};
use ipnet::IpNet;
use tcpstate_common::{config::PortRange, state::TcpState};

use super::{
    doctor::DoctorArgs,
    export::ExportArgs,
    info::InfoArgs,
    periodic::{ClosersArgs, HistArgs},
    record::{RecordArgs, RecordingArgs},
    states::StatesArgs,
    timewait::WaitsArgs,
    values::{
        buffer, cgroup, connection_state, connections, count, duration, network, output, pid,
        ports, protocol, transition_state,
    },
};
use crate::{
    event::{Comm, Protocol},
    filter::{Filter, IpVersion, Netns},
    kernel::{self, CallRequest, Cgroups, Hook, TimeWaitHook, TimeWaitRequest},
};

/// Trace every TCP state transition of this machine, and measure what others leave out.
#[derive(Debug, Parser)]
#[command(
    name = "tcpstate",
    version,
    max_term_width = 100,
    mut_subcommands(|command| command.mut_args(told_what_is_allowed)),
)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print every state transition, one line each, until Ctrl-C; then a summary
    Trace(Box<TraceArgs>),
    /// Print one line for each finished connection: who opened and closed it, how, and its real TIME_WAIT
    Conns(Box<ConnsArgs>),
    /// Count the sockets in each state now; with --leaks, list those that stay in CLOSE_WAIT and the like
    States(Box<StatesArgs>),
    /// Count TIME_WAITs, why they end, how long they take; and the local ports in use, and when there will be none
    Timewait(Box<WaitsArgs>),
    /// Count which process closes first, towards whom, with FIN or RST, and the TIME_WAITs it causes
    Closers(Box<ClosersArgs>),
    /// Measure the time spent in each state, and in the close as a whole
    Hist(Box<HistArgs>),
    /// Watch for half a minute, and say what is wrong with TCP here, who causes it, and what to change
    Doctor(Box<DoctorArgs>),
    /// Record what happens in a file, to be looked at later, elsewhere and without root (--from)
    Record(Box<RecordArgs>),
    /// Make files for other tools of a recording: a trace for Perfetto, tables
    Export(Box<ExportArgs>),
    /// Say what a recording is of: machine, time, counts, losses, and whether it is whole
    Info(InfoArgs),
    /// Show what this kernel allows, which hooks would be used and why, and what is lost by it
    Probe(ProbeArgs),
}

const TRACE_HELP: &str = "\
Columns: MS is the time spent in OLD, in milliseconds: `>=` at least (the beginning was not seen), `<=` at most \
(something in between was not seen), `-` not known. `!` marks a transition that does not follow from what was seen: \
events were lost. An end without a port yet is shown as `address:-`, one that is not known as `-`, any as `*`.
After NEW stands why: the socket's error (ECONNRESET: a RST came), or why TIME_WAIT ended or was restarted. `mini`: a \
minisocket took over in FIN_WAIT2, waiting for the peer's FIN.
PID and COMM are shown only when the kernel told us: this transition happened in that process's own system call on \
this very socket, or an earlier one did, or its listener's. VIA (-w, -j, -s) says which: connect, listen, close, \
shutdown, syscall (another one), listener, accept (with --syscalls); or scan: the process held a socket that was there before.

Exit code: 0 something was shown, or ended by Ctrl-C; 1 nothing matched; 2 an error.

Examples:
  tcpstate trace                        everything
  tcpstate trace -L 80,443 -w           connections of a server, all columns
  tcpstate trace --state close_wait     who is left in CLOSE_WAIT, as it happens
  tcpstate trace --cidr 10.0.0.0/8 -j | jq -r 'select(.new==\"close\") | [.raddr,.error] | @tsv'";

const CONNS_HELP: &str = "\
A connection is printed when its TIME_WAIT has ended, not when the socket says CLOSE; with --running also what is left at \
the end of the run. Columns: OPENED by this host (active) or the peer (passive). CLOSED first by this host (local), the \
peer (remote), both at once, or none. HOW it ended: fin, rst_sent (SO_LINGER 0, unread data, data after close), \
rst_received, timeout, refused, unreachable, destroyed (ss -K, namespace gone), aborted (connect() given up); the state \
of what is still there. TW(s): the \
actual TIME_WAIT in seconds. `>=` at least, `<=` at most, `-` none or not known; `!` events were lost. PID and COMM: the \
process that closed, if this side did, else the one it belonged to, as far as the kernel told. -w has the time in each \
state, why TIME_WAIT ended, how often it was restarted (RES), bytes, segments sent again (RETR), round-trip time.

Exit code: 0 something was shown, or ended by Ctrl-C; 1 nothing matched; 2 an error.

Examples:
  tcpstate conns -L 443 -w              connections of a server, with everything
  tcpstate conns -j | jq 'select(.how == \"rst_received\")'";

/// Flags of `tcpstate trace`.
#[derive(Debug, ClapArgs)]
#[command(after_help = TRACE_HELP)]
pub struct TraceArgs {
    /// What both views have.
    #[command(flatten)]
    pub live: LiveArgs,
}

/// Flags of `tcpstate conns`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = CONNS_HELP,
    mut_arg("state", |arg| {
        arg.help("States that a connection was in at some time: close_wait, FIN_WAIT2")
            .value_parser(connection_state)
    }),
    mut_arg("time", |arg| arg.help("Add the time of day at which it began")),
    mut_arg("timestamp", |arg| arg.help("Add when it began, in seconds since the run did")),
    mut_arg("wide", |arg| arg.help(
        "Every column: START, why TIME_WAIT ended and how often it was restarted, the time in each state, bytes, segments \
         sent again, round-trip time, owner and closer, cookie"
    )),
)]
pub struct ConnsArgs {
    /// What both views have.
    #[command(flatten)]
    pub live: LiveArgs,

    /// At the end, print the connections that are still there too
    #[arg(long)]
    pub running: bool,
}

/// Flags of every view of what happens now.
#[derive(Debug, ClapArgs)]
pub struct LiveArgs {
    /// What to show.
    #[command(flatten)]
    pub filter: FilterArgs,

    /// How to show it.
    #[command(flatten)]
    pub output: OutputArgs,

    /// End after this time: seconds, or with a unit (90, 1.5, 60s, 2m)
    #[arg(long, value_name = "SECS", value_parser = duration, conflicts_with = "from")]
    pub duration: Option<Duration>,

    /// End after this many lines (or reports)
    #[arg(long, value_name = "N", value_parser = count::<u64>)]
    pub count: Option<u64>,

    /// How many open connections to remember; the longest silent are forgotten first
    #[arg(long, value_name = "N", default_value_t = MAX_CONNECTIONS, value_parser = connections)]
    pub max_connections: usize,

    /// How to look.
    #[command(flatten)]
    pub kernel: KernelArgs,

    /// Recordings.
    #[command(flatten)]
    pub recording: RecordingArgs,
}

/// A flag whose value is a number, or begins with one, sees negative ones too: its error says what is allowed, where clap would take
/// them for flags that are not there.
fn told_what_is_allowed(arg: Arg) -> Arg {
    const NUMBERS: [&str; 10] = [
        "N",
        "PID",
        "PORTS",
        "RATE",
        "SECS",
        "SHARE",
        "SIZE",
        "SIZE,FILES",
        "TIME",
        "V4,V6",
    ];
    let names = arg.get_value_names().unwrap_or_default();
    // clap gives flags without a value the name of one, too.
    let is_number = arg.get_action().takes_values()
        && names.iter().any(|name| NUMBERS.contains(&name.as_str()));
    arg.allow_hyphen_values(is_number)
}

/// A flag of all views that is of no use in one of them: given all the same, it is refused, and the error says why.
pub fn hidden(arg: Arg) -> Arg {
    arg.hide(true)
}

/// How many connections are remembered.
pub const MAX_CONNECTIONS: usize = 1_000_000;

/// How to look at this machine.
#[derive(Clone, Debug, Default, ClapArgs)]
pub struct KernelArgs {
    /// Size of the ring buffers between kernel and tcpstate, of which each processor has one, together [default: 8M for each
    /// processor, up to 64M]
    #[arg(long, value_name = "SIZE", value_parser = buffer)]
    pub buffer: Option<u32>,

    /// Leave out the sockets that are there at the start, and the search for their processes
    #[arg(long)]
    pub skip_existing: bool,

    /// Which hook to use for transitions
    #[arg(long, value_enum, default_value_t = HookChoice::Auto)]
    pub hook: HookChoice,

    /// How to observe the life of TIME_WAIT
    #[arg(long, value_enum, default_value_t = TimeWaitChoice::Auto)]
    pub timewait: TimeWaitChoice,

    /// Whether to look at the end of every system call of this machine too: then who accepts a connection is its owner, and
    /// `timewait` counts bind() that fails
    #[arg(long, value_enum, value_name = "WHEN", num_args = 0..=1, require_equals = true, default_value = "auto",
        default_missing_value = "on")]
    pub syscalls: SyscallsChoice,
}

/// Whether to look at system calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SyscallsChoice {
    /// Where it is shown and works: in `timewait`
    #[default]
    Auto,
    /// Always: some 20 ns for each system call of the machine
    On,
    /// Never
    Off,
}

impl SyscallsChoice {
    /// What that asks of the kernel; `shown` says whether the view tells of them.
    #[must_use]
    pub const fn request(self, shown: bool) -> CallRequest {
        match self {
            Self::On => CallRequest::Must,
            Self::Auto if shown => CallRequest::May,
            Self::Auto | Self::Off => CallRequest::Off,
        }
    }
}

/// How to observe the life of TIME_WAIT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum TimeWaitChoice {
    /// The best way that this kernel allows
    #[default]
    Auto,
    /// Programs at the beginning of the kernel's functions for TIME_WAIT: tells everything
    Fentry,
    /// Kprobes on the same functions
    Kprobe,
    /// The kernel's timer tracepoints: restarts within about 2 s are told only at the end
    Timer,
    /// The kernel's list of sockets, read once a second: an approximation
    Poll,
    /// Not at all: the trace shows what the state tracepoint shows, FIN_WAIT2 -> CLOSE
    Off,
}

impl TimeWaitChoice {
    /// What that asks of the kernel.
    #[must_use]
    pub const fn request(self) -> TimeWaitRequest {
        match self {
            Self::Auto => TimeWaitRequest::Auto,
            Self::Fentry => TimeWaitRequest::Only(TimeWaitHook::Fentry),
            Self::Kprobe => TimeWaitRequest::Only(TimeWaitHook::Kprobe),
            Self::Timer => TimeWaitRequest::Only(TimeWaitHook::Timer),
            Self::Poll => TimeWaitRequest::Only(TimeWaitHook::Poll),
            Self::Off => TimeWaitRequest::Off,
        }
    }
}

/// Flags of `tcpstate probe`.
#[derive(Debug, ClapArgs)]
pub struct ProbeArgs {
    /// One JSON object
    #[arg(short, long)]
    pub json: bool,
}

/// Which hook to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum HookChoice {
    /// The best that this kernel allows
    #[default]
    Auto,
    /// The BTF tracepoint: everything
    Btf,
    /// The classic tracepoint: no processes, namespaces, cgroups, errors
    Classic,
}

impl HookChoice {
    /// The one hook that was asked for.
    #[must_use]
    pub const fn only(self) -> Option<Hook> {
        match self {
            Self::Auto => None,
            Self::Btf => Some(Hook::BtfTracepoint),
            Self::Classic => Some(Hook::Tracepoint),
        }
    }
}

/// Filters: all given must agree.
#[derive(Clone, Debug, ClapArgs)]
#[command(
    next_help_heading = "Filters (all given must agree; values of one flag are alternatives)"
)]
pub struct FilterArgs {
    /// Processes with these ids, as far as the process is known
    #[arg(short, long, value_name = "PID", value_delimiter = ',', value_parser = pid)]
    pub pid: Vec<u32>,

    /// Processes with these names (the kernel keeps 15 bytes), as far as the process is known
    #[arg(long, value_name = "NAME")]
    pub comm: Vec<String>,

    /// Local ports or ranges: 80,443,8000-8999
    #[arg(short = 'L', long, value_name = "PORTS", value_delimiter = ',', value_parser = ports)]
    pub local_port: Vec<PortRange>,

    /// Remote ports or ranges
    #[arg(short = 'D', long, value_name = "PORTS", value_delimiter = ',', value_parser = ports)]
    pub remote_port: Vec<PortRange>,

    /// Networks that one of the two ends is in: 10.0.0.0/8, 2001:db8::/32, 192.0.2.7
    #[arg(long, value_name = "NET", value_delimiter = ',', value_parser = network)]
    pub cidr: Vec<IpNet>,

    /// States, as old or new: close_wait, FIN_WAIT2
    #[arg(long, value_name = "STATE", value_delimiter = ',', value_parser = transition_state)]
    pub state: Vec<TcpState>,

    /// One network namespace: a name of `ip netns`, a path, an inode number, or `self`
    #[arg(long, value_name = "NETNS")]
    pub netns: Option<String>,

    /// Sockets made in this cgroup or below it: a path below the cgroup root
    #[arg(long, value_name = "PATH", value_parser = cgroup)]
    pub cgroup: Vec<String>,

    /// IPv4 only, with IPv4-mapped IPv6
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    pub ipv4: bool,

    /// IPv6 only, without IPv4-mapped
    #[arg(short = '6', long)]
    pub ipv6: bool,

    /// Protocols: tcp, mptcp, sctp, all; the others are only counted
    #[arg(long, value_name = "PROTOCOL", value_delimiter = ',', default_value = "tcp", value_parser = protocol)]
    pub protocol: Vec<ProtocolChoice>,
}

/// A protocol, or all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolChoice {
    /// This one.
    One(Protocol),
    /// Whatever is on the tracepoint.
    All,
}

/// Shape of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Aligned columns for people
    Text,
    /// One object a line
    Json,
    /// One row a line, with a header
    Csv,
}

/// How to show it.
#[derive(Debug, Default, ClapArgs)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Every column: time, family, protocol, how a reason is known, uid, network namespace, cookie, process and how it is known,
    /// thread, cgroup
    #[arg(short, long)]
    pub wide: bool,

    /// Add the time of day
    #[arg(short = 'T', long)]
    pub time: bool,

    /// Add the seconds since the run began
    #[arg(short = 't', long)]
    pub timestamp: bool,

    /// JSON, one object a line
    #[arg(short, long, conflicts_with_all = ["csv", "format"])]
    pub json: bool,

    /// CSV
    #[arg(short = 's', long, conflicts_with = "format")]
    pub csv: bool,

    /// Shape of the output
    #[arg(long, value_enum)]
    pub format: Option<Format>,

    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE", value_parser = PathBufValueParser::new().try_map(output))]
    pub output: Option<PathBuf>,
}

impl OutputArgs {
    /// The shape that was asked for.
    #[must_use]
    pub fn format(&self) -> Format {
        match (self.json, self.csv) {
            (true, _) => Format::Json,
            (_, true) => Format::Csv,
            _ => self.format.unwrap_or(Format::Text),
        }
    }
}

impl FilterArgs {
    /// Everything in one network namespace, or in all.
    #[must_use]
    pub fn of_netns(netns: Option<String>) -> Self {
        Self {
            pid: Vec::new(),
            comm: Vec::new(),
            local_port: Vec::new(),
            remote_port: Vec::new(),
            cidr: Vec::new(),
            state: Vec::new(),
            netns,
            cgroup: Vec::new(),
            ipv4: false,
            ipv6: false,
            protocol: vec![ProtocolChoice::One(Protocol::Tcp)],
        }
    }

    /// The filter, with everything looked up that it names.
    ///
    /// # Errors
    /// If it names something that is not there.
    pub fn resolve(&self, cgroups: &Cgroups) -> Result<Filter> {
        for pid in &self.pid {
            if !std::path::Path::new(&format!("/proc/{pid}")).exists() {
                bail!("--pid {pid}: there is no such process; `ps -p {pid}` would show it");
            }
        }
        if !self.pid.is_empty() && !kernel::in_initial_pid_namespace() {
            bail!(
                "--pid: the kernel tells process ids of the host, and this is a container with ids of its own; run on the \
                 host, or filter with --comm or --cgroup"
            );
        }
        let netns = self
            .netns
            .as_deref()
            .map(kernel::find_netns)
            .transpose()
            .context("--netns")?;
        let cgroup = |path: &String| cgroups.find(path).context("--cgroup");
        let cgroups = self.cgroup.iter().map(cgroup).collect::<Result<_>>()?;
        self.filter(netns, cgroups)
    }

    /// The filter for a recording, whose names are not those of this machine.
    ///
    /// # Errors
    /// If it names something that a recording does not know.
    pub fn resolve_recorded(&self) -> Result<Filter> {
        let cgroup = |path: &String| {
            let path = path.trim_start_matches("/sys/fs/cgroup");
            format!("/{}", path.trim_matches('/'))
        };
        self.filter(None, self.cgroup.iter().map(cgroup).collect())
    }

    /// The filter, where these are known.
    fn filter(&self, netns: Option<Netns>, cgroups: Vec<String>) -> Result<Filter> {
        if self.comm.iter().any(String::is_empty) {
            bail!("--comm: give a name");
        }
        // Each is compared with each event.
        let few = |flag: &str, count: usize, instead: &str| -> Result<()> {
            const MOST: usize = 1024;
            if count > MOST {
                bail!("{flag}: {count} are too many, {MOST} are possible; {instead}");
            }
            Ok(())
        };
        few(
            "--local-port",
            self.local_port.len(),
            "give ranges (8000-8999)",
        )?;
        few(
            "--remote-port",
            self.remote_port.len(),
            "give ranges (8000-8999)",
        )?;
        few("--cidr", self.cidr.len(), "give larger networks")?;
        few("--pid", self.pid.len(), "give their --cgroup")?;
        few("--comm", self.comm.len(), "give their --cgroup")?;
        few("--cgroup", self.cgroup.len(), "give one above them")?;
        Ok(Filter {
            ip_version: match (self.ipv4, self.ipv6) {
                (true, _) => Some(IpVersion::V4),
                (_, true) => Some(IpVersion::V6),
                _ => None,
            },
            protocols: self
                .protocol
                .iter()
                .filter_map(|choice| match choice {
                    ProtocolChoice::One(protocol) => Some(*protocol),
                    ProtocolChoice::All => None,
                })
                .collect(),
            any_protocol: self.protocol.contains(&ProtocolChoice::All),
            netns,
            local_ports: self.local_port.clone(),
            remote_ports: self.remote_port.clone(),
            networks: self.cidr.clone(),
            states: self.state.clone(),
            pids: self.pid.clone(),
            comms: self.comm.iter().map(|name| Comm::truncated(name)).collect(),
            cgroups,
            recorded: None,
        })
    }

    /// What was given that decides what the kernel side sends, as it was given; the namespace by its number.
    #[must_use]
    pub fn given(&self, netns: Option<Netns>) -> String {
        let ports = |name: &str, ranges: &[PortRange]| {
            let range = |range: &PortRange| match (range.first, range.last) {
                (first, last) if first == last => first.to_string(),
                (first, last) => format!("{first}-{last}"),
            };
            let all: Vec<_> = ranges.iter().map(range).collect();
            (!all.is_empty()).then(|| format!("{name} {}", all.join(",")))
        };
        let networks: Vec<_> = self.cidr.iter().map(ToString::to_string).collect();
        let protocols: Vec<_> = self.protocol.iter().map(|choice| choice.word()).collect();
        let all = [
            ports("--local-port", &self.local_port),
            ports("--remote-port", &self.remote_port),
            (!networks.is_empty()).then(|| format!("--cidr {}", networks.join(","))),
            netns.map(|netns| format!("--netns {}", netns.inode)),
            self.ipv4.then(|| "--ipv4".to_owned()),
            self.ipv6.then(|| "--ipv6".to_owned()),
            (protocols != ["tcp"]).then(|| format!("--protocol {}", protocols.join(","))),
        ];
        all.into_iter().flatten().collect::<Vec<_>>().join(" ")
    }

    /// What [`FilterArgs::given`] told; whoever made the file may have put anything there.
    ///
    /// # Errors
    /// If these are no such flags.
    pub fn read_given(given: &str) -> Result<Self> {
        /// As long as a word of a command line may be.
        const LONGEST: usize = 128 << 10;
        if given.len() > LONGEST {
            bail!("it is too long");
        }
        let command = clap::Command::new("recorded")
            .no_binary_name(true)
            .disable_help_flag(true);
        let words = given.split_whitespace();
        let matches = Self::augment_args(command).try_get_matches_from(words)?;
        Ok(Self::from_arg_matches(&matches)?)
    }
}

impl ProtocolChoice {
    fn word(self) -> String {
        match self {
            Self::One(protocol) => protocol.label().into_owned(),
            Self::All => "all".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::Args;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }
}
