//! Processes of others, which do what Python says.

use std::{
    io::Read as _,
    process::{ChildStdout, Command, Stdio},
};

use crate::support::{Killed, start};

/// Whether the test is skipped, since there is no Python.
pub fn lacks_python(test: &str) -> bool {
    let lacks = !["/usr/bin/python3", "/usr/local/bin/python3"]
        .iter()
        .any(|python| std::path::Path::new(python).exists());
    if lacks {
        eprintln!("SKIPPED {test}: there is no python3");
    }
    lacks
}

/// A process that ends when this is dropped.
pub struct Python {
    child: Killed,
    /// What it may go on writing to.
    _out: ChildStdout,
}

impl Python {
    /// Starts a program, and waits until it says `up`.
    pub fn start(program: &str) -> Self {
        let mut child = Killed(start(
            Command::new("python3")
                .args(["-c", program])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped()),
        ));
        let mut up = [0; 2];
        let mut out = child.stdout.take().expect("its output");
        out.read_exact(&mut up).expect("it is up");
        assert_eq!(&up, b"up");
        Self { child, _out: out }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}
