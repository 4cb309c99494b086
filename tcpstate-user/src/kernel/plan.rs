//! Which hook this kernel allows, found out by asking it, best first.

use std::{
    fs,
    sync::{Arc, Mutex},
    thread,
};

use aya::{Btf, Ebpf, EbpfLoader};
use serde::{Deserialize, Serialize};
use tcpstate_common::{
    config::KernelFilter,
    fields::{Format, Offsets},
};

use super::{
    btf::{self, MissingField},
    call::{self, CallRequest},
    capability, existing, format,
    load::{
        CLASSIC, Loaded, Prepared, TRANSITION, attach_btf, attach_classic, load, load_btf,
        load_classic,
    },
    observer::{TimeWaitHook, TimeWaitRequest},
    refusal::{Attempt, Refused, reason},
    rings::Rings,
    syscall::Helper,
};
use crate::{clock, lifecycle::Callers};

/// A hook that shows state transitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hook {
    /// The BTF tracepoint: everything.
    BtfTracepoint,
    /// The classic tracepoint: only its own fields.
    Tracepoint,
}

impl Hook {
    /// Every hook, best first.
    pub const ALL: [Self; 2] = [Self::BtfTracepoint, Self::Tracepoint];

    /// Its name for people.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::BtfTracepoint => "BTF tracepoint",
            Self::Tracepoint => "classic tracepoint",
        }
    }

    /// Its name on the command line.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::BtfTracepoint => "btf",
            Self::Tracepoint => "classic",
        }
    }

    /// What is lost by using this hook instead of the best one.
    #[must_use]
    pub const fn loses(self) -> &'static [&'static str] {
        match self {
            Self::BtfTracepoint => &[],
            Self::Tracepoint => &[
                "processes: no event says whose it is",
                "user ids, cgroups, network namespaces, errors",
                "the life of TIME_WAIT",
                "sockets that were there before, and their processes",
                "what an interrupt does while another BPF program runs on its CPU, and on older kernels how often",
                "socket cookies: connections are told apart by socket address, which the kernel reuses",
            ],
        }
    }
}

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Only this hook for transitions; the best otherwise.
    pub hook: Option<Hook>,
    /// How minisockets are to be observed.
    pub timewait: TimeWaitRequest,
    /// Whether system calls are to be watched.
    pub calls: CallRequest,
    /// What the kernel side decides.
    pub filter: KernelFilter,
    /// Bytes of all ring buffers together, of which each processor has one.
    pub buffer: u32,
    /// Whether sockets that are there already are wanted.
    pub existing: bool,
}

/// Something this kernel does not let us know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// What is not there, and why.
    pub what: String,
    /// What is lost by it.
    pub loses: String,
}

impl Missing {
    /// What is lost by fields that the kernel does not have, whatever is asked for: those of system calls are looked at where
    /// these are wanted.
    #[must_use]
    pub fn by_fields(lacking: &[MissingField]) -> Vec<Self> {
        lacking
            .iter()
            .filter(|lack| !lack.is_for_calls())
            .map(|lack| Self {
                what: lack.to_string(),
                loses: lack.lost.to_owned(),
            })
            .collect()
    }
}

/// A hook with everything that is needed to use it on this kernel.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The hook.
    pub hook: Hook,
    /// How minisockets are observed, if they are.
    pub timewait: Option<TimeWaitHook>,
    /// Better ways of observing them that do not work here, and why.
    pub refused: Vec<(TimeWaitHook, String)>,
    /// Whether system calls are watched.
    pub calls: bool,
    /// Where the functions are that make and end minisockets.
    pub callers: Callers,
    /// What will not be known.
    pub missing: Vec<Missing>,
    /// Fields that this kernel does not have.
    pub(super) lacking: Vec<MissingField>,
    pub(super) offsets: Offsets,
    pub(super) format: Format,
    pub(super) cookie_helper: bool,
    pub(super) task_helper: bool,
}

