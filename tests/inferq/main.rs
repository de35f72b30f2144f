//! The tests of inferq as a whole, in one binary. Each test has a nats-server, a data folder and ports of its own.

mod bad_input;
mod batch;
mod command;
mod documents;
mod endpoints;
mod interop;
mod lifecycle;
mod numerics;
mod support;
mod tidy;
mod topology;
