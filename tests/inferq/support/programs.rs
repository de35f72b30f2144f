//! The programs under test, and Python with the clients of other people.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use super::root;

/// A program that was built beside this test.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).unwrap().join(name);
    assert!(path.is_file(), "{} is not built; `make test` builds it, or `cargo build --release`", path.display());
    path
}

/// Runs a program to its end.
pub fn run(program: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).envs(environment.iter().copied());
    command.output().unwrap_or_else(|error| panic!("{}: {error}", program.display()))
}

/// Sends a signal such as `-TERM`. The shell's own `kill` is there even where no program of that name is.
pub fn signal(name: &str, process: u32) {
    checked(Command::new("sh").args(["-c", &format!("kill {name} {process}")]));
}

/// A Python with the packages of `tests/python/requirements.txt`, made once beside the build.
pub fn python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let folder = program("inferq").with_file_name("test-python");
        let python = folder.join("bin/python");
        let requirements = root().join("tests/python/requirements.txt");
        let stamp = folder.join("requirements.txt");
        let wanted = std::fs::read(&requirements).unwrap();
        if std::fs::read(&stamp).ok().as_ref() != Some(&wanted) {
            checked(Command::new("python3").args([
                OsStr::new("-m"),
                OsStr::new("venv"),
                OsStr::new("--clear"),
                folder.as_os_str(),
            ]));
            checked(
                Command::new(&python)
                    .args(["-m", "pip", "install", "--quiet", "--require-hashes", "-r"])
                    .arg(&requirements),
            );
            std::fs::write(&stamp, wanted).unwrap();
        }
        python
    })
}

fn checked(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
