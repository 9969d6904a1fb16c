//! `pgproof drill show`: a drill's documents, with what was added since, or its whole evidence in a folder.

use diagnostic::{Error, Result};
use drill::{Facts, judge};
use serde_json::json;

use super::{drill as run, drill_stored as stored};
use crate::cli::{self, ShownFormat};
use crate::context::Context;
use crate::{exit, output};

pub fn run(context: &Context, arguments: &cli::DrillShow) -> Result<u8> {
    let (configuration, copies) = stored::open(context, arguments.cluster.as_deref(), None)?;
    let (copy, id) = stored::find(&copies, &arguments.drill)?;
    let bundle = stored::read(&copy.cluster, &id)?;
    if let Some(folder) = &arguments.into {
        let own = stored::write_folder(folder, &id, &bundle)?;
        if context.json {
            output::json(&json!({ "drill": id, "folder": own, "files": bundle.files.len() + 1 }));
        } else {
            output::line(format!("{} files in {}", bundle.files.len() + 1, own.display()));
            output::line(format!(
                "Audit them: pgproof drill audit --bundle {}",
                own.display()
            ));
        }
        return Ok(exit::DONE);
    }
    let content = match bundle.files.get("facts.json") {
        Some(Ok(content)) => content,
        Some(Err(why)) => {
            return Err(
                Error::new("evidence-decode", format!("the facts of drill {id} are damaged"))
                    .detail(why.clone())
                    .hint(format!("Run `pgproof drill audit {id}`.")),
            );
        }
        None => {
            output::line(format!("Drill {id} has no facts. Its evidence:"));
            for file in bundle.files.keys() {
                output::line(format!("  {file}"));
            }
            return Ok(exit::DONE);
        }
    };
    let facts: Facts = serde_json::from_slice(content).map_err(|error| {
        Error::new(
            "evidence-decode",
            format!("the facts of drill {id} cannot be read"),
        )
        .caused_by(&error)
        .hint(format!("Run `pgproof drill audit {id}`."))
    })?;
    let verdict = judge(&facts);
    let beside = stored::circumstances(copy, &facts, &bundle.files, &configuration)?;
    if context.json {
        let mut value = run::value(&facts, &verdict, None);
        if let Some(object) = value.as_object_mut() {
            object.insert(
                "signed".into(),
                json!(drill::sign_off::is_signed(&beside.signatures)),
            );
            object.insert("signatures".into(), json!(beside.signatures));
            object.insert("follow_ups".into(), json!(beside.follow_ups));
        }
        output::json(&value);
        return Ok(exit::DONE);
    }
    let text = match arguments.format {
        ShownFormat::Markdown => report::markdown(&facts, &verdict, &beside),
        ShownFormat::Html => report::html(&facts, &verdict, &beside),
        ShownFormat::Junit => report::junit(&facts, &verdict),
        ShownFormat::InToto => report::statement(&facts, &verdict)
            .ok_or_else(|| Error::new("evidence-encode", "the statement cannot be written as JSON"))?,
    };
    output::line(text.trim_end());
    Ok(exit::DONE)
}
