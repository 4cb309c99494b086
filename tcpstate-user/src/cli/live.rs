//! Views of what happens now: `tcpstate trace` (transitions) and `tcpstate conns` (connections).

use std::{io, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use super::{
    Outcome,
    args::{Format, LiveArgs, OutputArgs},
    output,
};
use crate::{
    analysis::Connections,
    clock::{self, Clock},
    event::{Event, TransitionEvent},
    filter::{Filter, Gate, Unattributed},
    kernel::{Cgroups, Request, Tracer},
    lifecycle::{Lifecycle, Transition},
    loss::{Loss, LossKind, LossTotals},
    sink::{OtherProtocols, Rows, Sink, Summary},
};

/// How often the ring buffer is read, whether the kernel wakes us or not.
const INTERVAL: Duration = Duration::from_millis(50);
/// Records read before signals and time limits are looked at again.
const BATCH: usize = 16_384;

/// Runs until a signal, a limit, or a closed pipe. `running` asks for the connections that are left at the end.
pub fn run(args: &LiveArgs, rows: Rows, running: bool) -> Result<Outcome> {
    let cgroups = Cgroups::open();
    let filter = args.filter.resolve(&cgroups)?;
    let out = output::open(&args.output)?;
    let request = Request {
        hook: args.hook.only(),
        timewait: args.timewait.wanted(),
        filter: filter.for_kernel(),
        buffer: args.buffer,
    };
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("cannot start the event loop")?
        .block_on(async {
            let tracer = Tracer::attach(&request)?;
            for missing in &tracer.plan().missing {
                eprintln!(
                    "tcpstate: warning: no {}: {} lost",
                    missing.what, missing.loses
                );
            }
            let sink = output::sink(&args.output, rows, out, Clock::starting(tracer.start()))?;
            let lifecycle = Lifecycle::new(args.max_connections, tracer.start())
                .with_minisockets(tracer.plan().callers.clone(), clock::tick());
            let view = View {
                lifecycle,
                filter,
                gate: Gate::default(),
                sink,
                cgroups,
                connections: (rows == Rows::Connections)
                    .then(|| Connections::new(args.max_connections)),
                running,
                transitions: Vec::new(),
                events: 0,
                shown: 0,
                wanted: args.count.unwrap_or(u64::MAX),
                unattributed: 0,
                undecodable: 0,
            };
            follow(tracer, view, args).await.map_err(|error| {
                if error.is::<io::Error>() {
                    error.context("the output cannot be written")
                } else {
                    error
                }
            })
        })
}

/// Everything right of the ring buffer.
struct View {
    filter: Filter,
    gate: Gate,
    lifecycle: Lifecycle,
    sink: Box<dyn Sink>,
    cgroups: Cgroups,
    connections: Option<Connections>,
    running: bool,
    transitions: Vec<Transition>,
    events: u64,
    shown: u64,
    wanted: u64,
    unattributed: u64,
    undecodable: u64,
}

impl View {
    fn record(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Ok(event) = Event::decode(bytes) else {
            self.undecodable += 1;
            self.lifecycle.events_lost();
            return Ok(());
        };
        self.events += 1;
        match event {
            Event::Transition(event) => self.transition(event),
            Event::TimeWait(event) if self.filter.wants_minisocket(&event) => {
                self.understand(|lifecycle, out| lifecycle.event(Event::TimeWait(event), out))
            }
            Event::TimeWait(_) => Ok(()),
        }
    }

    fn transition(&mut self, event: TransitionEvent) -> io::Result<()> {
        if let Some(id) = event.cgroup
            && let Some(path) = self.cgroups.first_path(id)
        {
            self.lifecycle.name_cgroup(id, &path);
        }
        for admitted in self.gate.admit(&self.filter, event).into_iter().flatten() {
            let transition = self.lifecycle.transition(admitted.event);
            if admitted.wanted {
                self.show(&transition)?;
            }
        }
        Ok(())
    }

    /// It is now this late, and everything before has been read.
    fn settle(&mut self, now: u64) -> io::Result<()> {
        self.understand(|lifecycle, out| lifecycle.settle(now, out))
    }

    /// Shows what the lifecycle makes of something.
    fn understand(
        &mut self,
        something: impl FnOnce(&mut Lifecycle, &mut dyn FnMut(Transition)),
    ) -> io::Result<()> {
        let mut transitions = std::mem::take(&mut self.transitions);
        something(&mut self.lifecycle, &mut |transition| {
            transitions.push(transition);
        });
        let result = transitions
            .drain(..)
            .try_for_each(|transition| self.show(&transition));
        self.transitions = transitions;
        result
    }

    fn show(&mut self, transition: &Transition) -> io::Result<()> {
        let Some(connections) = &mut self.connections else {
            return self.row(transition, |sink| sink.transition(transition));
        };
        match connections.take(transition) {
            Some(ended) => self.row(transition, |sink| sink.connection(&ended)),
            None => Ok(()),
        }
    }

    /// Writes a row if this transition is wanted.
    fn row(
        &mut self,
        transition: &Transition,
        write: impl FnOnce(&mut dyn Sink) -> io::Result<()>,
    ) -> io::Result<()> {
        match self.filter.wants(transition) {
            Ok(true) if !self.is_done() => {
                self.shown += 1;
                write(&mut *self.sink)
            }
            Ok(_) => Ok(()),
            Err(Unattributed) => {
                self.unattributed += 1;
                Ok(())
            }
        }
    }

    /// The run ends now: shows what is left, if that was asked for.
    fn finish(&mut self, now: u64) -> io::Result<()> {
        let Some(connections) = self.connections.as_mut().filter(|_| self.running) else {
            return Ok(());
        };
        for connection in connections.finish(now) {
            if self.shown == self.wanted {
                break;
            }
            self.shown += 1;
            self.sink.connection(&connection)?;
        }
        Ok(())
    }

    /// Connections forgotten because a table was full.
    fn forgotten(&self) -> u64 {
        let connections = self.connections.as_ref().map_or(0, Connections::forgotten);
        self.lifecycle.counts().evicted + connections
    }

    fn is_done(&self) -> bool {
        self.shown >= self.wanted
    }
}

/// Counts what was lost, and says so while it happens.
struct LossReporter {
    totals: LossTotals,
    other_protocols: OtherProtocols,
    checked: u64,
}

impl LossReporter {
    fn check(&mut self, tracer: &Tracer, view: &mut View) -> Result<()> {
        let counters = tracer.counters()?;
        self.other_protocols = counters.other_protocols;
        let now = clock::monotonic_now();
        let seen = [
            (LossKind::RingFull, counters.lost),
            (LossKind::Undecodable, view.undecodable),
            (LossKind::TableFull, view.forgotten()),
        ];
        for (kind, total) in seen {
            let count = self.totals.advance(kind, total);
            if count > 0 {
                view.lifecycle.events_lost();
                eprintln!("tcpstate: LOST {count}: {}", kind.advice());
                view.sink.loss(&Loss {
                    kind,
                    count,
                    from: self.checked,
                    to: now,
                })?;
            }
        }
        self.checked = now;
        Ok(())
    }
}

async fn follow(mut tracer: Tracer, mut view: View, args: &LiveArgs) -> Result<Outcome> {
    let mut stop = stop_signal()?;
    let mut tick = interval(INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let end = args
        .duration
        .and_then(|duration| Instant::now().checked_add(duration));
    let mut reporter = LossReporter {
        totals: LossTotals::default(),
        other_protocols: OtherProtocols::default(),
        checked: tracer.start(),
    };
    let hooks = tracer.plan().hooks().join(", ");
    view.sink.flush()?;
    eprintln!("tcpstate: tracing TCP state transitions by {hooks}; Ctrl-C ends");

    let mut signalled = false;
    while !view.is_done() {
        tokio::select! {
            biased;
            _ = &mut stop => {
                signalled = true;
                break;
            }
            () = wait_until(end) => break,
            () = tracer.filling() => {}
            _ = tick.tick() => {}
        }
        let read_at = clock::monotonic_now();
        // Losses first: what is read next may be what they left holes in.
        reporter.check(&tracer, &mut view)?;
        view.sink.resize(output::columns(&args.output));
        while !view.is_done() && tracer.read(BATCH, |bytes| view.record(bytes))? == BATCH {
            tokio::task::yield_now().await;
        }
        view.settle(read_at)?;
        view.sink.flush()?;
    }
    finish(&mut tracer, &mut view, &mut reporter, &args.output)?;
    Ok(if view.shown > 0 || signalled {
        Outcome::Done
    } else {
        Outcome::Nothing
    })
}

/// Resolves at the first SIGINT or SIGTERM. The second ends the process at once, so that it can be ended even while the
/// reader of our output does not read.
fn stop_signal() -> Result<oneshot::Receiver<()>> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
    let (sender, receiver) = oneshot::channel();
    tokio::spawn(async move {
        let mut sender = Some(sender);
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            match sender.take() {
                // The receiver is gone only when the run is over.
                Some(sender) => drop(sender.send(())),
                None => std::process::exit(128 + libc::SIGINT),
            }
        }
    });
    Ok(receiver)
}

