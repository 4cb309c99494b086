//! Child processes, whose failures say what failed, why, and what to do.

use std::env;
use std::fmt::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Runs to the end with our output; what it has to say about a failure is on the terminal already.
pub fn run(command: &mut Command, advice: &str) -> Result<()> {
    let status = command
        .status()
        .with_context(|| cannot_start(command, advice))?;
    if !status.success() {
        bail!("`{}` failed ({status}): {advice}", shown(command));
    }
    Ok(())
}

/// Runs to the end with our output; true if it succeeded.
pub fn succeeds(command: &mut Command, advice: &str) -> Result<bool> {
    let status = command
        .status()
        .with_context(|| cannot_start(command, advice))?;
    Ok(status.success())
}

/// What it prints.
pub fn output(command: &mut Command, advice: &str) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| cannot_start(command, advice))?;
    if !output.status.success() {
        bail!(
            "`{}` failed ({}): {}: {advice}",
            shown(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// What it prints, or nothing if it is not there or fails.
pub fn answer(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).output().ok()?;
    let answer = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    output.status.success().then_some(answer)
}

/// Whether the program can be found.
pub fn exists(program: &str) -> bool {
    env::var_os("PATH")
        .is_some_and(|path| env::split_paths(&path).any(|folder| folder.join(program).is_file()))
}

/// As it would be typed.
pub fn shown(command: &Command) -> String {
    let mut shown = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        let argument = argument.to_string_lossy();
        let plain = !argument.is_empty() && !argument.contains([' ', '"', '\'', '\\', '$']);
        // Writing to a String cannot fail.
        let _ = if plain {
            write!(shown, " {argument}")
        } else {
            write!(shown, " '{}'", argument.replace('\'', r"'\''"))
        };
    }
    shown
}

fn cannot_start(command: &Command, advice: &str) -> String {
    format!("`{}` cannot be started ({advice})", shown(command))
}
