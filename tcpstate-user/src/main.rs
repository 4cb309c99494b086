//! The command `tcpstate`.

use std::process::ExitCode;

fn main() -> ExitCode {
    tcpstate_user::cli::main()
}
