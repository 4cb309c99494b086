//! Network namespaces.

use std::{
    net::{Ipv4Addr, TcpListener, TcpStream},
    thread,
};

use crate::support::{Printed, Tool, own_netns, skipped};

#[test]
fn two_namespaces_are_kept_apart() {
    if skipped("two_namespaces_are_kept_apart") {
        return;
    }
    own_netns();
    let here = Tool::trace(&[]);
    let everywhere = Tool::start(&["trace", "-j", "-L", "7100", "-D", "7100"]);
    let lives = || {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 7100)).expect("a listener");
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, 7100)).expect("a connection");
        drop((client, listener));
    };
    lives();
    thread::spawn(move || {
        own_netns();
        lives();
    })
    .join()
    .expect("the other namespace");
    // Linux before 5.12 tells no cookies of namespaces; their numbers differ as long as both live.
    let namespaces = |printed: &Printed| {
        let mut numbers: Vec<_> = printed
            .transitions()
            .iter()
            .filter_map(|line| line["netns_cookie"].as_u64().or(line["netns"].as_u64()))
            .collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers.len()
    };
    assert_eq!(namespaces(&here.stop()), 1);
    // -L and -D must both agree: nothing has port 7100 on both ends.
    assert_eq!(namespaces(&everywhere.stop()), 0);
    let everywhere = Tool::start(&["trace", "-j", "-D", "7100"]);
    lives();
    thread::spawn(move || {
        own_netns();
        lives();
    })
    .join()
    .expect("the other namespace");
    assert_eq!(namespaces(&everywhere.stop()), 2);
}
