//! Rows read ahead of the window, on a thread of their own: bounded by their number and by their bytes.

use std::io;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::input::Row;
use super::source::Source;

const ROWS_AHEAD: usize = 256;
/// Kibibytes of rows that are read and not published. The largest row takes half.
const ROOM: u32 = 128 * 1024;

/// A row with the memory it takes up, which is given back when it is published.
#[derive(Debug)]
pub struct QueuedRow {
    pub row: Row,
    pub room: OwnedSemaphorePermit,
}

/// Reads the rows of a checked source.
pub fn read_rows(source: &Source) -> io::Result<mpsc::Receiver<io::Result<QueuedRow>>> {
    let rows = source.rows()?;
    let (sender, receiver) = mpsc::channel(ROWS_AHEAD);
    let room = Arc::new(Semaphore::new(ROOM as usize));
    let runtime = Handle::current();
    tokio::task::spawn_blocking(move || {
        for row in rows {
            let queued = row.and_then(|row| {
                let kibibytes = u32::try_from(row.payload.len().div_ceil(1024)).unwrap_or(ROOM).min(ROOM);
                let room = runtime.block_on(room.clone().acquire_many_owned(kibibytes)).map_err(io::Error::other)?;
                Ok(QueuedRow { row, room })
            });
            if sender.blocking_send(queued).is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}
