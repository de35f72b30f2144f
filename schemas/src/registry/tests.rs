//! What the registry accepts, and how it names what it refuses.

use super::*;

const DIGEST: &str = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54";

/// A registry of one echo model with further lines.
fn echo(lines: &str) -> Result<Registry, RegistryError> {
    Registry::parse(&format!("[[models]]\nname = \"m-1\"\ntask = \"echo\"\n{lines}"))
}

fn embed(lines: &str) -> Result<Registry, RegistryError> {
    Registry::parse(&format!("[[models]]\nname = \"m-1\"\ntask = \"embed\"\n{lines}"))
}

/// The model, the key and what is wrong are in the message.
#[track_caller]
fn assert_refused(registry: Result<Registry, RegistryError>, key: &str, reason: &str) {
    let error = registry.unwrap_err();
    assert!(
        matches!(&error, RegistryError::Invalid { model, key: at, .. } if model == "m-1" && *at == key),
        "{error:?}"
    );
    let message = error.to_string();
    assert!(message.starts_with(&format!("registry: model \"m-1\": {key}: ")), "{message}");
    assert!(message.contains(reason), "{message}");
}

/// What TOML itself or the types refuse: the message has the line.
#[track_caller]
fn assert_syntax(registry: Result<Registry, RegistryError>, line: &str, reason: &str) {
    let message = registry.unwrap_err().to_string();
    assert!(message.contains(line) && message.contains(reason), "{message}");
}

#[test]
fn the_registry_of_the_demo_is_read() {
    let registry = Registry::parse(include_str!("../../../workers/models.toml")).unwrap();
    let names: Vec<&str> = registry.models.iter().map(|model| model.name.as_str()).collect();
    assert_eq!(names, ["all-MiniLM-L6-v2", "SmolLM2-135M-Instruct", "whisper-tiny.en"]);
    let model = registry.model("all-MiniLM-L6-v2").unwrap();
    assert_eq!(model.task, Task::Embed);
    assert_eq!(model.lanes, Lane::ALL);
    assert!(matches!(model.parsed_source(), Ok(Some(Source::Pypi { .. }))));
    assert_eq!(registry.storage, Storage::default());
}

#[test]
fn an_echo_model_needs_no_source() {
    let registry = echo("").unwrap();
    assert_eq!(registry.models[0].parsed_source().unwrap(), None);
    assert_eq!(registry.models[0].limits, Limits::default());
}

#[test]
fn a_registry_survives_being_written() {
    let registry = Registry::parse(include_str!("../../../workers/models.toml")).unwrap();
    assert_eq!(Registry::parse(&toml::to_string(&registry).unwrap()).unwrap(), registry);
}

#[test]
fn a_registry_without_models_is_refused() {
    assert!(Registry::parse("").unwrap_err().to_string().contains("add at least one"));
}

#[test]
fn names_are_checked() {
    assert_refused(echo("[[models]]\nname = \"m-1\"\ntask = \"echo\""), "name", "twice");
    let named = |name: &str| Registry::parse(&format!("[[models]]\nname = {name:?}\ntask = \"echo\"")).unwrap_err();
    assert_eq!(named("").to_string(), "registry: model \"\": name: is empty");
    assert!(named(&"n".repeat(129)).to_string().contains("name: is 129 bytes long"));
}

#[test]
fn sources_are_checked() {
    assert_refused(embed(""), "source", "is missing; give pypi:NAME==VERSION");
    let bad = ["pypi:a", "pypi:a==", "pypi:==1", "pypi:a=1", "hf:a/b", "hf:a@main", "hf:a/b@", "hf:a/b/c@main"];
    for source in bad.into_iter().chain(["hf:/a/b@main", "hf:a/b/@main", "hf:/b@main"]) {
        assert_refused(embed(&format!("source = {source:?}\nsha256 = {DIGEST:?}")), "source", source);
    }
    assert_refused(embed("source = \"\""), "source", "is empty");
}

#[test]
fn sources_are_parsed() {
    let pypi = Source::Pypi { name: "a-b".into(), version: "0.1".into() };
    assert_eq!(Source::parse("pypi:a-b==0.1"), Ok(pypi));
    assert_eq!(Source::parse("hf:a/b@v1"), Ok(Source::Hub { repo: "a/b".into(), revision: "v1".into() }));
    assert_eq!(Source::parse("models/a"), Ok(Source::Local("models/a".into())));
}

