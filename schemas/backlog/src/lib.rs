//! Backlog: what waits in the queue, for whom, and how long that will take. Read only, and by whoever may read jobs: the
//! operator's commands and the logger.

mod lanes;
mod paces;
mod rate;

pub use lanes::{Lane, costs, lanes, model_seconds};
pub use paces::{ask, paces};
pub use rate::{Rate, position};
