//! How an error explains itself: one type, one renderer, for every room.
//!
//! pgproof speaks as PostgreSQL speaks: a short factual message, a detail, a hint with an exact
//! command, and a stable code that scripts and readers can look up. An [`Error`] says *we could
//! not do it*. *We looked and it is bad* is not an error but a finding, a value of the room that
//! looked, with another exit code.
//!
//! Invariants: a code is a lower-case, hyphenated word that never changes its meaning; the message
//! is one line without a final full stop; the causes are printed once, at the edge, by
//! [`Error::render`]; no secret is ever put into any of the parts.

use std::fmt;

/// How the command ends that could not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// It could not be done: exit code 1.
    CouldNot,
    /// The command line or the configuration is wrong: exit code 2.
    Usage,
}

impl Class {
    /// The exit code of an ordinary command (`wal push` and `wal get` have their own).
    pub fn exit_code(self) -> u8 {
        match self {
            Class::CouldNot => 1,
            Class::Usage => 2,
        }
    }
}

/// Why something could not be done, and what to do about it.
#[derive(Debug, Clone)]
pub struct Error(Box<Inner>);

#[derive(Debug, Clone)]
struct Inner {
    class: Class,
    code: &'static str,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
    causes: Vec<String>,
    io_kind: Option<std::io::ErrorKind>,
}

/// The result of everything that may fail in pgproof.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Something could not be done. `code` is stable (`wal-gap`); `message` is one factual line.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Error(Box::new(Inner {
            class: Class::CouldNot,
            code,
            message: message.into(),
            detail: None,
            hint: None,
            causes: Vec::new(),
            io_kind: None,
        }))
    }

    /// The caller asked for something that makes no sense.
    pub fn usage(code: &'static str, message: impl Into<String>) -> Self {
        let mut error = Error::new(code, message);
        error.0.class = Class::Usage;
        error
    }

    /// An operating system's error, with what was being done (`cannot open file "x"`).
    pub fn io(code: &'static str, message: impl Into<String>, source: &std::io::Error) -> Self {
        let mut error = Error::new(code, message).caused_by(source);
        error.0.io_kind = Some(source.kind());
        if source.kind() == std::io::ErrorKind::StorageFull && error.0.hint.is_none() {
            error.0.hint = Some("Make room on that file system, then run the same command again; it goes on from what is already safe.".into());
        }
        error
    }

    /// What is known about the circumstances: sentences.
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.0.detail = Some(detail.into());
        self
    }

    /// What to do now: sentences, with an exact command where there is one.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Adds an underlying cause, with all of its own sources.
    pub fn caused_by(mut self, source: &(dyn std::error::Error + 'static)) -> Self {
        let mut next = Some(source);
        while let Some(cause) = next {
            let text = cause.to_string();
            // Many libraries repeat the source in their own text; say each thing once.
            if !self.0.causes.last().is_some_and(|last| last.ends_with(&text)) {
                self.0.causes.push(text);
            }
            next = cause.source();
        }
        self
    }

    /// Puts `self` under a wider statement: the new message leads, the old one becomes a cause.
    /// Code, hint and class stay those of the cause unless they are set again.
    pub fn context(mut self, message: impl Into<String>) -> Self {
        let old = std::mem::replace(&mut self.0.message, message.into());
        self.0.causes.insert(0, old);
        self
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        self.0.code
    }

    /// The one-line message.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The detail, if there is one.
    pub fn detail_text(&self) -> Option<&str> {
        self.0.detail.as_deref()
    }

    /// The hint, if there is one.
    pub fn hint_text(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// The kind of the operating system's error at the root, if it was one.
    pub fn io_kind(&self) -> Option<std::io::ErrorKind> {
        self.0.io_kind
    }

    /// How an ordinary command ends with this error.
    pub fn class(&self) -> Class {
        self.0.class
    }

    /// The text for a person, several lines, with a final newline.
    pub fn render(&self) -> String {
        use fmt::Write;
        let mut text = String::new();
        let _ = writeln!(text, "error[{}]: {}", self.0.code, self.0.message);
        for cause in &self.0.causes {
            let _ = writeln!(text, "cause: {}", indent(cause, 7));
        }
        if let Some(detail) = &self.0.detail {
            let _ = writeln!(text, "detail: {}", indent(detail, 8));
        }
        if let Some(hint) = &self.0.hint {
            let _ = writeln!(text, "hint: {}", indent(hint, 6));
        }
        text
    }

    /// The same for a program: `{"error": {"code", "message", "causes", "detail", "hint"}}`.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "error": {
                "code": self.0.code,
                "message": self.0.message,
                "causes": self.0.causes,
                "detail": self.0.detail,
                "hint": self.0.hint,
            }
        })
    }
}

/// Further lines stand under the first one.
fn indent(text: &str, columns: usize) -> String {
    text.replace('\n', &format!("\n{}", " ".repeat(columns)))
}

impl fmt::Display for Error {
    /// The message alone, on one line; the causes are [`Error::render`]'s.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rendering_puts_message_causes_detail_and_hint_in_this_order() {
        let io = std::io::Error::other("disk on fire");
        let error = Error::io("object-write", "cannot write object \"a/b\"", &io)
            .detail("Nothing was acknowledged.\nThe segment stays in pg_wal.")
            .hint("Run `pgproof check`.");
        assert_eq!(
            error.render(),
            "error[object-write]: cannot write object \"a/b\"\n\
             cause: disk on fire\n\
             detail: Nothing was acknowledged.\n        The segment stays in pg_wal.\n\
             hint: Run `pgproof check`.\n"
        );
        assert_eq!(error.class().exit_code(), 1);
    }

    #[test]
    fn context_keeps_the_code_and_turns_the_message_into_a_cause() {
        let error =
            Error::usage("bad-target", "cannot read \"x\" as a time").context("cannot plan the restore");
        assert_eq!(error.code(), "bad-target");
        assert_eq!(
            error.render(),
            "error[bad-target]: cannot plan the restore\ncause: cannot read \"x\" as a time\n"
        );
        assert_eq!(error.class().exit_code(), 2);
    }
}
