//! `inferq-worker`: the command line.

fn main() {}
