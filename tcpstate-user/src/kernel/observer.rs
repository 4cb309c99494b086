//! The ways of observing TIME_WAIT minisockets. To add one: a variant, its programs in [`TimeWaitHook::programs`].

use std::{fmt, path::Path};

use aya::{
    Btf, Ebpf,
    programs::{BtfTracePoint, FEntry, FExit, KProbe, Program, ProgramError},
};
use serde::{Deserialize, Serialize};

use super::{
    existing,
    plan::Plan,
    refusal::{NO_KPROBES, reason},
    syscall,
};

/// A way of observing the life of TIME_WAIT minisockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeWaitHook {
    /// fentry and fexit on the functions that minisockets go through.
    Fentry,
    /// kprobes on the same functions.
    Kprobe,
    /// The kernel's generic timer tracepoints, as BTF tracepoints.
    Timer,
    /// The kernel's list of sockets, read once a second.
    Poll,
}

/// How minisockets are to be observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeWaitRequest {
    /// Not at all.
    Off,
    /// In the best way that works, if any does.
    Auto,
    /// In this way; it is an error if it does not work.
    Only(TimeWaitHook),
}

impl TimeWaitRequest {
    /// What may be used, best first.
    pub(super) const fn candidates(&self) -> &[TimeWaitHook] {
        match self {
            Self::Off => &[],
            Self::Auto => &TimeWaitHook::ALL,
            Self::Only(observer) => std::slice::from_ref(observer),
        }
    }
}

/// Where a program is attached.
#[derive(Clone, Copy, Debug)]
enum Place {
    Tracepoint(&'static str),
    Entry(&'static str),
    Exit(&'static str),
    Kprobe(&'static str),
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Tracepoint(name) | Self::Entry(name) | Self::Exit(name) | Self::Kprobe(name)) =
            self;
        out.write_str(name)
    }
}

/// What the timer of a minisocket runs.
const TIMED_OUT: &str = "tw_timer_handler";

/// There if the kernel has kprobes that are opened like this (Linux 4.17), which is how they are.
const KPROBES: &str = "/sys/bus/event_source/devices/kprobe";

/// In this order: what ends comes before what begins, so that no life is met that will not be seen to end.
const FENTRY: &[(&str, Place)] = &[
    ("fentry_timed_out", Place::Entry(TIMED_OUT)),
    (
        "fentry_descheduled",
        Place::Entry("inet_twsk_deschedule_put"),
    ),
    ("fentry_freed", Place::Entry("tcp_twsk_destructor")),
    ("fexit_allocated", Place::Exit("inet_twsk_alloc")),
    ("fentry_scheduled", Place::Entry("__inet_twsk_schedule")),
];
const KPROBE: &[(&str, Place)] = &[
    ("kprobe_timed_out", Place::Kprobe(TIMED_OUT)),
    (
        "kprobe_descheduled",
        Place::Kprobe("inet_twsk_deschedule_put"),
    ),
    ("kprobe_freed", Place::Kprobe("tcp_twsk_destructor")),
    ("kprobe_scheduled", Place::Kprobe("__inet_twsk_schedule")),
];
const TIMER: &[(&str, Place)] = &[
    ("timer_cancelled", Place::Tracepoint("timer_cancel")),
    ("timer_expired", Place::Tracepoint("timer_expire_entry")),
    ("timer_armed", Place::Tracepoint("timer_start")),
];

impl TimeWaitHook {
    /// Every one, best first.
    pub const ALL: [Self; 4] = [Self::Fentry, Self::Kprobe, Self::Timer, Self::Poll];

    /// Its name for people.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Fentry => "fentry of TIME_WAIT",
            Self::Kprobe => "kprobes of TIME_WAIT",
            Self::Timer => "timer tracepoints",
            Self::Poll => "list of sockets",
        }
    }

