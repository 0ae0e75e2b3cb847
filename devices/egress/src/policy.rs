//! The policy as people write it: a file of TOML or JSON, or words of a command line.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::rule::{Rule, RuleError};
use crate::rules::{Named, Rules};
use crate::sets;

/// The largest policy file, in bytes.
const MAX_FILE: usize = 1 << 20;
/// The most rules of a policy, those of its sets counted.
const MAX_RULES: usize = 10_000;

/// Why a policy cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// The file is no TOML or JSON, or holds keys that no policy has.
    #[error("the policy does not parse: {0}")]
    Syntax(String),
    /// One of its words is no rule.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// It is too large.
    #[error("the policy is too large: at most {MAX_FILE} bytes and {MAX_RULES} rules")]
    TooLarge,
}

/// What a machine may reach. The default allows nothing.
///
/// ```
/// # use cabana_egress::EgressPolicy;
/// let policy = EgressPolicy::parse(r#"
///     allow = ["pypi", "*.example.com", "tcp://git.example.com:22", "10.1.0.0/16:5432"]
///     deny = ["tracker.example.com"]
///     ask = true
///
///     [session.build]
///     allow = ["debian"]
/// "#)?;
/// assert!(policy.session.contains_key("build"));
/// # Ok::<(), cabana_egress::PolicyError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EgressPolicy {
    /// Rules ([`Rule::parse`]) and names of sets: what may be reached.
    pub allow: Vec<String>,
    /// Rules and names of sets that go before `allow`.
    pub deny: Vec<String>,
    /// Ask about what no rule decides, in place of denying it.
    pub ask: bool,
    /// Let TLS pass whose `ClientHello` is encrypted and whose real name nobody can see here.
    pub ech: bool,
    /// Sessions with rules of their own, in place of those above.
    pub session: BTreeMap<String, SessionPolicy>,
}

/// What a session may reach: its own rules, and none of the machine's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SessionPolicy {
    /// As [`EgressPolicy::allow`].
    pub allow: Vec<String>,
    /// As [`EgressPolicy::deny`].
    pub deny: Vec<String>,
    /// As [`EgressPolicy::ask`].
    pub ask: bool,
    /// As [`EgressPolicy::ech`].
    pub ech: bool,
}

impl EgressPolicy {
    /// Reads a policy file: JSON if it begins with a brace, else TOML. Every rule is checked.
    ///
    /// # Errors
    ///
    /// [`PolicyError`] names the key, the word or the line.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        if text.len() > MAX_FILE {
            return Err(PolicyError::TooLarge);
        }
        let policy: Self = if text.trim_start().starts_with('{') {
            serde_json::from_str(text).map_err(|error| PolicyError::Syntax(error.to_string()))?
        } else {
            toml::from_str(text)
                .map_err(|error| PolicyError::Syntax(error.to_string().trim_end().to_owned()))?
        };
        policy.check()?;
        Ok(policy)
    }

    /// Checks every rule.
    ///
    /// # Errors
    ///
    /// The first word that is no rule.
    pub fn check(&self) -> Result<(), PolicyError> {
        self.compile().map(|_| ())
    }

    /// The rules of the machine and of each session.
    pub(crate) fn compile(&self) -> Result<(Rules, BTreeMap<String, Rules>), PolicyError> {
        let mut budget = MAX_RULES;
        let machine = rules(&self.allow, &self.deny, self.ask, self.ech, &mut budget)?;
        let mut sessions = BTreeMap::new();
        for (name, own) in &self.session {
            let rules = rules(&own.allow, &own.deny, own.ask, own.ech, &mut budget)?;
            sessions.insert(name.clone(), rules);
        }
        Ok((machine, sessions))
    }
}

fn rules(
    allow: &[String],
    deny: &[String],
    ask: bool,
    ech: bool,
    budget: &mut usize,
) -> Result<Rules, PolicyError> {
    Ok(Rules { allow: expand(allow, budget)?, deny: expand(deny, budget)?, ask, ech })
}

/// Puts the rules of sets in the place of their names.
fn expand(words: &[String], budget: &mut usize) -> Result<Vec<Named>, PolicyError> {
    let mut named = Vec::new();
    for word in words {
        if let Some(words) = sets::find(word) {
            for inner in words {
                let rule = Rule::parse(inner)?;
                named.push(Named { text: format!("{word}: {rule}"), rule });
            }
        } else {
            let rule = Rule::parse(word)?;
            named.push(Named { text: rule.to_string(), rule });
        }
        if named.len() > *budget {
            return Err(PolicyError::TooLarge);
        }
    }
    *budget -= named.len();
    Ok(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toml_and_json_say_the_same() {
        let toml = "allow = ['pypi']\nask = true\n[session.a]\ndeny = ['*']\n";
        let json = r#"{"allow":["pypi"],"ask":true,"session":{"a":{"deny":["*"]}}}"#;
        assert_eq!(EgressPolicy::parse(toml), EgressPolicy::parse(json));
        assert!(EgressPolicy::parse(toml).unwrap().ask);
    }

    #[test]
    fn an_empty_file_allows_nothing() {
        assert_eq!(EgressPolicy::parse(""), Ok(EgressPolicy::default()));
        assert_eq!(EgressPolicy::parse("{}"), Ok(EgressPolicy::default()));
    }

    #[test]
    fn a_mistake_is_never_a_policy() {
        for text in [
            "allow = 'pypi'",
            "alow = ['pypi']",
            "allow = ['no rule at all']",
            "[session.a]\nallow = ['1.2.3']",
            "[sessions.a]\nallow = []",
            "{\"allow\": [}",
            "allow = [",
        ] {
            assert!(EgressPolicy::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_size_is_bounded() {
        let many = vec!["a.example".to_owned(); MAX_RULES + 1];
        let policy = EgressPolicy { allow: many, ..EgressPolicy::default() };
        assert_eq!(policy.check(), Err(PolicyError::TooLarge));
        let long = "#".repeat(MAX_FILE + 1);
        assert_eq!(EgressPolicy::parse(&long), Err(PolicyError::TooLarge));
    }
}
