//! The side that accepts.

use std::{
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
    sync::Arc,
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, anyhow};
use nix::sys::socket::{Shutdown, SockFlag, accept4, shutdown};

use tcpstate_bench::Mode;

use crate::{Errors, count};

/// A thread that accepts.
pub struct Server {
    listener: Arc<OwnedFd>,
    thread: JoinHandle<Errors>,
}

pub fn start(listener: OwnedFd, mode: Mode) -> Result<Server> {
    let listener = Arc::new(listener);
    let ours = Arc::clone(&listener);
    let thread = thread::Builder::new()
        .name("churn server".to_owned())
        .spawn(move || serve(&ours, mode))
        .context("no more threads")?;
    Ok(Server { listener, thread })
}

impl Server {
    /// Ends it; what went wrong is left.
    pub fn end(self) -> Result<Errors> {
        // accept() returns EINVAL then; what has been queued before is served first.
        shutdown(self.listener.as_raw_fd(), Shutdown::Both).context("shutdown of a listener")?;
        self.thread.join().map_err(|_| anyhow!("a server panicked"))
    }
}

fn serve(listener: &OwnedFd, mode: Mode) -> Errors {
    let mut errors = Errors::new();
    loop {
        let socket = match accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            // SAFETY: the descriptor is new, and nobody else knows of it.
            Ok(descriptor) => unsafe { OwnedFd::from_raw_fd(descriptor) },
            Err(nix::Error::EINVAL) => return errors,
            Err(error) => {
                count(&mut errors, "accept", error);
                continue;
            }
        };
        if let Err(error) = nix::unistd::write(socket.as_fd(), b"!") {
            count(&mut errors, "write", error);
        }
        if mode == Mode::ServerClose {
            continue;
        }
        match nix::unistd::read(&socket, &mut [0]) {
            Err(nix::Error::ECONNRESET) if mode == Mode::Rst => {}
            Err(error) => count(&mut errors, "read of the server", error),
            Ok(_) => {}
        }
    }
}