    /// Its name on the command line.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobe",
            Self::Timer => "timer",
            Self::Poll => "poll",
        }
    }

    /// What it costs.
    #[must_use]
    pub const fn costs(self) -> &'static str {
        match self {
            Self::Fentry => "a call for every start and end of a minisocket, nothing else",
            Self::Kprobe => "a probe for every start and end of a minisocket, nothing else",
            Self::Timer => "one comparison for every timer of the machine",
            Self::Poll => "a walk through all sockets of the machine, once a second",
        }
    }

    /// What it does not see.
    #[must_use]
    pub const fn cannot_see(self) -> Option<&'static str> {
        match self {
            Self::Fentry => None,
            Self::Kprobe => Some(
                "what happens while it interrupts another BPF probe; overflow directly: by the call chain",
            ),
            Self::Poll => Some(
                "what lives less than a second, and why a TIME_WAIT ended; durations are upper bounds",
            ),
            Self::Timer => Some(
                "restarts within about 2 s: told only at the end; overflow directly: by the call chain",
            ),
        }
    }

    /// Whether an overflow is known by the call chain of the full socket's end.
    pub(super) const fn asks_the_call_chain(self) -> bool {
        matches!(self, Self::Kprobe | Self::Timer)
    }

    /// What it needs to make sense of what it sees.
    pub(super) fn check(self, plan: &Plan, kernel_types: &Btf) -> Result<(), String> {
        match self {
            // Sooner told than by trying all of it.
            Self::Fentry => syscall::load_fentry(TIMED_OUT, kernel_types)
                .map_err(|error| format!("{TIMED_OUT}: the kernel refused the program: {error}")),
            Self::Kprobe if !Path::new(KPROBES).exists() => {
                Err(format!("{TIMED_OUT}: {NO_KPROBES}"))
            }
            // The registers that arguments are in are known to the kernel side.
            Self::Kprobe if !cfg!(target_arch = "x86_64") => {
                Err("its programs are built for x86-64".to_owned())
            }
            Self::Timer if plan.callers.timer_handler().is_none() => Err(
                "no address of tw_timer_handler in /proc/kallsyms (CAP_SYSLOG, kernel.kptr_restrict)"
                    .to_owned(),
            ),
            Self::Timer | Self::Poll if !plan.cookie_helper => {
                Err("no socket cookie that joins a minisocket to its connection".to_owned())
            }
            Self::Kprobe | Self::Timer | Self::Poll => Ok(()),
        }
    }

    /// Its programs. Where births have a function of their own, that is looked at. Where sockets have no cookies, one more
    /// tells which full socket a minisocket came from.
    fn programs(self, plan: &Plan) -> impl Iterator<Item = (&'static str, Place)> {
        const HASHDANCE: &str = "inet_twsk_hashdance_schedule";
        const PAIRING: &str = "inet_twsk_hashdance";
        let programs = match self {
            Self::Fentry => FENTRY,
            Self::Kprobe => KPROBE,
            Self::Timer => TIMER,
            Self::Poll => &[],
        };
        let more = match self {
            Self::Fentry if plan.callers.hashdance() => {
                Some(("fentry_born", Place::Entry(HASHDANCE)))
            }
            Self::Kprobe if plan.callers.hashdance() => {
                Some(("kprobe_born", Place::Kprobe(HASHDANCE)))
            }
            Self::Fentry if !plan.cookie_helper => Some(("fentry_paired", Place::Entry(PAIRING))),
            Self::Kprobe if !plan.cookie_helper => Some(("kprobe_paired", Place::Kprobe(PAIRING))),
            Self::Fentry | Self::Kprobe | Self::Timer | Self::Poll => None,
        };
        programs.iter().copied().chain(more)
    }

    /// The names of its programs.
    pub(super) fn program_names(self, plan: &Plan) -> impl Iterator<Item = &'static str> {
        self.programs(plan).map(|(name, _)| name)
    }

    /// Loads its programs.
    pub(super) fn load(
        self,
        ebpf: &mut Ebpf,
        plan: &Plan,
        kernel_types: &Btf,
    ) -> Result<(), String> {
        for (name, place) in self.programs(plan) {
            load(ebpf, name, place, kernel_types)
                .map_err(|error| format!("{place}: {}", reason(&error)))?;
        }
        if self == Self::Poll {
            existing::load(ebpf, kernel_types)
                .map_err(|error| format!("iterator over sockets: {}", reason(&error)))?;
        }
        Ok(())
    }

    /// Attaches its programs.
    pub(super) fn attach(self, ebpf: &mut Ebpf, plan: &Plan) -> Result<(), String> {
        for (name, place) in self.programs(plan) {
            attach(ebpf, name, place).map_err(|error| format!("{place}: {}", reason(&error)))?;
        }
        Ok(())
    }
}

/// A program of the object.
pub(super) fn program<'a, T>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut T, ProgramError>
where
    &'a mut T: TryFrom<&'a mut Program, Error = ProgramError>,
{
    ebpf.program_mut(name)
        .ok_or(ProgramError::NotLoaded)?
        .try_into()
}

fn load(ebpf: &mut Ebpf, name: &str, place: Place, kernel_types: &Btf) -> Result<(), ProgramError> {
    match place {
        Place::Tracepoint(tracepoint) => {
            program::<BtfTracePoint>(ebpf, name)?.load(tracepoint, kernel_types)
        }
        Place::Entry(function) => program::<FEntry>(ebpf, name)?.load(function, kernel_types),
        Place::Exit(function) => program::<FExit>(ebpf, name)?.load(function, kernel_types),
        Place::Kprobe(_) => program::<KProbe>(ebpf, name)?.load(),
    }
}

fn attach(ebpf: &mut Ebpf, name: &str, place: Place) -> Result<(), ProgramError> {
    match place {
        Place::Tracepoint(_) => program::<BtfTracePoint>(ebpf, name)?.attach().map(|_| ()),
        Place::Entry(_) => program::<FEntry>(ebpf, name)?.attach().map(|_| ()),
        Place::Exit(_) => program::<FExit>(ebpf, name)?.attach().map(|_| ()),
        Place::Kprobe(function) => program::<KProbe>(ebpf, name)?
            .attach(function, 0)
            .map(|_| ()),
    }
}
