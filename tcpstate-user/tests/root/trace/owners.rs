//! Whose a socket is, and by which call that is known.

use std::{
    collections::{HashMap, HashSet},
    io::Read as _,
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use super::connect;
use crate::{
    server::{CLOSES_FIRST, Server},
    support::{Tool, nobody_starts, own_netns, port, skipped, steps},
};

/// Nobody's close(): the garbage collector of unix sockets drops the last reference, in a kernel thread.
#[test]
fn a_kernel_thread_is_nobodys_process() {
    if skipped("a_kernel_thread_is_nobodys_process") {
        return;
    }
    own_netns();
    let tool = Tool::trace(&[]);
    let alone = nobody_starts();
    let pair = connect((Ipv4Addr::LOCALHOST, 0));
    let client_port = pair.client_port;
    forget_in_a_cycle(pair.client);
    drop(alone);
    thread::sleep(Duration::from_millis(500));
    let lines = tool.stop().of_port(client_port);
    let closing = lines
        .iter()
        .find(|line| line["new"] == "fin_wait1")
        .expect("it was closed");
    assert_eq!(
        closing["pid"],
        std::process::id(),
        "the owner is known: {closing}"
    );
    // Old kernels collect in the process that closes the next unix socket: that is in its own call then.
    let own_call = (closing["via"] == "close", closing["tid"].is_u64());
    let learnt_earlier = (closing["via"] != "connect", closing["tid"].is_u64());
    assert!(
        own_call == (true, true) || learnt_earlier == (false, false),
        "{closing}"
    );
}

/// Sends a socket and both ends of a unix socket pair through that pair, and closes them all: only the kernel can find
/// that nobody has them any more.
fn forget_in_a_cycle(socket: TcpStream) {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let (one, other) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let descriptors = [socket.as_raw_fd(), one.as_raw_fd(), other.as_raw_fd()];
    for end in [&one, &other] {
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let data = [std::io::IoSlice::new(b"x")];
        sendmsg::<()>(end.as_raw_fd(), &data, &rights, MsgFlags::empty(), None).expect("sent");
    }
    drop((socket, one, other));
    // The collector runs when the next unix socket is closed.
    drop(std::os::unix::net::UnixStream::pair().expect("a pair"));
}

#[test]
fn a_listener_and_its_children_have_an_owner() {
    if skipped("a_listener_and_its_children_have_an_owner") {
        return;
    }
    own_netns();
    let tool = Tool::trace(&[]);
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a listener");
    let server_port = port(listener.local_addr());
    drop(listener);
    let printed = tool.stop();
    let lines = printed.of_port(server_port);
    assert_eq!(steps(&lines), ["close->listen", "listen->close"]);
    assert_eq!(lines[0]["laddr"], "0.0.0.0");
    assert_eq!(lines[0]["raddr"], Value::Null);
    assert_eq!(lines[0]["rport"], Value::Null);
    assert_eq!(
        (&lines[0]["via"], &lines[1]["via"]),
        (&json!("listen"), &json!("close"))
    );
    assert_eq!(lines[1]["bound"], "exact");
}

/// Two processes listen on one port; each child belongs to the one that accepts it.
#[test]
fn children_of_reuseport_listeners_belong_to_their_own() {
    if skipped("children_of_reuseport_listeners_belong_to_their_own") {
        return;
    }
    own_netns();
    let tool = Tool::trace(&[]);
    let servers = [(); 2].map(|()| Server::start(CLOSES_FIRST, 7001));
    let mut clients = Vec::new();
    for _ in 0..40 {
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, 7001)).expect("a connection");
        clients.push((port(client.local_addr()), client));
    }
    // Each server says which clients it has accepted: the witness.
    let mut accepted = HashMap::new();
    for (client_port, mut client) in clients {
        let mut pid = [0; 4];
        client
            .read_exact(&mut pid)
            .expect("the process that accepted us");
        accepted.insert(client_port, u32::from_be_bytes(pid));
    }
    drop(servers);
    let printed = tool.stop();
    let mut seen = HashMap::new();
    for line in printed.transitions().iter().filter(|line| {
        line["old"] == "syn_recv" && line["new"] == "established" && line["lport"] == 7001
    }) {
        assert_eq!(line["via"], "listener", "{line}");
        let client = u16::try_from(line["rport"].as_u64().expect("a port")).expect("a port");
        seen.insert(
            client,
            u32::try_from(line["pid"].as_u64().expect("a process")).expect("a pid"),
        );
    }
    assert_eq!(seen, accepted);
    let owners: HashSet<_> = accepted.values().collect();
    assert_eq!(owners.len(), 2, "both servers took part");
}
