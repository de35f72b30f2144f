//! The tests of inferq as a whole, in one binary.

mod tidy;