#[test]
fn digests_are_checked() {
    assert_refused(embed("source = \"pypi:a==1\""), "sha256", "is missing; a package is pinned");
    for digest in ["", "abc", &DIGEST[1..], &format!("{DIGEST}0"), &DIGEST.replace('f', "g")] {
        assert_refused(embed(&format!("source = \"pypi:a==1\"\nsha256 = {digest:?}")), "sha256", "64 hexadecimal");
    }
    embed(&format!("source = \"pypi:a==1\"\nsha256 = {DIGEST:?}")).unwrap();
}

#[test]
fn paths_stay_inside_their_source() {
    for path in ["/etc/passwd", "..", "../a", "a/../../b", "a/.."] {
        assert_refused(embed(&format!("source = \"a\"\npath = {path:?}")), "path", path);
    }
    embed("source = \"a\"\npath = \"a/b..c/d\"").unwrap();
}

#[test]
fn lanes_are_checked() {
    assert_refused(echo("lanes = []"), "lanes", "is empty");
    assert_refused(echo("lanes = [\"flex\", \"default\", \"flex\"]"), "lanes", "twice");
    assert_syntax(echo("lanes = [\"fast\"]"), "line 4", "unknown variant `fast`");
}

#[test]
fn limits_are_checked() {
    assert_refused(echo("limits.in_flight = 0"), "limits.in_flight", "is 0");
    assert_refused(echo("weights.default = 0"), "weights.default", "is 0");
    let limits =
        ["batch", "completion_tokens", "inputs", "attempts", "ack_wait_seconds", "ack_pending", "prompt_tokens"];
    for limit in limits {
        assert_refused(echo(&format!("limits.{limit} = 0")), &format!("limits.{limit}"), "at least 1");
        assert_syntax(echo(&format!("limits.{limit} = -1")), "line 4", "-1");
    }
}

#[test]
fn unknown_keys_are_refused_by_line() {
    assert_syntax(echo("colour = 1"), "line 4", "unknown field `colour`");
    assert_syntax(echo("limits.colour = 1"), "line 4", "unknown field `colour`");
    assert_syntax(echo("echo.colour = 1"), "line 4", "unknown field `colour`");
    assert_syntax(echo("[storage]\ncolour = 1"), "line 5", "unknown field `colour`");
    assert_syntax(Registry::parse("[[models]]\ntask = \"echo\""), "line 1", "missing field `name`");
    assert_syntax(Registry::parse("[[models]]\nname = \"a\"\ntask = \"sing\""), "line 3", "unknown variant `sing`");
}

#[test]
fn storage_is_checked() {
    for replicas in [0, 6] {
        let message = echo(&format!("[storage]\nreplicas = {replicas}")).unwrap_err().to_string();
        assert_eq!(message, format!("registry: storage.replicas: is {replicas}; it must be 1 to 5"));
    }
    for key in ["jobs_bytes", "results_bytes", "logs_bytes", "blobs_bytes", "files_bytes"] {
        let message = echo(&format!("[storage]\n{key} = -1")).unwrap_err().to_string();
        assert_eq!(message, format!("registry: storage.{key}: is -1; give a number of bytes, or 0 for no limit"));
        echo(&format!("[storage]\n{key} = 0")).unwrap();
    }
}

#[test]
fn an_unknown_model_is_refused_with_the_known_ones() {
    let message = echo("").unwrap().model("m-2").unwrap_err().to_string();
    assert_eq!(message, "registry: model \"m-2\" is not in it; it has \"m-1\"");
}

#[test]
fn types_and_prompts_are_those_of_models() {
    assert_refused(echo("dtype = \"int8\""), "dtype", "other types are for models");
    let lines = "source = \"m\"\ndtype = \"int8\"\nprompts.query = \"query: \"\ndefault_prompt_name = \"query\"";
    let registry = embed(lines).unwrap();
    assert_eq!(registry.models[0].dtype, Dtype::Int8);
    assert_eq!(Registry::parse(&toml::to_string(&registry).unwrap()).unwrap(), registry);
    let classify = "[[models]]\nname = \"m-1\"\ntask = \"classify\"\nsource = \"m\"\nprompts.query = \"q\"";
    assert_refused(Registry::parse(classify), "prompts", "are for the task \"embed\" alone");
    assert_refused(embed("source = \"m\"\ndtype = \"int4\""), "dtype", "is for the task \"generate\" alone");
    assert_refused(
        embed("source = \"m\"\nprompt_lookup_tokens = 8"),
        "prompt_lookup_tokens",
        "is for the task \"generate\" alone",
    );
    assert_syntax(embed("dtype = \"int2\""), "line 4", "int2");
}
