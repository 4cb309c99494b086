//! Connections that a RST ends, and such that it refuses.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
};

use serde_json::Value;

use super::{connect, passive};
use crate::{
    socket::abort,
    support::{Tool, own_netns, skipped, steps},
};

#[test]
fn refused_connect_says_why() {
    if skipped("refused_connect_says_why") {
        return;
    }
    own_netns();
    let tool = Tool::trace(&[]);
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, 9)).is_err());
    let printed = tool.stop();
    let lines = printed.transitions();
    assert_eq!(steps(&lines), ["close->syn_sent", "syn_sent->close"]);
    assert_eq!(lines[1]["error"], "ECONNREFUSED");
    assert_eq!(lines[1]["rport"], 9);
    assert!(
        lines[1]["lport"].is_u64(),
        "the port is known by now: {}",
        lines[1]
    );
}

#[test]
fn aborts_are_told_apart_from_resets() {
    if skipped("aborts_are_told_apart_from_resets") {
        return;
    }
    own_netns();
    let tool = Tool::trace(&[]);
    let lingering = connect((Ipv4Addr::LOCALHOST, 0));
    let unread = connect((Ipv4Addr::LOCALHOST, 0));
    (&unread.server).write_all(b"never read").expect("sent");
    unread.client.peek(&mut [0]).expect("it has arrived");
    let ports = [
        (lingering.client_port, lingering.server_port),
        (unread.client_port, unread.server_port),
    ];
    abort(lingering.client);
    drop(unread.client);
    assert!((&lingering.server).read(&mut [0]).is_err(), "reset");
    assert!((&unread.server).read(&mut [0]).is_err(), "reset");
    let printed = tool.stop();
    for (client_port, server_port) in ports {
        let client = printed.of_port(client_port);
        assert_eq!(steps(&client[2..]), ["established->close"]);
        assert_eq!(client[2]["error"], Value::Null, "our own abort is no error");
        assert_eq!(client[2]["via"], "close");
        let server = passive(&printed, server_port);
        assert_eq!(steps(&server[2..]), ["established->close"]);
        assert_eq!(server[2]["error"], "ECONNRESET");
    }
}
