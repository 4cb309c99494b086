//! Which hook this kernel allows, found out by asking it, best first.

use std::{fmt, fs};

use aya::{
    Btf, Ebpf, EbpfError, EbpfLoader,
    maps::MapType,
    programs::{BtfTracePoint, ProgramError, TracePoint},
    sys::is_map_supported,
};
use serde::Serialize;
use tcpstate_common::{
    config::{Config, KernelFilter},
    fields::{Format, Offsets},
};

use super::{btf, capability, format};
use crate::{clock, lifecycle::Callers};

/// The kernel side, built from `tcpstate-ebpf` by `cargo xtask ebpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../ebpf/tcpstate.bpf.o");

const TRACEPOINT: &str = "inet_sock_set_state";

/// A hook that shows state transitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
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

    /// What is lost by using this hook instead of the best one.
    #[must_use]
    pub const fn loses(self) -> &'static [&'static str] {
        match self {
            Self::BtfTracepoint => &[],
            Self::Tracepoint => &[
                "processes: no event says whose it is",
                "user ids, cgroups, network namespaces, errors",
                "the life of TIME_WAIT",
                "socket cookies: connections are told apart by socket address, which the kernel reuses",
            ],
        }
    }
}

/// A way of observing the life of TIME_WAIT minisockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeWaitHook {
    /// The kernel's generic timer tracepoints, as BTF tracepoints.
    Timer,
}

impl TimeWaitHook {
    /// Its name for people.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Timer => "timer tracepoints",
        }
    }
}

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Only this hook for transitions; the best otherwise.
    pub hook: Option<Hook>,
    /// Whether minisockets are to be observed, and whether it is an error if they cannot be.
    pub timewait: Wanted,
    /// What the kernel side decides.
    pub filter: KernelFilter,
    /// Bytes of the ring buffer: a power of two, at least a page.
    pub buffer: u32,
}

/// How much something is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Not at all.
    No,
    /// If it can be had.
    IfPossible,
    /// It is an error if it cannot be had.
    Must,
}

/// Something this kernel does not let us know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// What is not there, and why.
    pub what: String,
    /// What is lost by it.
    pub loses: String,
}

/// A hook with everything that is needed to use it on this kernel.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The hook.
    pub hook: Hook,
    /// How minisockets are observed, if they are.
    pub timewait: Option<TimeWaitHook>,
    /// Who ends minisockets in this kernel.
    pub callers: Callers,
    /// What will not be known.
    pub missing: Vec<Missing>,
    offsets: Offsets,
    format: Format,
    cookie_helper: bool,
    task_helper: bool,
}

impl Plan {
    /// The names of the hooks in use.
    #[must_use]
    pub fn hooks(&self) -> Vec<&'static str> {
        let timewait = self.timewait.map(TimeWaitHook::label);
        std::iter::once(self.hook.label()).chain(timewait).collect()
    }
}

/// How trying a hook went.
#[derive(Debug)]
pub struct Attempt {
    /// The hook.
    pub hook: Hook,
    /// Whether it was loaded and attached, or why not.
    pub outcome: Result<(), String>,
}

/// Hooks in place: dropping it removes them.
#[derive(Debug)]
pub struct Attached {
    /// How.
    pub plan: Plan,
    /// Maps and programs.
    pub ebpf: Ebpf,
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

    fn now(plan: Plan, ebpf: Ebpf) -> Self {
        Self {
            plan,
            ebpf,
            start: clock::monotonic_now(),
        }
    }
}

/// No hook can be used.
#[derive(Debug)]
pub struct Refused {
    attempts: Vec<Attempt>,
}

impl fmt::Display for Refused {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let missing = capability::missing();
        let lockdown = capability::lockdown().filter(|state| capability::forbids_reading(state));
        if let Some(lockdown) = &lockdown {
            write!(
                out,
                "this kernel is locked down ({lockdown}): programs may not read its memory, so no hook for TCP state \
                 transitions can be used; start it with another lockdown= or none"
            )?;
        } else if missing.is_empty() {
            write!(
                out,
                "this kernel lets us use no hook for TCP state transitions"
            )?;
        } else {
            write!(
                out,
                "not permitted to load eBPF programs: {} missing; run as root (sudo), or give the binary the \
                 capabilities: setcap cap_bpf,cap_perfmon=ep",
                missing.join(" and "),
            )?;
        }
        for Attempt { hook, outcome } in &self.attempts {
            if let Err(why) = outcome {
                write!(out, "\n  {}: {why}", hook.label())?;
            }
        }
        if missing.is_empty() && lockdown.is_none() {
            write!(
                out,
                "\nLinux 5.8 or later is needed; `tcpstate probe` shows what this one has"
            )?;
        }
        Ok(())
    }
}

