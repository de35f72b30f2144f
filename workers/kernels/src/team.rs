//! Threads that take parts of one computation together, many times in a second.
//!
//! A decoder's step is some hundred products of a few microseconds each. Between them helpers stay awake for a moment,
//! since to wake a thread takes longer than such a product; when nothing comes they sleep.

use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, Thread};

/// Looks at the counter before a helper goes to sleep: some 50 microseconds.
const AWAKE: usize = 2_000;
/// Looks before the caller, who waits for helpers, lets other threads run.
const PATIENCE: usize = 20_000;

/// A fixed number of threads, the caller's among them.
#[derive(Debug)]
pub struct Team {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    /// One computation at a time.
    busy: Mutex<()>,
}

type Job = *const (dyn Fn(usize) + Sync);

#[derive(Debug)]
struct Shared {
    /// Counts jobs; a helper that sees it change takes the job.
    turn: AtomicUsize,
    /// Helpers that have not finished the job.
    left: AtomicUsize,
    job: UnsafeCell<Option<Job>>,
    has_panicked: AtomicBool,
    is_over: AtomicBool,
}

// SAFETY: `job` is written by the caller alone while no helper runs, and read by helpers after `turn` has told them.
unsafe impl Sync for Shared {}
// SAFETY: what a job points to is waited for by the one who owns it.
unsafe impl Send for Shared {}

impl Team {
    /// Of that many threads, at least one.
    ///
    /// # Panics
    /// If no thread can be started.
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            turn: AtomicUsize::new(0),
            left: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            has_panicked: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
        });
        let helper = |index| {
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new().name("kernels".to_owned()).spawn(move || shared.help(index));
            thread.expect("the process may start threads")
        };
        let helpers = (1..threads.max(1)).map(helper).collect();
        Self { shared, helpers, busy: Mutex::new(()) }
    }

    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `part` once for each thread with its number, on that thread, and waits for all.
    ///
    /// # Panics
    /// If a part does.
    pub fn run(&self, part: impl Fn(usize) + Sync) {
        if self.helpers.is_empty() {
            return part(0);
        }
        let _busy = self.busy.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let job: &(dyn Fn(usize) + Sync) = &part;
        // SAFETY: only the lifetime is changed, and `done` waits for the helpers before the job goes.
        let job: Job = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(job) };
        // SAFETY: no helper reads while none has a job.
        unsafe { *self.shared.job.get() = Some(job) };
        self.shared.left.store(self.helpers.len(), Ordering::Relaxed);
        self.shared.turn.fetch_add(1, Ordering::Release);
        self.helpers.iter().map(JoinHandle::thread).for_each(Thread::unpark);
        let done = Wait(&self.shared);
        part(0);
        drop(done);
        assert!(!self.shared.has_panicked.swap(false, Ordering::Relaxed), "a part of a computation panicked");
    }

    /// Hands each thread its share of `rows`, which are `width` wide, with the number of the first.
    pub fn rows<T: Send>(&self, rows: &mut [T], width: usize, each: impl Fn(usize, &mut [T]) + Sync) {
        let count = rows.len() / width.max(1);
        assert_eq!(count * width, rows.len(), "rows are whole");
        if count < 2 {
            return each(0, rows);
        }
        let first = Pointer(rows.as_mut_ptr());
        self.run(|part| {
            let range = share(count, 1, self.threads(), part);
            if !range.is_empty() {
                // SAFETY: the shares are parts of `rows`, and none has what another has.
                let own = unsafe {
                    std::slice::from_raw_parts_mut(first.get().add(range.start * width), range.len() * width)
                };
                each(range.start, own);
            }
        });
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Release);
        self.shared.turn.fetch_add(1, Ordering::Release);
        for helper in self.helpers.drain(..) {
            helper.thread().unpark();
            // What a job panicked with was told when it did.
            let _ = helper.join();
        }
    }
}

