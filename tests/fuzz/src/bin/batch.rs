//! Batch input files: what the check lets through is read row by row as it was checked.
#![no_main]

use std::collections::HashSet;
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::AsRawFd;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use schemas::codec::Encoding;
use schemas::job::Job;
use schemas::subject::Lane;

#[path = "../../../../producer/src/cost.rs"]
mod cost;
#[path = "../../../../producer/src/batch/input.rs"]
mod input;
#[path = "../../../../producer/src/batch/unique.rs"]
mod unique;

use input::{InputError, Row, Rules};

const PAYLOAD_BYTES_MAX: usize = 1024;

thread_local! {
    // Without a name: nothing is left behind.
    static FILE: File = tempfile::tempfile().expect("there is a folder for temporary files");
}

fuzz_target!(|bytes: &[u8]| FILE.with(|file| check(file, bytes)));

fn check(mut file: &File, bytes: &[u8]) {
    file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(bytes)).expect("the disk has room");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let models = ["m", "all-MiniLM-L6-v2", "SmolLM2-135M-Instruct"];
    let registered = models.iter().flat_map(|model| Lane::ALL.map(|lane| ((*model).to_owned(), lane))).collect();
    let rules = Rules {
        registered: Some(registered),
        lanes: vec![Lane::Flex, Lane::Default],
        payload_bytes_max: PAYLOAD_BYTES_MAX,
    };
    match input::check(Path::new(&path), &rules) {
        Ok(checked) => {
            assert!(checked.rows > 0 && checked.sha256.len() == 64);
            let rows: Vec<Row> =
                input::rows(Path::new(&path)).expect("opened").map(|row| row.expect("checked")).collect();
            assert_eq!(rows.len() as u64, checked.rows);
            check_rows(&rows, &rules);
        }
        Err(InputError::Invalid { problems, .. }) => {
            let lines = bytes.split(|byte| *byte == b'\n').count() as u64;
            assert!(!problems.is_empty() && problems.iter().all(|problem| (1..=lines).contains(&problem.line)));
        }
        Err(InputError::Empty { .. }) => assert!(bytes.trim_ascii().is_empty()),
        Err(InputError::Io { error, .. }) => panic!("{error}"),
    }
}

fn check_rows(rows: &[Row], rules: &Rules) {
    for (number, row) in rows.iter().enumerate() {
        assert_eq!(row.number, number as u64);
        let place = (row.model.clone(), rules.lane(row));
        assert!(rules.registered.as_ref().is_some_and(|registered| registered.contains(&place)));
        assert!(row.payload.len() <= rules.payload_bytes_max && row.cost.is_finite() && row.cost >= 1.0);
        let job: Job = Encoding::Json.decode(&row.payload).expect("a row's payload is a job");
        assert_eq!(job.custom_id.as_ref(), Some(&row.custom_id));
        fuzz::survives(&job);
    }
    let ids: HashSet<&str> = rows.iter().map(|row| row.custom_id.as_str()).collect();
    assert_eq!(ids.len(), rows.len(), "a custom_id stands twice");
}
