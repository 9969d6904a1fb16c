//! What a server's error says, as far as a drill may record it: the SQLSTATE, never a text that may hold a
//! value.

use diagnostic::Error;

/// The SQLSTATE of a server's error, if it is one.
pub fn sqlstate(error: &Error) -> Option<&str> {
    cluster::session::sqlstate(error)
}

/// What may be recorded of an error: its code, and its SQLSTATE if it came from a server.
pub fn recordable(error: &Error) -> String {
    match sqlstate(error) {
        Some(state) => format!("{} (SQLSTATE {state})", error.code()),
        None => error.code().to_string(),
    }
}

/// The SQLSTATE in a text that [`recordable`] was put into.
pub fn recorded_sqlstate(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("(SQLSTATE ")?;
    let (state, _) = rest.split_once(')')?;
    let is_one = state.len() == 5
        && state
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase());
    is_one.then_some(state)
}

/// Message and detail as they may stand in the evidence: a server's own text may quote values, so it stays
/// out.
pub fn texts(error: &Error) -> (String, Option<String>) {
    match error.code() {
        "server-error" | "server-refused" | "connection-lost" if sqlstate(error).is_some() => (
            format!("the server answered with an error: {}", recordable(error)),
            None,
        ),
        // These carry the end of a server's log, which the evidence has filtered elsewhere.
        "server-start-failed" | "server-start-timeout" | "server-stop-timeout" => {
            (error.message().into(), None)
        }
        _ => (error.message().into(), error.detail_text().map(Into::into)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_s_text_stays_out_of_the_evidence() {
        let error = Error::new("server-error", "duplicate key \"a@b.c\"")
            .detail("SQLSTATE 23505: Key (a@b.c) exists.");
        assert_eq!(sqlstate(&error), Some("23505"));
        assert_eq!(recordable(&error), "server-error (SQLSTATE 23505)");
        let (message, detail) = texts(&error);
        assert!(!message.contains('@') && detail.is_none());
        // What reads the evidence finds the state in both.
        assert_eq!(recorded_sqlstate(&recordable(&error)), Some("23505"));
        assert_eq!(recorded_sqlstate(&message), Some("23505"));
        for other in [
            "",
            "(SQLSTATE )",
            "(SQLSTATE 2350)",
            "(SQLSTATE 23505",
            "(SQLSTATE a b c)",
        ] {
            assert_eq!(recorded_sqlstate(other), None, "{other}");
        }
        assert_eq!(sqlstate(&Error::new("connection-lost", "gone")), None);
    }
}
