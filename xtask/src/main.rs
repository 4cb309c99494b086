//! The chores of this repository: `cargo xtask <task>`.
//!
//! Every task answers like `grep`: 0 for yes, 1 for no (a check or a test failed), 2 when it could not be tried.

mod arch;
mod bench;
mod btf;
mod built_with;
mod check;
mod checkout;
mod command;
mod debian;
mod dist;
mod ebpf;
mod fuzz;
mod generate;
mod linker;
mod object;
mod python;
mod root;
mod run;
mod setup;
mod test;
mod toolchain;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::checkout::Checkout;

/// The chores of tcpstate.
#[derive(Parser)]
#[command(
    bin_name = "cargo xtask",
    after_help = "Exit status: 0 done, 1 a check or a test failed, 2 it could not be tried."
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what rebuilding the eBPF object, virtual machines and tests need
    Setup(setup::Args),
    /// Build the eBPF object into tcpstate-user/ebpf
    Ebpf(ebpf::Args),
    /// Save the part of a kernel's BTF that the tests need
    BtfFixture(btf::Args),
    /// Formatting, lints, documentation, and the checked-in eBPF object
    Check,
    /// Try strange recordings and records
    Fuzz(fuzz::Args),
    /// Generate a large recording, for measurements
    Generate(generate::Args),
    /// Run all tests
    Test(test::Args),
    /// Run the tests of the kernel side on other kernels, in emulated machines
    Vm(vm::Args),
    /// Build tcpstate and run it, as root
    Run(run::Args),
    /// Build tcpstate as one static file for other hosts
    Dist(dist::Args),
    /// Measure what tcpstate costs beside other tools, as root, and write BENCHMARKS.md
    Bench(bench::Args),
}

fn main() -> ExitCode {
    perform(Cli::parse().task).unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::from(2)
    })
}

fn perform(task: Task) -> Result<ExitCode> {
    let checkout = Checkout::locate()?;
    match task {
        Task::Setup(args) => setup::perform(&args, &checkout),
        Task::Ebpf(args) => ebpf::perform(&args, &checkout),
        Task::BtfFixture(args) => btf::perform(&args),
        Task::Check => check::perform(&checkout),
        Task::Fuzz(args) => fuzz::perform(&args, &checkout),
        Task::Generate(args) => generate::perform(&args, &checkout),
        Task::Test(args) => test::perform(&args, &checkout),
        Task::Vm(args) => vm::perform(&args, &checkout),
        Task::Run(args) => run::perform(&args, &checkout),
        Task::Dist(args) => dist::perform(&args, &checkout),
        Task::Bench(args) => bench::perform(&args, &checkout),
    }
}