impl Plan {
    /// Why observers of minisockets were refused.
    fn refusals(&self) -> String {
        let why = |(observer, why): &(TimeWaitHook, String)| format!("{}: {why}", observer.word());
        let all: Vec<_> = self.refused.iter().map(why).collect();
        all.join("; ")
    }

    /// The programs of which it matters how often the kernel did not run them.
    pub(super) fn programs(&self) -> Vec<&'static str> {
        let hook = match self.hook {
            Hook::BtfTracepoint => TRANSITION[0],
            Hook::Tracepoint => CLASSIC,
        };
        let observer = self
            .timewait
            .into_iter()
            .flat_map(|observer| observer.program_names(self));
        let calls = self.calls.then_some(call::PROGRAM);
        std::iter::once(hook).chain(observer).chain(calls).collect()
    }

    /// The names of the hooks in use.
    #[must_use]
    pub fn hooks(&self) -> Vec<&'static str> {
        hook_names(self.hook, self.timewait, self.calls)
    }

    /// The same in short, for one line of a terminal: observers by their words on the command line.
    #[must_use]
    pub fn words(&self) -> Vec<&'static str> {
        let timewait = self.timewait.map(TimeWaitHook::word);
        let calls = self.calls.then_some(call::LABEL);
        let hook = std::iter::once(self.hook.label());
        hook.chain(timewait).chain(calls).collect()
    }
}

/// The names of hooks for people.
#[must_use]
pub fn hook_names(hook: Hook, timewait: Option<TimeWaitHook>, calls: bool) -> Vec<&'static str> {
    std::iter::once(hook.label())
        .chain(timewait.map(TimeWaitHook::label))
        .chain(calls.then_some(call::LABEL))
        .collect()
}

/// Hooks in place: dropping it removes them.
#[derive(Debug)]
pub struct Attached {
    /// How.
    pub plan: Plan,
    /// Maps and programs.
    pub ebpf: Arc<Mutex<Ebpf>>,
    /// What the programs write to.
    pub rings: Rings,
    /// Whether the sockets that are there already can be read.
    pub existing: bool,
    /// When they were in place (nanoseconds of `CLOCK_MONOTONIC`).
    pub start: u64,
}

impl Attached {
    /// Attaches the best hooks that this kernel allows.
    ///
    /// # Errors
    /// If there are none, with the reason for each.
    pub fn new(request: &Request) -> Result<Self, Refused> {
        attach(request, &mut Vec::new())
    }

    fn now(plan: Plan, Loaded { ebpf, rings }: Loaded, existing: bool) -> Self {
        Self {
            plan,
            ebpf: Arc::new(Mutex::new(ebpf)),
            rings,
            existing,
            start: clock::monotonic_now(),
        }
    }
}

/// Tries the hooks (or only one), best first, and attaches the first that works. `attempts` gets what happened.
///
/// # Errors
/// If none works.
pub fn attach(request: &Request, attempts: &mut Vec<Attempt>) -> Result<Attached, Refused> {
    // Minisockets and system calls are observed beside the BTF tracepoint only.
    let more =
        request.calls == CallRequest::Must || matches!(request.timewait, TimeWaitRequest::Only(_));
    let best = more.then_some(Hook::BtfTracepoint);
    let only = request.hook.or(best);
    let wanted = |hook: &Hook| only.is_none_or(|only| only == *hook);
    for hook in Hook::ALL.into_iter().filter(wanted) {
        let outcome = match hook {
            Hook::BtfTracepoint => try_btf(request),
            Hook::Tracepoint => try_classic(request),
        };
        match outcome {
            Ok(attached) => {
                attempts.push(Attempt {
                    hook,
                    outcome: Ok(()),
                });
                return Ok(attached);
            }
            Err(why) => attempts.push(Attempt {
                hook,
                outcome: Err(why),
            }),
        }
    }
    Err(Refused {
        attempts: std::mem::take(attempts),
        hook: request.hook,
        timewait: request.timewait,
        calls: request.calls == CallRequest::Must,
    })
}

