//! Gathers what is counted from transitions: the same views that people have, read when the watch ends.

use std::{cell::RefCell, rc::Rc};

use super::{
    ends,
    finding::{Process, Who, container},
    snapshot::{Closes, Ends, Namespace, Portless, Ports, Snapshot, Stay, Waits},
    thresholds::{Thresholds, longest_stay, nanoseconds},
};
use crate::{
    analysis::{
        self, By, Cell, Closers, Column, Dimension, Leaks, LeaksOptions, Opened, Order, Row,
        RowKind, Table, Tally, WaitsOptions,
    },
    event::{self, About, CallEvent, Endpoint},
    lifecycle::{Bound, Found, Transition},
    prefetch::Prefetch,
    settings::Settings,
};

/// Where the watch leaves what it has seen.
pub type Seen = Rc<RefCell<Option<Snapshot>>>;

/// What is known when the watch begins.
#[derive(Clone, Debug)]
pub struct Known<'a> {
    /// The life of TIME_WAIT is observed.
    pub timewait: bool,
    /// System calls are watched.
    pub calls: bool,
    /// The hook tells errors of sockets.
    pub errors: bool,
    /// How many connections to remember.
    pub limit: usize,
    /// Only this network namespace is looked at.
    pub netns: Option<u32>,
    /// Since when is watched, or was recorded (nanoseconds of `CLOCK_MONOTONIC`).
    pub begins: u64,
    /// What network namespaces have set.
    pub settings: &'a [Settings],
    /// Addresses are those that were seen.
    pub addresses: bool,
}

/// Watches through the views `closers`, `timewait`, `states --leaks`, and one of its own.
#[derive(Debug)]
pub struct Watch {
    closers: Closers,
    waits: analysis::Waits,
    leaks: Leaks,
    ends: ends::Ends,
    thresholds: Thresholds,
    begins: u64,
    seeded: bool,
    lost: bool,
    base: Snapshot,
    seen: Seen,
}

impl Watch {
    /// Leaves what it has seen there.
    #[must_use]
    pub fn new(known: &Known<'_>, thresholds: &Thresholds, seen: Seen) -> Self {
        let by = |more: &[Dimension]| {
            let mut all = vec![
                Dimension::Pid,
                Dimension::Container,
                Dimension::Netns,
                Dimension::Service,
            ];
            all.extend(more);
            By::new(&all, (24, 64))
        };
        let order = |column| Order {
            column,
            top: usize::MAX,
        };
        let limit = known.limit;
        let ports = known
            .settings
            .iter()
            .filter_map(|settings| Some((settings.netns, settings.local_ports(known.addresses)?)));
        let wanted = |settings: &&Settings| known.netns.is_none_or(|only| only == settings.netns);
        let settings = known.settings.iter().filter(wanted);
        let namespaces = settings.map(|settings| Namespace {
            netns: settings.netns,
            settings: Some(settings.clone()),
            counters: None,
        });
        Self {
            closers: Closers::new(by(&[]), order(Closers::SORT), known.timewait, limit),
            waits: analysis::Waits::new(WaitsOptions {
                by: by(&[]),
                order: order(analysis::Waits::SORT),
                timewait: known.timewait,
                calls: false,
                ports: ports.collect(),
                limit,
            }),
            leaks: Leaks::new(LeaksOptions {
                by: Some(by(&[Dimension::State])),
                order: order("sockets"),
                states: Vec::new(),
                // Known when the watch ends.
                older: 0,
                limit,
            }),
            ends: ends::Ends::new(nanoseconds(thresholds.short_life), limit),
            thresholds: thresholds.clone(),
            begins: known.begins,
            seeded: false,
            lost: false,
            base: Snapshot {
                timewait: known.timewait,
                calls: known.calls,
                errors: known.errors,
                namespaces: namespaces.collect(),
                ..Snapshot::default()
            },
            seen,
        }
    }

    fn each(&mut self, mut tell: impl FnMut(&mut dyn Tally)) {
        let all: [&mut dyn Tally; 4] = [
            &mut self.closers,
            &mut self.waits,
            &mut self.leaks,
            &mut self.ends,
        ];
        for one in all {
            tell(one);
        }
    }
}

