//! Every TCP state transition of a machine, understood.
//!
//! The kernel side turns hooks into small fixed records in one ring buffer; here the records become events
//! ([`event`]), events transitions of connections ([`lifecycle`]), and those output ([`sink`]). Everything after the
//! ring buffer is a pure function of the records.

pub mod analysis;
pub mod cli;
pub mod clock;
pub mod disguise;
pub mod doctor;
pub mod event;
pub mod filter;
pub mod kernel;
pub mod lifecycle;
pub mod loss;
pub mod message;
pub mod prefetch;
pub mod recording;
pub mod register;
pub mod settings;
pub mod sink;