fn try_btf(request: &Request) -> Result<Attached, String> {
    thread::scope(|scope| {
        // It takes the kernel a while to say where all its functions are.
        let callers = (request.timewait != TimeWaitRequest::Off).then(|| scope.spawn(callers));
        let (mut plan, kernel_types) = begin_btf()?;
        let prepared = EbpfLoader::new();
        if let Some(callers) = callers {
            plan.callers = callers.join().unwrap_or_default();
        }
        watch(plan, request, &kernel_types, prepared)
    })
}

/// Without capabilities the kernel refuses whatever is tried first, and that is not why.
fn permitted() -> Result<(), String> {
    capability::lacking().map_or(Ok(()), Err)
}

/// What is known of the BTF tracepoint without trying it.
fn begin_btf() -> Result<(Plan, Btf), String> {
    let bytes = fs::read(btf::KERNEL_BTF).map_err(|error| {
        format!(
            "{}: {error} (the kernel is built without CONFIG_DEBUG_INFO_BTF?)",
            btf::KERNEL_BTF
        )
    })?;
    let parsed =
        btf::Btf::parse(&bytes).map_err(|error| format!("{}: {error}", btf::KERNEL_BTF))?;
    let (offsets, lacking) = btf::resolve_offsets(&parsed).map_err(|error| error.to_string())?;
    let kernel_types =
        Btf::from_sys_fs().map_err(|error| format!("{}: {error}", btf::KERNEL_BTF))?;
    permitted()?;

    let cookie_helper = Helper::SocketCookie.is_permitted(&kernel_types);
    let mut plan = Plan {
        hook: Hook::BtfTracepoint,
        timewait: None,
        refused: Vec::new(),
        calls: false,
        callers: Callers::default(),
        missing: Missing::by_fields(&lacking),
        lacking,
        offsets,
        format: Format::absent(),
        cookie_helper,
        task_helper: Helper::CurrentTask.is_permitted(&kernel_types),
    };
    plan.missing.extend(missing_cookies(cookie_helper));
    Ok((plan, kernel_types))
}

/// The hooks are in place; adds what does not depend on the observer: system calls if they are wanted, and the iterators over
/// sockets, or says in the plan why not.
fn in_place(
    mut plan: Plan,
    request: &Request,
    mut loaded: Loaded,
    kernel_types: &Btf,
) -> Result<Attached, String> {
    if request.calls != CallRequest::Off {
        match call::attach(&mut loaded.ebpf, &plan, kernel_types) {
            Ok(()) => plan.calls = true,
            Err(why) if request.calls == CallRequest::Must => return Err(why),
            Err(why) => plan.missing.push(Missing {
                what: format!("program at the end of system calls: {why}"),
                loses: call::LOSES.to_owned(),
            }),
        }
    }
    if plan.timewait == Some(TimeWaitHook::Poll) {
        // They are loaded already.
        return Ok(Attached::now(plan, loaded, true));
    }
    let mut existing = request.existing;
    if existing && let Err(error) = existing::load(&mut loaded.ebpf, kernel_types) {
        existing = false;
        plan.missing.push(Missing {
            what: format!("iterator over sockets: {}", reason(&error)),
            loses: "sockets that were there before, and their processes".to_owned(),
        });
    }
    Ok(Attached::now(plan, loaded, existing))
}

