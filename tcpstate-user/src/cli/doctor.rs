//! `tcpstate doctor`.

use std::{cell::RefCell, io, rc::Rc, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args as ClapArgs;

use super::{
    Outcome,
    args::{FilterArgs, KernelArgs, LiveArgs, MAX_CONNECTIONS, OutputArgs},
    live, output,
    record::RecordingArgs,
    shape::{Conditions, Periodic, Shape},
    terminal,
    values::{connections, duration},
};
use crate::{
    analysis::Tally,
    doctor::{
        self, Diagnosis, Known, Looked, Namespace, NetCounters, Seen, Severity, Snapshot,
        Thresholds, Watch, rules, thresholds::nanoseconds,
    },
    kernel::{self, NetStat},
    message,
};

const DOCTOR_HELP: &str = "\
It watches, reads what each network namespace has set and counted, and says what it \
found, worst first:
  HIGH    something fails, or will soon
  NOTICE  worth a look during the day
  fine    looks alarming elsewhere, and is not; it says why
  seen who why         the evidence, who causes it, why it matters or does not
  first then effect    what to change in the application, then in the kernel,
                       and what that would do with these numbers
  not more             what not to do; commands that show more
Every threshold is a flag. What only the kernel's counters tell is not known from a \
recording. Colours are for terminals, unless NO_COLOR is set.

Exit code: 0 nothing is high; 1 something is; 2 it could not look.

Examples:
  tcpstate doctor --for 60
  tcpstate doctor --from incident.tcps --since 13:30 --until 13:35
  tcpstate doctor -j | jq 'select(.severity == \"high\")'
  tcpstate doctor --explain ports";

/// Flags of `tcpstate doctor`.
#[derive(Debug, ClapArgs)]
#[command(after_help = DOCTOR_HELP)]
pub struct DoctorArgs {
    /// Watch for this time: seconds, or with a unit (90, 1.5, 60s, 2m); Ctrl-C ends it sooner
    #[arg(long = "for", value_name = "SECS", default_value = "30s", value_parser = duration, conflicts_with = "from")]
    pub time: Duration,

    /// One network namespace: a name of `ip netns`, a path, an inode number, or `self`
    #[arg(long, value_name = "NETNS")]
    pub netns: Option<String>,

    /// JSON, one object a finding, and one at the end
    #[arg(short, long)]
    pub json: bool,

    /// List the rules
    #[arg(long, exclusive = true)]
    pub list: bool,

    /// Explain a rule
    #[arg(long, value_name = "RULE", exclusive = true)]
    pub explain: Option<String>,

    /// From when on something is worth telling.
    #[command(flatten)]
    pub thresholds: Thresholds,

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

/// Runs `tcpstate doctor`.
pub fn run(args: &DoctorArgs) -> Result<Outcome> {
    if args.list {
        return print(doctor::list().as_bytes());
    }
    if let Some(name) = &args.explain {
        let rule = rules::named(name).ok_or_else(|| {
            let names: Vec<_> = rules::RULES.iter().map(|rule| rule.name).collect();
            anyhow!(
                "--explain {name}: there is no such rule; give {}",
                names.join(", ")
            )
        })?;
        return print(doctor::explanation(rule, columns()).as_bytes());
    }
    let live = args.recording.from.is_none();
    if live {
        check_stay(args)?;
    }
    let thresholds = &args.thresholds;
    let netns = netns(args)?;
    let counters = live.then(|| NetStat::begin(netns));
    let seen: Seen = Rc::new(RefCell::new(None));
    let hooks = Rc::new(RefCell::new(Vec::new()));
    let result = watch(args, thresholds, netns, &seen, &hooks);
    let Some(mut snapshot) = seen.take() else {
        result?;
        return Err(anyhow!("the watch ended before it began"));
    };
    snapshot.live = live;
    if let Some(counters) = counters {
        let (before, after) = counters.end();
        add(&mut snapshot, before, after);
    }
    let mut diagnosis = Diagnosis::of(&snapshot, thresholds);
    diagnosis.look_at(&Looked {
        from: args.recording.from.as_deref(),
        since: args.recording.since.as_deref(),
        until: args.recording.until.as_deref(),
        skip_earlier: args.recording.skip_earlier,
        netns: args.netns.as_deref(),
    });
    let hooks = hooks.take();
    let text = if args.json {
        doctor::json(&diagnosis, &snapshot, &hooks)?
    } else {
        let colour = terminal::has_colours(&io::stdout());
        doctor::text(&diagnosis, &snapshot, &hooks, columns(), colour).into_bytes()
    };
    print(&text)?;
    // A recording that is damaged is told after what comes before the damage.
    result?;
    Ok(if diagnosis.count(Severity::High) > 0 {
        Outcome::Found
    } else {
        Outcome::Done
    })
}

/// Refuses to look for what stays longer than we watch. How long a recording is, only its end tells: then rules say so.
fn check_stay(args: &DoctorArgs) -> Result<()> {
    let time = args.time.as_secs_f64();
    let longest = doctor::longest_stay(nanoseconds(time));
    let Some(stay) = args.thresholds.stay.filter(|stay| *stay > longest) else {
        return Ok(());
    };
    bail!(
        "--stay {stay}: nothing can be seen to stay so long in {time} s; give --for {} or more, or --stay {longest} or less",
        (stay / 0.9).ceil()
    )
}

/// Columns to write for.
fn columns() -> usize {
    output::columns(&OutputArgs::default()).unwrap_or(output::NARROW)
}

fn print(text: &[u8]) -> Result<Outcome> {
    message::print(text).context("the output cannot be written")?;
    Ok(Outcome::Done)
}

/// The one network namespace to look at, by inode number; in a recording it has no other name.
fn netns(args: &DoctorArgs) -> Result<Option<u32>> {
    let Some(name) = args.netns.as_deref() else {
        return Ok(None);
    };
    if args.recording.from.is_some() {
        // What is no number is refused when the recording is opened.
        return Ok(name.parse().ok());
    }
    let found = kernel::find_netns(name).context("--netns")?;
    Ok(Some(found.inode))
}

fn watch(
    args: &DoctorArgs,
    thresholds: &Thresholds,
    netns: Option<u32>,
    seen: &Seen,
    hooks: &Rc<RefCell<Vec<&'static str>>>,
) -> Result<Outcome> {
    let (thresholds, seen, hooks) = (thresholds.clone(), Rc::clone(seen), Rc::clone(hooks));
    let tally = move |conditions: &Conditions<'_>| -> Box<dyn Tally> {
        hooks.replace(conditions.hooks.to_vec());
        let known = Known {
            timewait: conditions.timewait,
            calls: conditions.calls,
            errors: conditions.errors,
            limit: conditions.limit,
            begins: conditions.begins,
            netns,
            settings: conditions.settings,
            addresses: conditions.addresses,
        };
        Box::new(Watch::new(&known, &thresholds, seen))
    };
    let live = LiveArgs {
        filter: FilterArgs::of_netns(args.netns.clone()),
        output: OutputArgs::default(),
        duration: Some(args.time),
        count: None,
        max_connections: args.max_connections,
        kernel: args.kernel.clone(),
        recording: args.recording.clone(),
    };
    let shape = Shape::Reports(Periodic {
        tally: Box::new(tally),
        calls: true,
        every: None,
        reports: None,
        settings: true,
        silent: true,
    });
    live::run(&live, shape)
}

/// Puts the counters to the settings; those of a namespace that has ended meanwhile are left out.
fn add(snapshot: &mut Snapshot, before: Vec<NetCounters>, mut after: Vec<NetCounters>) {
    for before in before {
        let Some(at) = after.iter().position(|one| one.netns == before.netns) else {
            continue;
        };
        let counters = Some((before, after.swap_remove(at)));
        let netns = counters.as_ref().map_or(0, |(before, _)| before.netns);
        let known = &mut snapshot.namespaces;
        match known.iter_mut().find(|one| one.netns == netns) {
            Some(namespace) => namespace.counters = counters,
            None => known.push(Namespace {
                netns,
                settings: None,
                counters,
            }),
        }
    }
}