impl Shared {
    fn help(&self, index: usize) {
        let mut seen = 0;
        loop {
            seen = self.next(seen);
            if self.is_over.load(Ordering::Acquire) {
                return;
            }
            // SAFETY: the caller has written it before it counted the turn, and keeps it until `left` is 0.
            let job = unsafe { &*(*self.job.get()).expect("a turn has a job") };
            if catch_unwind(AssertUnwindSafe(|| job(index))).is_err() {
                self.has_panicked.store(true, Ordering::Relaxed);
            }
            self.left.fetch_sub(1, Ordering::Release);
        }
    }

    /// The turn after that.
    fn next(&self, seen: usize) -> usize {
        loop {
            for _ in 0..AWAKE {
                let turn = self.turn.load(Ordering::Acquire);
                if turn != seen {
                    return turn;
                }
                std::hint::spin_loop();
            }
            std::thread::park();
        }
    }
}

/// Waits when it is dropped, also where the caller's own part panics.
struct Wait<'a>(&'a Shared);

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let mut looks = 0;
        while self.0.left.load(Ordering::Acquire) > 0 {
            looks += 1;
            match looks % PATIENCE {
                0 => std::thread::yield_now(),
                _ => std::hint::spin_loop(),
            }
        }
    }
}

/// A pointer that parts of a computation may have, each to its own place.
pub(crate) struct Pointer<T>(pub *mut T);

// SAFETY: whoever uses it keeps the places apart.
unsafe impl<T: Send> Sync for Pointer<T> {}
// SAFETY: the same.
unsafe impl<T: Send> Send for Pointer<T> {}

impl<T> Clone for Pointer<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Pointer<T> {}

impl<T> Pointer<T> {
    /// A closure that calls this holds the whole, not the field.
    pub fn get(&self) -> *mut T {
        self.0
    }
}

/// One of `parts` shares of `total`, in whole units but for the last.
pub(crate) fn share(total: usize, unit: usize, parts: usize, part: usize) -> Range<usize> {
    let units = total.div_ceil(unit);
    let at = |part: usize| (units * part / parts * unit).min(total);
    at(part)..at(part + 1)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn every_part_is_called_once_and_waited_for() {
        for threads in 1..5 {
            let team = Team::new(threads);
            for _ in 0..1_000 {
                let calls: Vec<AtomicUsize> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
                team.run(|part| _ = calls[part].fetch_add(1, Ordering::Relaxed));
                assert!(calls.iter().all(|calls| calls.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn rows_are_divided_without_gap_or_overlap() {
        let team = Team::new(3);
        for count in [0, 1, 2, 3, 10, 101] {
            let mut rows = vec![0_usize; count * 4];
            team.rows(&mut rows, 4, |first, own| {
                own.iter_mut().enumerate().for_each(|(at, value)| *value += first * 4 + at + 1);
            });
            assert!(rows.into_iter().eq(1..=count * 4));
        }
    }

    #[test]
    fn a_panic_of_a_part_is_the_callers_and_the_team_goes_on() {
        let team = Team::new(2);
        for bad in 0..2 {
            let panicked = catch_unwind(AssertUnwindSafe(|| team.run(|part| assert_ne!(part, bad))));
            assert!(panicked.is_err());
            team.run(|_| {});
        }
    }

    #[test]
    fn a_team_that_has_slept_wakes() {
        let team = Team::new(2);
        for _ in 0..3 {
            // Longer than helpers stay awake.
            let until = Instant::now() + Duration::from_millis(20);
            while Instant::now() < until {
                std::thread::yield_now();
            }
            let sum = AtomicUsize::new(0);
            team.run(|part| _ = sum.fetch_add(part + 1, Ordering::Relaxed));
            assert_eq!(sum.into_inner(), 3);
        }
    }

    #[test]
    fn shares_are_whole_units() {
        let shares: Vec<_> = (0..3).map(|part| share(100, 16, 3, part)).collect();
        assert_eq!(shares, [0..32, 32..64, 64..100]);
    }
}
