//! Views of what happens now: `tcpstate trace` (transitions), `tcpstate conns` (connections), and the periodic ones.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use jiff::tz::TimeZone;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
    time::{MissedTickBehavior, interval, sleep, sleep_until},
};

use super::{
    INTERRUPTED, Outcome,
    args::{Format, LiveArgs, OutputArgs},
    countdown::Countdown,
    interrupt::is_ignored,
    lists::Lists,
    names::Names,
    output, record, replay,
    shape::Shape,
    view::{Losses, Taken, View},
    zone::zone,
};
use crate::{
    clock::{self, Clock},
    filter::Filter,
    kernel::{
        self, Attached, Cgroups, Hook, Missing, Plan, Reader, Request, TimeWaitHook, Tracer,
        default_buffer, drop_privileges, hurry,
    },
    message::{fold, room, say},
    recording::Header,
    sink::{Sink, Summary, seconds},
};

/// How often the ring buffer is read, whether the kernel wakes us or not.
const INTERVAL: Duration = Duration::from_millis(50);
/// How long one turn of reading may take before signals, time limits and losses are looked at again.
const TURN: Duration = Duration::from_millis(100);
/// How long what is left in the ring buffer is still shown when the run has ended.
const FAREWELL: Duration = Duration::from_secs(10);
/// How long the run may go on after its end, in nanoseconds, for what is being written then.
const AFTERWARDS: u64 = 100_000_000;
/// How long to look for network namespaces.
const SEARCH: Duration = Duration::from_secs(2);
/// After which time we say what we are waiting for.
const HINT: Duration = Duration::from_secs(1);

/// Shows a recording, or runs until a signal, a limit, or a closed pipe.
pub fn run(args: &LiveArgs, shape: Shape) -> Result<Outcome> {
    if let Some(from) = &args.recording.from {
        return replay::run(args, shape, from);
    }
    record::check(&args.recording, args.output.output.as_deref())?;
    let cgroups = Cgroups::open();
    let filter = args.filter.resolve(&cgroups)?;
    let target = output::open(&args.output)?;
    let request = Request {
        hook: args.kernel.hook.only(),
        timewait: args.kernel.timewait.request(),
        calls: args.kernel.syscalls.request(shape.tells_calls()),
        filter: filter.for_kernel(),
        buffer: args.kernel.buffer.unwrap_or_else(default_buffer),
        existing: !args.kernel.skip_existing,
    };
    let mut attached = Attached::new(&request)?;
    check(&filter, attached.plan.hook)?;
    let hook = attached.plan.hook;
    attached.plan.missing.extend(cgroups.missing(hook));
    let mut header = Header::new(
        &attached.plan,
        attached.start,
        args.filter.given(filter.netns),
    );
    if shape.wants_settings() || args.recording.record.is_some() {
        // While we may enter network namespaces.
        header.settings = kernel::settings(SEARCH);
        if let Some(netns) = filter.netns {
            header.settings.retain(|one| one.netns == netns.inode);
        }
    }
    hurry();
    let tape = record::begin(&args.recording, &header)?;
    // Its thread needs privileges for as long as it reads.
    let reader = attached
        .existing
        .then(|| Reader::new(attached.ebpf.clone(), filter.netns, attached.rings.size()));
    // Before there are other threads: each has privileges of its own.
    drop_privileges();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("cannot start the event loop")?
        .block_on(async {
            let tracer = Tracer::new(attached)?;
            warn_of(tracer.plan(), request.hook);
            let sink = sink(args, &shape, target, &header)?;
            let counted = matches!(shape, Shape::Reports(_)) && shape.is_silent();
            let countdown = Countdown::new(args.duration, !counted);
            let mut view = View::new(args, filter, Names::Here(cgroups), sink, &header, shape);
            let recorded = tape.is_some();
            if let Some(tape) = tape {
                view.record_on(tape);
            }
            let outcome = follow(tracer, &mut view, args, reader, countdown).await;
            if recorded {
                record::end(&args.recording, view.tape())?;
            }
            outcome.map_err(explain)
        })
}

/// What the output that was asked for is written by.
pub fn sink(
    args: &LiveArgs,
    shape: &Shape,
    target: output::Target,
    header: &Header,
) -> Result<Box<dyn Sink>> {
    if shape.is_silent() {
        return Ok(Box::new(record::Silent));
    }
    let zone = match args.output.format() {
        Format::Text => zone(),
        Format::Json | Format::Csv => TimeZone::UTC,
    };
    let clock = Clock::new(header.begins, header.zero.into(), zone);
    output::sink(&args.output, shape.rows(), target.begin(), clock)
}

