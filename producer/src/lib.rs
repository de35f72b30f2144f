//! `inferq` as a library: everything but the command line.