async fn wait_until(end: Option<Instant>) {
    match end {
        Some(end) => sleep_until(end).await,
        None => std::future::pending().await,
    }
}

/// Reads what is still in the ring buffer (not more than it can hold: events go on), and sums up.
fn finish(
    tracer: &mut Tracer,
    view: &mut View,
    reporter: &mut LossReporter,
    args: &OutputArgs,
) -> Result<()> {
    let end = clock::monotonic_now();
    reporter.check(tracer, view)?;
    let mut late = false;
    while !late && !view.is_done() {
        let read = tracer.read(BATCH, |bytes| {
            late |= Event::decode(bytes).is_ok_and(|event| event.time() > end);
            view.record(bytes)
        })?;
        if read < BATCH {
            break;
        }
    }
    view.settle(u64::MAX)?;
    view.finish(end)?;
    reporter.check(tracer, view)?;
    let lifecycle = view.lifecycle.counts();
    let summary = Summary {
        seconds: seconds_between(tracer.start(), end),
        hooks: tracer.plan().hooks(),
        events: view.events,
        shown: view.shown,
        connections: lifecycle.connections,
        damaged: lifecycle.damaged,
        undecided: view.gate.undecided(),
        unattributed: view.unattributed,
        other_protocols: reporter.other_protocols,
        loss: reporter.totals,
    };
    view.sink.summary(&summary)?;
    if args.output.is_some() || args.format() == Format::Csv {
        eprint!("{summary}");
    }
    Ok(view.sink.flush()?)
}

fn seconds_between(start: u64, end: u64) -> f64 {
    Duration::from_nanos(end.saturating_sub(start)).as_secs_f64()
}