/// Attaches the BTF tracepoint with the best of the observers of minisockets that were asked for.
fn watch(
    mut plan: Plan,
    request: &Request,
    kernel_types: &Btf,
    prepared: Prepared,
) -> Result<Attached, String> {
    let observers = request.timewait.candidates();
    let mut prepared = Some(prepared);
    for observer in observers.iter().copied() {
        plan.timewait = Some(observer);
        match try_observer(&plan, observer, request, kernel_types, &mut prepared) {
            Ok(loaded) => {
                if plan.callers.is_empty() {
                    plan.missing.push(Missing {
                        what: "addresses in /proc/kallsyms (CAP_SYSLOG, kernel.kptr_restrict)"
                            .to_owned(),
                        loses: "why a TIME_WAIT ended early".to_owned(),
                    });
                }
                if observer == TimeWaitHook::Poll && request.timewait == TimeWaitRequest::Auto {
                    plan.missing.push(Missing {
                        what: format!("better way of observing it ({})", plan.refusals()),
                        loses: "what TIME_WAITs end for, and their exact ends (a list is read once a second)"
                            .to_owned(),
                    });
                }
                return in_place(plan, request, loaded, kernel_types);
            }
            Err(why) => plan.refused.push((observer, why)),
        }
    }
    plan.timewait = None;
    if let TimeWaitRequest::Only(_) = request.timewait {
        let why = plan.refused.pop().map(|(_, why)| why).unwrap_or_default();
        return Err(why);
    }
    if request.timewait == TimeWaitRequest::Auto {
        plan.missing.push(Missing {
            what: format!("way of observing it ({})", plan.refusals()),
            loses: "the life of TIME_WAIT".to_owned(),
        });
    }
    let mut loaded = load(&plan, request, &mut prepared, |ebpf| {
        load_btf(ebpf, kernel_types)
    })?;
    attach_btf(&mut loaded.ebpf).map_err(|error| reason(&error))?;
    in_place(plan, request, loaded, kernel_types)
}

/// Loads and attaches everything; what is handed over depends on the observer.
fn try_observer(
    plan: &Plan,
    observer: TimeWaitHook,
    request: &Request,
    kernel_types: &Btf,
    prepared: &mut Option<Prepared>,
) -> Result<Loaded, String> {
    observer.check(plan, kernel_types)?;
    let mut loaded = load(plan, request, prepared, |ebpf| {
        // The observer first: it is the one that may be refused.
        observer.load(ebpf, plan, kernel_types)?;
        load_btf(ebpf, kernel_types)
    })?;
    attach_btf(&mut loaded.ebpf).map_err(|error| reason(&error))?;
    observer.attach(&mut loaded.ebpf, plan)?;
    Ok(loaded)
}

/// Where the functions are that end minisockets.
fn callers() -> Callers {
    fs::read_to_string("/proc/kallsyms")
        .map_or_else(|_| Callers::default(), |text| Callers::parse(&text))
}

/// Kernels without the helper also give a network namespace its cookie only on demand.
fn missing_cookies(cookie_helper: bool) -> Vec<Missing> {
    const LOSSES: [&str; 2] = [
        "socket cookies: connections are told apart by socket address, which the kernel reuses",
        "network namespace cookies: namespaces are known by a number that the kernel reuses",
    ];
    if cookie_helper {
        return Vec::new();
    }
    LOSSES
        .iter()
        .map(|loses| Missing {
            what: "bpf_get_socket_cookie for this kind of program (Linux 5.12)".to_owned(),
            loses: (*loses).to_owned(),
        })
        .collect()
}

fn try_classic(request: &Request) -> Result<Attached, String> {
    let filter = &request.filter;
    if let TimeWaitRequest::Only(observer) = request.timewait {
        return Err(format!(
            "it does not show TIME_WAIT, so --timewait {} cannot be used",
            observer.word()
        ));
    }
    if request.calls == CallRequest::Must {
        return Err("the classic tracepoint shows no system calls".to_owned());
    }
    if filter.netns != 0 || filter.netns_cookie != 0 {
        return Err("it does not know network namespaces, so --netns cannot be used".to_owned());
    }
    permitted()?;
    let plan = Plan {
        hook: Hook::Tracepoint,
        timewait: None,
        refused: Vec::new(),
        calls: false,
        callers: Callers::default(),
        missing: Hook::Tracepoint
            .loses()
            .iter()
            .map(|loses| Missing {
                what: "BTF tracepoint".to_owned(),
                loses: (*loses).to_owned(),
            })
            .collect(),
        lacking: Vec::new(),
        offsets: Offsets::absent(),
        format: format::read().map_err(|error| error.to_string())?,
        cookie_helper: false,
        task_helper: false,
    };
    let mut loaded = load(&plan, request, &mut None, load_classic)?;
    attach_classic(&mut loaded.ebpf).map_err(|error| reason(&error))?;
    Ok(Attached::now(plan, loaded, false))
}
