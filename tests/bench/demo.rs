//! The models of the demo, for benchmarks of their engines.

use std::path::PathBuf;

use crate::support::{program, root, run};

/// The registry of the demo, with a model in that type and nothing cached.
pub fn registry(model: &str, dtype: &str) -> String {
    let text = std::fs::read_to_string(root().join("workers/models.toml")).unwrap();
    let name = format!("name = \"{model}\"\n");
    let registry = text.replace(&name, &format!("{name}dtype = \"{dtype}\"\ncache.enabled = false\n"));
    assert_ne!(registry, text);
    registry
}

/// A model's file or folder, fetched where it is not there.
pub fn fetched(model: &str) -> PathBuf {
    let registry = root().join("workers/models.toml");
    let fetch = ["fetch", "--model", model, "--registry", registry.to_str().unwrap()];
    let output = run(&program("inferq-worker"), &fetch, &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}
