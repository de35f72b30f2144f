//! What is put before texts for a model that was trained with instructions, by name.

use std::collections::BTreeMap;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompts {
    pub named: BTreeMap<String, String>,
    /// The name of the one for jobs that name none.
    pub default: Option<String>,
}

impl Prompts {
    /// The prompt of that name, or the default one. An unknown name is answered by those there are.
    pub fn get(&self, name: Option<&str>) -> Result<&str, String> {
        match name.or(self.default.as_deref()) {
            None => Ok(""),
            Some(name) => self.named.get(name).map(String::as_str).ok_or_else(|| self.known()),
        }
    }

    /// Whether the default is one of those there are.
    pub fn has_default(&self) -> bool {
        self.default.as_ref().is_none_or(|name| self.named.contains_key(name))
    }

    /// For messages.
    pub fn known(&self) -> String {
        match self.named.is_empty() {
            true => "this model has no prompts".to_owned(),
            false => {
                let names: Vec<String> = self.named.keys().map(|name| format!("{name:?}")).collect();
                format!("this model has {}", names.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_found_by_name_or_by_default() {
        let named: BTreeMap<_, _> = [("query", "query: "), ("passage", "passage: ")]
            .map(|(name, prompt)| (name.to_owned(), prompt.to_owned()))
            .into();
        let mut prompts = Prompts { named, default: None };
        assert_eq!(prompts.get(None), Ok(""));
        assert_eq!(prompts.get(Some("query")), Ok("query: "));
        assert_eq!(prompts.get(Some("x")).unwrap_err(), "this model has \"passage\", \"query\"");
        prompts.default = Some("passage".to_owned());
        assert_eq!(prompts.get(None), Ok("passage: "));
        assert!(prompts.has_default());
        assert_eq!(Prompts::default().get(Some("query")).unwrap_err(), "this model has no prompts");
    }
}
