//! The running kernel: what it allows, the hooks in it, and the names it has for things. The only user of aya.

pub mod btf;
mod capability;
mod cgroup;
mod format;
mod netns;
pub mod plan;
pub mod probe;
mod tracer;

pub use cgroup::Cgroups;
pub use netns::find as find_netns;
pub use plan::{Hook, Plan, Request, Wanted};
pub use tracer::Tracer;
