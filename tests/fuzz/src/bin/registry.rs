//! The registry: a file of TOML, and the streams, consumers and buckets that are made from it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use schemas::registry::Registry;
use schemas::stream;

fuzz_target!(|text: &str| {
    let Ok(registry) = Registry::parse(text) else { return };
    let written = toml::to_string(&registry).expect("a registry that was read can be written");
    assert_eq!(Registry::parse(&written).as_ref().ok(), Some(&registry), "{written}");
    assert!(!stream::streams(&registry).is_empty() && !stream::buckets(&registry.storage).is_empty());
    for model in &registry.models {
        assert_eq!(registry.model(&model.name).ok(), Some(model));
        assert!(model.parsed_source().is_ok());
        assert!(stream::consumers(model).len() > model.lanes.len());
        let _ = model.limits.ack_wait();
    }
});
