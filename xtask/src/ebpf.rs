//! `cargo xtask ebpf`: the checked-in eBPF object, and whether it is what the source says.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::built_with::BuiltWith;
use crate::checkout::Checkout;
use crate::{command, object, setup};

/// Build the eBPF object into tcpstate-user/ebpf, where tcpstate's build takes it from
#[derive(clap::Args)]
pub struct Args {
    /// Write nothing: rebuild from scratch and fail unless the checked-in object is the same byte for byte
    #[arg(long)]
    check: bool,
}

pub fn perform(args: &Args, checkout: &Checkout) -> Result<ExitCode> {
    if args.check {
        let same = is_up_to_date(checkout)?;
        return Ok(if same {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        });
    }
    setup::demand()?;
    let target = checkout.target.join("ebpf");
    // Cargo does not see that the linker is another one: always link again.
    let mut clean = object::cargo(checkout, &target, "clean")?;
    clean.arg("--quiet");
    command::run(&mut clean, "see cargo's message above")?;
    let bytes = object::build(checkout, &target)?;
    write(&checkout.object(), &bytes)?;
    write(
        &checkout.built_with(),
        BuiltWith::here()?.to_string().as_bytes(),
    )?;
    println!("{} ({} bytes)", checkout.object().display(), bytes.len());
    Ok(ExitCode::SUCCESS)
}

/// Rebuilds from scratch and compares; says what differs.
pub fn is_up_to_date(checkout: &Checkout) -> Result<bool> {
    setup::demand()?;
    let path = checkout.object();
    if !path.is_file() {
        eprintln!(
            "{} is not there: run `cargo xtask ebpf` and commit it",
            path.display()
        );
        return Ok(false);
    }
    let checked_in = object::read(&path)?;
    // From nothing, as a stranger would: what an earlier build left could hide a difference.
    let target = checkout.target.join("ebpf-check");
    remove(&target)?;
    let rebuilt = object::build(checkout, &target);
    remove(&target)?;
    let rebuilt = rebuilt?;

    let then = fs::read_to_string(checkout.built_with()).unwrap_or_default();
    let tools = BuiltWith::here()?.differences(&BuiltWith::parse(&then));
    let difference = object::difference(&checked_in, &rebuilt);
    match &difference {
        None => println!(
            "{} is what the source says ({} bytes)",
            path.display(),
            rebuilt.len()
        ),
        Some(difference) => {
            let kept = checkout.target.join("ebpf-check.bpf.o");
            write(&kept, &rebuilt)?;
            eprintln!(
                "{} is not what the source says: {difference}",
                path.display()
            );
            eprintln!("the rebuilt one is kept as {}", kept.display());
        }
    }
    for tool in &tools {
        eprintln!("note: {tool}");
    }
    if difference.is_some() {
        eprintln!(
            "{}",
            if tools.is_empty() {
                "the tools are the same, so the source has changed: run `cargo xtask ebpf` and commit the object with the source"
            } else {
                "either the source has changed, or the tools are the reason: with those of BUILT-WITH, run this again"
            }
        );
    }
    Ok(difference.is_none())
}

fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| {
            format!("{} cannot be removed (remove it by hand)", folder.display())
        })?;
    }
    Ok(())
}

/// Writes a file unless it says so already (its time is what makes cargo rebuild tcpstate), and never leaves half of it.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let advice = || {
        format!(
            "{} cannot be written (is its folder yours?)",
            path.display()
        )
    };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(advice)?;
    }
    let unfinished = path.with_extension("unfinished");
    fs::write(&unfinished, bytes).with_context(advice)?;
    fs::rename(&unfinished, path).with_context(advice)
}