/// Says which file it was, if it was one.
pub fn explain(error: anyhow::Error) -> anyhow::Error {
    if error.is::<std::io::Error>() {
        error.context("the output cannot be written")
    } else {
        error
    }
}

/// A filter that could never let anything through is an error.
pub fn check(filter: &Filter, hook: Hook) -> Result<()> {
    let by_owner =
        !filter.pids.is_empty() || !filter.comms.is_empty() || !filter.cgroups.is_empty();
    if hook == Hook::Tracepoint && by_owner {
        bail!(
            "the classic tracepoint knows neither processes nor cgroups, so --pid, --comm and --cgroup would show nothing; \
             leave them out"
        );
    }
    Ok(())
}

/// Says what is not known.
pub fn warn(missing: &Missing) {
    say(format_args!(
        "warning: lost: {} (no {})",
        missing.loses, missing.what
    ));
}

/// Says what the hooks do not tell; `only` is the one that was asked for.
fn warn_of(plan: &Plan, only: Option<Hook>) {
    if plan.hook == Hook::BtfTracepoint {
        plan.missing.iter().for_each(warn);
        return;
    }
    // All of it for one reason.
    let why = if only.is_some() {
        "the classic tracepoint does not tell:"
    } else {
        "no BTF tracepoint here, and the classic one does not tell:"
    };
    let one = |missing: &Missing| fold(&format!("  {}", missing.loses), room());
    let losses: Vec<_> = plan.missing.iter().map(one).collect();
    say(format_args!("warning: {why}\n{}", losses.join("\n")));
}