impl std::error::Error for Refused {}

impl Refused {
    /// Why the last hook that was tried cannot be used.
    #[must_use]
    pub fn into_reason(self) -> Option<String> {
        self.attempts
            .into_iter()
            .filter_map(|attempt| attempt.outcome.err())
            .next_back()
    }
}

/// Tries the hooks (or only one), best first, and attaches the first that works. `attempts` gets what happened.
///
/// # Errors
/// If none works.
pub fn attach(request: &Request, attempts: &mut Vec<Attempt>) -> Result<Attached, Refused> {
    let wanted = |hook: &Hook| request.hook.is_none_or(|only| only == *hook);
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
    })
}

fn try_btf(request: &Request) -> Result<Attached, String> {
    let bytes = fs::read(btf::KERNEL_BTF).map_err(|error| {
        format!(
            "{}: {error} (the kernel is built without CONFIG_DEBUG_INFO_BTF?)",
            btf::KERNEL_BTF
        )
    })?;
    let parsed =
        btf::Btf::parse(&bytes).map_err(|error| format!("{}: {error}", btf::KERNEL_BTF))?;
    let (offsets, missing) = btf::resolve_offsets(&parsed).map_err(|error| error.to_string())?;
    let missing = missing
        .iter()
        .map(|field| Missing {
            what: format!(
                "{}.{}: {}",
                field.field.container, field.field.path, field.reason
            ),
            loses: field.lost.to_owned(),
        })
        .collect();
    let kernel_types =
        Btf::from_sys_fs().map_err(|error| format!("{}: {error}", btf::KERNEL_BTF))?;

    let mut plan = Plan {
        hook: Hook::BtfTracepoint,
        timewait: None,
        callers: Callers::default(),
        missing,
        offsets,
        format: Format::absent(),
        cookie_helper: true,
        task_helper: true,
    };
    if request.timewait != Wanted::No {
        plan.callers = callers();
    }
    // What a helper is allowed to be called by, only loading tells; the best first.
    let mut refusal = String::new();
    for (cookie_helper, task_helper) in [(true, true), (false, true), (false, false)] {
        plan.cookie_helper = cookie_helper;
        plan.task_helper = task_helper;
        let mut ebpf = load_maps(&plan, request, Some(&kernel_types))?;
        match attach_btf(&mut ebpf, "transition", TRACEPOINT, &kernel_types) {
            Ok(()) => {
                plan.missing.extend(missing_cookies(cookie_helper));
                watch_minisockets(&mut plan, &mut ebpf, request.timewait, &kernel_types)?;
                return Ok(Attached::now(plan, ebpf));
            }
            Err(error) => refusal = reason(&error),
        }
    }
    Err(refusal)
}

/// Attaches the timer tracepoints, or says in the plan (or as an error) why not.
fn watch_minisockets(
    plan: &mut Plan,
    ebpf: &mut Ebpf,
    wanted: Wanted,
    kernel_types: &Btf,
) -> Result<(), String> {
    if wanted == Wanted::No {
        return Ok(());
    }
    match attach_timers(plan, ebpf, kernel_types) {
        Ok(()) => plan.timewait = Some(TimeWaitHook::Timer),
        Err(what) if wanted == Wanted::Must => return Err(format!("no {what}")),
        Err(what) => plan.missing.push(Missing {
            what,
            loses: "the life of TIME_WAIT".to_owned(),
        }),
    }
    Ok(())
}

