//! Answers: what the transitions of the lifecycle add up to. Pure, as the lifecycle is.

mod closers;
mod connection;
mod container;
mod failures;
mod group;
mod hist;
mod histogram;
mod key;
mod leaks;
mod listeners;
mod local_ports;
mod measure;
mod memory;
mod ports;
mod report;
mod states;
mod stay;
mod table;
mod waits;

pub use closers::Closers;
pub use connection::{ClosedFirst, Connection, Connections, How, Opened, TimeWait, TimeWaitEnd};
pub use container::Container;
pub use group::{Groups, Interval, Place};
pub use hist::{Hist, HistOptions};
pub use histogram::{Histogram, Scale};
pub use key::{By, Dimension, Key, Subject};
pub use leaks::{Leaks, LeaksOptions};
pub(crate) use listeners::Listeners;
pub use local_ports::{LocalPorts, Reuse};
pub use measure::Measure;
pub use memory::{Memory, key_of_found};
pub use report::{Report, Reports, Tally};
pub use states::{States, StatesOptions};
pub use stay::{STAYS, Stay, Stays};
pub use table::{Bucket, Cell, Column, Grouped, Order, Row, RowKind, Section, Shown, Sum, Table};
pub use waits::{Waits, WaitsOptions};
