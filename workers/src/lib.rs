//! `inferq-worker` as a library: everything but the command line.

pub mod fetch;
