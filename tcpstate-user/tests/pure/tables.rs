//! Tables for data frames, as DuckDB reads them: three questions of an incident, answered as the tool's own views answer them.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Value, json};

use crate::{
    exports::{Folder, connections, lines, made_up, python, refused, script, shown},
    recordings::of_fixture,
};

/// The rows of the groups of a report.
fn groups(arguments: &[&str], recording: &str) -> Vec<Value> {
    let report = shown(&[arguments, &["-j", "--top", "100000", "--from", recording]].concat());
    let report = lines(&report)
        .into_iter()
        .find(|line| line["rows"].is_array());
    let rows = report.expect("a report")["rows"].as_array().cloned();
    let mut rows = rows.expect("rows");
    rows.retain(|row| row["row"] == "group");
    rows
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("-").to_owned()
}

/// Whether `is` is what is counted, or less than a hundredth less: quantiles of views are rounded up so far.
fn nearly(is: f64, counted: f64) -> bool {
    is <= counted && counted <= is * 1.01 + 1e-6
}

#[test]
fn duckdb_answers_what_the_views_answer() {
    let Some(python) = python("duckdb_answers_what_the_views_answer") else {
        return;
    };
    let folder = Folder::new("questions");
    for (name, bytes) in [
        ("made-up", made_up(0)),
        ("closing", of_fixture("closing.bin")),
        ("half_close", of_fixture("half_close.bin")),
        ("reuse", of_fixture("reuse_by_syn.bin")),
        ("late_fin", of_fixture("late_fin.bin")),
    ] {
        let recording = folder.recording(&format!("{name}.tcps"), &bytes);
        let tables = folder.path(name);
        shown(&["export", &recording, "--to", "parquet", "-o", &tables]);
        let ask = |question: &str| -> Vec<Vec<Value>> {
            let rows = script(&python, "query.py", &[&tables, question]);
            serde_json::from_value(rows).expect("rows")
        };

        // Which process closes first, how often?
        let answer: BTreeMap<_, _> = ask("select closer_comm, count(*) from connections
             where closed_first in ('local', 'both') group by all")
        .iter()
        .map(|row| (text(&row[0]), row[1].as_u64()))
        .collect();
        let view: BTreeMap<_, _> = groups(&["closers", "--by", "process"], &recording)
            .iter()
            .filter(|row| row["local_first"] != 0)
            .map(|row| (text(&row["comm"]), row["local_first"].as_u64()))
            .collect();
        assert_eq!(answer, view, "{name}");
        assert!(!view.is_empty(), "{name}");

        // How long do TIME_WAITs take towards each peer?
        let answer: BTreeMap<_, _> = ask(
            "select raddr || (case family when 'ipv4' then '/32' else '/128' end), count(*),
                 quantile_disc(time_wait_seconds, 0.99) from connections
             where time_wait_bound = 'exact' and time_wait_end <> 'overflow' group by all",
        )
        .iter()
        .map(|row| {
            (
                text(&row[0]),
                (row[1].clone(), row[2].as_f64().expect("seconds")),
            )
        })
        .collect();
        let view: BTreeMap<_, _> =
            groups(&["hist", "--by", "cidr", "--prefix", "32,128"], &recording)
                .into_iter()
                .filter(|row| row["state"] == "time_wait" && row["count"] != 0)
                .map(|row| {
                    (
                        text(&row["cidr"]),
                        (row["count"].clone(), row["p99"].as_f64().expect("seconds")),
                    )
                })
                .collect();
        assert_eq!(answer.len(), view.len(), "{name}: {answer:?} {view:?}");
        for ((remote, (count, p99)), (same, (counted, at_most))) in answer.iter().zip(&view) {
            assert_eq!((remote, count), (same, counted), "{name}");
            assert!(nearly(*p99, *at_most), "{name}: {remote}: {p99} {at_most}");
        }

        // Whose connections were in CLOSE_WAIT for more than a second, and how long?
        let answer: BTreeMap<_, _> = ask(
            "select owner_comm, count(*), max(states_close_wait) from connections
             where states_close_wait > 1 group by all",
        )
        .iter()
        .map(|row| (text(&row[0]), (row[1].as_u64(), row[2].as_f64())))
        .collect();
        let mut view = BTreeMap::new();
        for line in connections(&recording) {
            let seconds = line["states"]["close_wait"].as_f64();
            if let Some(seconds) = seconds.filter(|seconds| *seconds > 1.0) {
                let of_process = view.entry(text(&line["owner"]["comm"]));
                let (count, max) = of_process.or_insert((Some(0), Some(0.0)));
                *count = count.map(|count| count + 1);
                *max = max.map(|max: f64| max.max(seconds));
            }
        }
        assert_eq!(answer, view, "{name}");
        assert!(name != "late_fin" || !view.is_empty(), "{name}");
    }
}

#[test]
fn tables_have_what_the_views_have() {
    let Some(python) = python("tables_have_what_the_views_have") else {
        return;
    };
    let folder = Folder::new("columns");
    // More than one group of rows, and none at all.
    for (name, bytes) in [("many", made_up(70)), ("none", of_fixture("totals.bin"))] {
        let recording = folder.recording(&format!("{name}.tcps"), &bytes);
        let tables = folder.path(name);
        let none = name == "none";
        let filter: &[&str] = if none { &["--ipv6"] } else { &[] };
        let export = ["export", &recording, "--to", "parquet", "-o", &tables];
        let output = crate::exports::tcpstate(&[&export, filter].concat());
        assert_eq!(output.status.code(), Some(i32::from(none)));
        for (table, view) in [("connections", "conns"), ("transitions", "trace")] {
            let running: &[&str] = if view == "conns" { &["--running"] } else { &[] };
            let csv = shown(&[&[view, "-s", "--from", &recording], running].concat());
            let mut csv = csv.lines();
            let header = csv.next().expect("a header").replace('.', "_");
            let question = format!("select column_name from (describe {table})");
            let columns = script(&python, "query.py", &[&tables, &question]);
            let columns: Vec<Vec<String>> = serde_json::from_value(columns).expect("names");
            assert_eq!(columns.concat().join(","), header);
            let question = format!("select count(*) from {table}");
            let rows = script(&python, "query.py", &[&tables, &question]);
            assert_eq!(
                rows,
                json!([[if none { 0 } else { csv.count() }]]),
                "{name}"
            );
        }
    }
    // Values one by one, of every type.
    let recording = folder.path("many.tcps");
    let tables = folder.path("many");
    let question = "select epoch_ns(start), epoch_ns(\"end\"), cookie, laddr, lport, netns, closed_first,
            states_established, bounds_established, time_wait_seconds, time_wait_bound, time_wait_restarts,
            owner_pid, owner_comm, bytes_acked, damaged, state from connections";
    let rows = script(&python, "query.py", &[&tables, question]);
    let expected: Vec<_> = connections(&recording)
        .iter()
        .map(|line| {
            let time = |text: &Value| text.as_str().map(|_| crate::exports::time(text));
            let established = &line["states"]["established"];
            let bound = match &line["bounds"]["established"] {
                // Exact, if it was in that state.
                Value::Null if line["states"].get("established").is_some() => json!("exact"),
                bound => bound.clone(),
            };
            let time_wait = &line["time_wait"];
            json!([
                time(&line["start"]),
                time(&line["end"]),
                line["cookie"],
                line["laddr"],
                line["lport"],
                line["netns"],
                line["closed_first"],
                established,
                bound,
                time_wait["seconds"],
                time_wait["bound"],
                time_wait["restarts"],
                line["owner"]["pid"],
                line["owner"]["comm"],
                line["bytes_acked"],
                line["damaged"],
                line["state"],
            ])
        })
        .collect();
    assert_eq!(rows, json!(expected));
}

#[test]
fn tables_of_a_damaged_recording_can_be_read() {
    let folder = Folder::new("damaged-tables");
    let whole = made_up(0);
    let recording = folder.recording("a.tcps", &whole[..whole.len() / 2]);
    let tables = folder.path("tables");
    let message = refused(&["export", &recording, "--to", "parquet", "-o", &tables]);
    assert!(message.contains("cut off at byte"), "{message}");
    for name in ["connections", "transitions"] {
        let table = fs::read(Path::new(&tables).join(name).with_extension("parquet"));
        assert!(table.expect("a table").ends_with(b"PAR1"), "{name}");
    }
    if let Some(python) = python("tables_of_a_damaged_recording_can_be_read") {
        let rows = script(
            &python,
            "query.py",
            &[&tables, "select count(*) > 100 from transitions"],
        );
        assert_eq!(rows, json!([[true]]));
    }
}
