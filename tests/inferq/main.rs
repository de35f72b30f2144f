//! The tests of inferq as a whole, in one binary. Each test has a nats-server, a data folder and ports of its own.

mod attacks;
mod bad_input;
mod batch;
mod bodies;
mod cache;
mod cancel;
mod command;
mod dead;
mod delivery;
mod documents;
mod endpoints;
mod fairness;
mod interop;
mod lifecycle;
mod logger;
mod manifests;
mod numerics;
mod rotation;
mod secrets;
mod status;
mod submit;
mod support;
mod tenants;
mod tidy;
mod tokens;
mod topology;