/// What is not there is the error.
fn attach_timers(plan: &Plan, ebpf: &mut Ebpf, kernel_types: &Btf) -> Result<(), String> {
    const PROGRAMS: [(&str, &str); 3] = [
        ("timewait_cancelled", "timer_cancel"),
        ("timewait_expired", "timer_expire_entry"),
        ("timewait_armed", "timer_start"),
    ];
    if plan.callers.timer_handler().is_none() {
        return Err(
            "address of tw_timer_handler in /proc/kallsyms (CAP_SYSLOG, kernel.kptr_restrict)"
                .to_owned(),
        );
    }
    if !plan.cookie_helper {
        return Err("socket cookie that joins a minisocket to its connection".to_owned());
    }
    for (program, tracepoint) in PROGRAMS {
        attach_btf(ebpf, program, tracepoint, kernel_types)
            .map_err(|error| format!("{tracepoint}: {}", reason(&error)))?;
    }
    Ok(())
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
    if request.timewait == Wanted::Must {
        return Err("it does not show TIME_WAIT, so --timewait cannot be used".to_owned());
    }
    if filter.netns != 0 || filter.netns_cookie != 0 {
        return Err("it does not know network namespaces, so --netns cannot be used".to_owned());
    }
    let plan = Plan {
        hook: Hook::Tracepoint,
        timewait: None,
        callers: Callers::default(),
        missing: Hook::Tracepoint
            .loses()
            .iter()
            .map(|loses| Missing {
                what: "BTF tracepoint".to_owned(),
                loses: (*loses).to_owned(),
            })
            .collect(),
        offsets: Offsets::absent(),
        format: format::read().map_err(|error| error.to_string())?,
        cookie_helper: false,
        task_helper: false,
    };
    let mut ebpf = load_maps(&plan, request, None)?;
    attach_classic(&mut ebpf).map_err(|error| reason(&error))?;
    Ok(Attached::now(plan, ebpf))
}

/// Hands over the constants and makes the maps. The programs are not loaded yet.
fn load_maps(plan: &Plan, request: &Request, kernel_types: Option<&Btf>) -> Result<Ebpf, String> {
    let config = Config {
        filter: request.filter,
        // The other three quarters are for what arrives while the reader wakes up.
        wake_bytes: u64::from(request.buffer) / 4,
        timewait_handler: plan.callers.timer_handler().unwrap_or_default(),
        cookie_helper: plan.cookie_helper.into(),
        task_helper: plan.task_helper.into(),
    };
    let mut loader = EbpfLoader::new();
    loader
        .btf(kernel_types)
        .override_global("CONFIG", zerocopy::IntoBytes::as_bytes(&config), true)
        .override_global(
            "OFFSETS",
            zerocopy::IntoBytes::as_bytes(&plan.offsets),
            true,
        )
        .override_global("FORMAT", zerocopy::IntoBytes::as_bytes(&plan.format), true)
        .map_max_entries("RECORDS", request.buffer);
    loader.load(OBJECT).map_err(|error| maps_reason(&error))
}

fn attach_btf(
    ebpf: &mut Ebpf,
    program: &str,
    tracepoint: &str,
    kernel_types: &Btf,
) -> Result<(), ProgramError> {
    let Some(program) = ebpf.program_mut(program) else {
        return Err(ProgramError::NotLoaded);
    };
    let program: &mut BtfTracePoint = program.try_into()?;
    program.load(tracepoint, kernel_types)?;
    program.attach().map(|_| ())
}

fn attach_classic(ebpf: &mut Ebpf) -> Result<(), ProgramError> {
    let Some(program) = ebpf.program_mut("classic") else {
        return Err(ProgramError::NotLoaded);
    };
    let program: &mut TracePoint = program.try_into()?;
    program.load()?;
    program.attach("sock", TRACEPOINT).map(|_| ())
}

fn maps_reason(error: &EbpfError) -> String {
    if !is_map_supported(MapType::RingBuf).unwrap_or(true) {
        return "this kernel has no BPF ring buffer (Linux 5.8)".to_owned();
    }
    let why = chain(error);
    if why.contains("Operation not permitted") {
        return format!(
            "{why} (before Linux 5.11 maps count as locked memory: raise `ulimit -l`, or use a smaller --buffer)"
        );
    }
    why
}

/// The reason in one line; of the verifier's log only its last words.
fn reason(error: &ProgramError) -> String {
    match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            let log = verifier_log.to_string();
            let last = log
                .lines()
                .rev()
                .find(|line| !line.trim().is_empty() && !is_statistics(line));
            match last {
                Some(line) => format!("the kernel refused the program: {io_error}: {line}"),
                None => format!("the kernel refused the program: {io_error}"),
            }
        }
        other => chain(other),
    }
}

/// What the verifier adds after its last words (`print_verification_stats` in kernel/bpf/verifier.c).
fn is_statistics(line: &str) -> bool {
    const BEGINNINGS: [&str; 4] = [
        "processed ",
        "insns processed ",
        "stack depth ",
        "verification time ",
    ];
    BEGINNINGS
        .iter()
        .any(|beginning| line.starts_with(beginning))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    text
}
