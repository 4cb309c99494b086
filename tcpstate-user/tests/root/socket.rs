//! What the standard library does not do with sockets.

use std::{
    net::{TcpListener, TcpStream},
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, connect, listen, setsockopt,
    socket, sockopt,
};

/// One that is neither connected nor bound.
pub fn unconnected() -> TcpStream {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None).expect("a socket");
    TcpStream::from(socket)
}

/// connect() to a port of loopback.
pub fn connect_loopback(socket: &TcpStream, port: u16) -> nix::Result<()> {
    connect(socket.as_raw_fd(), &loopback(port))
}

fn loopback(port: u16) -> SockaddrIn {
    SockaddrIn::new(127, 0, 0, 1, port)
}

/// connect() to `AF_UNSPEC`: the socket may be connected again.
pub fn disconnect(socket: &TcpStream) {
    // SAFETY: `sockaddr` is plain data, for which zeros are valid; they mean `AF_UNSPEC`.
    let nowhere: libc::sockaddr = unsafe { std::mem::zeroed() };
    let length = libc::socklen_t::try_from(size_of_val(&nowhere)).expect("small");
    // SAFETY: the address lives through the call and has the size given.
    let result = unsafe { libc::connect(socket.as_raw_fd(), &raw const nowhere, length) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// Closes with a RST.
pub fn abort(socket: TcpStream) {
    let at_once = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(&socket, sockopt::Linger, &at_once).expect("an option");
    drop(socket);
}

/// A listener that shares its port of loopback with others.
pub fn reuse_port_listener(port: u16) -> TcpListener {
    let socket = unconnected();
    setsockopt(&socket, sockopt::ReusePort, &true).expect("an option");
    bind(socket.as_raw_fd(), &loopback(port)).expect("the port is free");
    listen(&socket, Backlog::new(128).expect("small")).expect("it listens");
    TcpListener::from(OwnedFd::from(socket))
}
