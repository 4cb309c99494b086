//! Answers: what the transitions of the lifecycle add up to. Pure, as the lifecycle is.

mod connection;

pub use connection::{ClosedFirst, Connection, Connections, How, Opened, TimeWait, TimeWaitEnd};
