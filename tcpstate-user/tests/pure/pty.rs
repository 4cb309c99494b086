//! A command that somebody looks at.

use std::{
    fs::{File, OpenOptions},
    io::Read as _,
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt as _},
    process::{Command, Stdio},
};

use nix::{
    fcntl::OFlag,
    pty::{grantpt, posix_openpt, ptsname_r, unlockpt},
};

/// All that it shows on a terminal: standard output and standard error.
pub fn shown(mut command: Command) -> String {
    // Other tests start processes meanwhile, which must not keep it open.
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let terminal = posix_openpt(flags).expect("a terminal");
    grantpt(&terminal).expect("ours");
    unlockpt(&terminal).expect("ready");
    let name = ptsname_r(&terminal).expect("its name");
    let other = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(name)
        .expect("its other end");
    command
        .stdin(Stdio::null())
        .stdout(other.try_clone().expect("a file"))
        .stderr(other);
    let mut child = command.spawn().expect("it starts");
    // It has both ends for as long as it is there.
    drop(command);
    let mut bytes = Vec::new();
    // That nobody writes any more is an error.
    let _ = File::from(OwnedFd::from(terminal)).read_to_end(&mut bytes);
    child.wait().expect("it ends");
    String::from_utf8(bytes).expect("UTF-8")
}
