//! The running kernel: what it allows, the hooks in it, and the names it has for things. The only user of aya.

pub mod btf;
mod call;
pub mod capability;
mod cgroup;
mod existing;
mod format;
mod load;
mod misses;
mod netns;
mod netstat;
mod observer;
mod owners;
pub mod plan;
mod priority;
pub mod probe;
mod refusal;
mod rings;
mod settings;
mod syscall;
mod tracer;

pub use call::CallRequest;
pub use capability::{drop_privileges, keep_files};
pub use cgroup::Cgroups;
pub use existing::{List, Progress, Reader};
pub use netns::find as find_netns;
pub use netstat::NetStat;
pub use observer::{TimeWaitHook, TimeWaitRequest};
pub use owners::Owners;
pub use plan::{Attached, Hook, Missing, Plan, Request, hook_names};
pub use priority::hurry;
pub use refusal::{Attempt, Refused};
pub use rings::default_buffer;
pub use settings::settings;
pub use tracer::{Counters, Tracer};

/// Whether process ids mean the same to us as to the kernel.
#[must_use]
pub fn in_initial_pid_namespace() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    /// `PROC_PID_INIT_INO` in `include/linux/proc_ns.h`.
    const INITIAL: u64 = 0xefff_fffc;
    std::fs::metadata("/proc/self/ns/pid").is_ok_and(|metadata| metadata.ino() == INITIAL)
}