impl Tally for Watch {
    fn name(&self) -> &'static str {
        "doctor"
    }

    fn prefetch(&self, about: About, what: Prefetch) {
        self.closers.prefetch(about, what);
        self.waits.prefetch(about, what);
    }

    fn take(&mut self, transition: &Transition, wanted: bool) {
        self.each(|one| one.take(transition, wanted));
    }

    fn found(&mut self, found: &Found, wanted: bool) {
        self.each(|one| one.found(found, wanted));
    }

    fn all_found(&mut self) {
        self.seeded = true;
        self.each(|one: &mut dyn Tally| one.all_found());
    }

    fn accepted(&mut self, connection: u64, process: event::Process) {
        self.each(|one| one.accepted(connection, process));
    }

    fn bind_failed(&mut self, event: &CallEvent) {
        self.each(|one| one.bind_failed(event));
    }

    fn lost(&mut self, at: u64) {
        self.lost = true;
        self.each(|one| one.lost(at));
    }

    fn table(&mut self, from: u64, to: u64) -> Table {
        let watched = to.saturating_sub(self.begins);
        let too_long = self.thresholds.stay(watched);
        self.leaks.look_for(nanoseconds(too_long));
        let waits = self.waits.table(from, to);
        let section = |name: &str| waits.more.iter().find(|section| section.name == name);
        let rows = |name: &str| section(name).map(|section| &section.table);
        *self.seen.borrow_mut() = Some(Snapshot {
            nanoseconds: to.saturating_sub(from),
            stay: too_long,
            short: too_long > longest_stay(watched),
            certain: self.seeded && !self.lost && self.forgotten() + self.ends.beyond() == 0,
            closes: read(Some(&self.closers.table(from, to)), closes),
            waits: read(Some(&waits), of_waits),
            ports: read(rows("ports"), ports),
            portless: read(rows("failed_connects"), portless),
            binds: self.ends.binds(),
            stays: read(Some(&self.leaks.table(from, to)), stay),
            ends: read(Some(&self.ends.table(from, to)), of_ends),
            ..self.base.clone()
        });
        Table {
            columns: Vec::new(),
            rows: Vec::new(),
            notes: Vec::new(),
            more: Vec::new(),
        }
    }

    fn forgotten(&self) -> u64 {
        self.closers.forgotten()
            + self.waits.forgotten()
            + self.leaks.forgotten()
            + self.ends.forgotten()
    }
}

/// One row by the names of its columns.
#[derive(Clone, Copy)]
struct Fields<'a> {
    columns: &'a [Column],
    row: &'a Row,
}

/// What the groups of a table are; neither their sum nor what could not be told apart.
fn read<T>(table: Option<&Table>, one: impl Fn(Fields<'_>) -> T) -> Vec<T> {
    table.map_or_else(Vec::new, |table| {
        let groups = table.rows.iter().filter(|row| row.kind == RowKind::Group);
        let columns = &table.columns;
        groups.map(|row| one(Fields { columns, row })).collect()
    })
}

impl Fields<'_> {
    fn cell(&self, name: &str) -> &Cell {
        let at = self.columns.iter().position(|column| column.name == name);
        at.and_then(|at| self.row.cells.get(at))
            .unwrap_or(&Cell::Unknown)
    }

    fn count(&self, name: &str) -> u64 {
        match self.cell(name) {
            Cell::Count(count) | Cell::AtLeast(count) => *count,
            _ => 0,
        }
    }

    fn known(&self, name: &str) -> Option<u64> {
        match self.cell(name) {
            Cell::Count(count) | Cell::AtLeast(count) => Some(*count),
            _ => None,
        }
    }

    fn id(&self, name: &str) -> Option<u32> {
        match self.cell(name) {
            Cell::Id(id) => u32::try_from(*id).ok(),
            _ => None,
        }
    }

    fn endpoint(&self, name: &str) -> Option<Endpoint> {
        match self.cell(name) {
            Cell::Endpoint(endpoint) => Some(*endpoint),
            _ => None,
        }
    }

    /// Seconds of a cell in nanoseconds.
    fn seconds(&self, name: &str) -> Option<f64> {
        self.cell(name)
            .number()
            .map(|nanoseconds| nanoseconds / 1e9)
    }

    fn who(&self) -> Who {
        let comm = match self.cell("comm") {
            Cell::Comm(comm) => Some(*comm),
            _ => None,
        };
        let container = match (self.cell("runtime"), self.cell("container")) {
            (Cell::Word(runtime), Cell::Name(id)) => Some(container(runtime, id)),
            _ => None,
        };
        let opened = match self.cell("opened") {
            Cell::Word("passive") => Opened::Passive,
            Cell::Word("active") => Opened::Active,
            Cell::Word("simultaneous") => Opened::Simultaneous,
            _ => Opened::Unknown,
        };
        Who {
            process: Process {
                pid: self.id("pid"),
                comm,
            },
            container,
            netns: self.id("netns"),
            opened,
            service: self.endpoint("service"),
            peer: self.endpoint("remote"),
        }
    }
}

