//! Sockets that are used more than once.

use std::net::Ipv4Addr;

use nix::sys::socket::{Backlog, listen};
use serde_json::{Value, json};

use super::{assert_all, connect};
use crate::{
    socket::{connect_loopback, disconnect, unconnected},
    support::{Tool, own_netns, skipped, steps},
};

#[test]
fn a_socket_reconnected_after_a_disconnect_has_two_lives() {
    if skipped("a_socket_reconnected_after_a_disconnect_has_two_lives") {
        return;
    }
    own_netns();
    let tool = Tool::trace(&[]);
    let pair = connect((Ipv4Addr::LOCALHOST, 0));
    disconnect(&pair.client);
    connect_loopback(&pair.client, pair.server_port).expect("a connection");
    drop(pair.client);
    let printed = tool.stop();
    let mut lines = printed.transitions();
    lines.retain(|line| line["rport"] == pair.server_port);
    let steps = steps(&lines);
    assert_eq!(
        steps[..5],
        [
            "close->syn_sent",
            "syn_sent->established",
            "established->close",
            "close->syn_sent",
            "syn_sent->established"
        ]
    );
    assert_all(&lines, "damaged", &json!(false));
    let again = lines
        .iter()
        .rposition(|line| line["new"] == "syn_sent")
        .expect("the second connect");
    assert_eq!(
        lines[again]["lport"],
        Value::Null,
        "the port of the life before is not that of this one"
    );
    assert_eq!(lines[again]["rport"], pair.server_port);
}

#[test]
fn an_error_and_a_peer_of_the_life_before_are_not_shown_again() {
    if skipped("an_error_and_a_peer_of_the_life_before_are_not_shown_again") {
        return;
    }
    own_netns();
    let tool = Tool::trace(&[]);
    let socket = unconnected();
    assert!(connect_loopback(&socket, 9).is_err(), "refused");
    listen(&socket, Backlog::new(1).expect("small")).expect("it listens");
    drop(socket);
    let lines = tool.stop().transitions();
    assert_eq!(
        steps(&lines),
        [
            "close->syn_sent",
            "syn_sent->close",
            "close->listen",
            "listen->close"
        ]
    );
    assert_eq!(lines[1]["error"], "ECONNREFUSED");
    assert_all(&lines[2..], "error", &Value::Null);
    assert_all(&lines[2..], "raddr", &Value::Null);
    assert_all(&lines[2..], "rport", &Value::Null);
    assert_ne!(lines[2]["lport"], lines[1]["lport"]);
}
