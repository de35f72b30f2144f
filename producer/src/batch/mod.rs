//! Batch files: an OpenAI batch input file in, output and error file out.
//!
//! Memory is bounded by the rows in flight and one bit a row, whatever the size of the file. A run that was cut off is
//! continued by running it again: what is in the output files is done, what was answered meanwhile is read back from the
//! result stream, and the rest is published under the same job ids, which the server keeps apart from new ones.

mod arrivals;
mod bits;
mod folder;
mod input;
mod output;
mod pump;
mod rows;
mod run;
mod source;
mod state;
mod transcripts;
mod unique;

pub use bits::Bits;
pub use folder::{Folder, Found, Media};
pub use input::{Checked, InputError, Problem, Row, Rules, check, rows};
pub use output::{Outputs, row_of};
pub use pump::{Plan, Progress, Run, Stage, last_result};
pub use run::{Options, Summary, run};
pub use source::Source;
pub use state::State;
pub use transcripts::Format;