async fn follow(
    mut tracer: Tracer,
    view: &mut View,
    args: &LiveArgs,
    reader: Option<Reader>,
    mut countdown: Countdown,
) -> Result<Outcome> {
    let mut stop = stop_signal()?;
    let mut tick = interval(INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let end = args
        .duration
        .and_then(|duration| tokio::time::Instant::now().checked_add(duration));
    let mut losses = Losses::new(tracer.start());
    let hooks = tracer.plan().words().join(", ");
    say(format_args!("tracing TCP by {hooks}; Ctrl-C ends"));
    view.flush()?;

    let mut signalled = false;
    let mut busy = false;
    let mut lists = Lists::new(
        reader,
        !args.kernel.skip_existing,
        tracer.plan().timewait == Some(TimeWaitHook::Poll),
        view.refreshes(),
    );
    while !view.is_done() {
        tokio::select! {
            biased;
            _ = &mut stop => {
                signalled = true;
                break;
            }
            () = wait_until(end) => break,
            () = lists.step(view, losses.not_found()) => {}
            () = std::future::ready(()), if busy => {}
            () = tracer.filling() => {}
            _ = tick.tick() => {}
        }
        let now = clock::monotonic_now();
        busy = turn(&mut tracer, view, &mut losses, now, Instant::now() + TURN)?;
        if !busy {
            view.settle(now)?;
        }
        lists.settle(view, busy, losses.not_found())?;
        view.resize(output::room(&args.output));
        view.flush()?;
        countdown.at(view.events());
    }
    countdown.end();
    refresh(&mut lists, &mut tracer, view, &mut losses).await?;
    finish(&mut tracer, view, &mut losses, &args.output)?;
    Ok(if view.has_shown() || signalled {
        Outcome::Done
    } else {
        Outcome::Nothing
    })
}

/// Reads what was sent until `now`, and says whether there is more of it after `deadline`.
///
/// What is younger waits in the ring buffers for the next turn: only the losses until `now` are known, and what comes after a
/// hole must not be understood before the hole is known.
fn turn(
    tracer: &mut Tracer,
    view: &mut View,
    losses: &mut Losses,
    now: u64,
    deadline: Instant,
) -> Result<bool> {
    losses.check(&tracer.counters()?, view, now)?;
    let mut late = false;
    let waits = tracer.read(now, |record| {
        if view.look_ahead(record) {
            return Ok(true);
        }
        take(view, now)?;
        late = Instant::now() >= deadline;
        Ok::<_, std::io::Error>(!late && !view.is_done())
    })?;
    take(view, now)?;
    Ok(late || waits)
}

/// Takes the records that came.
fn take(view: &mut View, now: u64) -> std::io::Result<()> {
    let taken = view.take_ahead(now)?;
    debug_assert_ne!(taken, Taken::Younger, "the rings give none that is");
    Ok(())
}

/// Looks once more at the minisockets that are still there, if that is of use.
async fn refresh(
    lists: &mut Lists,
    tracer: &mut Tracer,
    view: &mut View,
    losses: &mut Losses,
) -> Result<()> {
    let deadline = tokio::time::Instant::now() + FAREWELL;
    if view.is_done() || !lists.begin_last(losses.not_found()) {
        return Ok(());
    }
    view.begin_refresh();
    while lists.is_reading() {
        let step = lists.step(view, losses.not_found());
        if tokio::time::timeout_at(deadline, step).await.is_err() {
            break;
        }
        let now = clock::monotonic_now();
        let busy = turn(tracer, view, losses, now, Instant::now() + TURN)?;
        lists.settle(view, busy, losses.not_found())?;
    }
    Ok(())
}

/// Shows what was sent until now, as far as the output takes it in time, and sums up.
fn finish(
    tracer: &mut Tracer,
    view: &mut View,
    losses: &mut Losses,
    args: &OutputArgs,
) -> Result<()> {
    let mut end = clock::monotonic_now();
    let last = end.saturating_add(AFTERWARDS);
    let deadline = Instant::now() + FAREWELL;
    while !view.is_done() && turn(tracer, view, losses, end, deadline)? {
        // What is there may have to wait for something younger.
        end = clock::monotonic_now().min(last);
        if Instant::now() >= deadline {
            tracer.read(end, |_| {
                view.unread += 1;
                Ok::<_, std::io::Error>(true)
            })?;
            break;
        }
    }
    // A report that comes now says what was lost.
    losses.check(&tracer.counters()?, view, clock::monotonic_now())?;
    view.finish(end)?;
    losses.check(&tracer.counters()?, view, clock::monotonic_now())?;
    sum_up(
        view,
        losses,
        tracer.plan().hooks(),
        tracer.start()..end,
        args,
        false,
    )
}

/// Says in numbers what was shown of this time; a recording may have been `interrupted`.
pub fn sum_up(
    view: &mut View,
    losses: &mut Losses,
    hooks: Vec<&'static str>,
    time: Range<u64>,
    args: &OutputArgs,
    interrupted: bool,
) -> Result<()> {
    losses.say_rest(view);
    let counts = view.counts();
    let end = view.reported().unwrap_or(time.end);
    let time = end.saturating_sub(time.start);
    let summary = Summary {
        seconds: seconds(time),
        hooks,
        events: view.events(),
        shown: view.shown(),
        connections: counts.connections,
        found: counts.found,
        damaged: counts.damaged,
        undecided: view.undecided(),
        unattributed: view.unattributed(),
        other_protocols: losses.other_protocols,
        loss: losses.totals,
        interrupted,
    };
    view.summary(&summary)?;
    if args.output.is_some() || args.format() == Format::Csv {
        say(format_args!("ended\n{}", summary.to_string().trim_end()));
    }
    Ok(view.flush()?)
}

/// Resolves at the first SIGINT, SIGTERM or SIGHUP. The second ends the process at once, so that it can be ended even while
/// the reader of our output does not read.
fn stop_signal() -> Result<oneshot::Receiver<()>> {
    let watch = |kind: SignalKind, name: &str| {
        signal(kind).with_context(|| format!("cannot watch for {name}"))
    };
    let mut interrupt = watch(SignalKind::interrupt(), "Ctrl-C")?;
    let mut terminate = watch(SignalKind::terminate(), "SIGTERM")?;
    // With nohup it stays ignored.
    let mut hang_up = if is_ignored(libc::SIGHUP) {
        None
    } else {
        Some(watch(SignalKind::hangup(), "SIGHUP")?)
    };
    let (sender, receiver) = oneshot::channel();
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                () = received(hang_up.as_mut()) => {}
            }
        };
        next().await;
        // The receiver is gone only when the run is over.
        let _ = sender.send(());
        tokio::select! {
            () = next() => {}
            () = sleep(HINT) => {
                say(format_args!("writing what still waits; Ctrl-C again ends at once"));
                next().await;
            }
        }
        say(format_args!("ended at once, without a summary"));
        std::process::exit(INTERRUPTED.into());
    });
    Ok(receiver)
}

async fn received(signal: Option<&mut Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

async fn wait_until(end: Option<tokio::time::Instant>) {
    match end {
        Some(end) => sleep_until(end).await,
        None => std::future::pending().await,
    }
}
