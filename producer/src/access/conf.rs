//! Accounts in the language of a nats-server's configuration. A string of it is written as JSON writes it.

use std::fmt::Write as _;

use schemas::subject::Token;

use super::plan::{self, CORE, Crossing, Kind};

/// The text of `accounts.conf`. `user` gives the public key of an account's user.
pub fn render(tenants: &[Token], user: impl Fn(&str) -> Option<String>) -> String {
    let crossings = plan::crossings(tenants);
    let mut text =
        String::from("# Written by `inferq tenants`, which writes it anew: changes by hand are lost.\naccounts {\n");
    for account in plan::accounts(tenants) {
        let jetstream = if account == CORE { "\n    jetstream: enabled" } else { "" };
        let users = user(&account).map_or(String::new(), |key| format!("{{ nkey: {key} }}"));
        let _ = writeln!(text, "  {account:?}: {{{jetstream}\n    users: [ {users} ]");
        let exports = plan::exports(&crossings, &account).into_iter().map(|(crossing, users)| export(crossing, &users));
        let imports = crossings.iter().filter(|crossing| crossing.to == account).map(import);
        let _ = writeln!(text, "    exports: [\n{}    ]\n    imports: [\n{}    ]\n  }}", list(exports), list(imports));
    }
    text.push_str("}\n");
    text
}

fn list(lines: impl Iterator<Item = String>) -> String {
    lines.map(|line| format!("      {line}\n")).collect()
}

/// Open to those accounts alone.
fn export(Crossing { kind, subject, .. }: &Crossing, users: &[&str]) -> String {
    let users = users.iter().map(|user| format!("{user:?}")).collect::<Vec<_>>().join(", ");
    match kind {
        Kind::Stream => format!("{{ stream: {subject:?}, accounts: [ {users} ] }}"),
        Kind::Service => format!("{{ service: {subject:?}, accounts: [ {users} ] }}"),
        Kind::Answers => format!("{{ service: {subject:?}, accounts: [ {users} ], response_type: stream }}"),
    }
}

fn import(Crossing { kind, from, subject, local, .. }: &Crossing) -> String {
    let name = if *kind == Kind::Stream { "stream" } else { "service" };
    let local = local.as_ref().map_or(String::new(), |local| format!(", to: {local:?}"));
    format!("{{ {name}: {{ account: {from:?}, subject: {subject:?} }}{local} }}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_is_open_to_its_importer_alone_and_an_import_names_both_subjects() {
        let tenants = [Token::encode("a b").unwrap()];
        let text = render(&tenants, |account| (account == CORE).then(|| "UADMIN".to_owned()));
        let lines = [
            "  \"CORE\": {\n    jetstream: enabled\n    users: [ { nkey: UADMIN } ]\n",
            "  \"tenant_a=20b\": {\n    users: [  ]\n",
            "{ service: \"inferq.jobs.*.flex.a=20b.*\", accounts: [ \"tenant_a=20b\" ] }",
            "{ stream: { account: \"CORE\", subject: \"inferq.live.a=20b.*\" } }",
            "to: \"CORE.API.DIRECT.GET.INFERQ_RESULTS.inferq.results.a=20b.*\" }",
        ];
        for line in lines {
            assert!(text.contains(line), "{line:?} is not in\n{text}");
        }
        assert_eq!(text.matches("jetstream").count(), 1);
    }
}
