//! The gateway over HTTP: what it promises beyond what OpenAI's own clients see of it.

mod batches;
mod clients;
mod control;
mod dashboard;
mod keys;
mod requests;
mod streams;
mod webhooks;
