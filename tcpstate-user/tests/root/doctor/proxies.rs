//! Who opens a connection for each request.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    process::{Command, Stdio},
};

use super::{doctor, findings, listener, seen};
use crate::{
    nginx::{Nginx, lacks},
    support::{nobody_starts, own_netns, skipped, start, text},
};

#[test]
fn a_connection_for_each_request_is_told_from_keep_alive() {
    if skipped("a_connection_for_each_request_is_told_from_keep_alive") {
        return;
    }
    for keeps in [false, true] {
        own_netns();
        let (server, address) = listener(7964);
        // However slow the machine is, thirty come faster than that.
        let tool = doctor(&["--connection-rate", "0.1"]);
        let alone = nobody_starts();
        let mut kept = None;
        for _ in 0..30 {
            let (mut client, mut accepted) = kept.take().unwrap_or_else(|| {
                let client = TcpStream::connect(address).expect("a connection");
                (client, server.accept().expect("it comes").0)
            });
            client.write_all(b"request").expect("room");
            let mut request = [0; 7];
            accepted.read_exact(&mut request).expect("it comes");
            kept = keeps.then_some((client, accepted));
        }
        drop(alone);
        let printed = tool.stop();
        let (found, code) = findings(&printed, "churn");
        assert_eq!(code, Some(0), "it is no alarm: {}", printed.out);
        assert_eq!(found.len(), usize::from(!keeps), "{}", printed.out);
        if let [found] = &found[..] {
            assert_eq!(found["severity"], "notice");
            assert_eq!(seen(found, "lives"), 30);
            assert_eq!(found["causes"][0]["pid"], std::process::id());
        }
    }
}

/// nginx in front of nginx; its own clients keep their connections, so that only those to the server behind it can be many.
#[test]
fn nginx_as_a_proxy_without_upstream_keep_alive_is_told_from_one_with() {
    const TEST: &str = "nginx_as_a_proxy_without_upstream_keep_alive_is_told_from_one_with";
    if skipped(TEST) || lacks(TEST) {
        return;
    }
    for keeps in [false, true] {
        own_netns();
        let (pool, headers) = if keeps {
            (
                "keepalive 32; keepalive_requests 100000;",
                "proxy_http_version 1.1; proxy_set_header Connection \"\";",
            )
        } else {
            // Versions of nginx differ in what they do by default.
            (
                "",
                "proxy_http_version 1.0; proxy_set_header Connection close;",
            )
        };
        let nginx = Nginx::start(
            "proxy",
            &format!(
                "keepalive_timeout 60; keepalive_requests 100000;
                 upstream behind {{ server 127.0.0.1:7978; {pool} }}
                 server {{ listen 127.0.0.1:7977; location / {{ proxy_pass http://behind; {headers} }} }}
                 server {{ listen 127.0.0.1:7978; location / {{ return 200 hello; }} }}"
            ),
            2,
        );
        // However slow the machine is, two hundred come faster than that.
        let tool = doctor(&["--connection-rate", "0.5"]);
        let output = start(
            Command::new("ab")
                .args(["-q", "-k", "-n", "200", "-c", "4"])
                .arg("http://127.0.0.1:7977/")
                .stdout(Stdio::piped()),
        )
        .wait_with_output()
        .expect("ab ends");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("Failed requests:        0"), "{said}");
        let printed = tool.stop();
        drop(nginx);
        let (found, code) = findings(&printed, "churn");
        assert_eq!(code, Some(0), "it is no alarm: {}", printed.out);
        let upstream: Vec<_> = found
            .iter()
            .filter(|finding| finding["causes"][0]["service"] == "127.0.0.1:7978")
            .collect();
        assert_eq!(upstream.len(), usize::from(!keeps), "{}", printed.out);
        if let [found] = &upstream[..] {
            assert_eq!(found["severity"], "notice");
            assert_eq!(seen(found, "lives"), 200);
            assert_eq!(text(&found["causes"][0]["comm"]), "nginx");
            assert!(text(&found["application"]).contains("keepalive"));
        }
    }
}
