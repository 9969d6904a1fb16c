//! Prints the documents of a `facts.json` into a folder, to be looked at: `print FACTS FOLDER [EARLIER-FACTS...]`.

use report::{Circumstances, Earlier};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(file), Some(folder)) = (arguments.next(), arguments.next()) else {
        return Err("usage: print FACTS FOLDER [EARLIER-FACTS...]".into());
    };
    let read = |file: &str| -> Result<drill::Facts, Box<dyn std::error::Error>> {
        Ok(serde_json::from_slice(&std::fs::read(file)?)?)
    };
    let facts = read(&file)?;
    let verdict = drill::judge(&facts);
    let mut beside = Circumstances::default();
    for earlier in arguments {
        let earlier = read(&earlier)?;
        let status = drill::judge(&earlier).status;
        beside.earlier.push(Earlier::of(&earlier, status));
    }
    std::fs::create_dir_all(&folder)?;
    for (name, content) in report::documents(&facts, &verdict, &beside) {
        std::fs::write(std::path::Path::new(&folder).join(name), content)?;
    }
    Ok(())
}