fn closes(row: Fields<'_>) -> Closes {
    Closes {
        who: row.who(),
        local: row.count("local_first"),
        local_rst: row.count("local_rst"),
        remote: row.count("remote_first"),
        remote_rst: row.count("remote_rst"),
        simultaneous: row.count("simultaneous"),
        time_waits: row.count("time_waits"),
        fin_wait2: row.count("fin_wait2"),
    }
}

fn of_waits(row: Fields<'_>) -> Waits {
    Waits {
        who: row.who(),
        now: row.count("now"),
        fin_wait2: row.count("fin_wait2"),
        born: row.count("born"),
        rst: row.count("rst"),
        overflow: row.count("overflow"),
        expired: row.count("expired"),
        reused_connect: row.count("reused_connect"),
        reused_syn: row.count("reused_syn"),
        destroyed: row.count("destroyed"),
        namespace_gone: row.count("namespace_gone"),
        unknown: row.count("unknown"),
        restarted: row.count("restarted"),
    }
}

fn ports(row: Fields<'_>) -> Ports {
    Ports {
        netns: row.id("netns"),
        source: row.endpoint("source"),
        destination: row.endpoint("destination"),
        used: row.count("used"),
        minisockets: row.count("minisockets"),
        limit: row.known("limit"),
        growth: row.cell("growth").number(),
        until_none: row.seconds("seconds_until_none"),
        failed: row.count("failed"),
        reuse: matches!(row.cell("reuse"), Cell::Word("yes")),
    }
}

fn portless(row: Fields<'_>) -> Portless {
    Portless {
        who: Who {
            opened: Opened::Active,
            service: row.endpoint("destination"),
            ..row.who()
        },
        failed: row.count("failed"),
    }
}

fn stay(row: Fields<'_>) -> Stay {
    let state = match row.cell("state") {
        Cell::Term { label, .. } => (*label).to_owned(),
        _ => String::new(),
    };
    let at_least = matches!(row.cell("age"), Cell::Age(age) if age.bound() == Bound::AtLeast);
    Stay {
        who: row.who(),
        state,
        sockets: row.count("sockets"),
        age: row.seconds("age"),
        at_least,
    }
}

fn of_ends(row: Fields<'_>) -> Ends {
    Ends {
        who: row.who(),
        attempts: row.count("attempts"),
        established: row.count("established"),
        refused: row.count("refused"),
        unreachable: row.count("unreachable"),
        connect_timeout: row.count("connect_timeout"),
        given_up: row.count("given_up"),
        timeout: row.count("timeout"),
        rst_received: row.count("rst_received"),
        rst_received_idle: row.count("rst_received_idle"),
        rst_sent: row.count("rst_sent"),
        rst_sent_idle: row.count("rst_sent_idle"),
        lives: row.count("lives"),
        short_lives: row.count("short_lives"),
        wait_rst: row.count("wait_rst"),
        wait_restarted: row.count("wait_restarted"),
        wait_syn: row.count("wait_syn"),
    }
}
