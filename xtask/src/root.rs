//! Root: what loads programs into the kernel needs it.

use std::process::{Command, Stdio};

use anyhow::Result;

use crate::command;

pub fn is_root() -> Result<bool> {
    let id = command::output(Command::new("id").arg("-u"), "is `id` installed?")?;
    Ok(id == "0")
}

/// Whether sudo lets us; asks for the password if it wants one and there is a terminal.
pub fn can_sudo() -> bool {
    let allowed = |arguments: &[&str], stderr: Stdio| {
        let mut sudo = Command::new("sudo");
        sudo.args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr);
        sudo.status().is_ok_and(|status| status.success())
    };
    command::exists("sudo")
        && (allowed(&["-n", "true"], Stdio::null()) || allowed(&["-v"], Stdio::inherit()))
}

/// The variable that makes cargo start what it has built for this machine through another command.
pub fn runner_variable(host: &str) -> String {
    format!(
        "CARGO_TARGET_{}_RUNNER",
        host.to_uppercase().replace(['-', '.'], "_")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runner_variable_is_spelled_as_cargo_wants_it() {
        assert_eq!(
            runner_variable("x86_64-unknown-linux-gnu"),
            "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER"
        );
    }
}
