//! `pgproof config show`: each value with where it came from.

use diagnostic::Result;
use serde_json::json;

use crate::context::Context;
use crate::{exit, output};

pub fn show(context: &Context) -> Result<u8> {
    let configuration = context.configuration()?;
    let origin = if context.config_file.is_some() {
        "command line"
    } else {
        "default"
    };
    let shown = configuration.show();
    if context.json {
        output::json(&json!({
            "file": configuration.path,
            "file_origin": origin,
            "values": shown,
        }));
        return Ok(exit::DONE);
    }
    output::line(format!("# {} ({origin})", configuration.path.display()));
    let width = shown
        .iter()
        .map(|shown| shown.key.len() + shown.value.len() + 3)
        .max()
        .unwrap_or(0)
        .min(70);
    for shown in shown {
        let assignment = format!("{} = {}", shown.key, shown.value);
        output::line(format!("{assignment:width$}  # {}", shown.origin));
    }
    Ok(exit::DONE)
}
