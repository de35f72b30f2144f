//! Harmony, the format of gpt-oss: an answer is messages of the assistant. Those in the channel `analysis` are thoughts,
//! those in `final` are for the user, and those in `commentary` call a function or say what is to come.

use std::fmt::Write;

use serde_json::Value;

use super::{Call, Choice, Function, Said, any_of, rules};

const MESSAGE: &str = "<|message|>";
const ANALYSIS: &str = "<|channel|>analysis";
const RECIPIENT: &str = "to=functions.";
/// Of a message.
const ENDS: [&str; 3] = ["<|end|>", "<|call|>", "<|return|>"];

/// Special tokens come whole, so nothing has to be held back.
pub fn read(text: &str) -> Said {
    let mut said = Said::default();
    let mut rest = text;
    while let Some((header, after)) = rest.split_once(MESSAGE) {
        let end = ENDS.iter().filter_map(|end| Some((after.find(end)?, end.len()))).min();
        let (at, length) = end.unwrap_or((after.len(), 0));
        let body = &after[..at];
        rest = &after[at + length..];
        if let Some((_, recipient)) = header.split_once(RECIPIENT) {
            let name = recipient.split(|c: char| c.is_whitespace() || c == '<').next().unwrap_or_default();
            said.calls.push(Call { name: name.to_owned(), arguments: body.to_owned() });
        } else if header.contains(ANALYSIS) {
            append(&mut said.reasoning, body);
        } else {
            append(&mut said.content, body);
        }
    }
    said
}

/// Messages of one kind are paragraphs.
fn append(text: &mut String, message: &str) {
    if !text.is_empty() && !message.is_empty() {
        text.push_str("\n\n");
    }
    text.push_str(message);
}

/// Thoughts, then an answer or a call, of which there is one at a time.
pub fn grammar(functions: &[Function<'_>], choice: Choice, content: Option<&Value>) -> String {
    let last = match (choice.is_required, functions.is_empty()) {
        (true, _) => "call",
        (false, true) => "answer",
        (false, false) => "answer | call",
    };
    let mut grammar = format!("start: thought* last\nlast: {last}\nTEXT: /(.|\\n)*/\n");
    grammar.push_str(
        "thought: <|channel|> (\"analysis\" | \"commentary\") <|message|> TEXT <|end|> <|start|> \"assistant\"\n",
    );
    if !choice.is_required {
        let said = if content.is_some() { "content" } else { "TEXT" };
        let _ = writeln!(grammar, "answer: <|channel|> \"final\" <|message|> {said}");
    }
    if let Some(schema) = content.filter(|_| !choice.is_required) {
        let _ = writeln!(grammar, "content: %json {schema}");
    }
    if !functions.is_empty() {
        let _ = writeln!(grammar, "call: <|channel|> \"commentary {RECIPIENT}\" ({})", any_of(functions));
    }
    rules(&mut grammar, functions, "\" \" <|constrain|> \"json\" <|message|>");
    grammar
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::engine::grammar::in_style;
    use crate::engine::grammar::tests::letters;

    const CALL: &str = "<|channel|>analysis<|message|>Look.<|end|><|start|>assistant<|channel|>commentary to=functions.look <|constrain|>json<|message|>{\"at\": 1}<|call|>";

    #[test]
    fn channels_are_told_apart() {
        let said = read(
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>First <this>.<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>",
        );
        assert_eq!((said.reasoning.as_str(), said.content.as_str()), ("Hm.", "First <this>.\n\nYes."));
        let call = Call { name: "look".to_owned(), arguments: "{\"at\": 1}".to_owned() };
        assert_eq!(read(CALL).calls, std::slice::from_ref(&call));
        // As it stands in chats that were.
        assert_eq!(read(" to=functions.look<|channel|>commentary json<|message|>{\"at\": 1}<|call|>").calls, [call]);
    }

    #[test]
    fn what_is_said_of_a_beginning_is_a_beginning() {
        let mut before = Said::default();
        // Special tokens come whole.
        let ends = CALL
            .char_indices()
            .map(|(at, _)| at)
            .filter(|&at| CALL[..at].matches("<|").count() == CALL[..at].matches("|>").count());
        for end in ends.filter(|&end| !CALL[..end].ends_with('<')) {
            let now = read(&CALL[..end]);
            assert!(now.reasoning.starts_with(&before.reasoning) && now.calls.len() >= before.calls.len(), "{now:?}");
            before = now;
        }
        assert_eq!(before.reasoning, "Look.");
    }

    const SPECIAL: [&str; 7] =
        ["<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|call|>"];

    #[test]
    fn whatever_is_drawn_can_be_read() {
        let text = letters(&SPECIAL);
        let parameters = in_style(
            &json!({
                "type": "object", "properties": { "at": { "type": "integer", "minimum": 0, "maximum": 9 } },
                "required": ["at"], "additionalProperties": false,
            }),
            false,
        );
        let functions = [Function { name: "look", parameters: parameters.clone() }];
        let required = Choice { is_required: true, many: true };
        let auto = Choice { is_required: false, many: true };
        let mut random = fastrand::Rng::with_seed(3);
        for (functions, choice, content) in [
            (&functions[..], required, None),
            (&functions[..], auto, None),
            (&functions[..], auto, Some(&parameters)),
            (&[], auto, None),
            (&[], auto, Some(&parameters)),
        ] {
            let grammar = text.lark(grammar(functions, choice, content)).unwrap();
            for _ in 0..20 {
                let (mut progress, mut tokens) = (grammar.after(&[]), Vec::new());
                while !progress.is_at_end() && tokens.len() < 300 {
                    let allowed: Vec<u32> = progress.allowed().unwrap().iter().collect();
                    // Messages end before long, and so does the answer.
                    let special: Vec<u32> = allowed.iter().copied().filter(|&token| token < 7).collect();
                    let token = if random.f32() < 0.3 { random.choice(&special) } else { None };
                    let token = *token.unwrap_or_else(|| random.choice(&allowed).unwrap());
                    progress.take(token);
                    if token == 0 {
                        break;
                    }
                    tokens.push(token);
                }
                let said = read(&text.decode_with(&tokens, false));
                // One that has come to its length may be cut inside a call.
                for call in said.calls.iter().filter(|_| tokens.len() < 300) {
                    let arguments: Value = serde_json::from_str(&call.arguments).unwrap();
                    assert!(call.name == "look" && (0..=9).contains(&arguments["at"].as_i64().unwrap()));
                }
                assert!(!choice.is_required || !progress.is_at_end() || said.calls.len() == 1, "{said:?}");
                assert!(!functions.is_empty() || said.calls.is_empty(), "{said:?}");
            }
        }
    }
}
